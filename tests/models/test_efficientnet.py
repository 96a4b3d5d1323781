"""EfficientNet against torchvision's and table 2 of the paper."""

from __future__ import annotations

import pytest
import torch
from torchvision.models import get_model

from cnnctl import compose
from cnnctl.engine.layers import layer_table
from cnnctl.models.efficientnet import EfficientNet

# Table 2: 5.3, 7.8, 9.2, 12, 19, 30, 43, 66 million parameters.
PARAMETERS = {
    "b0": (224, 5_288_548),
    "b1": (240, 7_794_184),
    "b2": (260, 9_109_994),
    "b3": (300, 12_233_232),
    "b4": (380, 19_341_616),
    "b5": (456, 30_389_784),
    "b6": (528, 43_040_704),
    "b7": (600, 66_347_960),
}


def test_is_torchvisions_network_under_its_names():
    torch.manual_seed(0)
    ours, theirs = EfficientNet(3, 5, (32, 32)).eval(), get_model("efficientnet_b0", num_classes=5)
    theirs.load_state_dict(ours.state_dict())
    pixels = torch.randn(2, 3, 33, 40)
    with torch.no_grad():
        torch.testing.assert_close(ours(pixels), theirs.eval()(pixels))


@pytest.mark.parametrize("variant", PARAMETERS)
def test_parameters_and_resolution_of_each(variant):
    side, parameters = PARAMETERS[variant]
    with torch.device("meta"):
        model = EfficientNet(3, 1000, (side, side), variant)
    assert sum(p.numel() for p in model.parameters()) == parameters
    config = compose.compose("train", [f"model=efficientnet_{variant}"])
    assert (config.augmentation.size, config.model.variant) == (side, variant)


def test_operations_of_b0():
    with torch.device("meta"):
        table = layer_table(EfficientNet(3, 1000, (224, 224)), 3, (224, 224))
    assert round(table.flops / 2e9, 2) == 0.39  # table 2
    shapes = {row.name: row.shape for row in table.rows}
    # Table 1: the last map has 1280 channels and 7 x 7 pixels.
    assert shapes["features.8.0"] == (1280, 7, 7)


def test_contract(check):
    torch.manual_seed(0)
    check(EfficientNet(1, 5, (32, 40)), 1, (32, 40), 5)


def test_refuses():
    with pytest.raises(ValueError, match="EfficientNet needs images of at least 32 x 32, got 16"):
        EfficientNet(3, 10, (16, 32))
    with pytest.raises(ValueError, match=r'variant must be one of b0, .*, b7, got "b8"'):
        EfficientNet(3, 10, (224, 224), "b8")  # pyright: ignore[reportArgumentType]
