"""AugMix: chains and their weights by their distributions, strengths by hand."""

import pytest
import torch
from scipy import stats

from cnnctl.data.augmentations import augmix
from cnnctl.data.augmentations.augmix import DRAWN, NAMES, AugMix, strength
from cnnctl.randomness import Draw

MANY = 3000


def mixing(native=(8, 8), **options) -> AugMix:
    return AugMix(10, False, native, **{"padding": 0, **options})


def draw(n: int = MANY) -> Draw:
    return Draw(0, 0, torch.arange(n))


def test_an_image_is_mixed_with_its_chains(random_pixels, run):
    """x + m (w1 c1 + w2 c2 + w3 c3 - x)."""
    pixels, pipeline = random_pixels(40, 3, 8, 8), mixing()
    made, label = run(pipeline, pixels)
    shares, own = pipeline.weights(draw(40))
    chains = torch.stack(pipeline.chains(pixels, draw(40)), 1).float()  # (N, 3, C, H, W)
    mixed = (shares[:, :, None, None, None] * chains).sum(1)
    own = own[:, None, None, None]
    torch.testing.assert_close(made, (1 - own) * pixels + own * mixed, rtol=0, atol=1e-3)
    assert label.tolist() == [k % 10 for k in range(40)]
    assert not torch.equal(chains[:, 0], chains[:, 1])


@pytest.mark.parametrize("width", [2, 3])
def test_weights_are_dirichlets(width):
    shares, own = mixing(width=width).weights(draw())
    torch.testing.assert_close(shares.sum(1), torch.ones(MANY))
    for share in shares.unbind(1):  # its margins are Beta(1, width - 1)
        assert stats.kstest(share, stats.beta(1, width - 1).cdf).pvalue > 1e-3
    assert stats.kstest(own, stats.uniform.cdf).pvalue > 1e-3


def test_strengths_by_hand():
    """At severity 10 and 5 on 30 x 60 pixels; levels are cut off to whole steps."""
    codes = torch.arange(len(NAMES))
    positive = torch.zeros(len(NAMES), dtype=torch.bool)
    full = dict(
        zip(NAMES, strength(codes, torch.full((10,), 10.0), positive, (30, 60)), strict=True)
    )
    expected = {"posterize": 0, "rotate": 30, "solarize": 0, "shear_x": 0.3, "shear_y": 0.3}
    expected |= {"translate_x": 20, "translate_y": 10, "autocontrast": 0, "identity": 0}
    assert {name: full[name].item() for name in expected} == pytest.approx(expected)
    half = dict(
        zip(NAMES, strength(codes, torch.full((10,), 4.9), ~positive, (30, 60)), strict=True)
    )
    expected = {"posterize": 3, "rotate": -14, "solarize": 131, "shear_x": -0.147}
    expected |= {"translate_x": -9, "translate_y": -4}
    assert {name: half[name].item() for name in expected} == pytest.approx(expected)


def watch(monkeypatch, pipeline: AugMix) -> torch.Tensor:
    """(MANY, width, turns) of codes that are drawn."""
    seen = []

    def watched(pixels, names, codes, strengths):
        seen.append(codes)
        return pixels

    monkeypatch.setattr(augmix, "apply", watched)
    pipeline.chains(torch.zeros(MANY, 1, 1, 1, dtype=torch.uint8), draw())
    return torch.stack(seen, 1).view(MANY, pipeline.width, -1)


def test_chains_have_one_to_three_operations(monkeypatch):
    codes = watch(monkeypatch, mixing((1, 1)))
    assert codes.shape == (MANY, 3, 3)
    drawn = codes != DRAWN
    assert (drawn.int().diff(dim=2) <= 0).all()  # a chain that has ended does not go on
    lengths = drawn.sum(2).flatten()
    assert stats.chisquare(torch.bincount(lengths, minlength=4)[1:]).pvalue > 1e-3
    counts = torch.bincount(codes[drawn], minlength=DRAWN)
    assert stats.chisquare(counts).pvalue > 1e-3


def test_a_fixed_depth_is_kept(monkeypatch):
    codes = watch(monkeypatch, mixing((1, 1), depth=5, width=2))
    assert codes.shape == (MANY, 2, 5)
    assert (codes < DRAWN).all()


def test_white_stays_within_range(run):
    """Weights that add up to a little more than one must not leave 0..255."""
    white = torch.full((300, 1, 8, 8), 255, dtype=torch.uint8)
    made, _ = run(mixing(), white)
    assert made.max() == 255
    assert made.min() >= 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"severity": 0}, "severity must be from 1 to 10, got 0"),
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"depth": 0}, "depth must be at least 1, got 0"),
    ],
)
def test_bad_numbers_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        mixing(**options)
