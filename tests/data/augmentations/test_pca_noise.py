"""AlexNet's colour noise against the paper's own formula, by its distribution."""

import numpy as np
import pytest
import torch
from scipy import stats

from cnnctl.data.augmentations.pca_noise import (
    _VALUES,
    PcaNoise,
    imagenet_covariance,
    own_covariance,
    pca_noise,
)
from cnnctl.randomness import Draw

MANY = 4000


def noise(channels: int = 3, **options) -> torch.Tensor:
    """(MANY, channels) of shifts that are drawn."""
    pipeline = PcaNoise(10, False, (2, 2), **{"padding": 0, "sigma": 0.01, **options})
    grey = torch.full((MANY, channels, 2, 2), 128, dtype=torch.uint8)
    made, _ = pipeline.augment(grey, torch.arange(MANY), Draw(0, 0, torch.arange(MANY)))
    assert (made == made[:, :, :1, :1]).all()  # one colour for all pixels
    return made[:, :, 0, 0] - 128


def test_along_each_principal_axis_it_is_normal_with_its_eigenvalues_deviation():
    """p1 a1 l1 + p2 a2 l2 + p3 a3 l3: the axes are found anew by numpy."""
    values, vectors = np.linalg.eigh(imagenet_covariance().double().numpy())
    assert values == pytest.approx(sorted(_VALUES), abs=1e-4)
    along = noise().double().numpy() @ vectors / 255 / 0.01
    for numbers, value in zip(along.T, values, strict=True):
        assert stats.kstest(numbers / value, stats.norm.cdf).pvalue > 1e-3
    assert np.abs(np.corrcoef(along.T) - np.eye(3)).max() < 0.06


def test_a_grey_image_stays_grey_and_gets_the_mean():
    shift = noise(1)
    assert shift[:, 0].std().item() == pytest.approx(noise().mean(1).std().item(), rel=1e-4)


def test_own_covariance_is_numpys(random_pixels):
    pixels = random_pixels(3, 3, 5, 7)
    found = own_covariance(pixels)
    for image, covariance in zip(pixels, found, strict=True):
        expected = np.cov(image.flatten(1).numpy() / 255, bias=True)
        assert covariance.numpy() == pytest.approx(expected, abs=1e-5)
    assert not own_covariance(torch.full((1, 3, 4, 4), 9, dtype=torch.uint8)).any()


def test_by_its_own_covariance_an_image_moves_along_its_own_colours(random_pixels):
    """Its colours lie on a line in the direction (3, 2, 1): so does the noise."""
    grey = random_pixels(20, 1, 6, 6).float() / 255
    pixels = 40 * grey * torch.tensor([3.0, 2.0, 1.0])[:, None, None] + 60
    shift = pca_noise(pixels, 0.5, Draw(0, 0, torch.arange(20)), own_covariance(pixels)) - pixels
    shift = shift[:, :, 0, 0]
    assert (shift.abs() > 1e-3).all()
    ratios = shift / shift[:, 2:]
    torch.testing.assert_close(
        ratios, torch.tensor([3.0, 2.0, 1.0]).expand(20, 3), rtol=0.01, atol=0
    )


def test_no_noise_changes_nothing(random_pixels, run):
    pixels = random_pixels(4, 3, 8, 8)
    for colours in ("imagenet", "own"):
        pipeline = PcaNoise(10, False, (8, 8), padding=0, sigma=0.0, colours=colours)
        assert torch.equal(run(pipeline, pixels)[0], pixels.float())


def test_bad_numbers_are_named():
    with pytest.raises(ValueError, match="sigma must be at least 0, got -0"):
        PcaNoise(10, False, (8, 8), sigma=-0.1)
    with pytest.raises(ValueError, match='colours must be imagenet or own, got "best"'):
        PcaNoise(10, False, (8, 8), colours="best")  # pyright: ignore[reportArgumentType]
