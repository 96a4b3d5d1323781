"""The proposal network by hand: anchors, what is kept, what is trained on. Its numbers against
torchvision's are in test_faster_rcnn.py."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from cnnctl.models.detection import Truth
from cnnctl.models.region_proposals import (
    ProposalSettings,
    RegionProposals,
    Said,
    sides_for,
)
from cnnctl.structures import Images

ALL = 10**6


def network(**settings) -> RegionProposals:
    torch.manual_seed(0)
    return RegionProposals(4, [(32,)], (1.0,), ProposalSettings(**settings))


def images_of(*sizes: tuple[int, int]) -> Images:
    high, wide = (max(sides) for sides in zip(*sizes, strict=True))
    return Images(torch.zeros(len(sizes), 3, high, wide), list(sizes), list(sizes))


def said_of(boxes: Any, *logits: list[float], counts: list[int] | None = None) -> Said:
    """Anchors that are not moved, with their logits in each image."""
    places, scores = torch.tensor(boxes).float(), torch.tensor(logits).float()
    deltas = torch.zeros(len(scores), len(places), 4)
    return Said(scores, deltas, places, counts or [len(places)])


def truth_of(*rows: list[list[float]]) -> Truth:
    most = max(len(row) for row in rows)
    boxes = torch.zeros(len(rows), most, 4)
    labels = torch.full((len(rows), most), -1)
    for i, row in enumerate(rows):
        boxes[i, : len(row)] = torch.tensor(row).view(-1, 4)
        labels[i, : len(row)] = 0
    return Truth(boxes, labels)


def test_order_of_anchors_is_the_maps():
    """Position by position, its ratios together; map after map."""
    rpn = RegionProposals(2, [(16,), (64,)], (0.25, 4.0), ProposalSettings())
    maps = [torch.zeros(1, 2, 2, 3), torch.zeros(1, 2, 1, 1)]
    said = rpn(maps, (32, 48))
    assert said.counts == [12, 2]
    assert said.anchors[:2].tolist() == [[-16, -4, 16, 4], [-4, -16, 4, 16]]
    assert said.anchors[2].tolist() == [0, -4, 32, 4]  # a stride of 16 to the right
    assert said.anchors[6].tolist() == [-16, 12, 16, 20]
    assert said.anchors[12].tolist() == [-64, -16, 64, 16]
    # Without its neighbours, what a position says of its anchors depends on it alone.
    neighbours = ([0, 0, 0, 1, 1, 2, 2, 2], [0, 1, 2, 0, 2, 0, 1, 2])
    rpn.state_dict()["head.conv.0.0.weight"][:, :, *neighbours] = 0
    maps[0][0, :, 1, 2] = 1.0
    changed = (rpn(maps, (32, 48)).logits != said.logits)[0].nonzero().flatten()
    assert changed.tolist() == [10, 11]


def test_what_is_proposed():
    """The likelier of two that overlap, of each map and each image for itself, within it."""
    boxes = [[0, 0, 40, 40], [0, 0, 40, 36], [50, 50, 90, 120], [200, 0, 210, 10], [0, 0, 40, 40]]
    said = said_of(boxes, [1, 2, 3, 9, 0], [5, 2, -3, 9, 0], counts=[4, 1])
    found = network().eval().propose(said, images_of((100, 100), (60, 80)))
    assert found.there.tolist() == [[True] * 3, [True] * 3]
    assert found.boxes[0].tolist() == [[50, 50, 90, 100], [0, 0, 40, 36], [0, 0, 40, 40]]
    assert found.boxes[1].tolist() == [[0, 0, 40, 40], [0, 0, 40, 40], [50, 50, 80, 60]]
    assert found.scores.tolist() == [[3, 2, 0], [5, 0, -3]]


def test_fewer_proposals():
    boxes = [[10.0 * i, 0, 10.0 * i + 9, 9] for i in range(6)]
    said = said_of(boxes, [0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0])
    rpn = network(before=(4, 6), after=(3, 2))
    images = images_of((10, 60), (10, 12))
    found = rpn.train().propose(said, images)
    assert found.boxes[..., 0].tolist() == [[50, 40, 30], [0, 10, 0]]
    assert found.there.tolist() == [[True] * 3, [True, True, False]]
    assert found.scores[1].tolist() == [5, 4, -torch.inf]
    assert rpn.eval().propose(said, images).boxes.shape == (2, 2, 4)


def test_losses_by_hand():
    """Two images; the second has no box. Of five anchors one is neither object nor background."""
    boxes = [[0, 0, 10, 10], [0, 0, 10, 20], [0, 0, 10, 8], [60, 0, 70, 10], [-4, 30, 6, 40]]
    logits = [0.5, 1.0, -1.0, 2.0, -0.5]
    said = said_of(boxes, logits, logits)
    rpn = network(anchors=ALL)
    images, truth = images_of((80, 80), (80, 80)), truth_of([[0, 0, 10, 10]], [])
    losses = rpn.losses(said, images, truth)

    def cross(logit: float, truth: bool) -> float:
        return math.log1p(math.exp(-logit if truth else logit))

    first = cross(0.5, True) + cross(-1.0, True) + cross(2.0, False) + cross(-0.5, False)
    second = sum(cross(logit, False) for logit in logits)
    assert losses["rpn_object"].item() == pytest.approx((first + second) / 9)
    # The third anchor lacks a tenth of its own height below, and ln(10 / 8) of its size.
    apart = [1 / 8, math.log(10 / 8)]
    smooth = sum(x - 1 / 18 if x > 1 / 9 else 4.5 * x**2 for x in apart)
    assert losses["rpn_box"].item() == pytest.approx(smooth / 9, rel=1e-5)


def test_anchors_across_the_border_do_not_count():
    boxes = [[0, 0, 10, 10], [0, 0, 10, 20], [0, 0, 10, 8], [60, 0, 70, 10], [-4, 30, 6, 40]]
    rpn, truth = network(inside=True), truth_of([[0, 0, 10, 10]], [[-3, 30, 6, 40]])
    matched = rpn.matched(torch.tensor(boxes).float(), images_of((80, 80), (9, 70)), truth)
    # The best anchor of a box that only crossing ones overlap is none.
    assert matched.tolist() == [[0, -2, 0, -1, -2], [-2, -2, -1, -2, -2]]
    everywhere = network().matched(torch.tensor(boxes).float(), images_of((80, 80)), truth)
    assert everywhere[1].tolist() == [-1, -1, -1, -1, 0]


def test_the_best_anchor_lies_inside():
    """A box gets the anchor within the image that overlaps it most, though a crossing one does
    more."""
    places = torch.tensor([[-2.0, 0, 8, 10], [0, 0, 5, 5], [60, 0, 70, 10]])
    truth = truth_of([[0, 0, 8, 10]])
    matched = network(inside=True).matched(places, images_of((80, 80)), truth)
    assert matched.tolist() == [[-2, 0, -1]]


def test_half_of_the_sample_are_objects():
    """Of as many objects as there are; background fills the rest."""
    torch.manual_seed(0)
    boxes = [[0, 0, 10, 10]] * 30 + [[60, 0, 70, 10]] * 30
    said = said_of(boxes, [0.0] * 60)
    said.deltas.requires_grad_()
    said.logits.requires_grad_()
    losses = network(anchors=16).losses(said, images_of((80, 80)), truth_of([[0, 0, 10, 11]]))
    gradient = torch.autograd.grad(losses["rpn_object"], said.logits)[0][0]
    assert int((gradient < 0).sum()) == int((gradient > 0).sum()) == 8
    assert gradient.abs().sum().item() == pytest.approx(0.5)
    assert (gradient[:30] <= 0).all()


def test_sides_on_any_image():
    assert sides_for((600, 1000)) == (128, 256, 512)
    assert sides_for((120, 96)) == pytest.approx((20.48, 40.96, 81.92))


def test_weights_that_are_not_numbers_propose_nothing():
    said = said_of([[0, 0, 10, 10]], [math.nan])
    said.deltas += math.nan
    found = network().propose(said, images_of((20, 20)))
    assert found.boxes.shape == (1, 0, 4)


def test_published_names():
    state = network().state_dict()
    older: dict[str, Tensor] = {name.replace("conv.0.0.", "conv."): v for name, v in state.items()}
    rpn = RegionProposals(4, [(32,)], (1.0,), ProposalSettings())
    rpn.load_state_dict(older)  # strictly
    for name, value in rpn.state_dict().items():
        torch.testing.assert_close(value, state[name])
