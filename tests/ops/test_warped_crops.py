"""Warped crops: worked by hand, against an enlarged image, and against torchvision's RoI align."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.ops import roi_align

from cnnctl.ops import warped_crops as module
from cnnctl.ops.warped_crops import CONTEXT, warped_crops, with_context


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def boxes_of(*rows: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    return torch.tensor(rows), torch.zeros(len(rows), dtype=torch.int64)


def test_a_box_of_the_crops_size_is_a_cut():
    pixels = noise(1, 3, 20, 30)
    crops = warped_crops(pixels, *boxes_of((4.0, 7, 12, 15)), side=8, context=0)
    torch.testing.assert_close(crops[0], pixels[0, :, 7:15, 4:12])


def test_the_papers_context():
    """195 of 227 pixels are the box: 16 of context on each side, whatever the crop's side."""
    box = torch.tensor([[100.0, 50, 295, 245]])  # 195 x 195
    torch.testing.assert_close(with_context(box), torch.tensor([[84.0, 34, 311, 261]]))
    assert pytest.approx(16 / 227) == CONTEXT
    wide = torch.tensor([[0.0, 0, 390, 195]])  # stretched: as many pixels of the crop, not the box
    torch.testing.assert_close(with_context(wide), torch.tensor([[-32.0, -16, 422, 211]]))


def test_beyond_the_image_is_the_mean():
    pixels = torch.ones(1, 1, 4, 4)
    (crop,) = warped_crops(pixels, *boxes_of((-2.0, 1, 2, 5)), side=4, context=0)
    expected = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 0, 0.0]])
    assert crop[0].equal(expected)


def test_half_a_pixel_at_the_border_repeats_it():
    """A 2 x 2 image doubled: 1/4 and 3/4 between the two, the border's own value outside them."""
    pixels = torch.tensor([[[[0.0, 4.0], [0.0, 4.0]]]])
    (crop,) = warped_crops(pixels, *boxes_of((0.0, 0, 2, 2)), side=4, context=0)
    torch.testing.assert_close(crop[0], torch.tensor([0.0, 1, 3, 4]).expand(4, 4))


def test_inside_the_image_it_is_roi_align_with_one_point_a_bin():
    pixels = noise(2, 3, 40, 50)
    boxes = torch.tensor([[5.3, 6.1, 30.2, 33.7], [12.0, 3.0, 20.0, 37.5], [8.4, 8.8, 41.0, 15.2]])
    image = torch.tensor([1, 0, 1])
    own = roi_align(pixels, torch.cat([image[:, None], boxes], 1), 9, 1.0, 1, aligned=True)
    torch.testing.assert_close(warped_crops(pixels, boxes, image, 9, context=0), own)
    grown = torch.cat([image[:, None], with_context(boxes)], 1)
    inside = roi_align(pixels, grown, 9, 1.0, 1, aligned=True)
    crops = warped_crops(pixels, boxes, image, 9)
    torch.testing.assert_close(crops[:, :, 3:-3, 3:-3], inside[:, :, 3:-3, 3:-3])


def test_an_image_ends_where_its_padding_begins():
    small = noise(1, 1, 10, 12)
    padded = torch.zeros(2, 1, 16, 16)
    padded[1:, :, :10, :12] = small
    boxes, image = boxes_of((6.0, 4, 14, 11))
    alone = warped_crops(small, boxes, image, 8)
    assert alone.equal(warped_crops(padded, boxes, image + 1, 8, sizes=[(16, 16), (10, 12)]))


def test_any_order_and_any_chunk_gives_the_same(monkeypatch):
    pixels, image = noise(3, 1, 20, 20), torch.tensor([2, 0, 2, 1, 0, 2])
    corner = torch.rand(6, 2, generator=torch.Generator().manual_seed(1)) * 10
    boxes = torch.cat([corner, corner + 7], 1)
    crops = warped_crops(pixels, boxes, image, 6)
    monkeypatch.setattr(module, "AT_ONCE", 40)
    assert crops.equal(warped_crops(pixels, boxes, image, 6))
    one = [warped_crops(pixels, b[None], i[None], 6) for b, i in zip(boxes, image, strict=True)]
    assert crops.equal(torch.cat(one))


def test_no_boxes():
    crops = warped_crops(noise(2, 3, 9, 9), torch.zeros(0, 4), torch.zeros(0).long(), 5)
    assert crops.shape == (0, 3, 5, 5)


def test_shrinking_is_not_smoothed():
    """As in the published code: of a box of 12 x 12 in 4 x 4 pixels, one in nine counts."""
    pixels = noise(1, 1, 12, 12)
    (crop,) = warped_crops(pixels, *boxes_of((0.0, 0, 12, 12)), side=4, context=0)
    torch.testing.assert_close(crop, pixels[0, :, 1::3, 1::3])
