"""Variances of the weights, as the papers have them; what was loaded stays."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from cnnctl.engine.initialisation import initialise


def network() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.Flatten(), nn.Linear(256, 128)
    )


@pytest.mark.parametrize(
    ("how", "convolution", "dense"),
    [
        ("xavier", 2 / (9 * 32 + 9 * 64), 2 / (256 + 128)),  # 2 / (fan in + fan out)
        ("he", 2 / (9 * 32), 2 / 256),  # 2 / fan in
        ("gaussian", 1e-4, 1e-4),
        ("orthogonal", 1 / (9 * 32), 1 / 256),  # rows of length 1
    ],
)
def test_variances(how, convolution, dense):
    net = network()
    net[1].weight.data.fill_(3.0)
    initialise(net, how)
    for layer, variance in ((net[0], convolution), (net[3], dense)):
        weight = layer.weight.detach()
        assert float(weight.var()) == pytest.approx(variance, rel=0.03)
        assert abs(float(weight.mean())) < 3 * (variance / weight.numel()) ** 0.5
        assert not layer.bias.any()
    assert (net[1].weight == 3).all(), "normalisation is no convolution"


def test_orthogonal_rows():
    net = network()
    initialise(net, "orthogonal")
    for layer in (net[0], net[3]):
        rows = layer.weight.detach().flatten(1)
        torch.testing.assert_close(rows @ rows.T, torch.eye(len(rows)), rtol=0, atol=1e-5)


def test_loaded_tensors_and_the_models_own_way_stay():
    net, before = network(), network()
    initialise(net, "model")
    pairs = zip(net.parameters(), before.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    initialise(net, "gaussian", {"0.weight", "3.bias"})
    assert torch.equal(net[0].weight, before[0].weight)
    assert torch.equal(net[3].bias, before[3].bias)
    assert not net[0].bias.any()
    assert not torch.equal(net[3].weight, before[3].weight)
