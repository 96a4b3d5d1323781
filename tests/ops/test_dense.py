"""Averaged views and tiles: for a network that looks at single pixels nothing may change."""

import pytest
import torch
import torch.nn.functional as F

from cnnctl.ops.dense import DenseTesting, resized, tiled


def pixelwise(pixels: torch.Tensor) -> torch.Tensor:
    """Logits of 3 classes from each pixel alone."""
    return torch.cat([pixels, 1 - pixels, 0.3 * pixels], 1)


def mean_of_nine(pixels: torch.Tensor) -> torch.Tensor:
    padded = F.pad(pixels, (1, 1, 1, 1), mode="replicate")
    return pixelwise(F.avg_pool2d(padded, 3, 1))


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.rand(2, 1, 37, 50, generator=torch.Generator().manual_seed(0))


def test_a_plain_look_is_the_network_itself(pixels):
    testing = DenseTesting()
    assert testing.name == ""
    assert testing.is_plain(pixels)
    torch.testing.assert_close(testing(pixelwise, pixels, (37, 50)), pixelwise(pixels))
    enlarged = testing(pixelwise, pixels, (74, 100))
    assert enlarged.shape == (2, 3, 74, 100)
    torch.testing.assert_close(enlarged, resized(pixelwise(pixels), (74, 100)))


@pytest.mark.parametrize("tile", [8, 16, 36, 40])
@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.9])
def test_tiles_of_a_pixelwise_network_are_the_whole(pixels, tile, overlap):
    whole = pixelwise(pixels).softmax(1)
    torch.testing.assert_close(tiled(pixelwise, pixels, tile, overlap), whole)


def test_windows_lie_within_the_image_and_cover_it(pixels):
    seen = torch.zeros(37, 50)
    shapes = set()

    def score(window: torch.Tensor) -> torch.Tensor:
        shapes.add(tuple(window.shape[-2:]))
        return pixelwise(window)

    index = torch.arange(37 * 50.0).view(1, 1, 37, 50)

    def where(window: torch.Tensor) -> torch.Tensor:
        seen.view(-1)[window.flatten().long()] += 1
        return score(window)

    tiled(where, index, 20, 0.5)
    assert shapes == {(20, 20)}
    assert seen.min() >= 1
    tiled(score, pixels, 45, 0.5)
    assert shapes == {(20, 20), (37, 45)}


def test_overlap_hides_the_borders_of_tiles(pixels):
    """Where tiles only touch, a network that sees neighbours errs along their borders."""
    pixels = pixels[..., :32, :48]
    whole = mean_of_nine(pixels).softmax(1)
    without = (tiled(mean_of_nine, pixels, 16, 0.0) - whole).abs()
    blended = (tiled(mean_of_nine, pixels, 16, 0.5) - whole).abs()
    assert without[..., 15:17, :].mean() > 10 * without[..., 4:12, 4:12].mean()
    assert blended.max() < without.max() / 4


def test_flips_average_the_two_views(pixels):
    def left(view: torch.Tensor) -> torch.Tensor:  # a network that knows where left is
        across = torch.linspace(0, 1, view.shape[3]).expand_as(view)
        return torch.cat([view * across, 1 - view], 1)

    found = DenseTesting(flip=True)(left, pixels, (37, 50))
    expected = left(pixels).softmax(1) + left(pixels.flip(3)).softmax(1).flip(3)
    torch.testing.assert_close(found, expected / 2)


def test_scales_see_enlarged_images(pixels):
    shapes = []

    def score(view: torch.Tensor) -> torch.Tensor:
        shapes.append(tuple(view.shape[-2:]))
        return pixelwise(view)

    found = DenseTesting(scales=(0.5, 1.0, 2.0), flip=True)(score, pixels, (37, 50))
    assert shapes == [(18, 25), (18, 25), (37, 50), (37, 50), (74, 100), (74, 100)]
    assert found.shape == (2, 3, 37, 50)
    torch.testing.assert_close(found.sum(1), torch.ones(2, 37, 50))


def test_names_say_how_it_was_tested():
    assert DenseTesting(flip=True).name == "flip"
    testing = DenseTesting(flip=True, scales=(0.75, 1.0), tile=256)
    assert testing.name == "flip+x0.75+x1+tile256"
    assert DenseTesting(tile=64, overlap=0.25).name == "tile64+overlap0.25"


@pytest.mark.parametrize(
    "wrong",
    [{"scales": ()}, {"scales": (0.0,)}, {"tile": 2}, {"overlap": 1.0}, {"overlap": -0.1}],
)
def test_numbers_out_of_range(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        DenseTesting(**wrong)
