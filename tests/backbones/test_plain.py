"""Plain nets against torchvision's ResNets and table 1 of the paper."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.resnet import BasicBlock

from cnnctl.backbones.plain import Plain
from cnnctl.engine.layers import layer_table
from cnnctl.models.classifier import Classifier


# Table 1: 1.8 and 3.6 billion multiply-adds, the residual nets' with shortcuts of no parameters.
@pytest.mark.parametrize(
    ("depth", "giga", "parameters"), [(18, 1.8, 11515688), (34, 3.6, 21623848)]
)
def test_is_the_residual_net_without_shortcuts(depth, giga, parameters):
    with torch.device("meta"):
        model = Classifier(Plain(depth), 1000, (224, 224))
        table = layer_table(model, 3, (224, 224))
        theirs = models.get_model(f"resnet{depth}").state_dict()
    assert round(table.flops / 2e9, 1) == giga
    assert table.parameters == parameters
    own = {name: value.shape for name, value in model.backbone.state_dict().items()}
    assert own == {
        name: value.shape
        for name, value in theirs.items()
        if "downsample" not in name and not name.startswith("fc.")
    }
    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert len(layers) == depth


class Nothing(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.new_zeros(())


def test_a_residual_net_whose_shortcuts_give_nothing_is_plain():
    """torchvision's block, its shortcut taken away: the same maps."""
    torch.manual_seed(0)
    plain = Plain(18).eval()
    theirs = models.resnet18().eval()
    theirs.load_state_dict(plain.state_dict(), strict=False)
    for block in theirs.modules():
        if isinstance(block, BasicBlock):
            block.downsample = Nothing()
    pixels = torch.randn(1, 3, 40, 64)
    with torch.no_grad():
        pooled = plain(pixels)["c5"].mean((2, 3))
        torch.testing.assert_close(theirs.fc(pooled), theirs(pixels))


@pytest.mark.parametrize("small_input", [False, True])
def test_channels_and_strides_are_those_of_the_maps(small_input):
    with torch.device("meta"):
        backbone = Plain(18, in_channels=1, small_input=small_input)
        maps = backbone(torch.zeros(2, 1, 64, 64))
    for name, found in maps.items():
        side = 64 // backbone.strides[name]
        assert found.shape == (2, backbone.channels[name], side, side)
    assert backbone.strides["c5"] == (8 if small_input else 32)
    assert list(maps) == ["c2", "c3", "c4", "c5"]


def test_refuses():
    with pytest.raises(ValueError, match="depth must be 18 or 34, got 50"):
        Plain(50)  # pyright: ignore[reportArgumentType]
