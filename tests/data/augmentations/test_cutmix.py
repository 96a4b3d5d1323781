"""CutMix: rectangles of the partner, and labels that count its pixels."""

import pytest
import torch
from scipy import stats

from cnnctl.data.augmentations.cutmix import Cutmix


def cutmix(native=(32, 32), **options) -> Cutmix:
    settings = {"padding": 0, "flip": False, "probability": 1.0, **options}
    return Cutmix(10, True, native, **settings)


def numbered(n: int, side: int) -> torch.Tensor:
    """Each image is filled with its own number."""
    return torch.arange(n, dtype=torch.uint8)[:, None, None, None].expand(n, 1, side, side)


@pytest.mark.parametrize("side", [8, 32])
def test_labels_count_the_pixels_of_either_image(run, side):
    made, soft = run(cutmix((side, side)), numbered(10, side), torch.arange(10))
    own = (made == numbered(10, side)).double().mean((1, 2, 3)).float()
    partner = (made == numbered(10, side).roll(1, 0)).double().mean((1, 2, 3)).float()
    assert torch.allclose(own + partner, torch.ones(10))
    expected = torch.eye(10) * own[:, None] + torch.eye(10).roll(1, 0) * partner[:, None]
    assert torch.allclose(soft, expected, atol=1e-6)
    assert made.dtype == torch.uint8


def test_what_is_pasted_is_a_rectangle_at_its_own_place(random_pixels, run):
    pixels = random_pixels(40)
    made, _ = run(cutmix(), pixels)
    pasted = (made != pixels).any(1)  # random pixels: equal ones in all channels are rare
    assert torch.equal(made, torch.where(pasted[:, None], pixels.roll(1, 0), pixels))
    outline = pasted.any(2)[:, :, None] & pasted.any(1)[:, None]
    assert torch.equal(pasted, outline)
    assert len(pasted.sum((1, 2)).unique()) > 10  # a rectangle of its own for each image


def test_areas_are_those_of_the_official_code(run):
    """The same distribution of areas as its ``rand_bbox``, written out with numbers of numpy."""
    side, many = 32, 4000
    generator = torch.Generator().manual_seed(0)
    cut = (side * (1 - torch.rand(many, generator=generator)).sqrt()).long()
    areas = torch.ones(many)
    for _ in range(2):
        centre = torch.randint(side, (many,), generator=generator)
        start, end = centre - cut // 2, centre - cut // 2 + cut
        areas *= end.clamp(max=side) - start.clamp(min=0)
    label = torch.arange(many) % 10
    pixels = torch.zeros(many, 1, side, side, dtype=torch.uint8)
    _, soft = run(cutmix((side, side)), pixels, label)
    found = (1 - soft.gather(1, label[:, None])[:, 0]) * side**2
    assert stats.kstest(found.round().numpy(), areas.numpy()).pvalue > 1e-3


def test_the_probability_is_of_pasting_at_all(random_pixels, run):
    pixels = random_pixels(2000, 1, 8, 8)
    never, label = run(cutmix((8, 8), probability=0.0), pixels)
    assert torch.equal(never, pixels)
    assert torch.equal(label.argmax(1), torch.arange(2000) % 10)
    always = (run(cutmix((8, 8), probability=1.0), pixels)[0] != pixels).any((1, 2, 3))
    half = (run(cutmix((8, 8), probability=0.5), pixels)[0] != pixels).any((1, 2, 3))
    assert not (half & ~always).any()
    assert stats.binomtest(int(half.sum()), int(always.sum())).pvalue > 1e-3


def test_labels_are_distributions_with_smoothing_too(random_pixels, run):
    for smoothing in (0.0, 0.2):
        _, soft = run(cutmix(label_smoothing=smoothing), random_pixels(64))
        assert torch.allclose(soft.sum(1), torch.ones(64))


def test_it_is_repeatable_and_new_in_every_epoch(random_pixels, run):
    pixels, pipeline = random_pixels(16), Cutmix(10, True, (32, 32))
    first = run(pipeline, pixels)
    again = run(pipeline, pixels)
    assert torch.equal(again[0], first[0])
    assert torch.equal(again[1], first[1])
    assert not torch.equal(run(pipeline, pixels, epoch=1)[0], first[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 0.0}, "alpha must be a positive number, got 0.0"),
        ({"alpha": float("inf")}, "alpha"),
        ({"probability": 1.1}, "probability must be from 0 to 1, got 1.1"),
        ({"probability": float("nan")}, "probability"),
    ],
)
def test_bad_numbers_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        cutmix(**options)
