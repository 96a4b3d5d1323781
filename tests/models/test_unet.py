"""U-Net: the paper's sizes, every size of image, and every way up."""

import pytest
import torch
from torch import nn

from cnnctl.models.unet import UNet


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def paper(in_channels=1, num_classes=2) -> UNet:
    return UNet(in_channels, num_classes, width=64, depth=4, padding="valid", norm=False)


def test_the_papers_network():
    """Figure 1: 23 convolutions, 1024 channels at the bottom; 31.03 M weights, as counted there."""
    with torch.device("meta"):
        model = paper()
    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))]
    assert len(layers) == 23
    assert max(m.out_channels for m in layers) == 1024
    # 3x3 convolutions, 2x2 up-convolutions and one 1x1, each with its bias
    down = [(1, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256)]
    down += [(256, 512), (512, 512), (512, 1024), (1024, 1024)]
    up = [(1024, 512), (512, 512), (512, 256), (256, 256), (256, 128), (128, 128), (128, 64)]
    up += [(64, 64)]
    half = [(1024, 512), (512, 256), (256, 128), (128, 64)]
    expected = sum(9 * a * b + b for a, b in down + up) + sum(4 * a * b + b for a, b in half)
    assert parameters(model) == expected + 64 * 2 + 2 == 31_030_658


def test_the_papers_tile():
    """388 x 388 output needs 572 x 572 input, 92 more on each side; the bottom is 28 x 28."""
    with torch.device("meta"):
        model, pixels = paper(), torch.zeros(1, 1, 388, 388)
        assert model._framed(pixels).shape[-2:] == (572, 572)
        bottoms = []
        model.down[-1].register_forward_hook(lambda m, i, out: bottoms.append(out.shape[-1]))
        assert model(pixels).shape == (1, 2, 388, 388)
    assert bottoms == [28]


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_output_size_is_input_size(padding):
    torch.manual_seed(0)
    model = UNet(1, 3, width=2, depth=3, padding=padding, norm=False).eval()
    with torch.inference_mode():
        for h in (*range(1, 20), 33, 64):
            for w in (1, 7, 16, 31):
                assert model(torch.zeros(1, 1, h, w)).shape == (1, 3, h, w)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_overlap_tiles_are_the_whole_image(depth):
    """Section 2: seamless segmentation of an image of any size by parts."""
    torch.manual_seed(0)
    model = UNet(1, 3, width=4, depth=depth, padding="valid").eval()
    for h, w, tile in ((61, 50, 16), (40, 33, 24), (17, 70, 20)):
        pixels = torch.randn(2, 1, h, w)
        with torch.inference_mode():
            whole, parts = model(pixels), model.tiles(pixels, tile)
        assert parts is not None
        torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-5)
    assert UNet(1, 3, width=4, depth=depth).tiles(pixels, 16) is None


def test_a_filter_that_two_does_not_divide_is_a_checkerboard():
    with pytest.warns(UserWarning, match="checkerboard"):
        model = UNet(1, 2, width=4, depth=2, kernel=3)
    assert model(torch.zeros(1, 1, 9, 9)).shape == (1, 2, 9, 9)


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize(
    "up", ["transposed", "bilinear", "nearest", "bed_of_nails", "sub_pixel", "max_unpooling"]
)
def test_every_way_up_trains(up, padding):
    torch.manual_seed(0)
    model = UNet(2, 3, width=4, depth=2, up=up, padding=padding)
    logits = model(torch.randn(2, 2, 21, 18))
    assert logits.shape == (2, 3, 21, 18)
    logits.square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_valid_convolutions_see_a_mirrored_border():
    """A piece of an image that mirrors itself scores like that piece within the whole."""
    torch.manual_seed(0)
    model = UNet(1, 2, width=2, depth=2, padding="valid", norm=False).eval()
    line = torch.rand(17)
    period = torch.cat([line, line[1:-1].flip(0)])  # 32 pixels, mirrored at 0 and at 16
    whole = period.repeat(4)

    large = (whole[:, None] + whole[None, :] * 0.5)[None, None]
    with torch.inference_mode():
        small = model(large[..., 32:49, 32:49])
        inside = model(large)[..., 32:49, 32:49]

    torch.testing.assert_close(small, inside, rtol=1e-4, atol=1e-5)


def test_same_size_leaves_rows_alone():
    torch.manual_seed(0)
    model = UNet(1, 2, width=4, depth=2).eval()
    pixels = torch.randn(3, 1, 13, 11)
    with torch.inference_mode():
        torch.testing.assert_close(model(pixels)[1:2], model(pixels[1:2]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "wrong",
    [
        *({"width": 0}, {"depth": 0}, {"depth": 9}, {"padding": "none"}, {"dropout": 1.0}),
        *({"up": "x"}, {"kernel": 3, "up": "nearest"}),
    ],
)
def test_numbers_out_of_range(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        UNet(1, 2, **wrong)
