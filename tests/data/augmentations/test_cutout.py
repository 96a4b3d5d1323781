"""Cutout: the hole's colour, area and place, against the counts that geometry demands."""

import pytest
import torch
from scipy import stats

from cnnctl.data.augmentations.cutout import Cutout, paste, rectangles

MANY = 6400


def cutout(native=(32, 32), **options) -> Cutout:
    return Cutout(10, True, native, **{"padding": 0, "flip": False, **options})


def holes(run, pipeline: Cutout, side: int) -> torch.Tensor:
    """(MANY, side, side) bool."""
    white = torch.full((MANY, 1, side, side), 255, dtype=torch.uint8)
    return run(pipeline, white)[0][:, 0] != 255


@pytest.mark.parametrize("length", [1, 4, 5, 8])
def test_the_hole_is_a_square_around_a_uniform_pixel_cut_off_at_the_border(run, length):
    side = 8
    found = holes(run, cutout((side, side), length=length), side)
    assert torch.equal(found, found.any(2)[:, :, None] & found.any(1)[:, None])  # a rectangle
    heights = found.any(2).sum(1)
    assert heights.max() == length
    # The number of lines inside, for every centre; each centre has the same chance.
    before = length // 2
    inside = [min(c - before + length, side) - max(c - before, 0) for c in range(side)]
    expected = torch.bincount(torch.tensor(inside), minlength=length + 1)
    present = expected > 0
    counts = torch.bincount(heights, minlength=length + 1)
    assert not counts[~present].any()
    wanted = expected[present].double() * MANY / side
    assert len(wanted) == 1 or stats.chisquare(counts[present], wanted).pvalue > 1e-3
    rows, columns = found.any(2).double().mean(0), found.any(1).double().mean(0)
    assert torch.allclose(rows, columns, atol=0.05)  # row and column are drawn alike


def test_row_and_column_are_drawn_independently(run):
    found = holes(run, cutout((8, 8), length=1), 8)
    counts = found.sum(0).flatten()
    assert counts.sum() == MANY
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3


def test_half_of_the_size_is_the_papers_16_of_32():
    assert cutout().length == 16
    assert cutout((8, 8)).length == 4
    assert cutout((1, 1)).length == 1


def test_the_hole_has_the_mean_colour_and_the_rest_is_kept(random_pixels, run):
    pixels = random_pixels(64).clamp(min=200)
    made, label = run(cutout(mean=(0.1, 0.2, 0.3)), pixels)
    hole = (made != pixels).any(1, keepdim=True)
    colour = torch.tensor([26, 51, 76], dtype=torch.uint8)[:, None, None]
    assert hole.any((1, 2, 3)).all()
    assert torch.equal(made, torch.where(hole, colour, pixels))
    assert made.dtype == torch.uint8
    assert label.tolist() == [k % 10 for k in range(64)]


@pytest.mark.parametrize(("channels", "side"), [(1, 8), (3, 32), (3, 224)])
def test_an_image_does_not_depend_on_its_batch(random_pixels, run, channels, side):
    pixels = random_pixels(8, channels, side, side)
    pipeline = Cutout(10, True, (side, side))
    whole = run(pipeline, pixels)[0]
    index = torch.arange(8)
    halves = [run(pipeline, pixels[s], index=index[s])[0] for s in (slice(4), slice(4, 8))]
    assert torch.equal(torch.cat(halves), whole)
    assert not torch.equal(run(pipeline, pixels, epoch=1)[0], whole)


def test_rectangles_by_hand():
    centre, sides = torch.tensor([[0, 0], [2, 3], [1, 1]]), torch.tensor([[2, 2], [3, 2], [0, 4]])
    made = rectangles(centre, sides, (4, 5))[:, 0].long()
    assert made[0].nonzero().tolist() == [[0, 0]]
    assert made[1].nonzero().tolist() == [[1, 2], [1, 3], [2, 2], [2, 3], [3, 2], [3, 3]]
    assert made[2].sum() == 0


@pytest.mark.parametrize("other", [(6, 3, 5, 4), (3, 1, 1)])
def test_paste_is_where(random_pixels, other):
    pixels, source = random_pixels(6, 3, 5, 4), random_pixels(18, 1, 5, 4, seed=1)
    source = source.flatten()[: torch.Size(other).numel()].view(other)
    mask = random_pixels(6, 1, 5, 4, seed=2) > 127
    before = pixels.clone()
    assert torch.equal(paste(pixels, source, mask), torch.where(mask, source, pixels))
    assert torch.equal(pixels, before)


@pytest.mark.parametrize("length", [0, -3, 33])
def test_bad_numbers_are_named(length):
    with pytest.raises(ValueError, match=f"length must be from 1 to the size 32, got {length}"):
        cutout(length=length)
