"""VGG's scale jitter: scaled sides, crops and their places, alike in both paths."""

import pytest
import torch
from scipy import stats

from cnnctl.data.augmentations.base import resize
from cnnctl.data.augmentations.scale_jitter import ScaleJitter, magnified
from cnnctl.randomness import Draw

MANY = 3000


def jitter(native=(28, 28), mirror=False, **options) -> ScaleJitter:
    return ScaleJitter(10, mirror, native, **{"sigma": 0.0, **options})


def test_the_papers_numbers_at_the_papers_size():
    assert jitter(None).sides == (256, 512)
    assert jitter((32, 32)).sides == (37, 73)
    assert jitter(None).size == (224, 224)
    assert ScaleJitter(10, True, None).sigma == 0.1
    assert ScaleJitter(10, True, None).flip


@pytest.mark.parametrize("size", [(100, 150), (90, 60)])
def test_views(size):
    """The shorter side is evenly drawn from all lengths, and so is the crop's place."""
    uniform = torch.rand(MANY, 3, generator=torch.Generator().manual_seed(0))
    h, w, top, left = jitter(None, size=32, sides=(40, 60)).views(size, uniform).unbind(1)
    shorter = torch.minimum(h, w)
    assert stats.chisquare(torch.bincount(shorter, minlength=61)[40:]).pvalue > 1e-3
    assert (torch.maximum(h, w) == shorter * max(size) // min(size)).all()
    for room, place in ((h - 32, top), (w - 32, left)):
        assert (place >= 0).all()
        assert (place <= room).all()
        share = (place + 0.5) / (room + 1)
        assert stats.kstest(share, stats.uniform.cdf).pvalue > 1e-4


def test_a_crop_of_a_scaled_image_is_that_of_scaling_all_of_it(random_pixels):
    pixels = random_pixels(3, 3, 20, 24)
    views = torch.tensor([[20, 24, 0, 0], [31, 37, 11, 2], [40, 48, 20, 24]])
    made = magnified(pixels, views)
    for image, result, (h, w, top, left) in zip(pixels, made, views.tolist(), strict=True):
        expected = resize(image[None], (h, w))[0, :, top : top + 20, left : left + 24]
        torch.testing.assert_close(result, expected.float(), rtol=0, atol=1.01)


def test_a_worker_sees_what_the_device_sees(run, monkeypatch):
    """Of one image and the same numbers, but for what is moved to whole pixels of the source."""
    ramp = (torch.arange(48) * 5).to(torch.uint8)
    image = torch.stack([ramp.expand(48, 48), ramp[:, None].expand(48, 48)])
    device, worker = jitter((48, 48)), jitter(None, size=48)
    resident, _ = run(device, image.expand(200, 2, 48, 48))
    numbers = iter(Draw(0, 0, torch.arange(200)).uniform("scale jitter", 3).split(1))
    monkeypatch.setattr(torch, "rand", lambda *shape: next(numbers))
    streamed = torch.stack([worker.sample(image) for _ in range(200)])
    assert torch.equal(run(worker, streamed)[0], streamed)  # nothing more is done to them
    assert torch.equal(device.sample(image), image)
    apart = (resident - streamed) / 5  # pixels of the source
    assert apart.abs().max() < 1
    assert apart.mean().abs() < 0.05
    assert resident.std(0).min() > 20


def test_a_photograph_of_many_sizes_is_cropped_in_the_worker(random_pixels):
    made = jitter(None, size=32).sample(random_pixels(1, 3, 50, 90)[0])
    assert made.shape == (3, 32, 32)
    strip = torch.full((1, 2, 3000), 7, dtype=torch.uint8)
    assert (jitter(None, size=32).sample(strip) == 7).all()


def test_alexnets_noise_is_added(random_pixels, run):
    pixels = random_pixels(8, 3, 28, 28) // 2 + 64
    plain, _ = run(jitter(), pixels)
    noisy, _ = run(jitter(sigma=0.1), pixels)
    shift = noisy - plain
    torch.testing.assert_close(shift, shift[:, :, :1, :1].expand_as(shift), rtol=0, atol=1e-3)
    assert (shift[:, :, 0, 0].abs() > 1e-3).any(1).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sides": (27, 40)}, r"sides must be 28 \(the crop's\) <= smallest <= largest"),
        ({"sides": (50, 40)}, "sides"),
        ({"sigma": -1.0}, "sigma must be at least 0, got -1.0"),
    ],
)
def test_bad_numbers_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        jitter(**options)
