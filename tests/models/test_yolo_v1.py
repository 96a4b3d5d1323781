from __future__ import annotations

import pytest
import torch
from torch import nn

from cnnctl.models.yolo_v1 import YOLOv1


def test_the_papers_network():
    """Figure 3: 24 convolutions, two dense layers, 7 x 7 x 30 numbers for VOC's 20 classes."""
    with torch.device("meta"):
        model = YOLOv1(3, 20, (448, 448), norm=False)
        said = model.said(torch.zeros(2, 3, 448, 448))
        stretched = model.said(torch.zeros(2, 3, 375, 500))
    assert said.shape == stretched.shape == (2, 7, 7, 30)
    assert said[0].numel() == 1470
    layers = [layer for layer in model.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    widths = [layer.weight.shape[0] for layer in layers]
    assert widths[:10] == [64, 192, 128, 256, 256, 512, 256, 512, 256, 512]
    assert widths[10:16] == [256, 512, 256, 512, 512, 1024]
    assert widths[16:] == [512, 1024, 512, 1024, 1024, 1024, 1024, 1024, 4096, 1470]
    assert [layer.kernel_size[0] for layer in layers[:24] if isinstance(layer, nn.Conv2d)] == [
        *(7, 3, 1, 3, 1, 3, 1, 3, 1, 3, 1, 3, 1, 3, 1, 3, 1, 3, 1, 3, 3, 3, 3, 3)
    ]
    assert layers[24].weight.shape[1] == 7 * 7 * 1024
    weights = 64 * 3 * 49 + sum(
        out * given * (1 if kernel == 1 else 9)
        for out, given, kernel in zip(
            widths[1:24], widths[:23], (3, *(1, 3) * 9, 3, 3, 3, 3), strict=True
        )
    )
    dense = 7 * 7 * 1024 * 4096 + 4096 * 1470
    assert sum(p.numel() for p in model.parameters()) == weights + dense + sum(widths)
    assert weights + dense + sum(widths) == 271_703_550


def test_other_grids_boxes_and_classes():
    with torch.device("meta"):
        model = YOLOv1(1, 3, (96, 130), grid=5, boxes=3)
        assert model.said(torch.zeros(2, 1, 96, 130)).shape == (2, 5, 5, 3 * 5 + 3)
        assert isinstance(model.head[1], nn.Linear)
        assert model.head[1].in_features == 1024 * 2 * 3


@pytest.mark.parametrize(
    ("size", "options", "message"),
    [
        ((448, 448), {"grid": 0}, "grid must be at least 1, got 0"),
        ((448, 448), {"dropout": 1.0}, "dropout must be from 0 to below 1, got 1"),
        ((63, 448), {}, "the network needs images of at least 64 x 64, got 63 x 448"),
    ],
)
def test_refuses(size, options, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        YOLOv1(3, 2, size, **options)
