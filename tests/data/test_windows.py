"""One image and a batch show the same picture through a window, and it is what Pillow shows."""

import pytest
import torch

from cnnctl.data.augmentations.base import resize
from cnnctl.data.windows import placed, resampled, shown

FILL = torch.tensor([20, 40, 60], dtype=torch.uint8)[:, None, None]


def noise(n: int, h: int, w: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, h, w), generator=generator, dtype=torch.uint8)


def both(pixels: torch.Tensor, windows, size, mirror: bool = False):
    """The windows on (N, 3, h, w), one by one and together."""
    windows = torch.tensor(windows, dtype=torch.float32).expand(len(pixels), 4)
    source, into = placed(windows, (pixels.shape[2], pixels.shape[3]), size)
    one = [shown(*row, size, FILL) for row in zip(pixels, source, into, strict=True)]
    turned = torch.full((len(pixels),), mirror)
    return torch.stack(one), resampled(pixels, source, into, size, FILL, turned)


@pytest.mark.parametrize(
    ("window", "source", "into"),
    [
        ([0, 0, 40, 30], [0, 0, 40, 30], [0, 0, 20, 10]),
        ([10, 0, 30, 20], [10, 0, 30, 20], [0, 0, 20, 10]),
        ([-40, 0, 40, 60], [0, 0, 40, 30], [10, 0, 20, 5]),
        ([-10, -90, 70, 30], [0, 0, 40, 30], [2, 8, 12, 10]),  # 2.5 and 7.5 to even numbers
        ([-4000, 0, 40, 30], [0, 0, 40, 30], [19, 0, 20, 10]),  # a pixel at least
        ([50, 0, 90, 30], [50, 0, 40, 30], [0, 0, 0, 10]),  # beyond it: nothing is seen
    ],
)
def test_places_by_hand(window, source, into):
    found = placed(torch.tensor([window], dtype=torch.float32), (30, 40), (10, 20))
    seen, place = (part[0].tolist() for part in found)
    if window[0] == 50:
        assert place[0] == place[2]
    else:
        assert (seen, place) == (source, into)


def test_the_whole_image_is_itself_and_a_part_of_it_is_cut():
    pixels = noise(2, 30, 40)
    for window, size in (([0, 0, 40, 30], (30, 40)), ([5, 7, 21, 17], (10, 16))):
        expected = pixels[..., window[1] : window[3], window[0] : window[2]]
        one, together = both(pixels, window, size)
        assert torch.equal(one, expected)
        assert torch.equal(together, expected.float())
        assert torch.equal(both(pixels, window, size, True)[1], expected.flip(3).float())


def test_outside_of_the_image_there_is_the_fill():
    pixels = noise(1, 30, 40)
    one, together = both(pixels, [-3, -5, 47, 35], (40, 50))
    expected = FILL.expand(1, 3, 40, 50).clone()
    expected[..., 5:35, 3:43] = pixels
    assert torch.equal(one, expected)
    assert torch.equal(together, expected.float())
    one, together = both(pixels, [40, 0, 90, 30], (10, 10))
    assert torch.equal(one, FILL.expand(1, 3, 10, 10))
    assert torch.equal(together, one.float())


@pytest.mark.parametrize("size", [(7, 9), (20, 90), (64, 64), (1, 2)])
def test_shrunk_and_enlarged_as_resize_does(size):
    """Pillow's own arithmetic on bytes; the matrices are at most its rounding away."""
    pixels = noise(3, 31, 43)
    one, together = both(pixels, [0, 0, 43, 31], size)
    assert torch.equal(one, resize(pixels, size))
    assert (together - one).abs().max() <= 1
    part = resize(pixels[..., 2:31, 11:29], size)
    one, together = both(pixels, [11, 2, 29, 31], size)
    assert torch.equal(one, part)
    assert (together - one).abs().max() <= 1


def test_a_batch_of_windows_is_its_images_one_by_one():
    random = torch.Generator().manual_seed(1)
    low = torch.randint(-30, 25, (40, 2), generator=random)
    windows = torch.cat([low, low + torch.randint(4, 60, (40, 2), generator=random)], 1)
    pixels = noise(40, 31, 43)
    one, together = both(pixels, windows.tolist(), (24, 17))
    assert (together - one).abs().max() <= 1
    mirror = both(pixels, windows.tolist(), (24, 17), True)[1]
    assert torch.equal(mirror, together.flip(3))
