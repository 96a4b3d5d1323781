"""OverFeat against tables 1, 3 and 4 of the paper."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cnnctl.models import overfeat
from cnnctl.models.overfeat import OverFeat

SIDES = {  # after each convolution and pooling
    "fast": [56, 28, 24, 12, 12, 12, 12, 6],
    "accurate": [108, 36, 30, 15, 15, 15, 15, 15, 5],
}
SIZES = {"fast": (231, 231), "accurate": (221, 221)}
# Table 4: 145 and 144 million parameters, 2,810 and 5,369 million connections. Without the
# connections to biases they are 2,801 and 5,355.
PARAMETERS = {"fast": 145_920_872, "accurate": 144_656_488}
CONNECTIONS = {"fast": 2_801_403_904, "accurate": 5_355_446_784}


@pytest.mark.parametrize("version", SIDES)
def test_layers_of_the_tables(version):
    with torch.device("meta"):
        model = OverFeat(3, 1000, SIZES[version], version)
        sides, connections, out = [], 0, torch.empty(1, 3, *SIZES[version])
    for layer in [*model.features, *model.classifier]:
        out = layer(out)
        if isinstance(layer, (nn.Conv2d, nn.MaxPool2d)):
            sides.append(out.shape[2])
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            connections += out[0, 0].numel() * layer.weight.numel()
    assert sides == SIDES[version]
    assert connections == CONNECTIONS[version]
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[version]


def test_widths():
    with torch.device("meta"):
        models = [OverFeat(3, 1000, SIZES["fast"]), OverFeat(3, 1000, (221, 221), "accurate")]
    layers = [
        [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))] for model in models
    ]
    assert [[layer.weight.shape[0] for layer in each] for each in layers] == [
        [96, 256, 512, 1024, 1024, 3072, 4096, 1000],
        [96, 256, 512, 512, 1024, 1024, 4096, 4096, 1000],
    ]


@pytest.mark.parametrize(
    ("channels", "size", "version"), [(3, (71, 71), "fast"), (1, (77, 80), "accurate")]
)
def test_contract(check, monkeypatch, channels, size, version):
    monkeypatch.setattr(overfeat, "_UNITS", {"fast": (48, 64), "accurate": (64, 64)})
    for name, stages in overfeat._STAGES.items():
        narrow = tuple(stage._replace(maps=stage.maps // 8) for stage in stages)
        monkeypatch.setitem(overfeat._STAGES, name, narrow)
    torch.manual_seed(0)
    check(OverFeat(channels, 5, size, version), channels, size, 5)


def test_refuses():
    with pytest.raises(ValueError, match=r"\(fast\) needs images of at least 71 x 71, got 64 x 80"):
        OverFeat(3, 10, (64, 80))
    with pytest.raises(ValueError, match='version must be "fast" or "accurate", got "slow"'):
        OverFeat(3, 10, (231, 231), "slow")  # pyright: ignore[reportArgumentType]
