"""LeNet-5 against section II.B of the paper, and the parts of 1998 against their formulas."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cnnctl.models.lenet import LeNet, PartialConv2d, RadialBasis, ScaledTanh, Subsampling

# Weights and biases of the default, which connects all maps: 6 * 16 * 25 + 16 in C3.
PARAMETERS = {"C1": 156, "C3": 2416, "C5": 48120, "F6": 10164, "output": 850}
MAPS = {"C1": (6, 28, 28), "S2": (6, 14, 14), "C3": (16, 10, 10), "S4": (16, 5, 5)}


# The paper's own: its output has no parameters, and connections count the biases' too.
PAPER = {"C1": 156, "S2": 12, "C3": 1516, "S4": 32, "C5": 48120, "F6": 10164}
CONNECTIONS = {"C1": 122304, "S2": 5880, "C3": 151600, "S4": 2000, "C5": 48120, "F6": 10164}
TABLE_1 = (  # of the paper: a row for each map of S2, a column for each map of C3
    "X   XXX  XXXX XX",
    "XX   XXX  XXXX X",
    "XXX   XXX  X XXX",
    " XXX  XXXX  X XX",
    "  XXX  XXXX XX X",
    "   XXX  XXXX XXX",
)


def of_1998(in_channels: int = 1, num_classes: int = 10) -> LeNet:
    size = (32, 32)
    return LeNet(in_channels, num_classes, size, "scaled_tanh", "trainable", "table", "rbf")


def weighted(model: LeNet) -> list[nn.Module]:
    return [m for m in model.modules() if any(True for _ in m.parameters(recurse=False))]


def test_parameters_of_the_paper():
    counts = [sum(p.numel() for p in layer.parameters()) for layer in weighted(of_1998())]
    assert dict(zip(PAPER, counts, strict=True)) == PAPER
    assert sum(counts) == 60_000  # "only 60,000 trainable free parameters"


def test_connections_of_the_paper():
    """Of each output, its filters' weights and its bias; S2 and S4 add four pixels."""
    shapes: list[tuple[int, ...]] = []
    model = of_1998()
    for layer in weighted(model):
        layer.register_forward_hook(lambda _, __, out: shapes.append(tuple(out.shape[1:])))
    model(torch.zeros(1, 1, 32, 32))
    counts = []
    for layer, shape in zip(weighted(model), shapes, strict=True):
        pixels = torch.Size(shape[1:]).numel()
        each = sum(p.numel() for p in layer.parameters())
        counts.append(shape[0] * 5 * pixels if isinstance(layer, Subsampling) else each * pixels)
    assert dict(zip(CONNECTIONS, counts, strict=True)) == CONNECTIONS
    assert sum(counts) + 84 * 10 == 340_908


def test_table_1_says_what_c3_sees():
    layer = of_1998().get_submodule("features.4")
    assert isinstance(layer, PartialConv2d)
    dense = layer.dense()
    assert dense.shape == (16, 6, 5, 5)
    seen = dense.abs().sum((2, 3)) > 0
    drawn = ["".join("X" if mark else " " for mark in row) for row in seen.T.tolist()]
    assert drawn == [row.ljust(16) for row in TABLE_1]
    assert sum(row.count("X") for row in TABLE_1) == 60


def test_a_filter_for_each_connection():
    """Each output map is the sum of what its filters make of the maps that it sees."""
    torch.manual_seed(0)
    layer = PartialConv2d(3, ((0, 2), (1,)))
    pixels = torch.randn(2, 3, 6, 7)
    alone = [
        nn.functional.conv2d(pixels[:, [given]], layer.weight[i][None, None])
        for i, given in enumerate((0, 2, 1))
    ]
    expected = torch.cat([alone[0] + alone[1], alone[2]], 1) + layer.bias[:, None, None]
    torch.testing.assert_close(layer(pixels), expected)
    assert layer.bias[0].abs() <= 50**-0.5


def test_subsampling_by_hand():
    layer = Subsampling(2)
    pixels = torch.arange(16.0).reshape(1, 1, 4, 4).repeat(1, 2, 1, 1)
    assert layer(pixels)[0, 0].tolist() == [[2.5, 4.5], [10.5, 12.5]]  # starts as the average
    with torch.no_grad():
        layer.coefficient[1], layer.bias[1] = 2.0, -1.0
    assert layer(pixels)[0, 1].tolist() == [[19.0, 35.0], [83.0, 99.0]]


def test_the_squashing_function():
    """Appendix A: it is -1 at -1 and 1 at 1, where its curvature is largest."""
    found = ScaledTanh()(torch.tensor([-1.0, 0.0, 1.0, 50.0]))
    assert found.tolist() == pytest.approx([-1, 0, 1, 1.7159], abs=1e-4)


def test_radial_basis_is_a_distance():
    layer = RadialBasis(84, 10)
    codes = layer.get_buffer("codes")
    assert codes.unique().tolist() == [-1, 1]
    assert torch.equal(codes, RadialBasis(84, 10).get_buffer("codes"))
    features = torch.randn(3, 84, generator=torch.Generator().manual_seed(0))
    expected = -(torch.cdist(features, codes) ** 2) / 84**0.5
    torch.testing.assert_close(layer(features), expected)
    distances = torch.cdist(codes, codes) ** 2 / 4  # signs in which two classes differ
    assert distances[~torch.eye(10, dtype=torch.bool)].min() > 84 / 4


def test_initial_weights_of_the_paper():
    """Uniform within 2.4 over a unit's inputs."""
    torch.manual_seed(0)
    state = of_1998().state_dict()
    assert 2.3 / 25 < state["features.0.weight"].abs().max() <= 2.4 / 25
    assert state["features.4.weight"][:18].abs().max() <= 2.4 / 75  # the maps that see three
    assert state["features.4.weight"][:18].abs().max() > 2.3 / 75
    assert state["features.4.weight"][-6:].abs().max() <= 2.4 / 150
    assert 2.3 / 400 < state["classifier.1.weight"].abs().max() <= 2.4 / 400


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


def test_contract_of_1998(check):
    torch.manual_seed(0)
    check(of_1998(3, 7), 3, (32, 32), 7)
    check(LeNet(1, 7, (32, 40), "tanh", "average"), 1, (32, 40), 7)


def test_that_of_1998_overfits_eight_images(overfit):
    torch.manual_seed(0)
    overfit(of_1998(1, 4), 1, (32, 32), 4, lr=0.002)


@pytest.mark.parametrize("key", ["activation", "subsampling", "connections", "output"])
def test_refuses_unknown_parts(key):
    unknown: dict = {key: "best"}
    with pytest.raises(ValueError, match=f'{key} must be .*, got "best"'):
        LeNet(1, 10, (32, 32), **unknown)


@pytest.mark.parametrize("size", [(31, 32), (32, 8)])
def test_refuses_small_images(size):
    with pytest.raises(ValueError, match=f"at least 32 x 32, got {size[0]} x {size[1]}"):
        LeNet(1, 10, size)
