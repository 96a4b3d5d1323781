from __future__ import annotations

import pytest
import torch
from torchvision.models import get_model

from cnnctl.engine.layers import layer_table
from cnnctl.models.lraspp import LRASPP


def test_is_torchvisions_network_under_its_names():
    torch.manual_seed(0)
    ours = LRASPP(3, 5).eval()
    theirs = get_model("lraspp_mobilenet_v3_large", num_classes=5, weights_backbone=None).eval()
    theirs.load_state_dict(ours.network.state_dict())
    pixels = torch.randn(2, 3, 41, 50)
    with torch.no_grad():
        torch.testing.assert_close(ours(pixels), theirs(pixels)["out"])


@pytest.mark.parametrize("size", [(1, 1), (2, 17), (8, 9), (33, 31)])
def test_every_size_is_kept(size):
    torch.manual_seed(0)
    with torch.no_grad():
        assert LRASPP(1, 4).eval()(torch.randn(2, 1, *size)).shape == (2, 4, *size)


def test_strides_of_its_two_heads():
    with torch.device("meta"):
        model = LRASPP(3, 21)
    shapes = {row.name: row.shape for row in layer_table(model, 3, (256, 256)).rows}
    assert shapes["network.classifier.low_classifier"] == (21, 32, 32)
    assert shapes["network.classifier.cbr.0"] == (128, 16, 16)
