"""Regions by hand: which are trained on, their losses, and their names."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from cnnctl.models.detection import Truth
from cnnctl.models.regions import (
    Regions,
    best_regions,
    hardest_of_images,
    in_a_row,
    named_regions,
    region_losses,
    sampled,
)
from cnnctl.structures import Images

ALL = 10**6
# Of an object at [0, 0, 10, 10] they overlap by 1, 0.6, 0.3 and 0; the last row is none.
PROPOSALS = [[0, 0, 10, 10], [0, 0, 10, 6], [0, 0, 10, 3], [50, 50, 60, 60], [0, 0, 0, 0]]
THERE = torch.tensor([[True] * 4 + [False]] * 2)


def proposals() -> torch.Tensor:
    return torch.tensor([PROPOSALS] * 2).float()


def truth() -> Truth:
    """An object of class 2 in the first image, and a row that is none."""
    boxes = torch.tensor([[[0, 0, 0, 0], [0, 0, 10, 10]], [[0, 0, 0, 0]] * 2]).float()
    return Truth(boxes, torch.tensor([[-1, 2], [-1, -1]]))


def test_what_is_trained_on():
    """All proposals and all true boxes, not the rows that fill up."""
    regions = sampled(proposals(), THERE, truth(), 3, ALL, positives=1.0)
    assert regions.image.tolist() == [0] * 5 + [1] * 4
    assert regions.labels.tolist() == [2, 2, 3, 3, 2] + [3] * 4
    assert regions.owner.tolist() == [1, 1, -1, -1, 1] + [-1] * 4
    assert regions.boxes.tolist() == [*PROPOSALS[:4], PROPOSALS[0], *PROPOSALS[:4]]
    # The second lies 2 pixels of 6 above its object and has 6 of its 10 pixels; times 10 and 5.
    expected = torch.tensor([0, 20 / 6, 0, 5 * math.log(10 / 6)])
    torch.testing.assert_close(regions.wanted[1], expected)
    assert regions.wanted.isfinite().all()


def test_background_near_objects_only():
    """Fast R-CNN's least overlap: what is farther is not trained on."""
    regions = sampled(proposals(), THERE, truth(), 3, ALL, positives=1.0, lowest=0.1)
    assert regions.labels.tolist() == [2, 2, 3, 2]
    assert regions.boxes[2].tolist() == PROPOSALS[2]


def test_share_of_objects():
    torch.manual_seed(0)
    boxes = torch.tensor([[0, 0, 10, 9]] * 20 + [[50, 50, 60, 60]] * 20)
    there = torch.ones(2, 40, dtype=torch.bool)
    regions = sampled(boxes.float().expand(2, -1, -1), there, truth(), 3, 16)
    assert regions.image.tolist() == [0] * 16 + [1] * 16
    assert int((regions.labels == 2).sum()) == 4


@pytest.mark.parametrize("rows", [0, 2])
def test_without_a_box(rows):
    none = Truth(torch.zeros(2, rows, 4), torch.full((2, rows), -1))
    regions = sampled(proposals(), THERE, none, 3, ALL)
    assert regions.labels.tolist() == [3] * 8
    logits, deltas = torch.zeros(8, 4, requires_grad=True), torch.ones(8, 3, 4, requires_grad=True)
    losses = region_losses(logits, deltas, regions)
    assert losses["class"].item() == pytest.approx(math.log(4))
    assert losses["box"] == 0
    (losses["class"] + losses["box"]).backward()
    assert deltas.grad is not None
    assert deltas.grad.abs().sum() == 0


def test_without_a_region():
    none = sampled(
        proposals(), THERE & False, Truth(torch.zeros(2, 0, 4), THERE[:, :0].long()), 3, 9
    )
    logits, deltas = torch.zeros(0, 4, requires_grad=True), torch.zeros(0, 3, 4, requires_grad=True)
    for hardest in (None, 5):
        losses = region_losses(logits, deltas, none, hardest=hardest)
        assert losses["class"] == losses["box"] == 0


def some_regions() -> Regions:
    """Objects of classes 0 and 1 and background, in two images."""
    labels = torch.tensor([0, 2, 1, 2])
    wanted = torch.tensor([[1.0, 0, 0, 0], [9, 9, 9, 9], [0, 0, 0.5, 0], [9, 9, 9, 9]])
    owner = torch.tensor([0, -1, 0, -1])
    return Regions(torch.zeros(4, 4), torch.tensor([0, 0, 1, 1]), labels, owner, wanted)


@pytest.mark.parametrize(("bend", "expected"), [(1.0, 0.5 + 0.125), (1 / 9, 1 + 0.5 - 1 / 9)])
def test_losses_by_hand(bend, expected):
    """Each object is placed by its own class's numbers; of background nothing is asked."""
    regions = some_regions()
    logits = torch.tensor([[2.0, 0, 0], [0, 0, 3.0], [1.0, 0, 0], [0, 1.0, 0]])
    deltas = torch.zeros(4, 2, 4)
    deltas[0, 1], deltas[2, 0] = 7.0, 7.0  # of other classes
    losses = region_losses(logits, deltas, regions, bend=bend)
    assert losses["class"] == F.cross_entropy(logits, regions.labels)
    assert losses["box"].item() == pytest.approx(expected / 4)
    together = region_losses(logits, deltas[:, :1] * 0, regions, bend=bend)
    torch.testing.assert_close(together, losses)


def test_the_hardest_of_each_image():
    loss = torch.tensor([1.0, 5, 3, 2, 9, 4, 0])
    image = torch.tensor([0, 0, 0, 2, 2, 2, 3])
    assert sorted(hardest_of_images(loss, image, 2).tolist()) == [1, 2, 4, 5, 6]
    assert len(hardest_of_images(loss, image, 9)) == 7
    regions = some_regions()
    logits = torch.tensor([[9.0, 0, 0], [0, 9.0, 0], [9.0, 0, 0], [0, 0, 9.0]])
    deltas = regions.wanted[:, None]
    losses = region_losses(logits, deltas, regions, hardest=1)
    hard = F.cross_entropy(logits[1:3], regions.labels[1:3])
    torch.testing.assert_close(losses["class"], hard)
    # The first region is placed so badly that it is the hardest of it.
    losses = region_losses(
        logits, deltas + torch.tensor([20.0, 0, 0, 0])[:, None, None], regions, hardest=1
    )
    assert losses["box"].item() == pytest.approx((4 * 20 - 4 / 18) / 2)


def test_in_a_row():
    boxes = torch.arange(24.0).view(2, 3, 4)
    row, image = in_a_row(boxes)
    assert image.tolist() == [0, 0, 0, 1, 1, 1]
    assert row.tolist() == boxes.view(6, 4).tolist()
    assert [part.shape[0] for part in in_a_row(boxes[:, :0])] == [0, 0]


@pytest.mark.parametrize("own", [True, False])
def test_names_of_regions(own):
    """Each class moves a region for itself, or all alike; rows that are none have no name."""
    boxes = torch.tensor([[[10, 10, 20, 20], [40, 10, 60, 30], [0, 0, 0, 0]]] * 2).float()
    there = torch.tensor([[True, True, False], [True, False, False]])
    logits = torch.full((6, 3), -20.0)
    logits[0, 0] = logits[1, 1] = logits[2, 0] = logits[3, 1] = logits[4, 0] = 20.0
    deltas = torch.zeros(2, 3, 2, 4)
    deltas[:, :, 1, 0] = 5.0  # half a width to the right, for the second class
    deltas = deltas if own else deltas[:, :, 1:]
    images = Images(torch.zeros(2, 3, 64, 64), [(64, 64)] * 2, [(64, 64)] * 2)
    found = named_regions(
        logits, deltas.flatten(0, 1), boxes, there, images, score=0.5, overlap=0.5, most=5
    )
    assert found.labels.sort(1).values.tolist() == [[0, 1], [-1, 1]]
    order = found.labels[0].argsort()
    first = [10, 10, 20, 20] if own else [15, 10, 25, 20]
    assert found.boxes[0, order].tolist() == [first, [50, 10, 64, 30]]
    assert found.boxes[1, 0].tolist() == [15, 10, 25, 20]
    torch.testing.assert_close(found.scores[0], torch.ones(2))


def test_regions_without_area_have_no_name():
    boxes = torch.tensor([[[10.0, 10, 20, 20], [64, 10, 80, 30]]])  # one lies beyond the image
    images = Images(torch.zeros(1, 3, 64, 64), [(64, 64)], [(64, 64)])
    logits, deltas = torch.tensor([[9.0, 0]] * 2), torch.zeros(2, 1, 4)
    there = torch.ones(1, 2, dtype=torch.bool)
    found = named_regions(logits, deltas, boxes, there, images, score=0.5, overlap=0.5, most=5)
    assert found.boxes.tolist() == [[[10, 10, 20, 20]]]


def test_best_regions_of_moved_boxes():
    boxes = torch.tensor([[[0.0, 0, 10, 10], [1, 0, 11, 10], [20, 20, 30, 30], [0, 0, 0, 0]]])
    there = torch.tensor([[True, True, True, False]])
    scores = torch.tensor([[0.9, 0.2], [0.8, 0.6], [0.01, 0.7]])
    codes = torch.zeros(3, 2, 4)
    codes[2, 1, 0] = 1.5  # a box and a half to the right: cut at the border
    images = Images(torch.zeros(1, 1, 40, 40), [(40, 40)], [(40, 40)])
    found = best_regions(scores, codes, boxes, there, images, score=0.05, overlap=0.3, most=9)
    assert found.labels.tolist() == [[0, 1, 1]]
    torch.testing.assert_close(found.scores, torch.tensor([[0.9, 0.7, 0.6]]))
    assert found.boxes.tolist() == [[[0, 0, 10, 10], [35, 20, 40, 30], [1, 0, 11, 10]]]
    still = best_regions(scores, None, boxes, there, images, score=0.05, overlap=0.3, most=9)
    assert still.boxes[0, 1].tolist() == [20, 20, 30, 30]
    nothing = best_regions(
        *(scores[:0], codes[:0], boxes[:, :0], there[:, :0], images),
        **dict(score=0.05, overlap=0.3, most=9),  # pyright: ignore[reportArgumentType]
    )
    assert nothing.boxes.shape == (1, 0, 4)
