"""GoogLeNet against table 1, figure 3 and section 5 of the paper."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cnnctl.engine.layers import layer_table
from cnnctl.models.googlenet import GoogLeNet, Inception
from cnnctl.structures import Images, Targets

# Output size, millions of multiply-adds ("ops") of table 1.
TABLE = {
    "conv1": ((64, 112, 112), 118),  # the paper has 34 M, which is not 7 * 7 * 3 * 64 * 112 * 112
    "pool1": ((64, 56, 56), 0),
    "conv2": ((192, 56, 56), 347),  # with the 1x1 before it 360 M, as in the paper
    "pool2": ((192, 28, 28), 0),
    "inception_3a": ((256, 28, 28), 128),
    "inception_3b": ((480, 28, 28), 304),
    "pool3": ((480, 14, 14), 0),
    "inception_4a": ((512, 14, 14), 74),  # the paper's rows of stage 4 are 73, 88, 100, 119, 170
    "inception_4b": ((512, 14, 14), 88),
    "inception_4c": ((512, 14, 14), 100),
    "inception_4d": ((528, 14, 14), 119),
    "inception_4e": ((832, 14, 14), 170),
    "pool4": ((832, 7, 7), 0),
    "inception_5a": ((832, 7, 7), 51),  # the paper has 54 M
    "inception_5b": ((1024, 7, 7), 71),
}


@pytest.fixture(scope="module")
def whole() -> GoogLeNet:
    with torch.device("meta"):
        return GoogLeNet(3, 1000, (224, 224))


def test_maps_and_operations_of_table_1(whole):
    rows = layer_table(whole, 3, (224, 224)).rows
    found, out = {}, torch.zeros(1, 3, 224, 224, device="meta")
    for name, layer in whole.features.named_children():
        out = layer(out)
        inside = [row for row in rows if f"{row.name}.".startswith(f"features.{name}.")]
        found[name] = (tuple(out.shape[1:]), round(sum(row.flops for row in inside) / 2e6))
    assert {name: found[name] for name in TABLE} == TABLE


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_parameters(whole):
    """7.0 M; the column "params" of table 1 adds up to 6.8 M (its 2.7K for the first convolution
    are not 7 * 7 * 3 * 64, and thousands are mostly 1024)."""
    heads = count(whole.heads)
    assert count(whole) - heads == 6_998_552
    assert heads == 2 * (128 * 16 * 1024 + 1024 + 1024 * 1000 + 1000) + (512 + 528) * 128 + 2 * 128
    # 1x1, 3x3 after 1x1, 5x5 after 1x1, 1x1 after pooling; a bias for each of their maps
    weights = 192 * (64 + 96 + 16 + 32) + 9 * 96 * 128 + 25 * 16 * 32
    module = whole.get_submodule("features.inception_3a")
    assert count(module) == weights + 64 + 96 + 128 + 16 + 32 + 32
    assert round(count(module) / 1024) == 160  # the paper: 159K
    assert round(count(whole.get_submodule("features.inception_5b")) / 1024) == 1410  # 1388K
    layers = [m for m in whole.features.modules() if isinstance(m, nn.Conv2d)]
    assert len(layers) == 3 + 9 * 6


def test_branches_of_a_module():
    """The 5x5 and no other branch sees two pixels away; the maps come in table 1's order."""
    module = Inception(1, (3, 5, 16, 5, 32, 9))
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.ones_(layer.weight)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
    pixels = torch.zeros(1, 1, 9, 9)
    pixels[..., 4, 4] = 1
    with torch.no_grad():
        row = module(pixels)[0, :, 4]  # (60, 9): what each map has beside the one bright pixel
    beside = [0, 0, 0, 0, 1, 0, 0, 0, 0]
    # Of the convolutions, each position gets one term for each map of the reduction before them.
    middle = [[0, 0, 0, 5, 5, 5, 0, 0, 0], [0, 0, 5, 5, 5, 5, 5, 0, 0]]
    pooled = [0, 0, 0, 1, 1, 1, 0, 0, 0]
    rows = [beside] * 3 + middle[:1] * 16 + middle[1:] * 32 + [pooled] * 9
    assert row.tolist() == rows


def test_auxiliary_heads_weigh_three_tenths_in_training_only():
    torch.manual_seed(0)
    model = GoogLeNet(1, 3, (80, 80))
    pixels = torch.randn(2, 1, 80, 80)
    images = Images(pixels, [(80, 80)] * 2, [(80, 80)] * 2)
    targets = Targets(torch.arange(2), torch.tensor([2, 0]))
    torch.manual_seed(1)
    losses = model.loss(images, targets)
    torch.manual_seed(1)  # the same units are dropped
    outputs = model.outputs(pixels)
    assert list(losses) == ["cross_entropy", "auxiliary1", "auxiliary2"]
    for share, loss, logits in zip((1, 0.3, 0.3), losses.values(), outputs, strict=True):
        expected = share * F.cross_entropy(logits, torch.tensor([2, 0]))
        torch.testing.assert_close(loss, expected)
    model.eval()
    with torch.no_grad():
        assert list(model.loss(images, targets)) == ["cross_entropy"]
        torch.testing.assert_close(model(pixels), model.outputs(pixels)[0])


def test_every_class_is_about_equally_likely_at_first():
    torch.manual_seed(0)
    model = GoogLeNet(3, 10, (79, 79)).eval()
    with torch.no_grad():
        probabilities = model(torch.randn(2, 3, 79, 79)).softmax(1)
    assert ((probabilities > 0.05) & (probabilities < 0.2)).all()


def test_heads_see_pooled_maps_of_4a_and_4d(whole):
    pools = [head.get_submodule("0") for head in whole.heads]
    assert [pool(torch.zeros(1, 1, 14, 14)).shape[2:] for pool in pools] == [(4, 4), (4, 4)]
    widths = [head.get_submodule("1").in_channels for head in whole.heads]
    assert widths == [512, 528]


@pytest.mark.parametrize(("channels", "size", "share"), [(1, (31, 40), 0.0), (3, (79, 79), 0.3)])
def test_contract(check, channels, size, share):
    torch.manual_seed(0)
    check(GoogLeNet(channels, 5, size, share), channels, size, 5)


def test_refuses():
    with torch.device("meta"):
        with pytest.raises(ValueError, match="GoogLeNet needs images of at least 31 x 31, got 30"):
            GoogLeNet(3, 10, (30, 32), 0.0)
        with pytest.raises(ValueError, match=r"\(auxiliary=0 has none\) needs .* at least 79 x 79"):
            GoogLeNet(3, 10, (78, 80))
        with pytest.raises(ValueError, match="auxiliary must be at least 0, got -1"):
            GoogLeNet(3, 10, (224, 224), -1)
        with pytest.raises(ValueError, match=r"dropout must be in \[0, 1\), got 1.0"):
            GoogLeNet(3, 10, (224, 224), dropout=1.0)
