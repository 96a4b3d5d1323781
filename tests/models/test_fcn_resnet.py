from __future__ import annotations

import pytest
import torch
from torchvision.models import get_model

from cnnctl.engine.layers import layer_table
from cnnctl.models.fcn_resnet import FCNResNet


def test_is_torchvisions_network_under_its_names():
    torch.manual_seed(0)
    ours = FCNResNet(3, 5).eval()
    theirs = get_model("fcn_resnet50", num_classes=5, aux_loss=True, weights_backbone=None).eval()
    theirs.load_state_dict(ours.network.state_dict())
    pixels = torch.randn(2, 3, 33, 41)
    with torch.no_grad():
        expected, found = theirs(pixels), ours.outputs(pixels)
        torch.testing.assert_close(found, dict(expected))
        torch.testing.assert_close(ours(pixels), expected["out"])
        for size in ((1, 1), (2, 17), (8, 9)):
            assert ours(pixels[..., : size[0], : size[1]]).shape == (2, 5, *size)
    assert ours.auxiliary == {"aux": 0.5}


@pytest.mark.parametrize(("depth", "blocks"), [(50, 6), (101, 23)])
def test_depth_and_stride(depth, blocks):
    with torch.device("meta"):
        model = FCNResNet(1, 21, depth, auxiliary=False)
    assert len(model.network.backbone.layer3) == blocks
    assert model.auxiliary == {}
    shapes = {row.name: row.shape for row in layer_table(model, 1, (256, 256)).rows}
    assert shapes["network.classifier.4"] == (21, 32, 32)


def test_refuses():
    with pytest.raises(ValueError, match="depth must be 50 or 101, got 18"):
        FCNResNet(3, 21, 18)  # pyright: ignore[reportArgumentType]
