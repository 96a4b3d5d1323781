"""A data set with proposals: samples, columns and batches have them, all else is the whole's."""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from cnnctl.data.augmentations.base import Augmentation
from cnnctl.data.augmentations.short_side import ShortSide
from cnnctl.data.base import ArrayDataset, Dataset
from cnnctl.data.digit_boxes import DigitBoxes
from cnnctl.data.loaders import Loader, ResidentLoader, Share, StreamingLoader
from cnnctl.data.part import Part
from cnnctl.data.proposals.base import ProposalMethod
from cnnctl.data.proposals.sliding_windows import SlidingWindows
from cnnctl.data.proposed import Computed, Proposed, ProposedArray, changed, proposed
from cnnctl.engine import trainer
from cnnctl.engine.distributed import Processes
from cnnctl.engine.machine import Machine
from cnnctl.structures import Batch

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Corner(ProposalMethod):
    """As many boxes as the first pixel says, at most ``count``: nothing where it is black."""

    count: int = 3

    def propose(self, image: Tensor) -> Tensor:
        many = min(int(image[0, 0, 0]) % 5, self.count)
        return torch.tensor([[k, 0.0, k + 2.0, 4.0] for k in range(many)]).reshape(-1, 4)


@pytest.fixture(scope="module")
def scenes() -> DigitBoxes:
    data = DigitBoxes("val", size=64, digits=(1, 3), scale=(0.3, 0.6), val_images=8)
    data.pixels[:, 0, 0, 0] = torch.arange(8, dtype=torch.uint8) % 5  # 0 1 2 3 4 0 1 2
    return data


def in_memory(whole: ArrayDataset, method: ProposalMethod) -> ProposedArray:
    data = proposed(whole, method)
    assert isinstance(data, ProposedArray)
    assert isinstance(data, ArrayDataset)
    return data


def given(batch: Batch) -> Tensor:
    assert batch.images.proposals is not None
    return batch.images.proposals


COUNTS = [0, 1, 2, 3, 3, 0, 1, 2]


def test_of_a_data_set_in_memory_they_are_a_column(scenes):
    data = in_memory(scenes, Corner())
    columns = data.columns()
    assert columns["proposals"].shape == (8, 3, 4)
    there = columns["proposals"][..., 2] > columns["proposals"][..., 0]
    assert there.sum(1).tolist() == COUNTS
    assert columns.keys() == {*scenes.columns(), "proposals"}
    for index, (image, target) in enumerate(data[i] for i in range(8)):
        assert image is not None
        assert len(target["proposals"]) == COUNTS[index]
        assert torch.equal(target["labels"], scenes[index][1]["labels"])


def test_proposals_that_do_not_look_are_made_once(scenes):
    data = in_memory(scenes, SlidingWindows(count=50))
    column = data.columns()["proposals"]
    assert column.shape == (8, 50, 4)
    assert column.stride(0) == 0
    assert torch.equal(column[7], data[3][1]["proposals"])


@pytest.mark.parametrize("size", [64, 32])
def test_one_set_of_all_images_is_loaded_once(scenes, size):
    data = in_memory(scenes, SlidingWindows(count=50))
    loader = ResidentLoader(data, Augmentation(10, False, (64, 64), size), CPU, 0, Share())
    column = data.columns()["proposals"]
    for held, factor in ((loader.columns, 1.0), (loader.moved, size / 64)):
        assert held["proposals"].untyped_storage().nbytes() == 50 * 16
        assert torch.equal(held["proposals"], column * factor)
    assert (loader.moved["boxes"] is loader.columns["boxes"]) == (size == 64)


def test_proposals_count_towards_what_is_held_on_the_device(scenes, monkeypatch):
    """8 images of 3 x 64 x 64 bytes, at most 3 boxes of 16 bytes each; resized twice these."""
    own, smaller = (Augmentation(10, False, (64, 64), size) for size in (64, 32))
    data, shared = in_memory(scenes, Corner()), in_memory(scenes, SlidingWindows(count=50))
    assert trainer.resident_bytes(data, own) == 8 * (3 * 64 * 64 + 3 * 16)
    assert trainer.resident_bytes(data, smaller) == 8 * (3 * 32 * 32 + 2 * 3 * 16)
    assert trainer.resident_bytes(shared, own) == trainer.resident_bytes(scenes, own)
    machine = Machine(CPU, torch.float32, channels_last=False)
    for most, kind in ((0, ResidentLoader), (1, StreamingLoader)):
        monkeypatch.setattr(trainer, "MAX_RESIDENT", 8 * (3 * 64 * 64 + 3 * 16) - most)
        loader = trainer.Trainer(workers=0).load(data, own, machine, Processes(), 0)
        assert type(loader) is kind


@pytest.mark.parametrize("size", [64, 32])
def test_both_loaders_give_a_model_the_same(scenes, size):
    """In original pixels at evaluation; in those of the training image in training."""
    data = in_memory(scenes, Corner())
    own = Augmentation(10, False, (64, 64), size)
    resident = ResidentLoader(data, own, CPU, 0, Share())
    streamed = StreamingLoader(data, own, CPU, 0, Share(), 0)
    for (_, one), (_, other) in zip(resident.in_order(8), streamed.in_order(8), strict=True):
        assert torch.equal(given(one), given(other))
        assert given(one)[1].tolist() == [[0, 0, 2, 4], [0] * 4, [0] * 4]
        assert one.targets.boxes is not None
    for one, other in zip(resident.train(0, 2, 4, 0), streamed.train(0, 2, 4, 0), strict=True):
        found, same = given(one), given(other)
        width = same.shape[1]  # a streamed batch is as wide as its own images need
        assert torch.equal(found[:, :width], same)
        assert not found[:, width:].any()
        first = torch.tensor([0.0, 0, 2, 4]) * (size / 64)
        for row, index in enumerate(one.targets.image_id.tolist()):
            assert torch.equal(found[row, 0], first * (COUNTS[index] > 0))


class Truth:
    """The true boxes as proposals."""

    most = 50

    def __init__(self, data: Dataset) -> None:
        self.data = data

    def of(self, index: int, image: Tensor) -> Tensor:
        return self.data[index][1]["boxes"].clone()


class Shapes(Dataset):
    """Six images of as many shapes with 0, 1, 2, 0, 1, 2 objects."""

    classes, channels, mean, std = ("a", "b"), 1, (0.5,), (0.5,)

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int):
        h, w = 40 + 7 * index, 90 - 11 * index
        boxes = torch.tensor([[0.0, 3, 17, 20], [5, 8, w, h]])[: index % 3]
        return torch.zeros(1, h, w, dtype=torch.uint8), {
            "boxes": boxes,
            "labels": torch.zeros(len(boxes), dtype=torch.int64),
        }

    def fingerprint(self) -> str:
        return "shapes"


def assert_proposals_are_the_truth(batches: Iterable[Batch]) -> None:
    found = 0
    for batch in batches:
        boxes, labels = batch.targets.boxes, batch.targets.labels
        assert boxes is not None
        assert labels is not None
        rows = labels >= 0
        torch.testing.assert_close(given(batch)[rows], boxes[rows], rtol=0, atol=1e-4)
        assert not given(batch)[~rows].any()
        found += int(rows.sum())
    assert found > 5


@pytest.mark.parametrize("size", [64, 32, 100])
@pytest.mark.parametrize("native", [(64, 64), None], ids=["one size", "any size"])
@pytest.mark.parametrize("short", [False, True], ids=["plain", "short side"])
def test_proposals_follow_their_images(scenes, native, short, size):
    """Resized and mirrored as the truth is: those that are the true boxes stay the true boxes."""
    whole = scenes if native else Shapes()
    data = proposed(whole, Corner(), Truth(whole))
    made = Augmentation(10, True, native, size)
    if short:
        several = {} if native else {"sizes": (size, size + 30), "cap": size + 40}
        made = ShortSide(10, True, native, size=size, flip=True, **several)
    loaders: list[Loader] = [StreamingLoader(data, made, CPU, 0, Share(), 0)]
    if native:
        assert isinstance(data, ArrayDataset)
        loaders.append(ResidentLoader(data, made, CPU, 0, Share()))
    for loader in loaders:
        assert_proposals_are_the_truth(loader.train(0, 6, 3, 0))
        for as_trained in (False, True):
            batches = loader.in_order(3, as_trained=as_trained)
            assert_proposals_are_the_truth(batch for _, batch in batches)


def test_no_proposal_in_any_image():
    black = DigitBoxes("val", size=64, digits=(1, 1), scale=(0.3, 0.6), val_images=4)
    black.pixels[:, 0, 0, 0] = 0
    data = in_memory(black, Corner())
    assert data.columns()["proposals"].shape == (4, 0, 4)
    loader = ResidentLoader(data, Augmentation(10, False, (64, 64)), CPU, 0, Share())
    (batch,) = loader.train(0, 1, 4, 0)
    assert given(batch).shape == (4, 0, 4)
    assert given(next(batch.split(2))).shape == (2, 0, 4)


class Annotated(Dataset):
    classes, channels, mean, std = ("a", "b"), 1, (0.5,), (0.5,)
    image_ids = (7, 8, 9, 10)

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int):
        target = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
        return torch.full((1, 4, 6), index + 1, dtype=torch.uint8), target

    def fingerprint(self) -> str:
        return "annotated"

    def remarks(self) -> list[str]:
        return ["a remark"]

    def sample_name(self, index: int) -> str:
        return f"file {index}"

    def all_truth(self):
        return {"image": 1}


def test_everything_else_is_the_wholes():
    whole = Annotated()
    data = proposed(whole, Corner())
    assert type(data) is Proposed
    assert not isinstance(data, ArrayDataset)
    assert (data.classes, data.channels, data.size, data.mirror) == (("a", "b"), 1, None, True)
    assert data.all_truth() == {"image": 1}
    assert data.image_ids == (7, 8, 9, 10)
    assert data.remarks() == ["a remark"]
    assert data.sample_name(2) == "file 2"
    assert [len(data[i][1]["proposals"]) for i in range(4)] == [1, 2, 3, 3]
    again = pickle.loads(pickle.dumps(data))
    assert len(again) == 4
    assert again.image_ids == (7, 8, 9, 10)


def test_a_part_is_of_the_whole_before_its_proposals():
    data = proposed(Part(Annotated(), 2), Corner())
    assert [len(data[i][1]["proposals"]) for i in range(2)] == [1, 3]
    assert data.sample_name(1) == "file 2"


def test_the_fingerprint_is_of_data_and_settings(scenes):
    found = {
        proposed(Annotated(), Corner()).fingerprint(),
        proposed(Annotated(), Corner(count=2)).fingerprint(),
        proposed(Annotated(), SlidingWindows()).fingerprint(),
        proposed(scenes, Corner()).fingerprint(),
        Annotated().fingerprint(),
    }
    assert len(found) == 5
    assert proposed(Annotated(), Corner()).fingerprint() in found


def test_what_of_a_fingerprint_changed(scenes):
    whole = Annotated()
    one, fewer, others = (
        proposed(data, method).fingerprint()
        for data, method in ((whole, Corner()), (whole, Corner(count=2)), (scenes, Corner()))
    )
    assert changed(one, fewer) == "proposals"
    for other in (others, None, whole.fingerprint()):
        assert changed(one, other) == "data"
    assert changed("one", "another") == changed(None, "another") == "data"


def test_of_many_sizes_a_few_are_held(scenes):
    found = Computed(SlidingWindows(count=3))
    for side in range(4, 44):
        assert len(found.of(0, torch.zeros(1, side, side))) == 3
    assert len(found._of_size) == 16
