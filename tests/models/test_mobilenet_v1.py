"""MobileNet against tables 1, 4 and 6 of the paper."""

from __future__ import annotations

import pytest
import torch

from cnnctl.engine.layers import layer_table
from cnnctl.models.mobilenet_v1 import MobileNetV1

SIZE = (224, 224)


# Table 6: 4.2, 2.6, 1.3, 0.5 million parameters, 569, 325, 149, 41 million multiply-adds.
@pytest.mark.parametrize(
    ("width", "parameters", "millions"),
    [(1.0, 4_231_976, 569), (0.75, 2_585_560, 325), (0.5, 1_331_592, 149), (0.25, 470_072, 41)],
)
def test_parameters_and_operations_of_table_6(width, parameters, millions):
    with torch.device("meta"):
        table = layer_table(MobileNetV1(3, 1000, SIZE, width), 3, SIZE)
    assert table.parameters == parameters
    assert round(table.flops / 2e6) == pytest.approx(millions, abs=1)


def test_maps_of_table_1():
    with torch.device("meta"):
        rows = layer_table(MobileNetV1(3, 1000, SIZE), 3, SIZE).rows
    shapes = [row.shape for row in rows if row.kind == "Conv2d"]
    assert len(shapes) + 1 == 28  # layers with weights (section 3.2)
    sides = [112] * 3 + [56] * 4 + [28] * 4 + [14] * 12 + [7] * 4
    assert [shape[1] for shape in shapes] == sides
    assert [shape[0] for shape in shapes[2::2]] == [
        *(64, 128, 128, 256, 256, 512),
        *([512] * 5),
        *(1024, 1024),
    ]
    # Table 7: 224, 192, 160, 128 pixels cost 569, 418, 291, 186 million.
    with torch.device("meta"):
        small = layer_table(MobileNetV1(3, 1000, (160, 160)), 3, (160, 160))
    assert round(small.flops / 2e6) == pytest.approx(291, abs=1)
    assert small.parameters == 4_231_976


def test_a_separable_convolution_mixes_maps_only_in_its_1x1():
    torch.manual_seed(0)
    layer = MobileNetV1(3, 5, (32, 32), 0.25).features.get_submodule("1.0")
    pixels = torch.randn(1, 8, 6, 6)
    changed = pixels.clone()
    changed[:, 3] += 1
    moved = (layer(changed) - layer(pixels)).abs().amax((0, 2, 3)) > 0
    assert moved.tolist() == [number == 3 for number in range(8)]


@pytest.mark.parametrize(("channels", "size"), [(1, (32, 32)), (3, (33, 50))])
def test_contract(check, channels, size):
    torch.manual_seed(0)
    check(MobileNetV1(channels, 5, size, 0.25, dropout=0.1), channels, size, 5)


def test_refuses():
    with pytest.raises(ValueError, match="MobileNet needs images of at least 32 x 32, got 32 x 28"):
        MobileNetV1(3, 10, (32, 28))
    with pytest.raises(ValueError, match=r"width must be at least 1/32, got 0.01"):
        MobileNetV1(3, 10, (32, 32), 0.01)
    with pytest.raises(ValueError, match=r"dropout must be in \[0, 1\), got 1.0"):
        MobileNetV1(3, 10, (32, 32), dropout=1.0)
