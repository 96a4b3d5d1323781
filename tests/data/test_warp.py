"""Windows and warps against whole images that are resized, against SciPy and plain indexing."""

import numpy as np
import pytest
import torch
from scipy import ndimage
from torchvision.transforms.v2 import functional as vision

from cnnctl.data.warp import (
    View,
    centres,
    displacement,
    largest_share,
    scaled_part,
    turned,
    warp,
    warp_map,
)

FILL = torch.tensor([7, 80, 200], dtype=torch.uint8)[:, None, None]


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 255, shape, generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("corner", [(0, 0), (3, 5), (-4, 2), (6, -7), (-3, -2), (20, 0), (-9, 30)])
@pytest.mark.parametrize("factor", [1, 2])
def test_a_window_is_cut_from_the_padded_image(corner, factor):
    """Of an image of 12 x 14, whole pixels of it, so that cutting before scaling is exact."""
    image, mask = noise(3, 12, 14), noise(12, 14, seed=1)
    corner, size = (corner[0] * factor, corner[1] * factor), (10 * factor, 8 * factor)
    view = View((12 * factor, 14 * factor), corner, size)
    large = 64
    canvas = FILL.repeat(1, 3 * large, 3 * large)
    labels = torch.full((3 * large, 3 * large), 255, dtype=torch.uint8)
    inside = (slice(large, large + 12 * factor), slice(large, large + 14 * factor))
    grown = image.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
    canvas[:, inside[0], inside[1]] = grown
    labels[inside] = mask.repeat_interleave(factor, 0).repeat_interleave(factor, 1)
    rows = slice(large + corner[0], large + corner[0] + size[0])
    columns = slice(large + corner[1], large + corner[1] + size[1])
    assert torch.equal(view.map(mask, 255), labels[rows, columns])
    seen, outside = view.image(image, FILL), labels[rows, columns] == 255
    assert torch.equal(seen[:, outside], canvas[:, rows, columns][:, outside])
    if factor == 1:
        assert torch.equal(seen, canvas[:, rows, columns])


@pytest.mark.parametrize("scaled", [(6, 7), (18, 21), (5, 9), (23, 14)])
def test_a_window_on_all_of_an_image_is_torchvisions_resize(scaled):
    image, mask = noise(3, 12, 14), noise(12, 14, seed=1)
    view = View(scaled, (0, 0), scaled)
    assert torch.equal(view.image(image, FILL), vision.resize(image, list(scaled), antialias=True))
    nearest = vision.resize(
        mask[None], list(scaled), interpolation=vision.InterpolationMode.NEAREST_EXACT
    )[0]
    assert torch.equal(view.map(mask, 255), nearest)


@pytest.mark.parametrize(
    ("box", "source"),
    [((0, 0, 16, 16), (0, 10, 0, 10)), ((6, 5, 4, 4), (4, 6, 3, 6)), ((15, 0, 1, 1), (9, 10, 0, 1)),
     ((2, 13, 6, 3), (1, 5, 8, 10))],
)  # fmt: skip
def test_edges_are_moved_to_whole_pixels(box, source):
    """Of 10 x 10 pixels seen as 16 x 16: row 6 begins at 3.75, so at 4; row 10 at 6.25, so at 6."""
    image, (top, bottom, left, right) = noise(3, 10, 10), source
    part = image[:, top:bottom, left:right]
    expected = vision.resize(part, list(box[2:]), antialias=True)
    assert torch.equal(scaled_part(image, (16, 16), box, smooth=True), expected)
    nearest = vision.InterpolationMode.NEAREST_EXACT
    expected = vision.resize(part, list(box[2:]), interpolation=nearest)
    assert torch.equal(scaled_part(image, (16, 16), box, smooth=False), expected)


@pytest.mark.parametrize("corner", [(0, 0), (-4, 2), (3, -5), (100, 0)])
def test_points_at_their_own_places_change_nothing(corner):
    image, mask = noise(3, 12, 14), noise(12, 14, seed=1)
    weight = torch.rand(12, 14, generator=torch.Generator().manual_seed(2)) + 0.1
    straight = View((12, 14), corner, (9, 10))
    bent = View((12, 14), corner, (9, 10), centres((9, 10))[None])
    assert torch.equal(bent.image(image, FILL), straight.image(image, FILL))
    assert torch.equal(bent.map(mask, 255), straight.map(mask, 255))
    assert torch.equal(bent.map(weight, 0), straight.map(weight, 0))


@pytest.mark.parametrize("points", [None, centres((9, 10))[None]])
def test_a_view_is_flipped_at_last(points):
    image, mask = noise(3, 12, 14), noise(12, 14, seed=1)
    plain = View((12, 14), (-2, 6), (9, 10), points)
    for flip, axes in (((True, False), [-1]), ((False, True), [-2]), ((True, True), [-1, -2])):
        view = View((12, 14), (-2, 6), (9, 10), points, flip)
        assert torch.equal(view.image(image, FILL), plain.image(image, FILL).flip(axes))
        assert torch.equal(view.map(mask, 255), plain.map(mask, 255).flip(axes))


def test_only_what_is_seen_is_scaled():
    """A strip enlarged ten million times would not fit into memory."""
    image = torch.full((3, 4, 4), 9, dtype=torch.uint8)
    view = View((40_000_000, 40_000_000), (10_000_000, 10_000_000), (5, 6))
    assert (view.image(image, FILL) == 9).all()
    points = centres((5, 6))[None] * 1e6 - 3e6
    far = View((4, 4), (0, 0), (5, 6), points).image(image, FILL)
    assert torch.equal(far, FILL.expand(3, 5, 6))


def test_bilinear_is_scipys():
    pixels = noise(2, 3, 11, 9)
    points = torch.rand(2, 2, 6, 5, generator=torch.Generator().manual_seed(0)) * 14 - 2
    made = warp(pixels, points, FILL)
    for n in range(2):
        for c in range(3):
            place = points[n].flip(0).numpy() - 0.5  # SciPy counts from centres, rows first
            expected = ndimage.map_coordinates(
                pixels[n, c].float().numpy(),
                place,
                order=1,
                mode="grid-constant",
                cval=float(FILL[c]),
            )
            np.testing.assert_allclose(made[n, c].numpy(), expected, atol=1e-3)


def test_a_map_has_the_pixel_that_a_point_lies_in():
    mask = noise(2, 11, 9)
    weight = torch.rand(2, 11, 9, generator=torch.Generator().manual_seed(1))
    points = torch.rand(2, 2, 30, 20, generator=torch.Generator().manual_seed(0)) * 14 - 2
    made, heavy = warp_map(mask, points, 255), warp_map(weight, points, 0)
    x, y = points.floor().long().unbind(1)
    inside = (x >= 0) & (x < 9) & (y >= 0) & (y < 11)
    image = torch.arange(2)[:, None, None].expand(-1, 30, 20)
    index = (image, y.clamp(0, 10), x.clamp(0, 8))
    assert 0.3 < inside.double().mean() < 0.7
    assert torch.equal(made, torch.where(inside, mask[index], 255))
    assert torch.equal(heavy, torch.where(inside, weight[index], 0))


def test_every_class_survives_a_warp():
    every = torch.arange(256, dtype=torch.uint8).view(1, 16, 16)
    assert torch.equal(warp_map(every, centres((16, 16))[None], 255), every)


def test_a_quarter_turn_is_rot90():
    image = noise(3, 8, 8)
    angles = torch.tensor([0.0, 0.5, 1.0, -0.5]) * torch.pi
    points = turned(centres((8, 8))[None], angles, (8, 8))
    made = warp(image.expand(4, 3, 8, 8), points, FILL)
    for one, quarters in zip(made, (0, 1, 2, 3), strict=True):
        assert torch.allclose(one, image.rot90(quarters, (1, 2)).float(), atol=1e-3)


def test_a_field_goes_through_its_vectors_and_is_smooth():
    vectors = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    field = displacement(vectors, (9, 13))
    assert field.shape == (4, 2, 9, 13)
    assert torch.allclose(field[:, :, ::4, ::6], vectors, atol=1e-5)
    constant = displacement(torch.full((1, 2, 3, 3), 2.5), (9, 13))
    assert torch.allclose(constant, torch.tensor(2.5))


def test_shares_of_hand_made_masks():
    masks = torch.tensor(
        [[0, 0, 1, 2], [3, 3, 3, 255], [254, 255, 255, 255], [255, 255, 255, 255], [5, 6, 7, 8]],
        dtype=torch.uint8,
    )
    share = largest_share(masks.view(5, 2, 2))
    assert share.tolist() == [0.5, 1.0, 1.0, float("inf"), 0.25]
