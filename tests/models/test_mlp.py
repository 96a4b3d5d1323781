from __future__ import annotations

import pytest
import torch
from torch import nn

from cnnctl.models.linear import Linear
from cnnctl.models.mlp import MLP

ACTIVATIONS = ["relu", "leaky_relu", "elu", "gelu", "silu", "tanh", "sigmoid"]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_contract(check, activation):
    torch.manual_seed(0)
    check(MLP(3, 10, (8, 6), [16, 12], activation), 3, (8, 6), 10)


def test_contract_with_dropout_and_batch_norm(check):
    torch.manual_seed(0)
    check(MLP(1, 5, (8, 8), [64], dropout=0.5, batch_norm=True), 1, (8, 8), 5)


def test_overfits_eight_images(overfit):
    torch.manual_seed(0)
    overfit(MLP(1, 4, (8, 8), [32, 16]), 1, (8, 8), 4)


def test_parameters_of_the_300_and_100_network():
    """LeCun et al. 1998: 28 * 28 - 300 - 100 - 10 has 266,610 weights and biases."""
    model = MLP(1, 10, (28, 28), [300, 100])
    assert sum(p.numel() for p in model.parameters()) == 266_610


def test_layers_in_order():
    model = MLP(1, 2, (2, 2), [3, 5], "tanh", dropout=0.25, batch_norm=True)
    kinds = [nn.Linear, nn.BatchNorm1d, nn.Tanh, nn.Dropout] * 2
    assert [type(layer) for layer in model.features] == kinds
    assert model.features[0].bias is None  # the batch norm has one


def test_no_hidden_layer_is_softmax_regression():
    mlp, linear = MLP(1, 3, (4, 4), []), Linear(1, 3, (4, 4))
    linear.load_state_dict(mlp.state_dict())
    pixels = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(mlp(pixels), linear(pixels))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"widths": [10, 0]}, r"widths must all be at least 1, got \[10, 0\]"),
        ({"widths": [-3]}, "widths"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"dropout": -0.1}, "dropout"),
        ({"activation": "step"}, 'activation must be one of relu, .*, got "step"'),
    ],
)
def test_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        MLP(1, 10, (8, 8), **({"widths": [4]} | change))
