"""MobileNetV2 against torchvision's and table 2 of the paper."""

from __future__ import annotations

import pytest
import torch
from torchvision.models import get_model

from cnnctl.engine.layers import layer_table
from cnnctl.models.mobilenet_v2 import MobileNetV2

SIZE = (224, 224)


def test_is_torchvisions_network_under_its_names():
    torch.manual_seed(0)
    ours, theirs = MobileNetV2(3, 5, (32, 32)).eval(), get_model("mobilenet_v2", num_classes=5)
    theirs.load_state_dict(ours.state_dict())
    pixels = torch.randn(2, 3, 33, 40)
    with torch.no_grad():
        torch.testing.assert_close(ours(pixels), theirs.eval()(pixels))


# Table 4: 3.4 M and 300 M for width 1, 585 M for width 1.4; torchvision's count is a little higher.
@pytest.mark.parametrize(
    ("width", "parameters", "mega"), [(1.0, 3504872, 301), (1.4, 6108776, 582)]
)
def test_parameters_and_operations(width, parameters, mega):
    with torch.device("meta"):
        table = layer_table(MobileNetV2(3, 1000, SIZE, width), 3, SIZE)
    assert table.parameters == parameters
    assert round(table.flops / 2e6) == mega
    if width == 1:
        shapes = {row.name: row.shape for row in table.rows}
        ends = [
            shapes[f"features.{n}.conv.{2 if n == 1 else 3}"] for n in (1, 3, 6, 10, 13, 16, 17)
        ]
        # Table 2: t, c, n, s give 16, 24, 32, 64, 96, 160, 320 maps.
        assert [shape[0] for shape in ends] == [16, 24, 32, 64, 96, 160, 320]
        assert [shape[1] for shape in ends] == [112, 56, 28, 14, 14, 7, 7]


def test_contract(check):
    torch.manual_seed(0)
    check(MobileNetV2(1, 5, (32, 40), 0.35), 1, (32, 40), 5)


def test_refuses():
    with pytest.raises(
        ValueError, match="MobileNetV2 needs images of at least 32 x 32, got 31 x 9"
    ):
        MobileNetV2(3, 10, (31, 9))
    with pytest.raises(ValueError, match=r"width must be above 0, got 0.0"):
        MobileNetV2(3, 10, SIZE, 0.0)
    with pytest.raises(
        ValueError, match="weights must be null or one of IMAGENET1K_V1, IMAGENET1K"
    ):
        MobileNetV2(3, 10, SIZE, weights="V3")
