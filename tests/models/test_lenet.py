"""LeNet-5 against section II.B of the paper."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cnnctl.models.lenet import LeNet

# Weights and biases. The paper's C3 has 1,516, as it connects 60 of the 96 pairs of maps; with all
# connected it is 6 * 16 * 25 + 16. Its output layer has fixed codes of 84 for each class.
PARAMETERS = {"C1": 156, "C3": 2416, "C5": 48120, "F6": 10164, "output": 850}
MAPS = {"C1": (6, 28, 28), "S2": (6, 14, 14), "C3": (16, 10, 10), "S4": (16, 5, 5)}


def test_parameters_of_each_layer():
    layers = [m for m in LeNet(1, 10, (32, 32)).modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    counts = [sum(p.numel() for p in layer.parameters()) for layer in layers]
    assert dict(zip(PARAMETERS, counts, strict=True)) == PARAMETERS


def test_sizes_of_the_maps():
    shapes = []
    out = torch.zeros(1, 1, 32, 32)
    for layer in LeNet(1, 10, (32, 32)).features:
        out = layer(out)
        if not isinstance(layer, nn.ReLU):
            shapes.append(tuple(out.shape[1:]))
    assert dict(zip(MAPS, shapes, strict=True)) == MAPS


@pytest.mark.parametrize(("channels", "size"), [(1, (32, 32)), (3, (40, 53))])
def test_contract(check, channels, size):
    torch.manual_seed(0)
    check(LeNet(channels, 7, size), channels, size, 7)


def test_overfits_eight_images(overfit):
    torch.manual_seed(0)
    overfit(LeNet(1, 4, (32, 32)), 1, (32, 32), 4, lr=0.003)


@pytest.mark.parametrize("size", [(31, 32), (32, 8)])
def test_refuses_small_images(size):
    with pytest.raises(ValueError, match=f"at least 32 x 32, got {size[0]} x {size[1]}"):
        LeNet(1, 10, size)
