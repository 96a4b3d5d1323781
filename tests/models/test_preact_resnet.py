"""Pre-activation ResNets against the paper's section 5 and appendix."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cnnctl.models.preact_resnet import BasicUnit, BottleneckUnit, PreactResNet

SIZE = (32, 32)


# The paper's 1.7, 1.7 and 10.2 million are weights of convolutions and of the last layer.
@pytest.mark.parametrize(
    ("depth", "bottleneck", "millions", "all_of_them"),
    [(110, False, 1.7, 1_727_962), (164, True, 1.7, 1_703_258), (1001, True, 10.2, 10_327_706)],
)
def test_parameters(depth, bottleneck, millions, all_of_them):
    with torch.device("meta"):
        model = PreactResNet(3, 10, SIZE, depth, bottleneck)
    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert sum(p.numel() for p in model.parameters()) == all_of_them
    assert round(sum(layer.weight.numel() for layer in layers) / 1e6, 1) == millions
    projections = 3 if bottleneck else 0
    assert len(layers) - projections == depth


@pytest.mark.parametrize(("depth", "bottleneck"), [(14, False), (11, True)])
@pytest.mark.parametrize(("channels", "size"), [(3, (16, 16)), (1, (5, 9))])
def test_contract(check, depth, bottleneck, channels, size):
    torch.manual_seed(0)
    check(PreactResNet(channels, 5, size, depth, bottleneck), channels, size, 5)


def test_overfits_eight_images(overfit):
    torch.manual_seed(0)
    overfit(PreactResNet(3, 4, (16, 16), 11), 3, (16, 16), 4)


def test_what_passes_between_units_is_added_and_never_activated():
    """With their last convolutions at zero, units pass on negative numbers too."""
    torch.manual_seed(0)
    units = nn.Sequential(BasicUnit(8, 8, 1, False), BottleneckUnit(8, 2, 1, False)).eval()
    for name in ("0.conv2.weight", "1.conv3.weight"):
        nn.init.zeros_(units.get_parameter(name))
    pixels = torch.randn(2, 8, 5, 5)
    assert torch.equal(units(pixels), pixels)


def test_a_projection_sees_what_is_activated_by_hand():
    """Figure 4 (e) and the appendix, written out."""
    torch.manual_seed(0)
    unit = BottleneckUnit(6, 4, 2, False).eval()
    pixels = torch.randn(2, 6, 7, 7)
    state = unit.state_dict()
    root = (1 + 1e-5) ** 0.5  # what batch norm divides by at the start
    first = (pixels / root).relu()
    out = F.conv2d(first, state["conv1.weight"])
    out = F.conv2d((out / root).relu(), state["conv2.weight"], stride=2, padding=1)
    out = F.conv2d((out / root).relu(), state["conv3.weight"])
    expected = out + F.conv2d(first, state["projection.weight"], stride=2)
    torch.testing.assert_close(unit(pixels), expected, rtol=1e-4, atol=1e-5)
    assert expected.shape == (2, 16, 4, 4)


def test_the_first_unit_shares_the_stems_activation():
    with torch.device("meta"):
        names = PreactResNet(3, 10, SIZE, 20).state_dict().keys()
    assert "bn1.weight" in names
    assert "layer1.0.bn1.weight" not in names
    assert {"layer1.1.bn1.weight", "layer2.0.bn1.weight", "bn2.weight"} <= names


@pytest.mark.parametrize(("depth", "bottleneck", "rule"), [(110, False, 6), (164, True, 9)])
def test_refuses_other_depths(depth, bottleneck, rule):
    kind = "with" if bottleneck else "without"
    with pytest.raises(ValueError, match=rf"must be {rule}n \+ 2 {kind} .*, got {depth - 1}"):
        PreactResNet(3, 10, SIZE, depth - 1, bottleneck)
    with pytest.raises(ValueError, match="at least 4 x 4, got 3 x 32"):
        PreactResNet(3, 10, (3, 32), depth, bottleneck)
    with pytest.raises(ValueError, match=r"n \+ 2"):
        PreactResNet(3, 10, SIZE, 2, bottleneck)
