"""Loaders: pure functions of the position, the same however the data is held."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest
import torch

from cnnctl.data.augmentations.base import Augmentation
from cnnctl.data.augmentations.cutmix import Cutmix
from cnnctl.data.augmentations.mixup import Mixup
from cnnctl.data.augmentations.standard import Standard
from cnnctl.data.base import Dataset
from cnnctl.data.digit_boxes import DigitBoxes
from cnnctl.data.digits import Digits
from cnnctl.data.folder import Folder
from cnnctl.data.loaders import Normalize, ResidentLoader, Share, StreamingLoader, steps_per_epoch
from cnnctl.engine.distributed import Processes
from cnnctl.engine.machine import Machine
from cnnctl.engine.trainer import Trainer
from cnnctl.errors import Exit, UserError
from cnnctl.structures import Batch

CPU = torch.device("cpu")


def resident(data, augmentation=None, seed=0):
    return ResidentLoader(data, augmentation or Augmentation(10, False, (8, 8)), CPU, seed, Share())


def streaming(data, augmentation=None, seed=0, workers=0):
    augmentation = augmentation or Augmentation(10, False, (8, 8))
    return StreamingLoader(data, augmentation, CPU, seed, Share(), workers)


@pytest.fixture(scope="module")
def digits() -> Digits:
    return Digits("train")


@pytest.fixture(scope="module")
def pictures(picture_folder) -> Folder:
    return Folder("train", str(picture_folder))


def same(one: Batch, other: Batch) -> bool:
    assert one.targets.label is not None
    assert other.targets.label is not None
    return (
        torch.equal(one.images.pixels, other.images.pixels)
        and torch.equal(one.targets.image_id, other.targets.image_id)
        and torch.equal(one.targets.label, other.targets.label)
        and one.images.sizes == other.images.sizes
        and one.images.originals == other.images.originals
    )


def test_every_epoch_sees_every_image_but_the_rest(digits):
    """1,078 images in batches of 100: ten a pass, and each pass leaves out 78 others."""
    assert steps_per_epoch(1078, 100) == 10
    ids = [batch.targets.image_id for batch in resident(digits).train(0, 30, 100, 0)]
    epochs = [torch.cat(ids[start : start + 10]) for start in (0, 10, 20)]
    left_out = [set(range(1078)) - set(epoch.tolist()) for epoch in epochs]
    for epoch, left in zip(epochs, left_out, strict=True):
        assert len(set(epoch.tolist())) == 1000
        assert len(left) == 78
    assert left_out[0] != left_out[1] != left_out[2]
    assert not torch.equal(epochs[0], epochs[1])


def test_order_depends_on_seed_and_stage(digits):
    def order(seed: int, stage: int) -> list[int]:
        batch = next(resident(digits, seed=seed).train(0, 1, 50, stage))
        return batch.targets.image_id.tolist()

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(seed, stage)) for seed in (0, 1) for stage in (0, 1)}) == 4


@pytest.mark.parametrize("make", [resident, streaming])
@pytest.mark.parametrize("start", [1, 9, 10, 17, 24])
def test_a_jump_is_where_walking_leads(make, start, digits):
    augmentation = Standard(10, False, (8, 8))
    walked = list(make(digits, augmentation).train(0, 25, 100, 0))
    jumped = list(make(digits, augmentation).train(start, 25, 100, 0))
    assert len(jumped) == 25 - start
    assert all(same(a, b) for a, b in zip(walked[start:], jumped, strict=True))


def test_resident_and_streaming_are_one(digits):
    """The same samples, augmentation and normalisation, in training and in evaluation."""
    augmentation = Standard(10, False, (8, 8), size=12)
    pairs = zip(
        resident(digits, augmentation).train(3, 14, 100, 0),
        streaming(digits, augmentation).train(3, 14, 100, 0),
        strict=True,
    )
    assert all(same(a, b) for a, b in pairs)
    held, streamed = (
        list(make(digits, augmentation).in_order(100)) for make in (resident, streaming)
    )
    assert [number for number, _ in held] == [number for number, _ in streamed] == list(range(11))
    assert all(same(a, b) for (_, a), (_, b) in zip(held, streamed, strict=True))


def test_streamed_images_of_many_sizes_are_evaluated_uncropped_by_chance(pictures):
    """What evaluation sees is ``sample_eval``, not the random crop of training."""
    augmentation = Standard(3, True, None, size=16)
    batches = [batch for _, batch in streaming(pictures, augmentation).in_order(7)]
    seen = torch.cat([batch.images.pixels for batch in batches])
    prepared = torch.stack([augmentation.sample_eval(image) for image, _ in pictures])
    assert torch.equal(seen, Normalize(pictures.mean, pictures.std, CPU)(prepared))


@pytest.mark.parametrize("make", [resident, streaming])
def test_boxes_are_in_the_pixels_that_originals_says(make):
    """Training's are those of the resized image, evaluation's those of the data."""
    data = DigitBoxes("train", size=48, digits=(2, 5), train_images=6)
    loader = make(data, Augmentation(10, True, (48, 48), size=32))
    evaluated = [batch for _, batch in loader.in_order(4)]
    for batches, side in ((loader.train(0, 2, 3, 0), 32), (evaluated, 48)):
        seen = []
        for batch in batches:
            assert batch.images.sizes == [(32, 32)] * len(batch)
            assert batch.images.originals == [(side, side)] * len(batch)
            columns = (batch.targets.labels, batch.targets.boxes, batch.targets.area)
            for index, *own in zip(batch.targets.image_id.tolist(), *columns, strict=True):
                there, seen = own[0] >= 0, [*seen, index]
                truth, share = data[index][1], side / 48
                assert torch.equal(own[0][there], truth["labels"])
                torch.testing.assert_close(own[1][there], truth["boxes"] * share)
                torch.testing.assert_close(own[2][there], truth["area"] * share**2)
        assert sorted(seen) == list(range(6))


@pytest.mark.parametrize("mixing", [Mixup, Cutmix])
def test_a_batch_of_one_cannot_be_mixed(mixing, digits):
    machine, augmentation = Machine(CPU, torch.float32, True), mixing(10, False, (8, 8))
    with pytest.raises(UserError, match="mixes the images") as caught:
        Trainer(batch_size=1).load(digits, augmentation, machine, Processes(), 0)
    assert caught.value.field == "trainer.batch_size"
    Trainer(batch_size=2).load(digits, augmentation, machine, Processes(), 0)


def test_workers_change_nothing(pictures):
    """Images of many sizes, cropped at random in the workers."""
    augmentation = Standard(3, True, None, size=16)
    runs = [
        list(streaming(pictures, augmentation, workers=workers).train(2, 11, 8, 0))
        for workers in (0, 1, 2)
    ]
    for other in runs[1:]:
        assert all(same(a, b) for a, b in zip(runs[0], other, strict=True))
    first = runs[0][0].images
    assert len(set(first.originals)) > 1
    assert set(first.sizes) == {(16, 16)}
    epochs = list(streaming(pictures, augmentation).train(0, 12, 8, 0))
    crops = {}  # a sample is cropped otherwise in another epoch
    for batch in epochs:
        for index, pixels in zip(batch.targets.image_id.tolist(), batch.images.pixels, strict=True):
            crops.setdefault(index, []).append(pixels)
    repeated = [seen for seen in crops.values() if len(seen) > 1]
    assert repeated
    assert all(not torch.equal(seen[0], seen[1]) for seen in repeated)


def test_a_sample_is_augmented_alike_in_any_batch(digits):
    augmentation = Standard(10, False, (8, 8))
    small = list(resident(digits, augmentation).train(0, 1078 // 7, 7, 0))
    large = list(resident(digits, augmentation).train(0, 1078 // 154, 154, 0))
    pixels = [torch.cat([batch.images.pixels for batch in batches]) for batches in (small, large)]
    assert torch.equal(*pixels)


def test_normalised_pixels_have_mean_0_and_deviation_1(digits):
    pixels = torch.cat([batch.images.pixels for _, batch in resident(digits).in_order(500)])
    assert abs(float(pixels.mean())) < 1e-3
    assert float(pixels.std()) == pytest.approx(1, abs=1e-3)


def test_normalize_is_torchvisions(pictures):
    from torchvision.transforms.v2.functional import normalize, to_dtype

    pixels = torch.stack([pictures[0][0][:, :8, :8], pictures[1][0][:, :8, :8]])
    expected = normalize(to_dtype(pixels, torch.float32, scale=True), pictures.mean, pictures.std)
    torch.testing.assert_close(
        Normalize(pictures.mean, pictures.std, CPU)(pixels), expected, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("make", [resident, streaming])
@pytest.mark.parametrize("size", [1, 100, 1078, 5000])
def test_in_order_is_every_image_once_and_not_augmented(make, size, digits):
    batches = [batch for _, batch in make(digits, Standard(10, False, (8, 8))).in_order(size)]
    ids = torch.cat([batch.targets.image_id for batch in batches])
    assert torch.equal(ids, torch.arange(1078))
    expected = Normalize(digits.mean, digits.std, CPU)(digits.pixels)
    assert torch.equal(torch.cat([batch.images.pixels for batch in batches]), expected)


class Broken(Dataset):
    """Nine grey images, of which the eighth cannot be read in one of several ways."""

    classes = ("a", "b")
    channels, mean, std = 1, (0.5,), (0.5,)

    def __init__(self, how: str) -> None:
        self.how = how

    def __len__(self) -> int:
        return 9

    def __getitem__(self, index: int) -> tuple[torch.Tensor, dict[str, Any]]:
        if index == 7 and self.how == "user":
            raise UserError("is cut off", file="7.png", code=Exit.DATA)
        if index == 7 and self.how == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if index == 7:
            raise IndexError("a fault in a data set")
        return torch.zeros(1, 8, 8, dtype=torch.uint8), {"label": index % 2}

    def fingerprint(self) -> str:
        return self.how


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_sample_is_named(workers):
    loader = streaming(Broken("user"), workers=workers)
    with pytest.raises(UserError, match=r"7\.png: is cut off") as caught:
        list(loader.in_order(4))
    assert caught.value.code == Exit.DATA


@pytest.mark.parametrize("workers", [0, 1])
def test_a_fault_of_ours_stays_one(workers):
    with pytest.raises(IndexError, match="a fault in a data set"):
        list(streaming(Broken("bug"), workers=workers).in_order(4))


def test_a_worker_that_is_killed_is_a_sentence():
    with pytest.raises(UserError, match="a loader process died or hung") as caught:
        list(streaming(Broken("dies"), workers=1).in_order(4))
    assert caught.value.code == Exit.MACHINE
    assert "trainer.workers" in str(caught.value)


def test_memory_is_pinned_by_columns(digits):
    """The record that a worker sends keeps its epoch through every move."""
    from cnnctl.data.loaders import _collate

    loaded = _collate([(3, 0, *digits[0]), (3, 5, *digits[5])])
    assert not isinstance(loaded, UserError)
    assert loaded.epoch == 3
    assert loaded.targets.image_id.tolist() == [0, 5]
