"""Alternating flips: two epochs after each other show every image both ways."""

import pytest
import torch
import torch.nn.functional as F
from scipy import stats

from cnnctl.data.augmentations.alternating_flip import (
    AlternatingFlip,
    is_mirrored,
    reflected,
    squares,
)
from cnnctl.randomness import Draw


def alternating(side: int = 32, **options) -> AlternatingFlip:
    return AlternatingFlip(10, True, (side, side), **options)


def test_two_epochs_show_every_image_both_ways_once(random_pixels, run):
    pixels, pipeline = random_pixels(500, 1, 4, 4), alternating(4, padding=0)
    mirror = pixels.flip(3)
    shown = [run(pipeline, pixels, epoch=epoch)[0] for epoch in range(4)]
    ways = [(made == mirror).all((1, 2, 3)) for made in shown]
    assert stats.binomtest(int(ways[0].sum()), 500).pvalue > 1e-3
    for epoch, made in enumerate(shown):
        assert torch.equal(ways[epoch], ways[0] ^ bool(epoch % 2))
        assert torch.equal(made[~ways[epoch]], pixels[~ways[epoch]])
    other = run(pipeline, pixels, seed=1)[0]
    assert not torch.equal((other == mirror).all((1, 2, 3)), ways[0])


def test_which_way_is_the_images_own():
    """Whatever batch and order it comes in."""
    index = torch.arange(100)
    whole = is_mirrored(Draw(3, 5, index))
    assert torch.equal(is_mirrored(Draw(3, 5, index.flip(0))).flip(0), whole)
    assert torch.equal(is_mirrored(Draw(3, 5, index[40:50])), whole[40:50])


@pytest.mark.parametrize(("shape", "padding"), [((8, 8), 2), ((5, 9), 4), ((2, 2), 1)])
def test_reflection_is_torchs(random_pixels, shape, padding):
    pixels = random_pixels(3, 3, *shape)
    expected = F.pad(pixels.float(), (padding,) * 4, mode="reflect")
    assert torch.equal(reflected(pixels, padding).float(), expected)


def test_images_are_windows_of_the_reflected_image(random_pixels, run):
    pixels, pipeline = random_pixels(300, 2, 8, 8), alternating(8, padding=2, flip=False)
    made, padded = run(pipeline, pixels)[0], reflected(pixels, 2)
    windows = padded.unfold(2, 8, 1).unfold(3, 8, 1).permute(0, 2, 3, 1, 4, 5)  # (N, 5, 5, C, 8, 8)
    found = (windows == made[:, None, None]).all((3, 4, 5)).long().sum(0)
    assert found.sum() >= 300
    assert (found > 0).all()


def test_a_square_is_blank_and_within_the_image(random_pixels, run):
    pixels = random_pixels(400, 3, 8, 8).clamp_(min=1)
    made = run(alternating(8, padding=0, flip=False, length=3), pixels)[0]
    blank = (made == 0).all(1)  # (N, H, W)
    assert torch.equal(
        made[~blank[:, None].expand_as(made)], pixels[~blank[:, None].expand_as(made)]
    )
    assert (blank.sum((1, 2)) == 9).all()
    assert ((blank.any(1).sum(1) == 3) & (blank.any(2).sum(1) == 3)).all()
    assert blank.any(0).all(), "every pixel is blank in some"
    grey = AlternatingFlip(10, True, (8, 8), mean=(0.5, 0.2, 1.0), padding=0, flip=False, length=8)
    assert run(grey, pixels)[0][0, :, 0, 0].tolist() == [128, 51, 255]
    places = squares(pixels, 8, Draw(0, 0, torch.arange(400)))
    assert places.all()


def test_digits_are_not_mirrored(random_pixels, run):
    pixels = random_pixels(50, 1, 8, 8)
    still = AlternatingFlip(10, False, (8, 8), padding=0)
    assert torch.equal(run(still, pixels, epoch=1)[0], pixels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"padding": 32}, "padding must be below the size 32, got 32"),
        ({"length": 0}, "length must be from 1 to the size 32, got 0"),
        ({"length": 33}, "length must be"),
    ],
)
def test_bad_numbers_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        alternating(**options)
