"""Anchors and default boxes by hand and against torchvision's."""

from __future__ import annotations

import pytest
import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList

from cnnctl.ops.anchors import shapes, tiled
from cnnctl.ops.default_boxes import default_shapes, hard_negative_sum, ratios_of, spread

SCALES, RATIOS = (128, 256, 512), (0.5, 1.0, 2.0)


def test_nine_shapes_of_three_scales_and_three_ratios():
    base = shapes(SCALES, RATIOS)
    assert base.shape == (9, 4)
    width, height = (base[:, 2:] - base[:, :2]).unbind(1)
    torch.testing.assert_close((width * height).sqrt(), torch.tensor(SCALES * 3).float())
    torch.testing.assert_close(height / width, torch.tensor(RATIOS).repeat_interleave(3))
    torch.testing.assert_close(base[:, :2], -base[:, 2:])  # around the origin


def test_tiles_by_hand():
    base = torch.tensor([[-1.0, -2, 1, 2], [-3, -3, 3, 3]])
    found = tiled(base, (2, 3), (10, 20))
    assert found.shape == (12, 4)
    assert found[0].tolist() == [-1, -2, 1, 2]
    assert found[3].tolist() == [17, -3, 23, 3]  # the second shape, one to the right
    assert found[6].tolist() == [-1, 8, 1, 12]  # the first of the second row
    assert tiled(base, (2, 3), (10, 20), 0.5)[0].tolist() == [9, 3, 11, 7]


def test_anchors_are_torchvisions():
    theirs = AnchorGenerator((SCALES,), (RATIOS,))
    images = ImageList(torch.zeros(1, 3, 64, 96), [(64, 96)])
    expected = theirs(images, [torch.zeros(1, 1, 4, 6)])[0]
    assert expected.shape == (9 * 4 * 6, 4)
    assert torch.equal(tiled(shapes(SCALES, RATIOS).round(), (4, 6), (16, 16)), expected)


@pytest.mark.parametrize("centre", [0.0, 0.5])
def test_a_shift_by_a_stride_shifts_the_anchors(centre):
    base = shapes((32, 64), RATIOS)
    placed = tiled(base, (5, 7), (16, 8), centre).view(5, 7, 6, 4)
    down, across = torch.tensor([0.0, 16, 0, 16]), torch.tensor([8.0, 0, 8, 0])
    torch.testing.assert_close(placed[1:], placed[:-1] + down)
    torch.testing.assert_close(placed[:, 1:], placed[:, :-1] + across)


def test_default_shapes_by_hand():
    (first, last) = default_shapes([0.2, 0.8, 1.25], [(4.0,), ()])
    expected = [[0.2, 0.2], [0.4, 0.4], [0.4, 0.1], [0.1, 0.4]]
    torch.testing.assert_close(first, torch.tensor(expected))
    torch.testing.assert_close(last, torch.tensor([[0.8, 0.8], [1.0, 1.0]]))
    (large,) = default_shapes([0.9, 1.6], [(4.0,)])
    torch.testing.assert_close(large[1:3], torch.tensor([[1.0, 1.0], [1.0, 0.45]]))  # no larger


def test_scales_are_those_of_the_paper_and_of_its_code():
    """Equation 4 for six maps, and SSD300's on COCO, 15 to 105 % after the first map's own."""
    assert spread(6, 0.2, 0.9)[:6] == pytest.approx([0.2, 0.34, 0.48, 0.62, 0.76, 0.9])
    assert spread(5, 0.15, 0.87) == pytest.approx([0.15, 0.33, 0.51, 0.69, 0.87, 1.05])
    assert spread(1, 0.2, 0.9) == pytest.approx([0.2, 0.9])
    assert ratios_of(6) == [(2,), (2, 3), (2, 3), (2, 3), (2,), (2,)]
    assert ratios_of(2) == [(2,), (2,)]


def test_default_shapes_are_torchvisions():
    scales = [0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05]
    theirs = DefaultBoxGenerator([[2], [2, 3], [2, 3], [2, 3], [2], [2]], scales=scales)
    for own, expected in zip(default_shapes(scales, ratios_of(6)), theirs._wh_pairs, strict=True):
        torch.testing.assert_close(own, expected.clamp(max=1))


def test_hard_negatives_by_hand():
    """Twice as many as positives: of one, the two most wrong; of none, none; of two, all two."""
    losses = torch.tensor([[9.0, 1, 5, 3, 2], [4, 4, 4, 4, 4], [7, 8, 1, 6, 2]])
    positive = torch.tensor([[1, 0, 0, 0, 0], [0, 0, 0, 0, 0], [1, 1, 0, 0, 1]]).bool()
    rows = [hard_negative_sum(losses[i : i + 1], positive[i : i + 1], 2.0) for i in range(3)]
    assert [row.item() for row in rows] == [5 + 3, 0, 1 + 6]
    assert hard_negative_sum(losses, positive, 2.0).item() == 15
    assert hard_negative_sum(losses, positive, 1.0).item() == 5 + 0 + 7
    weights = losses.clone().requires_grad_()
    hard_negative_sum(weights, positive, 2.0).backward()
    assert weights.grad is not None
    assert weights.grad.tolist() == [[0, 0, 1, 1, 0], [0] * 5, [0, 0, 1, 1, 0]]
