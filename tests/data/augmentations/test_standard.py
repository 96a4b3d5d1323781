"""Pad-crop and flip: read back from pictures that show where each pixel came from."""

import math

import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torchvision.transforms import v2

from cnnctl.data.augmentations.standard import (
    Standard,
    crop_by_copy,
    crop_by_gather,
    flip,
    pad_crop,
    random_resized_crop,
)
from cnnctl.randomness import Draw

MANY = 8100


def standard(native=(32, 32), mirror=True, **options) -> Standard:
    return Standard(10, mirror, native, **options)


def coordinates(n: int, side: int) -> torch.Tensor:
    """(n, 2, side, side) uint8: every pixel holds its own row and column, from 1."""
    line = torch.arange(1, side + 1, dtype=torch.uint8)
    rows = line[:, None].expand(side, side)
    return torch.stack([rows, rows.T]).expand(n, 2, side, side)


@pytest.mark.parametrize("crop", [crop_by_copy, crop_by_gather])
@pytest.mark.parametrize("shape", [(5, 3, 32, 32), (4, 1, 8, 12), (3, 3, 5, 5), (1, 2, 1, 1)])
@pytest.mark.parametrize("padding", [1, 4, 5])
def test_crops_are_slices_of_the_padded_image(random_pixels, crop, shape, padding):
    pixels = random_pixels(*shape)
    padded = F.pad(pixels, (padding,) * 4)
    n, _, h, w = shape
    generator = torch.Generator().manual_seed(0)
    top, left = torch.randint(0, 2 * padding + 1, (2, n), generator=generator)
    top[-1], left[-1] = 2 * padding, 2 * padding  # the last window of the memory
    expected = [
        image[:, t : t + h, c : c + w]
        for image, t, c in zip(padded, top.tolist(), left.tolist(), strict=True)
    ]
    made = crop(padded, (h, w), top, left)
    assert torch.equal(made, torch.stack(expected))
    assert made.is_contiguous()


def test_offsets_are_uniform():
    side, padding = 9, 4
    made = pad_crop(coordinates(MANY, side), padding, Draw(0, 0, torch.arange(MANY)))
    # The middle pixel never comes from the padding: it says where the window was.
    shift = made[:, :, 4, 4].long() - 1  # (MANY, 2), 0..8
    counts = torch.bincount(shift[:, 0] * 9 + shift[:, 1], minlength=81)
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3


def test_what_comes_from_outside_is_black():
    pixels = torch.full((200, 1, 8, 8), 255, dtype=torch.uint8)
    draw = Draw(0, 0, torch.arange(200))
    made = pad_crop(pixels, 2, draw)
    top, left = (draw.integers("crop", 5, 2) - 2).unbind(1)
    inside = (8 - top.abs()) * (8 - left.abs())
    assert torch.equal((made == 255).sum((1, 2, 3)), inside)
    assert torch.equal((made == 0).sum((1, 2, 3)), 64 - inside)


def test_half_of_the_images_are_mirrored(random_pixels):
    pixels = random_pixels(2000, 1, 4, 4)
    made = flip(pixels, Draw(0, 0, torch.arange(2000)))
    mirrored = (made == pixels.flip(3)).all((1, 2, 3))
    kept = (made == pixels).all((1, 2, 3))
    assert (mirrored | kept).all()
    assert not (mirrored & kept).any()
    assert stats.binomtest(int(mirrored.sum()), 2000).pvalue > 1e-3


def test_digits_are_never_mirrored(random_pixels, run):
    pixels = random_pixels(300, 1, 8, 8)
    still = standard((8, 8), mirror=False, padding=0)
    assert torch.equal(run(still, pixels)[0], pixels)
    asked = standard((8, 8), mirror=False, padding=0, flip=True)
    assert not torch.equal(run(asked, pixels)[0], pixels)
    refused = standard((8, 8), mirror=True, padding=0, flip=False)
    assert torch.equal(run(refused, pixels)[0], pixels)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [8, 32, 224])
def test_an_image_does_not_depend_on_its_batch(random_pixels, run, channels, side):
    pixels, pipeline = random_pixels(8, channels, side, side), standard((side, side))
    index = torch.tensor([3, 1, 4, 15, 9, 2, 6, 5])
    whole = run(pipeline, pixels, index=index)[0]
    halves = [run(pipeline, pixels[s], index=index[s])[0] for s in (slice(4), slice(4, 8))]
    assert torch.equal(torch.cat(halves), whole)
    backwards = run(pipeline, pixels.flip(0), index=index.flip(0))[0]
    assert torch.equal(backwards.flip(0), whole)
    assert whole.dtype == torch.uint8
    assert torch.equal(run(pipeline, pixels, index=index)[0], whole)
    assert not torch.equal(run(pipeline, pixels, index=index, epoch=1)[0], whole)
    assert not torch.equal(run(pipeline, pixels, index=index, seed=1)[0], whole)


def test_the_input_is_left_as_it_was(random_pixels):
    pixels = random_pixels(16)
    before = pixels.clone()
    standard().augment(pixels, torch.arange(16), Draw(0, 0, torch.arange(16)))
    assert torch.equal(pixels, before)


def test_padding_is_an_eighth_of_the_size():
    assert standard((32, 32)).padding == 4
    assert standard((8, 8), size=32).padding == 4
    assert standard((28, 28)).padding == 3
    assert standard(padding=0).padding == 0


def test_images_of_one_size_are_cropped_on_the_device_only(random_pixels):
    image = random_pixels(1, 3, 32, 32)[0]
    assert torch.equal(standard().sample(image), image)
    bigger = standard(size=40)
    assert torch.equal(bigger.sample(image), bigger.resident(image[None])[0])


def test_images_of_many_sizes_are_cropped_in_the_worker_only(random_pixels, run):
    pipeline = standard(None, size=32, flip=False)
    made = pipeline.sample(random_pixels(1, 3, 90, 60)[0])
    assert made.shape == (3, 32, 32)
    assert torch.equal(run(pipeline, made[None])[0][0], made)


def test_the_random_resized_crop_is_torchvisions(random_pixels):
    image = random_pixels(1, 3, 50, 70)[0]
    theirs = v2.RandomResizedCrop(32, scale=(0.3, 0.8), antialias=True)
    for seed in range(20):
        torch.manual_seed(seed)
        expected = theirs(image)
        torch.manual_seed(seed)
        assert torch.equal(random_resized_crop(image, (32, 32), (0.3, 0.8)), expected)


def test_a_random_crop_covers_the_share_that_was_asked_for():
    side = 200
    image = coordinates(1, side)[0]
    torch.manual_seed(0)
    for _ in range(100):
        made = random_resized_crop(image, (side, side), (0.25, 0.5)).float()
        h, w = (made[axis].max() - made[axis].min() + 1 for axis in (0, 1))
        assert 0.24 < h * w / side**2 < 0.52
        assert math.log(0.73) < math.log(w / h) < math.log(1.37)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (5000, 1), (3, 2), (16, 16)])
def test_any_image_can_be_cropped(shape):
    image = torch.full((1, *shape), 5, dtype=torch.uint8)
    torch.manual_seed(0)
    for _ in range(5):
        made = standard(None, size=24).sample(image)
        assert made.shape == (1, 24, 24)
        assert (made == 5).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"padding": -1}, "padding must be from 0 to the size 32, got -1"),
        ({"padding": 33}, "padding"),
        ({"scale": (0.0, 1.0)}, "scale must be 0 < smallest <= largest <= 1"),
        ({"scale": (0.9, 0.5)}, "scale"),
        ({"scale": (0.5, 1.5)}, "scale"),
        ({"scale": (0.5, float("nan"))}, "scale"),
    ],
)
def test_bad_numbers_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        standard(**options)
