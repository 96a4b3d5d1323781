"""MobileNetV3 against torchvision's and table 3 of the paper."""

from __future__ import annotations

import pytest
import torch
from torchvision.models import get_model

from cnnctl.engine.layers import layer_table
from cnnctl.models.mobilenet_v3 import MobileNetV3

SIZE = (224, 224)


def test_is_torchvisions_network_under_its_names():
    torch.manual_seed(0)
    ours = MobileNetV3(3, 5, (32, 32), "small").eval()
    theirs = get_model("mobilenet_v3_small", num_classes=5)
    theirs.load_state_dict(ours.state_dict())
    pixels = torch.randn(2, 3, 33, 40)
    with torch.no_grad():
        torch.testing.assert_close(ours(pixels), theirs.eval()(pixels))


# Table 3: large 5.4 M parameters and 219 M multiply-adds, small 2.5 M and 56 M.
@pytest.mark.parametrize(
    ("variant", "parameters", "mega"), [("large", 5_483_032, 217), ("small", 2_542_856, 57)]
)
def test_parameters_and_operations(variant, parameters, mega):
    with torch.device("meta"):
        table = layer_table(MobileNetV3(3, 1000, SIZE, variant), 3, SIZE)
    assert table.parameters == parameters
    assert round(table.flops / 2e6) == mega
    dense = [row.shape for row in table.rows if row.kind == "Linear"]
    assert dense == [(1280 if variant == "large" else 1024,), (1000,)]


def test_contract(check):
    torch.manual_seed(0)
    check(MobileNetV3(1, 5, (32, 40), "small"), 1, (32, 40), 5)


def test_refuses():
    with pytest.raises(ValueError, match="MobileNetV3 needs images of at least 32 x 32, got 8 x 8"):
        MobileNetV3(3, 10, (8, 8))
    with pytest.raises(ValueError, match='variant must be large or small, got "medium"'):
        MobileNetV3(3, 10, SIZE, "medium")  # pyright: ignore[reportArgumentType]
