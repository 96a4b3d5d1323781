"""SegNet: the paper's size, every size of image, and where the maxima go."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cnnctl.models.segnet import SegNet
from cnnctl.structures import Images, Targets


def test_parameters_of_the_paper():
    """29.45 M (table 6); it counts a bias in front of each of the 25 normalisations."""
    with torch.device("meta"):
        model = SegNet(3, 11)
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert (len(convs), len(norms)) == (26, 25)
    normalised = sum(norm.num_features for norm in norms)
    found = sum(p.numel() for p in model.parameters())
    encoder = [(3, 64), (64, 64), (64, 128), (128, 128), (128, 256), *[(256, 256)] * 2]
    encoder += [(256, 512), *[(512, 512)] * 5]
    decoder = [*[(512, 512)] * 5, (512, 256), *[(256, 256)] * 2, (256, 128), (128, 128)]
    decoder += [(128, 64), (64, 64), (64, 11)]
    paper = sum(9 * a * b + b for a, b in encoder + decoder) + 2 * normalised
    assert round(paper / 1e6, 2) == 29.45
    assert found == paper - normalised


def test_the_decoder_is_the_encoder_mirrored():
    with torch.device("meta"):
        model = SegNet(3, 11)
    down = [m for m in model.down.modules() if isinstance(m, nn.Conv2d)]
    up = [m for m in model.up.modules() if isinstance(m, nn.Conv2d)]
    turned = [(conv.out_channels, conv.in_channels) for conv in reversed(down)]
    turned[-1] = (64, 11)
    assert [(conv.in_channels, conv.out_channels) for conv in up] == turned


def test_output_size_is_input_size():
    torch.manual_seed(0)
    model = SegNet(2, 3, width=1 / 64).eval()
    with torch.inference_mode():
        for side in range(1, 71):
            for shape in ((side, side), (side, 71 - side)):
                assert model(torch.zeros(1, 2, *shape)).shape == (1, 3, *shape)


def test_values_go_back_to_where_they_were():
    """What the last group of the decoder gets is filled at the maxima only."""
    torch.manual_seed(0)
    model = SegNet(1, 2, width=1 / 16).eval()
    seen = {}
    model.down[0].register_forward_hook(lambda m, i, out: seen.update(pooled=out))
    model.up[-1].register_forward_pre_hook(lambda m, i: seen.update(unpooled=i[0]))
    with torch.inference_mode():
        model(torch.randn(1, 1, 32, 32))
    windows = {n: v.unfold(2, 2, 2).unfold(3, 2, 2).flatten(4) for n, v in seen.items()}
    filled = windows["unpooled"] != 0
    assert filled.any()
    assert (filled.sum(-1) <= 1).all()
    where = windows["pooled"].argmax(-1)
    assert torch.equal(windows["unpooled"].argmax(-1)[filled.any(-1)], where[filled.any(-1)])


def test_every_parameter_gets_a_gradient():
    torch.manual_seed(0)
    model = SegNet(1, 3, width=1 / 16)
    size = (33, 40)
    mask = torch.randint(0, 3, (2, *size)).byte()
    images = Images(torch.randn(2, 1, *size), [size] * 2, [size] * 2)
    model.loss(images, Targets(torch.arange(2), mask=mask))["cross_entropy"].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_a_row_does_not_depend_on_the_others():
    torch.manual_seed(0)
    model = SegNet(2, 3, width=1 / 16).eval()
    pixels = torch.randn(3, 2, 40, 33)
    with torch.inference_mode():
        torch.testing.assert_close(model(pixels)[1:2], model(pixels[1:2]), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_overfits_eight_images():
    torch.manual_seed(0)
    model = SegNet(1, 3, width=1 / 8)
    coarse = torch.randint(0, 3, (8, 1, 5, 5)).float()
    mask = nn.functional.interpolate(coarse, (64, 64), mode="nearest")[:, 0].byte()
    images = Images(mask[:, None] - 1.0, [(64, 64)] * 8, [(64, 64)] * 8)
    targets = Targets(torch.arange(8), mask=mask)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(120):
        optimizer.zero_grad()
        model.loss(images, targets)["cross_entropy"].backward()
        optimizer.step()
    with torch.no_grad():
        predicted = model.eval().predict(images).mask
    assert predicted is not None
    assert (predicted == mask).float().mean() > 0.97


def test_refuses():
    with pytest.raises(ValueError, match="width must be positive, got 0"):
        SegNet(3, 11, width=0)
