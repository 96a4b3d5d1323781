"""mixup: what is blended, in which shares, and labels that say so."""

import pytest
import torch
from scipy import stats

from cnnctl.data.augmentations.mixup import Mixup


def mixup(native=(32, 32), **options) -> Mixup:
    return Mixup(10, True, native, **{"padding": 0, "flip": False, **options})


@pytest.mark.parametrize("alpha", [0.3, 1.0, 4.0])
def test_pixels_and_labels_are_blended_in_the_same_share(random_pixels, run, alpha):
    pixels, label = random_pixels(10), torch.arange(10)
    made, soft = run(mixup(alpha=alpha), pixels, label)
    share = soft.diagonal()
    expected = torch.eye(10) * share[:, None] + torch.eye(10).roll(1, 0) * (1 - share)[:, None]
    assert torch.allclose(soft, expected)
    share = share[:, None, None, None]
    blended = pixels.float() * share + pixels.float().roll(1, 0) * (1 - share)
    assert torch.allclose(made, blended, atol=1e-3)
    assert made.dtype == torch.float32
    assert made.min() >= 0
    assert made.max() <= 255
    assert len(share.unique()) == 10  # a share of its own for each image


@pytest.mark.parametrize("alpha", [0.4, 1.0, 4.0])
def test_shares_are_drawn_from_beta(run, alpha):
    pixels = torch.full((6000, 1, 1, 1), 200, dtype=torch.uint8)
    label = torch.arange(6000) % 10
    _, soft = run(mixup((1, 1), alpha=alpha), pixels, label)
    share = soft.gather(1, label[:, None])[:, 0].double()
    assert stats.kstest(share.numpy(), stats.beta(alpha, alpha).cdf).pvalue > 1e-3


def test_labels_are_distributions_with_smoothing_too(random_pixels, run):
    for smoothing in (0.0, 0.1):
        _, soft = run(mixup(label_smoothing=smoothing), random_pixels(64))
        assert torch.allclose(soft.sum(1), torch.ones(64))
        assert soft.min() >= smoothing / 10 - 1e-7


def test_two_images_of_one_class_keep_it(random_pixels, run):
    _, soft = run(mixup(), random_pixels(4), torch.full((4,), 3))
    assert torch.allclose(soft, torch.eye(10)[torch.full((4,), 3)])


def test_a_single_image_is_mixed_with_itself(random_pixels, run):
    pixels = random_pixels(1)
    made, soft = run(mixup(), pixels)
    assert torch.allclose(made, pixels.float())
    assert torch.allclose(soft, torch.eye(10)[:1])


def test_it_is_repeatable_and_new_in_every_epoch(random_pixels, run):
    pixels, pipeline = random_pixels(8), Mixup(10, True, (32, 32))
    first = run(pipeline, pixels)
    again = run(Mixup(10, True, (32, 32)), pixels)
    assert torch.equal(again[0], first[0])
    assert torch.equal(again[1], first[1])
    assert not torch.equal(run(pipeline, pixels, epoch=1)[1], first[1])


def test_crop_and_flip_come_first(run):
    """A blend of shifted images, not a shifted blend: black edges of one show the other."""
    pixels = torch.full((50, 1, 16, 16), 100, dtype=torch.uint8)
    made, _ = run(Mixup(10, True, (16, 16), padding=8), pixels)
    assert ((made > 1) & (made < 99)).any((1, 2, 3)).float().mean() > 0.8


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_numbers_are_named(alpha):
    with pytest.raises(ValueError, match=f"alpha must be a positive number, got {alpha}"):
        mixup(alpha=alpha)
