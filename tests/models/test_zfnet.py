"""ZFNet against figure 3 of the paper."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cnnctl.models import zfnet
from cnnctl.models.zfnet import ZFNet
from cnnctl.ops.local_response import LocalResponse


def on_meta(**settings) -> ZFNet:
    with torch.device("meta"):
        return ZFNet(3, 1000, (224, 224), **settings)


def test_maps_of_figure_3():
    shapes, out = [], torch.empty(1, 3, 224, 224, device="meta")
    for layer in on_meta().features:
        out = layer(out)
        if isinstance(layer, (nn.Conv2d, nn.MaxPool2d)):
            shapes.append((out.shape[1], out.shape[2]))
    pooled = [(96, 55), (256, 13), (256, 6)]
    assert shapes == [
        *((96, 110), pooled[0]),
        *((256, 26), pooled[1]),
        *((384, 13), (384, 13), (256, 13), pooled[2]),
    ]


def test_parameters_by_hand():
    model = on_meta()
    dense = [(256 * 36 + 1) * 4096, 4097 * 4096, 4097 * 1000]
    convolutions = [148 * 96, 2401 * 256, 2305 * 384, 3457 * 384, 3457 * 256]
    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    counts = [sum(p.numel() for p in layer.parameters()) for layer in layers]
    assert counts == convolutions + dense
    assert sum(counts) == 62_357_608
    larger = on_meta(widths=(96, 256, 512, 1024, 512))
    assert sum(p.numel() for p in larger.parameters()) == 107_627_624


def test_normalises_after_the_first_two_poolings():
    kinds = [type(layer).__name__ for layer in on_meta().features]
    assert [kinds[i - 1] for i, kind in enumerate(kinds) if kind == "LocalResponse"] == [
        "MaxPool2d"
    ] * 2
    without = on_meta(normalise=False).features
    assert not any(isinstance(layer, LocalResponse) for layer in without)


@pytest.mark.parametrize(("channels", "size"), [(3, (47, 47)), (1, (50, 90))])
def test_contract(check, monkeypatch, channels, size):
    monkeypatch.setattr(zfnet, "_UNITS", 64)
    torch.manual_seed(0)
    check(ZFNet(channels, 5, size), channels, size, 5)


def test_starts_small_and_without_biases(monkeypatch):
    monkeypatch.setattr(zfnet, "_UNITS", 64)
    torch.manual_seed(0)
    state = ZFNet(3, 10, (47, 47)).state_dict()
    assert not any(value.any() for name, value in state.items() if "bias" in name)
    assert state["features.4.weight"].std().item() == pytest.approx(0.01, rel=0.01)


def test_refuses():
    with pytest.raises(ValueError, match="ZFNet needs images of at least 47 x 47, got 32 x 32"):
        ZFNet(3, 10, (32, 32))
    with pytest.raises(ValueError, match=r"five numbers of at least 1, got \[1, 2, 3, 4, 0\]"):
        ZFNet(3, 10, (224, 224), widths=(1, 2, 3, 4, 0))
