"""Shapes on pictures by their pixels: where one is, which is on top, and in which colour."""

from __future__ import annotations

import pytest
import torch

from cnnctl.drawing.pictures import BLACK
from cnnctl.drawing.shape_marks import (
    OPACITY,
    Shape,
    drawn,
    first_on_top,
    numbered,
    painted,
    shades,
    shape_of,
    shapes_of,
    smallest_first,
)
from cnnctl.ops.masks import pack, whole_mask

FULL = torch.ones(1, 1, dtype=torch.bool)
GREY = 100


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("fit", [(0.4, -0.3), (1.0, 0.0), (3.7, 5.3), (2.0, 31.1)])
def test_a_shape_is_where_its_whole_mask_is(fit, mirrored):
    """Scaled, moved, cut at the image's edge and mirrored, against the mask at the image's size."""
    generator = torch.Generator().manual_seed(0)
    masks = [torch.rand(7, 11, generator=generator) < 0.5, torch.ones(3, 9, dtype=torch.bool)]
    frames = torch.tensor([[2.0, 3, 13, 10], [-4.0, 20, 5, 23]]) * fit[0] + fit[1]
    if mirrored:
        frames = frames[:, [2, 1, 0, 3]]
    bits, crops = pack(masks)
    shapes = shapes_of(bits, crops, frames)
    for number, shape in enumerate(shapes):
        expected = whole_mask(bits, crops[number], frames[number], (30, 40))
        assert torch.equal(numbered([shape], (30, 40)) > 0, expected)


def test_later_shapes_are_on_top_or_the_first():
    shapes = [Shape(FULL, (0, 0, 4, 4)), Shape(FULL, (2, 2, 6, 6))]
    assert numbered(shapes, (6, 6))[1].tolist() == [1, 1, 1, 1, 0, 0]
    assert numbered(shapes, (6, 6))[3].tolist() == [1, 1, 2, 2, 2, 2]
    assert first_on_top(shapes, (6, 6))[3].tolist() == [1, 1, 1, 1, 2, 2]
    assert first_on_top(shapes, (6, 6))[5].tolist() == [0, 0, 2, 2, 2, 2]


def test_what_cuts_a_shape_off_moves_with_it():
    shape = Shape(FULL, (0, 0, 8, 4), within=(2, 0, 5, 3)).scaled(2, 1)
    assert numbered([shape], (4, 16)).nonzero().tolist() == [
        [y, x] for y in range(3) for x in range(4, 10)
    ]


@pytest.mark.parametrize(
    "frame",
    [(50, 0, 60, 4), (-9, 0, -2, 4), (float("nan"), 0, 4, 4), (0, 0, float("inf"), 4)],
)
def test_a_shape_outside_or_without_a_place_is_left_out(frame):
    assert not numbered([Shape(FULL, frame)], (8, 8)).any()
    assert not numbered([Shape(FULL[:0], (0, 0, 0, 0))], (8, 8)).any()


def test_a_mask_of_an_image_is_cropped():
    mask = torch.zeros(9, 9, dtype=torch.bool)
    mask[2:4, 5:8] = True
    mask[2, 6] = False
    shape = shape_of(mask)
    assert shape.frame == (5, 2, 8, 4)
    assert shape.mask.tolist() == [[True, False, True], [True, True, True]]
    assert torch.equal(numbered([shape], (9, 9)) > 0, mask)
    assert not numbered([shape_of(mask & False)], (9, 9)).any()


def test_the_smallest_are_first():
    hollow = torch.zeros(4, 4, dtype=torch.bool)
    hollow[0, 0] = True
    large, thin = Shape(FULL, (0, 0, 3, 3)), Shape(hollow, (9, 0, 0, 9))
    shapes, colours = smallest_first([large, thin], [(1, 1, 1), (2, 2, 2)])
    assert shapes == [thin, large]  # 81 / 16 pixels and 9
    assert colours == [(2, 2, 2), (1, 1, 1)]


def test_a_fill_is_mixed_an_outline_is_not_and_beside_it_is_dark():
    picture = torch.full((3, 12, 12), GREY, dtype=torch.uint8)
    colour = (200, 0, 40)
    index = numbered([Shape(FULL, (2, 2, 10, 10))], (12, 12))
    found = painted(picture, index, [colour], 2).permute(1, 2, 0)
    mixed = [round(GREY * (1 - OPACITY) + level * OPACITY) for level in colour]
    assert found[6].tolist() == [
        *([GREY] * 3, [*BLACK], [*colour], [*colour]),
        *[mixed] * 4,
        *([*colour], [*colour], [*BLACK], [GREY] * 3),
    ]


def test_two_that_touch_have_an_outline_each():
    colours = [(200, 200, 200), (100, 100, 100)]
    index = numbered([Shape(FULL, (0, 0, 6, 12)), Shape(FULL, (6, 0, 12, 12))], (12, 12))
    found = painted(torch.zeros(3, 12, 12, dtype=torch.uint8), index, colours, 1)
    assert found[0, 6].tolist() == [100] * 5 + [200] + [100] + [50] * 5


def test_objects_of_a_class_differ_in_lightness():
    colours = shades([1, 0, 1, 1, 1, 1, 1], [(0, 0, 0), (100, 150, 200)])
    assert colours[:2] == [(100, 150, 200), (0, 0, 0)]
    of_one = [colours[0], *colours[2:6]]
    assert len(set(of_one)) == 5
    assert colours[6] == colours[0]
    brightness = [sum(colour) for colour in of_one]
    assert brightness[1] > brightness[0] > brightness[2]


def test_drawn_enlarges_shapes_and_boxes_alike():
    image = torch.full((1, 10, 20), GREY, dtype=torch.uint8)
    picture = drawn(image, [Shape(FULL, (5, 2, 10, 6))], [(0, 255, 0)], [], 100)
    assert picture.shape == (3, 50, 100)
    painted_green = (picture[1] > GREY) & (picture[0] < GREY)
    assert painted_green.nonzero().amin(0).tolist() == [10, 25]
    assert painted_green.nonzero().amax(0).tolist() == [29, 49]
