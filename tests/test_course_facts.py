"""The checkable numbers of the course, each computed from the network or the operation itself.

Networks are built on torch's meta device, which takes no memory. The worked matrices of the ways up
(nearest neighbour, bed of nails, max unpooling, transposed convolution) are in
tests/ops/test_upsampling.py; the tables of single papers are in the tests of their models.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnctl.backbones.plain import Plain
from cnnctl.backbones.resnet import ResNet
from cnnctl.commands.info import scaled, totals
from cnnctl.engine.layers import Layers, Row, layer_table
from cnnctl.models.alexnet import AlexNet
from cnnctl.models.base import ClassificationModel
from cnnctl.models.cifar_resnet import CifarResNet
from cnnctl.models.classifier import Classifier
from cnnctl.models.googlenet import GoogLeNet
from cnnctl.models.inception_v3 import InceptionV3
from cnnctl.models.lenet import LeNet
from cnnctl.models.linear import Linear
from cnnctl.models.mobilenet_v1 import MobileNetV1
from cnnctl.models.vgg import VGG, Column

META = torch.device("meta")
IMAGENET = 1000  # classes


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def on_meta(make: Callable[[], nn.Module]) -> nn.Module:
    with META:
        return make()


def shape(layer: nn.Module, *pixels: int) -> tuple[int, ...]:
    """Of what a layer makes of one image (C, H, W)."""
    return tuple(layer.to(META)(torch.zeros(1, *pixels, device=META)).shape[1:])


@functools.cache
def network(name: str) -> tuple[ClassificationModel, Layers]:
    """A network for ImageNet, and what ``cnnctl info`` prints of it."""
    size, make = NETWORKS[name]
    with META:
        model = make((size, size))
        return model, layer_table(model, 3, (size, size))


def residual(depth, small: bool = False) -> Callable[[tuple[int, int]], ClassificationModel]:
    return lambda size: Classifier(ResNet(depth, small_input=small), IMAGENET, size)


def vgg(column: Column) -> Callable[[tuple[int, int]], ClassificationModel]:
    return lambda size: VGG(3, IMAGENET, size, column)


NETWORKS: dict[str, tuple[int, Callable[[tuple[int, int]], ClassificationModel]]] = {
    "AlexNet": (227, lambda size: AlexNet(3, IMAGENET, size)),
    **{f"VGG {column}": (224, vgg(column)) for column in ("A", "A-LRN", "B", "C", "D", "E")},
    "GoogLeNet": (224, lambda size: GoogLeNet(3, IMAGENET, size, 0.0)),
    "GoogLeNet in training": (224, lambda size: GoogLeNet(3, IMAGENET, size)),
    **{f"ResNet-{depth}": (224, residual(depth)) for depth in (18, 34, 50, 101, 152)},
    "plain-34": (224, lambda size: Classifier(Plain(34), IMAGENET, size)),
    "MobileNet": (224, lambda size: MobileNetV1(3, IMAGENET, size)),
    "Inception v3": (299, lambda size: InceptionV3(3, IMAGENET, size, 0.0)),
}


def weighted(layers: Layers) -> list[Row]:
    """Convolutions and dense layers, in order."""
    return [row for row in layers.rows if row.kind in ("Conv2d", "Linear")]


# The linear classifier.


def test_a_linear_classifier_of_cifar10_has_ten_templates_and_ten_biases():
    model = on_meta(lambda: Linear(3, 10, (32, 32)))
    assert count(model) == 10 * 32 * 32 * 3 + 10 == 30_730


def test_a_classifier_that_knows_nothing_has_the_loss_ln_k():
    loss = F.cross_entropy(torch.zeros(4, 10), torch.tensor([0, 3, 3, 9]))
    assert loss.item() == pytest.approx(math.log(10))  # about 2.3


# Convolutions.


def test_five_filters_of_5x5_on_32x32x3_make_28x28x5():
    layer = nn.Conv2d(3, 5, 5)
    assert count(layer) == 5 * (5 * 5 * 3 + 1) == 380
    assert shape(layer, 3, 32, 32) == (5, 28, 28)


def test_a_3x3_filter_on_7x7_makes_5x5_and_at_stride_2_3x3():
    assert shape(nn.Conv2d(1, 1, 3), 1, 7, 7) == (1, 5, 5)
    assert shape(nn.Conv2d(1, 1, 3, stride=2), 1, 7, 7) == (1, 3, 3)
    assert (7 - 3) % 3 != 0  # stride 3 does not fit: the last column is not seen
    assert shape(nn.Conv2d(1, 1, 3, stride=3), 1, 7, 7) == (1, 2, 2)
    assert shape(nn.Conv2d(1, 1, 3, padding=1), 1, 7, 7) == (1, 7, 7)


@pytest.mark.parametrize("kernel", [1, 3, 5, 7, 11])
def test_padding_of_half_a_filter_keeps_the_size(kernel):
    assert shape(nn.Conv2d(1, 1, kernel, padding=(kernel - 1) // 2), 1, 32, 28) == (1, 32, 28)


def test_without_padding_maps_shrink():
    """32 - 28 - 24: each 5x5 layer takes four pixels off."""
    assert shape(nn.Sequential(nn.Conv2d(3, 6, 5), nn.Conv2d(6, 10, 5)), 3, 32, 32) == (10, 24, 24)


@pytest.mark.parametrize("side", [11, 32, 227])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 1, 0), (5, 2, 2), (11, 4, 0)])
def test_the_size_of_a_map(side, kernel, stride, padding):
    """(N - F + 2 P) / S + 1."""
    made = shape(nn.Conv2d(1, 1, kernel, stride, padding), 1, side, side)
    assert made[1] == (side - kernel + 2 * padding) // stride + 1


def test_ten_filters_of_5x5_with_padding_2_have_760_parameters():
    layer = nn.Conv2d(3, 10, 5, padding=2)
    assert shape(layer, 3, 32, 32) == (10, 32, 32)
    assert count(layer) == 760


def test_a_1x1_convolution_changes_the_depth_alone():
    assert shape(nn.Conv2d(64, 32, 1), 64, 56, 56) == (32, 56, 56)


class Stack(ClassificationModel):
    """Convolutions of C maps without biases."""

    def __init__(self, *kernels: int, maps: int = 16) -> None:
        super().__init__()
        layers = [nn.Conv2d(maps, maps, kernel, bias=False) for kernel in kernels]
        self.layers = nn.Sequential(*layers)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.layers(pixels).mean((2, 3))


@pytest.mark.parametrize(("layers", "kernel"), [(2, 5), (3, 7)])
def test_a_stack_of_3x3_layers_sees_as_much_as_one_larger_layer(layers, kernel):
    """Three 3x3 layers of C maps: 7x7 pixels with 27 C^2 weights instead of 49 C^2."""
    maps = 16
    stack, single = (on_meta(lambda k=k: Stack(*k)) for k in ([3] * layers, [kernel]))
    for model in (stack, single):
        assert isinstance(model, ClassificationModel)
        assert layer_table(model, maps, (32, 32)).rows[-1].field == (kernel, kernel)
    assert count(stack) == 9 * layers * maps**2
    assert count(single) == kernel**2 * maps**2
    assert (9 * 3, 7**2) == (27, 49)


def test_dense_and_locally_connected_and_shared():
    """A layer as large as the image, 200 x 200 x 3 = 120,000 values: 14.4 billion weights dense,
    3.2 million where each unit sees 3 x 3 pixels, 81 where all positions share them."""
    values = 200 * 200 * 3
    dense = on_meta(lambda: nn.Linear(values, values, bias=False))
    assert count(dense) == values**2 == 14_400_000_000
    image = torch.zeros(1, 3, 200, 200, device=META)
    patches = F.unfold(image, 3, padding=1)  # (1, what a unit sees, positions)
    assert patches.shape == (1, 27, 40_000)
    locally = 3 * patches.shape[1] * patches.shape[2]
    assert locally == 27 * values == 3_240_000
    assert count(nn.Conv2d(3, 3, 3, bias=False)) == 3 * 27 == 81


# Pooling.

SQUARE = torch.tensor([[1.0, 1, 2, 4], [5, 6, 7, 8], [3, 2, 1, 0], [1, 2, 3, 4]])[None, None]


def test_max_pooling_as_worked():
    assert F.max_pool2d(SQUARE, 2)[0, 0].tolist() == [[6, 8], [3, 4]]


def test_average_pooling_as_worked():
    assert F.avg_pool2d(SQUARE, 2)[0, 0].tolist() == [[3.25, 5.25], [2, 2]]


def test_pooling_keeps_the_depth_and_has_no_parameters():
    assert shape(nn.MaxPool2d(2), 64, 224, 224) == (64, 112, 112)
    assert count(nn.MaxPool2d(2)) == 0


# LeNet-5 (1998): output, parameters and side of the field of each layer, section II.B.

LENET = {
    "C1": ((6, 28, 28), 156, 5),
    "S2": ((6, 14, 14), 12, 6),
    "C3": ((16, 10, 10), 1_516, 14),
    "S4": ((16, 5, 5), 32, 16),
    "C5": ((120,), 48_120, None),  # all of the image
    "F6": ((84,), 10_164, None),
}


def test_lenets_published_table():
    with META:
        model = LeNet(1, 10, (32, 32), "scaled_tanh", "trainable", "table", "rbf")
        layers = layer_table(model, 1, (32, 32))
    found = [
        (row.shape, row.parameters, row.field[0] if row.field else None)
        for row in layers.rows
        if row.parameters
    ]
    assert dict(zip(LENET, found, strict=True)) == LENET
    assert layers.parameters == 60_000


# AlexNet.

ALEXNET = [  # of each convolution, pooling and dense layer
    *((96, 55, 55), (96, 27, 27), (256, 27, 27), (256, 13, 13), (384, 13, 13), (384, 13, 13)),
    *((256, 13, 13), (256, 6, 6), (4096,), (4096,), (1000,)),
]


def test_alexnet():
    layers = network("AlexNet")[1]
    rows = [row for row in layers.rows if row.kind in ("Conv2d", "MaxPool2d", "Linear")]
    assert [row.shape for row in rows] == ALEXNET
    assert (227 - 11) // 4 + 1 == 55
    assert rows[0].parameters == 11 * 11 * 3 * 96 + 96 == 34_944  # "35K"
    assert rows[1].parameters == 0
    assert len(weighted(layers)) == 8
    assert layers.parameters == 60_965_224  # "60 million"
    assert totals(layers)[0] == "parameters   60,965,224 (61 M)"


# VGG: parameters of the five columns (A-LRN has A's), table 2 in millions.

VGG_MILLIONS = {"A": "133 M", "A-LRN": "133 M", "B": "133 M", "C": "134 M", "D": "138 M"}
VGG_MILLIONS |= {"E": "144 M"}


@pytest.mark.parametrize("column", VGG_MILLIONS)
def test_vgg(column):
    layers = network(f"VGG {column}")[1]
    assert scaled(layers.parameters) == VGG_MILLIONS[column]
    first_dense = next(row for row in layers.rows if row.kind == "Linear")
    assert first_dense.parameters == 7 * 7 * 512 * 4096 + 4096  # most of them: 103 million


def test_vgg16_and_vgg19_are_named_by_their_layers_with_weights():
    assert [len(weighted(network(f"VGG {column}")[1])) for column in "DE"] == [16, 19]
    assert network("VGG D")[1].parameters == 138_357_544


# GoogLeNet.


def test_googlenet():
    """The course's rounding is 5 million, twelve times fewer than AlexNet; it is 7.0 million, 8.7
    times fewer, and 13.4 million with the two heads that training uses."""
    layers = network("GoogLeNet")[1]
    assert layers.parameters == 6_998_552
    assert network("AlexNet")[1].parameters / layers.parameters == pytest.approx(8.71, abs=0.01)
    assert [row.shape for row in layers.rows if row.kind == "Linear"] == [(1000,)]  # no others
    # 22 layers: a module is two deep, each in four branches
    assert len([row for row in weighted(layers) if "inception" not in row.name]) + 2 * 9 == 22


def test_info_of_googlenet_shows_branches_and_counts_the_heads():
    layers = network("GoogLeNet in training")[1]
    module = {
        row.name.removeprefix("features.inception_3a."): (row.shape[0], row.field)
        for row in layers.rows
        if row.name.startswith("features.inception_3a.") and row.kind == "Conv2d"
    }
    assert module == {  # fields: of what the module gets 27, and 8 pixels a position
        **{"branch1.0": (64, (27, 27)), "branch3.0": (96, (27, 27)), "branch3.2": (128, (43, 43))},
        **{"branch5.0": (16, (27, 27)), "branch5.2": (32, (59, 59))},
        "branch_pool.1": (32, (43, 43)),
    }
    assert layers.unused == 13_378_280 - 6_998_552
    line = "parameters   13,378,280 (13.4 M), 6,379,728 of them for training alone"
    assert totals(layers)[0] == line
    assert network("GoogLeNet")[1].unused == 0


# Residual networks.


@pytest.mark.parametrize(
    ("depth", "parameters", "multiply_adds"),
    [
        *((18, "11.7 M", 1.8), (34, "21.8 M", 3.6)),
        *((50, "25.6 M", 3.8), (101, "44.5 M", 7.6), (152, "60.2 M", 11.3)),
    ],
)
def test_resnets(depth, parameters, multiply_adds):
    """Layers by their names; multiply-adds of table 1 of the paper, in billions. Ours come out
    higher from 50 on, by the stride that torchvision has in the 3x3 convolution."""
    model, layers = network(f"ResNet-{depth}")
    rows = [row for row in weighted(layers) if "downsample" not in row.name]
    assert len(rows) == depth
    assert scaled(layers.parameters) == parameters
    own = layers.flops / 2e9
    assert own == pytest.approx(multiply_adds, abs=0.1 if depth < 50 else 0.3)
    assert count(model) == layers.parameters


def test_a_plain_network_has_as_many_layers_and_no_shortcuts():
    """And 18 % of the cost of VGG-19: 3.6 against 19.6 billion multiply-adds."""
    layers = network("plain-34")[1]
    assert len(weighted(layers)) == 34
    assert not any("downsample" in row.name for row in layers.rows)
    costs = [found.flops / 2e9 for found in (layers, network("VGG E")[1])]
    assert costs == pytest.approx([3.6, 19.6], abs=0.05)


@pytest.mark.parametrize(
    ("depth", "millions"),
    [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7), (1202, 19.4)],
)
def test_resnets_for_cifar(depth, millions):
    """Table 6 of the paper; 1202 layers are counted, not built."""
    if depth > 110:
        found = count(on_meta(lambda: CifarResNet(3, 10, (32, 32), 110)))
        blocks = (depth - 110) // 6  # more in each of the three groups
        found += sum(blocks * 2 * (9 * width**2 + 2 * width) for width in (16, 32, 64))
    else:
        found = count(on_meta(lambda: CifarResNet(3, 10, (32, 32), depth)))
    assert round(found / 1e6, 1 if millions > 1 else 2) == millions


# Receptive fields.


@pytest.mark.parametrize(
    ("name", "side"),
    [("AlexNet", 195), ("VGG D", 212), ("MobileNet", 315), ("Inception v3", 1311)],
)
def test_receptive_fields_of_the_last_map(name, side):
    """As published by Araujo, Norris, Sim (Distill, 2019), table 1."""
    fields = [row.field for row in network(name)[1].rows if row.field is not None]
    assert max(height for height, _ in fields) == side
