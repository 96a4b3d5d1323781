"""Random resized crops: the same rectangles on the device, in a worker and in torchvision."""

import pytest
import torch
from scipy import stats
from torchvision.transforms import RandomResizedCrop as Theirs

from cnnctl.data.augmentations.base import resize
from cnnctl.data.augmentations.random_resized_crop import TRIES, RandomResizedCrop, enlarged

MANY = 1500


def cropping(native=(32, 32), mirror=False, **options) -> RandomResizedCrop:
    return RandomResizedCrop(10, mirror, native, **options)


def rectangles(pipeline: RandomResizedCrop, size: tuple[int, int]) -> torch.Tensor:
    uniform = torch.rand(MANY, 2 * TRIES + 2, generator=torch.Generator().manual_seed(0))
    return pipeline.rectangles(size, uniform)


@pytest.mark.parametrize("size", [(32, 32), (40, 100)])
def test_rectangles_are_distributed_as_torchvisions(size):
    """Some do not fit ten times over where the image is long: those are in the middle."""
    torch.manual_seed(0)
    image = torch.zeros(1, *size)
    scale, ratio = [0.08, 1.0], [3 / 4, 4 / 3]
    theirs = [Theirs.get_params(image, scale, ratio) for _ in range(MANY)]
    top, left, h, w = torch.tensor(theirs).unbind(1)
    found = rectangles(cropping(None, size=32), size)
    for ours, other in zip(found.unbind(1), (left, top, w, h), strict=True):
        assert stats.kstest(ours, other).pvalue > 1e-3


def test_both_paths_show_the_same_distribution(run):
    """Of one image: all of it at once on the device, or one at a time in a worker."""
    image = torch.stack([torch.arange(24).expand(24, 24), torch.arange(24)[:, None].expand(24, 24)])
    image = image.to(torch.uint8) * 10
    device, worker = cropping((24, 24)), cropping(None, size=24)
    torch.manual_seed(0)
    resident, _ = run(device, image.expand(600, 2, 24, 24))
    streamed = torch.stack([worker.sample(image) for _ in range(600)])
    assert torch.equal(run(worker, streamed)[0], streamed)  # nothing more is done to them
    assert torch.equal(device.sample(image), image)
    for place in ((0, 0, 0), (1, 12, 5), (0, 23, 23)):
        ours, other = resident[:, *place], streamed[:, *place].float()
        assert stats.kstest(ours.round(), other).pvalue > 1e-3


def test_a_rectangle_is_enlarged_as_by_resizing_it_alone(random_pixels):
    pixels = random_pixels(4, 3, 20, 24)
    chosen = torch.tensor([[0, 0, 24, 20], [3, 5, 10, 7], [23, 19, 1, 1], [0, 13, 24, 7]])
    made = enlarged(pixels, chosen)
    for image, result, (left, top, w, h) in zip(pixels, made, chosen.tolist(), strict=True):
        expected = resize(image[None, :, top : top + h, left : left + w], (20, 24))[0]
        torch.testing.assert_close(result, expected.float(), rtol=0, atol=1.0)


def test_where_none_fits_it_is_the_largest_in_the_middle():
    pipeline = cropping(None, size=8, scale=(1.0, 1.0))
    assert (rectangles(pipeline, (10, 100)) == torch.tensor([43, 0, 13, 10])).all()
    assert (rectangles(pipeline, (100, 9)) == torch.tensor([0, 44, 9, 12])).all()
    assert (rectangles(cropping(ratio=(1.0, 1.0), scale=(1.0, 1.0)), (6, 6))[:, 2:] == 6).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (5000, 1), (3, 2)])
def test_any_image_can_be_cropped(shape):
    image = torch.full((1, *shape), 5, dtype=torch.uint8)
    made = cropping(None, size=24).sample(image)
    assert made.shape == (1, 24, 24)
    assert (made == 5).all()


def test_half_of_the_images_are_mirrored(random_pixels, run):
    pixels = random_pixels(1, 1, 4, 4).expand(1000, 1, 4, 4)
    whole = cropping((4, 4), mirror=True, scale=(1.0, 1.0), ratio=(1.0, 1.0))
    mirrored = (run(whole, pixels)[0] == pixels.flip(3)).all((1, 2, 3))
    assert stats.binomtest(int(mirrored.sum()), 1000).pvalue > 1e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": (0.0, 1.0)}, "scale must be 0 < smallest <= largest <= 1"),
        ({"scale": (0.5, 1.5)}, "scale"),
        ({"ratio": (2.0, 1.0)}, "ratio must be 0 < smallest <= largest"),
    ],
)
def test_bad_numbers_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        cropping(**options)
