"""A network from numbers: its layers, its parts by hand, and what it refuses."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from torch import nn

from cnnctl.models.convnet import Activation, ConvNet
from cnnctl.ops.local_response import LocalResponse

SIZE = (8, 8)


def kinds(layers: nn.Module) -> list[str]:
    return [type(layer).__name__ for layer in layers.children()]


def test_the_pattern():
    """[[CONV -> ACT] * 2 -> POOL] * 2 -> [FC -> ACT] * 1 -> FC, and its parameters by hand."""
    model = ConvNet(3, 10, (32, 32), [[8, 8], [16, 16]], [20], dropout=0.5, conv_dropout=0.1)
    block = ["Conv2d", "ReLU", "Conv2d", "ReLU", "MaxPool2d", "Dropout"]
    assert kinds(model.features) == block * 2
    assert kinds(model.classifier) == ["Flatten", "Linear", "ReLU", "Dropout", "Linear"]
    convolutions = 28 * 8 + 73 * 8 + 73 * 16 + 145 * 16
    dense = (16 * 8 * 8 + 1) * 20 + 21 * 10
    assert sum(p.numel() for p in model.parameters()) == convolutions + dense


def test_can_be_lenet():
    """C1, S2, C3, S4, C5, F6 and the output, 61,706 parameters."""
    model = ConvNet(1, 10, (32, 32), [6, 16], [120, 84], kernel=5, padding=0)
    assert sum(p.numel() for p in model.parameters()) == 61_706
    assert kinds(model.features) == ["Conv2d", "ReLU", "MaxPool2d"] * 2


def test_can_be_the_features_of_alexnet():
    """One tower: 11x11 at stride 4, overlapping pooling, none after the third and fourth."""
    with torch.device("meta"):
        model = ConvNet(
            *(3, 1000, (227, 227), [96, 256, [384, 384, 256]], [4096, 4096]),
            kernel=[11, 5, 3, 3, 3],
            stride=[4, 1, 1, 1, 1],
            padding=[0, "same", "same", "same", "same"],
            groups=[1, 2, 1, 2, 2],
            pool_size=3,
            pool_stride=2,
            norm=["lrn", "lrn", "none", "none", "none"],
            dropout=0.5,
        )
    assert sum(p.numel() for p in model.parameters()) == 60_965_224
    assert kinds(model.features)[:4] == ["Conv2d", "ReLU", "LocalResponse", "MaxPool2d"]
    assert sum(isinstance(layer, LocalResponse) for layer in model.features) == 2


def test_without_convolutions_it_is_a_perceptron():
    model = ConvNet(3, 10, SIZE, [], [7])
    assert sum(p.numel() for p in model.parameters()) == (3 * 64 + 1) * 7 + 8 * 10
    assert sum(p.numel() for p in ConvNet(3, 10, SIZE, [], []).parameters()) == 1930


def test_same_padding_is_the_rule():
    """(F - 1) / 2 keeps the size; 5 filters of 5x5 on 32x32x3 without it give 28x28x5."""
    pixels = torch.zeros(1, 3, 32, 32)
    for kernel in (1, 3, 5, 7):
        model = ConvNet(3, 2, (32, 32), [5], [], kernel=kernel, pool="none")
        assert model.features(pixels).shape == (1, 5, 32, 32)
    model = ConvNet(3, 2, (32, 32), [5], [], kernel=5, padding=0, pool="none")
    assert model.features(pixels).shape == (1, 5, 28, 28)


POOLED = {"max": [[6.0, 8.0], [3.0, 4.0]], "average": [[3.25, 5.25], [2.0, 2.0]]}
MAP = [[1.0, 1.0, 2.0, 4.0], [5.0, 6.0, 7.0, 8.0], [3.0, 2.0, 1.0, 0.0], [1.0, 2.0, 3.0, 4.0]]


@pytest.mark.parametrize("pool", POOLED)
def test_the_worked_poolings(pool):
    layer = ConvNet(1, 2, (4, 4), [1], [], pool=pool).features[2]
    assert layer(torch.tensor([[MAP]]))[0, 0].tolist() == POOLED[pool]


def test_maxout_makes_one_of_its_pieces():
    model = ConvNet(1, 3, SIZE, [4], [5], activation="maxout", pieces=3)
    shapes = [m.weight.shape[0] for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert shapes == [12, 15, 3]
    assert model(torch.zeros(2, 1, *SIZE)).shape == (2, 3)


@pytest.mark.parametrize("activation", get_args(Activation))
def test_every_activation(check, activation):
    torch.manual_seed(0)
    check(ConvNet(2, 3, SIZE, [4], [5], activation=activation), 2, SIZE, 3)


SETTINGS: list[dict[str, Any]] = [
    {"norm": "batch", "pool": "average", "dropout": 0.5},
    {"norm": "lrn", "pool": ["l2", "none"], "groups": [1, 2, 4], "conv_dropout": [0.1, 0.0]},
    {"kernel": [5, 3, 2], "padding": ["same", 0, 1], "stride": [2, 1, 1], "pool_stride": 1},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_contract(check, settings):
    torch.manual_seed(0)
    check(ConvNet(3, 4, (12, 9), [[4, 8], 8], [6], **settings), 3, (12, 9), 4)


def test_overfits_eight_images(overfit):
    torch.manual_seed(0)
    overfit(ConvNet(1, 4, SIZE, [8, 16], [16], norm="batch"), 1, SIZE, 4)


@pytest.mark.parametrize(
    ("activation", "gain"), [("relu", 2.0), ("selu", 1.0), ("maxout", 1.0), ("tanh", 1.0)]
)
def test_initial_weights(activation, gain):
    """Variance gain / inputs; before a tanh 2 / (inputs + outputs), alike for as many of both."""
    torch.manual_seed(0)
    model = ConvNet(3, 10, SIZE, [[64, 64]], [], activation=activation)
    weight = model.state_dict()["features.2.weight"]
    assert weight.std().item() == pytest.approx((gain / (64 * 9)) ** 0.5, rel=0.02)
    assert not model.state_dict()["features.2.bias"].any()


REFUSED: list[tuple[str, dict[str, Any]]] = [
    (r"convolution 2 has 6 -> 8 of them and 4 groups", {"groups": [1, 4]}),
    (
        r"kernel must be one value or a list of 2, one for each convolution, got 3",
        {"kernel": [3] * 3},
    ),
    (r"pool must be one value or a list of 2, one for each block, got 1", {"pool": ["max"]}),
    (
        r"dropout must be one value or a list of 1, one for each hidden .*, got 2",
        {"dropout": [0, 0]},
    ),
    (r"which kernel 4 has not: give padding as a number", {"kernel": 4}),
    (r'padding must be "same" or at least 0, got -1', {"padding": -1}),
    (r"stride must be at least 1, got 0", {"stride": 0}),
    (r"width must be at least 1, got 0", {"widths": [0]}),
    (r"widths must have a number for each convolution, got \[\[\]\]", {"widths": [[]]}),
    (r"dense must all be at least 1, got \[0\]", {"dense": [0]}),
    (r"pool_size and pool_stride must be at least 1, got 0 and 0", {"pool_size": 0}),
    (r'pool must be "max", "average", "l2" or "none", got "min"', {"pool": "min"}),
    (r'norm must be "none", "batch" or "lrn", got "group"', {"norm": "group"}),
    (r'activation must be one of relu, .*, maxout, got "step"', {"activation": "step"}),
    (r"pieces must be at least 2, got 1", {"activation": "maxout", "pieces": 1}),
    (r"conv_dropout must be in \[0, 1\), got 1", {"conv_dropout": 1.0}),
    (
        r"this ConvNet needs images of at least 36 x 36, got 8 x 8",
        {"pool_size": 4, "kernel": 5, "padding": 0},
    ),
]


@pytest.mark.parametrize(("sentence", "settings"), REFUSED)
def test_refuses(sentence, settings):
    settings = {"widths": [6, 8], "dense": [5], **settings}
    with pytest.raises(ValueError, match=sentence):
        ConvNet(3, 10, SIZE, **settings)
