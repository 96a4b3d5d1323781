"""Colour jitter against torchvision's factors, and what is drawn."""

import pytest
import torch
from torchvision.transforms.v2 import functional as vision

from cnnctl.data.augmentations.colour_jitter import ColourJitter
from cnnctl.randomness import Draw


def jitter(native=(8, 8), **options) -> ColourJitter:
    still = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
    return ColourJitter(10, False, native, **{"padding": 0, **still, **options})


ADJUST = {
    "brightness": vision.adjust_brightness,
    "contrast": vision.adjust_contrast,
    "saturation": vision.adjust_saturation,
}


@pytest.mark.parametrize("name", ADJUST)
def test_each_factor_is_torchvisions(random_pixels, run, name):
    pixels = random_pixels(6, 3, 8, 8)
    made, _ = run(jitter(**{name: 0.8}), pixels)
    place = list(ADJUST).index(name)
    factors = 1 + 0.8 * (2 * Draw(0, 0, torch.arange(6)).uniform("colours", 4)[:, place] - 1)
    for image, result, factor in zip(pixels, made, factors.tolist(), strict=True):
        expected = 255 * ADJUST[name](image.float() / 255, factor)
        torch.testing.assert_close(result, expected, rtol=0, atol=0.1)


def test_the_hue_turns_red_to_green_and_blue(run):
    """By a third of the circle: the largest of three channels moves on; a grey stays."""
    red = torch.tensor([160, 80, 80], dtype=torch.uint8)[:, None, None].expand(400, 3, 2, 2)
    made, _ = run(jitter((2, 2), hue=0.5), red)
    turn = 2 * Draw(0, 0, torch.arange(400)).uniform("colours", 4)[:, 3] - 1  # of a half
    largest = made[:, :, 0, 0].argmax(1)
    assert set(largest[turn.abs() < 0.2].tolist()) == {0}
    sides = [set(largest[(turn * sign - 0.667).abs() < 0.1].tolist()) for sign in (1, -1)]
    assert sides in ([{1}, {2}], [{2}, {1}])
    grey = torch.full((50, 3, 2, 2), 90, dtype=torch.uint8)
    torch.testing.assert_close(run(jitter((2, 2), hue=0.5), grey)[0], grey.float())


def test_grey_images_have_brightness_and_contrast_only(random_pixels, run):
    pixels = random_pixels(5, 1, 8, 8)
    made, _ = run(jitter(saturation=1.0, hue=0.5), pixels)
    torch.testing.assert_close(made, pixels.float())
    assert not torch.equal(run(jitter(contrast=0.5), pixels)[0], pixels.float())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"brightness": 1.5}, "brightness must be from 0 to 1, got 1.5"),
        ({"contrast": -1.0}, "contrast"),
        ({"saturation": float("nan")}, "saturation"),
        ({"hue": 0.6}, "hue must be from 0 to 0.5 turns, got 0.6"),
    ],
)
def test_bad_numbers_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        jitter(**options)
