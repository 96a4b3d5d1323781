"""Which regions are shown with their targets, and that showing them changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cnnctl.drawing.mask_target_pictures import Shown, _one_of_each, draw_batch_targets, shown_of
from cnnctl.models.instance import InstanceModel, Instances
from cnnctl.ops.masks import cropped, pack
from cnnctl.structures import Batch, Images, Targets

SIZE = (32, 32)


class Proposing(InstanceModel):
    """Knows where three boxes are, the likeliest first; the last is no proposal."""

    BOXES = ((0.0, 0, 32, 32), (4, 4, 20, 16), (4, 4, 20, 20), (4, 4, 20, 18))

    def features(self, pixels: Tensor) -> Any:
        return pixels

    def losses(self, features, images, truth):
        return {}

    def detect(self, features, images) -> Instances:
        n = len(images)
        boxes, scores = torch.zeros(n, 1, 4), torch.zeros(n, 1)
        return Instances(boxes, scores, torch.zeros(n, 1).long(), torch.zeros(n, 1, 8, 8))

    def proposals(self, features, images) -> tuple[Tensor, Tensor]:
        n = len(images)
        boxes = torch.tensor(self.BOXES)[None].repeat(n, 1, 1)
        return boxes, torch.tensor([3.0, 2, 1, -torch.inf]).repeat(n, 1)


class Data:
    classes, palette = ("cat", "dog"), ((0, 200, 255), (255, 0, 255))
    mean, std = (0.5,), (0.25,)


def a_batch() -> Batch:
    """One image of an object whose lower half is empty, as large as its box; and one of none."""
    mask = torch.zeros(SIZE, dtype=torch.bool)
    mask[4:12, 4:20] = mask[19, 19] = True
    crop, frame = cropped(mask)
    bits, crops = pack([crop])
    frames = torch.stack([frame, torch.zeros(4)])[:, None]
    targets = Targets(
        torch.arange(2),
        boxes=frames,
        labels=torch.tensor([[1], [-1]]),
        frames=frames,
        crops=torch.stack([crops, crops * 0]),
        bits=torch.stack([bits, bits]),
    )
    return Batch(Images(torch.zeros(2, 1, *SIZE), [SIZE] * 2, [SIZE] * 2), targets)


def test_regions_are_positive_proposals_and_the_truth_with_what_they_see_of_the_object():
    first, second = shown_of(Proposing(), a_batch())
    assert first.boxes.tolist() == [[4, 4, 20, 16], [4, 4, 20, 20], [4, 4, 20, 20]]
    assert first.overlaps.tolist() == pytest.approx([12 / 16, 1, 1])
    assert first.labels.tolist() == [1, 1, 1]
    assert first.targets.shape == (3, 8, 8)
    whole = torch.zeros(8, 8)
    whole[:4] = 1
    assert torch.equal(first.targets[1].round(), whole)
    assert first.targets[1, 7, 7] == pytest.approx(0.25)  # one pixel of the four of a bin
    part = first.targets[0]  # 12 rows in 8 bins: the mask ends after a third of the sixth
    assert (part[1:5] == 1).all()
    assert part[5].tolist() == pytest.approx([1 / 3] * 8, abs=0.1)
    assert (part[6:] == 0).all()
    assert len(second.boxes) == 0


def test_one_region_of_each_object_comes_first():
    matched = torch.tensor([2, -1, 2, 0, 0, -2, 2, 1])
    assert _one_of_each(matched, 9).tolist() == [0, 3, 7, 2, 4, 6]
    assert _one_of_each(matched, 4).tolist() == [0, 3, 7, 2]
    assert _one_of_each(torch.tensor([-1, -2]), 4).tolist() == []


def test_pictures_draw_no_random_number_and_have_a_target_beside_each_region():
    before = torch.get_rng_state()
    drawn = draw_batch_targets(Proposing(), a_batch(), Data())  # pyright: ignore
    assert torch.equal(torch.get_rng_state(), before)
    with_regions, without = drawn
    assert with_regions.shape[1] > 1.5 * without.shape[1]
    right = with_regions[:, without.shape[1] :]
    assert (right == 127.5).all(-1).sum() == 0
    grey = (right == 128).all(-1).sum()  # the crops: the image is mid-grey
    assert grey >= 3 * 112 * 112
    assert draw_batch_targets(nn.Conv2d(1, 1, 1), a_batch(), Data()) == []  # pyright: ignore


def test_a_record_is_on_the_cpu():
    (first, _) = shown_of(Proposing(), a_batch())
    assert isinstance(first, Shown)
    assert {column.device.type for column in vars(first).values()} == {"cpu"}
