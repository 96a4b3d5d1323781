"""Scenes of digits: what is drawn is what the truth says, and no split sees another's digits."""

from typing import Any

import pytest
import torch

from cnnctl.data import digit_scenes
from cnnctl.data.base import ArrayDataset
from cnnctl.data.digit_scenes import DigitScenes, Scenes, draw_scenes
from cnnctl.data.digits import Digits

FEW: dict[str, Any] = {"train_images": 40, "val_images": 20, "test_images": 20}


@pytest.fixture(scope="module")
def data() -> DigitScenes:
    return DigitScenes("train", **FEW)


def test_shapes_and_facts(data):
    image, target = data[3]
    assert image.shape == (3, 96, 96)
    assert image.dtype == target["mask"].dtype == torch.uint8
    assert target["mask"].shape == (96, 96)
    assert data.classes == ("background", *"0123456789")
    assert data.size == (96, 96)
    assert data.mirror is False
    assert len(data.palette) == len(data.classes) == 11
    assert len(DigitScenes("val", **FEW)) == 20


def test_a_scene_depends_on_seed_split_and_index_alone(data, monkeypatch):
    monkeypatch.setattr(digit_scenes, "draw_scenes", draw_scenes)  # drawn again
    more = DigitScenes("train", train_images=300)
    torch.testing.assert_close(more.pixels[:40], data.pixels, rtol=0, atol=0)
    torch.testing.assert_close(more.masks[:40], data.masks, rtol=0, atol=0)
    assert len({scene.numpy().tobytes() for scene in more.pixels}) == 300
    assert not torch.equal(DigitScenes("train", **FEW, seed=1).pixels, data.pixels)
    assert not torch.equal(DigitScenes("val", **FEW).pixels, data.pixels[:20])
    assert data.fingerprint() == DigitScenes("train", **FEW).fingerprint()
    assert data.fingerprint() != more.fingerprint()


def test_the_numbers_asked_for(data):
    counts = (data.scenes.labels >= 0).sum(1)
    assert counts.min() >= 3
    assert counts.max() <= 7
    assert len(counts.unique()) == 5
    heights = []
    boxes, visible = data.scenes.boxes()
    for box, seen in zip(boxes.flatten(0, 1), visible.flatten(), strict=True):
        if seen:
            heights.append(float(box[3] - box[1]))
            assert 0 <= box[0] < box[2] <= 96
            assert 0 <= box[1] < box[3] <= 96
    assert max(heights) < 0.46 * 96 * 1.35  # turned by up to 14 degrees
    exactly = DigitScenes("val", **FEW, digits=(3, 3), size=64, scale=(0.5, 0.5))
    assert exactly.size == (64, 64)
    assert (exactly.scenes.labels >= 0).sum(1).unique().tolist() == [3]


def test_class_map_instances_and_labels_agree(data):
    scenes = data.scenes
    for mask, instances, labels in zip(data.masks, scenes.instances, scenes.labels, strict=True):
        assert torch.equal(mask == 0, instances == 0)
        for number in range(1, len(labels) + 1):
            own = mask[instances == number].unique().tolist()
            assert own in ([], [int(labels[number - 1]) + 1])


def test_boxes_by_hand():
    instances = torch.zeros(1, 5, 6, dtype=torch.uint8)
    instances[0, 1:3, 2:5] = 1
    instances[0, 2, 2] = 3
    scenes = Scenes(
        torch.zeros(1, 3, 5, 6), instances, torch.tensor([[7, 4, 0]]), torch.zeros(1, 3, 5)
    )
    boxes, visible = scenes.boxes()
    assert visible.tolist() == [[5, 0, 1]]
    assert boxes.tolist() == [[[2, 1, 5, 3], [0, 0, 0, 0], [2, 2, 3, 3]]]
    assert scenes.class_maps()[0].tolist() == [
        [0, 0, 0, 0, 0, 0],
        [0, 0, 8, 8, 8, 0],
        [0, 0, 1, 8, 8, 0],
        [0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0],
    ]


def test_the_truth_is_where_the_ink_is():
    """Over the edge of a digit's mask the picture changes; within the background it hardly does."""
    data = DigitScenes("val", val_images=60)
    grey = data.pixels.float().mean(1)
    across = (grey[:, :, 2:] - grey[:, :, :-2]).abs()
    edge = data.masks[:, :, 2:] != data.masks[:, :, :-2]
    flat = (data.masks[:, :, 2:] == 0) & ~edge
    assert across[edge].mean() > 4 * across[flat].mean()


def test_splits_share_no_digit():
    """Digits that are told apart by their own grey value turn up in the scenes of their split."""

    class Marked(ArrayDataset):
        classes = tuple("0123456789")

    for value in (128, 255):
        source = Marked(torch.full((5, 1, 8, 8), value, dtype=torch.uint8), torch.arange(5))
        scenes = draw_scenes(source, 8, 48, (1, 3), (0.3, 0.5), 0, "train")
        assert set(scenes.labels.unique().tolist()) <= {-1, 0, 1, 2, 3, 4}
    parts = [Digits(split) for split in ("train", "val", "test")]
    seen = [{image.numpy().tobytes() for image in part.pixels} for part in parts]
    assert not seen[0] & seen[1]
    assert not (seen[0] | seen[1]) & seen[2]


def test_stated_mean_and_deviation():
    data = DigitScenes("train", train_images=800)
    pixels = data.pixels.float() / 255
    torch.testing.assert_close(pixels.mean((0, 2, 3)), torch.tensor(data.mean), rtol=0, atol=5e-3)
    torch.testing.assert_close(pixels.std((0, 2, 3)), torch.tensor(data.std), rtol=0, atol=5e-3)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("size", 8),
        ("digits", (0, 3)),
        ("digits", (4, 3)),
        ("scale", (0.01, 0.3)),
        ("scale", (0.5, 0.3)),
        ("train_images", 0),
    ],
)
def test_numbers_that_make_no_scene(key, value):
    with pytest.raises(ValueError, match=key):
        DigitScenes("train", **{key: value})
