"""Lens distortion by its formula, elastic deformation by its numbers."""

import pytest
import torch
from scipy import stats

from cnnctl.data.augmentations.distort import Distort, through_lens
from cnnctl.data.warp import centres


def distort(native=(24, 24), mirror=False, **options) -> Distort:
    return Distort(10, mirror, native, **options)


def test_a_lens_moves_by_the_cube_of_the_distance():
    """On 3 x 4 pixels the corner's distance is 2.5; a corner pixel lies at (1.5, 1) from the
    centre, at 0.52 of its square."""
    points = through_lens((3, 4), torch.tensor([0.5, -0.5, 0.0]))
    middle = torch.tensor([2.0, 1.5])
    factor = 1 + 0.5 * (1.5**2 + 1**2) / 2.5**2
    assert (points[0, :, 0, 0] - middle).tolist() == pytest.approx([-1.5 * factor, -factor])
    assert (points[1, :, 2, 3] - middle).tolist() == pytest.approx([1.5 * 0.74, 0.74])
    torch.testing.assert_close(points[2], centres((3, 4)))


@pytest.mark.parametrize(("strength", "bulges"), [(0.4, True), (-0.4, False)])
def test_a_barrel_bulges_and_a_pincushion_pinches(strength, bulges):
    """A straight vertical line left of the centre, as the lens shows it."""
    side = 41
    across = through_lens((side, side), torch.tensor([strength]))[0, 0]  # what x is seen where
    line = [float((row - 10).abs().argmin()) for row in across]  # where x = 10 is, row by row
    assert (line[0] > line[side // 2]) == bulges
    assert line[0] != line[side // 2]
    assert line == line[::-1]


def test_strengths_are_evenly_drawn(monkeypatch, run, random_pixels):
    from cnnctl.data.augmentations import distort as module

    seen = []
    monkeypatch.setattr(
        module,
        "through_lens",
        lambda size, strength: (seen.append(strength), through_lens(size, strength))[1],
    )
    run(distort((4, 4), lens=0.2), random_pixels(4000, 1, 4, 4))
    assert stats.kstest(seen[0], stats.uniform(-0.2, 0.4).cdf).pvalue > 1e-3


def test_the_elastic_field_has_its_deviation_at_the_corners(run):
    """Where the coarse grid's own vectors lie; read back from a ramp of grey values."""
    side, many = 31, 3000
    ramp = torch.arange(100, 100 + side, dtype=torch.uint8).expand(many, 1, side, side)
    made, _ = run(distort((side, side), lens=0.0, grid=3, sigma=2.0), ramp)
    shift = made[:, 0, side // 2, side // 2] - (100 + side // 2)  # the middle one of nine
    assert stats.kstest(shift / 2, stats.norm.cdf).pvalue > 1e-3


def test_still_numbers_change_nothing(random_pixels, run):
    pixels = random_pixels(4, 3, 24, 24)
    made, _ = run(distort(lens=0.0, sigma=0.0), pixels)
    torch.testing.assert_close(made, pixels.float(), rtol=0, atol=1e-3)


def test_defaults():
    assert distort((32, 32)).sigma == 1.6
    white = torch.full((1, 3, 24, 24), 255, dtype=torch.uint8)
    strong = Distort(10, False, (24, 24), mean=(0.2, 0.4, 0.6), sigma=0.0)
    from cnnctl.data.warp import warp

    barrel = warp(white, through_lens((24, 24), torch.tensor([0.3])), strong.around)
    assert barrel[0, :, 0, 0].tolist() == [51, 102, 153]  # a corner sees what lies outside


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lens": 1.0}, "lens must be at least 0 and below 1, got 1.0"),
        ({"grid": 1}, "grid must be at least 2, got 1"),
        ({"sigma": 25.0}, "sigma must be from 0 to the size 24, got 25.0"),
    ],
)
def test_bad_numbers_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        distort(**options)
