"""A convolutional network from numbers: INPUT -> [[CONV -> ACT] * N -> POOL?] * M -> [FC -> ACT] *
K -> FC, the pattern of nearly all networks from LeCun et al., Proc. IEEE 86(11), 1998, to Simonyan
and Zisserman, arXiv:1409.1556.

Differs from a paper: it has none. Weights start as in He et al., arXiv:1502.01852, equation 10,
before rectifiers, with half of that variance before selu and maxout, which keep it, and as in
Glorot and Bengio (AISTATS 2010) before functions that saturate.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from cnnctl.models.base import ClassificationModel
from cnnctl.ops.local_response import LocalResponse
from cnnctl.ops.map_sides import map_size
from cnnctl.ops.pooling import L2Pool2d, Maxout

# fmt: off
Activation = Literal[
    "relu", "leaky_relu", "prelu", "relu6", "elu", "selu", "celu", "gelu", "silu", "mish",
    "softplus", "hardswish", "maxout", "tanh", "sigmoid", "softsign", "hardtanh", "hardsigmoid",
]
# fmt: on
Pool = Literal["max", "average", "l2", "none"]
Norm = Literal["none", "batch", "lrn"]
Padding = int | Literal["same"]

_SATURATING: dict[str, type[nn.Module]] = {
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "softsign": nn.Softsign,
    "hardtanh": nn.Hardtanh,
    "hardsigmoid": nn.Hardsigmoid,
}
_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "prelu": nn.PReLU,
    "relu6": nn.ReLU6,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "celu": nn.CELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "softplus": nn.Softplus,
    "hardswish": nn.Hardswish,
    **_SATURATING,
}


class ConvNet(ClassificationModel):
    """M blocks of convolutions, each closed by a pooling, then K hidden dense layers.

    Each convolution is conv - [batch norm] - activation - [response normalisation]. Arguments with
    one value for all may be lists instead, with one for each.

    Args:
        in_channels: C.
        num_classes: K.
        size: (h, w) of the input.
        widths: maps of each convolution: a list for each block, or a number for a block of one.
        dense: units of each hidden dense layer; none leaves the last one alone.
        kernel: side of each convolution's filters.
        stride: of each convolution.
        padding: of each convolution, pixels; "same" is (kernel - 1) / 2.
        groups: of each convolution; it must divide the maps that go in and come out.
        pool: of each block: "max", "average", "l2" (the root of the sum of squares) or "none".
        pool_size: side of each pooling's windows.
        pool_stride: of each pooling; None is its size, so that windows do not overlap.
        norm: of each convolution: "none", "batch" (Ioffe and Szegedy, arXiv:1502.03167) or "lrn"
            (Krizhevsky et al. 2012, section 3.3).
        activation: after every layer but the last.
        pieces: of maxout, which takes the largest of so many (Goodfellow et al., arXiv:1302.4389).
        dropout: of the units of each hidden dense layer.
        conv_dropout: of the values that leave each block.

    Raises:
        ValueError: an argument is out of range, a list has another length, groups do not divide
            the maps, or the image is too small.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        size: tuple[int, int],
        widths: list[int | list[int]],
        dense: list[int],
        kernel: int | list[int] = 3,
        stride: int | list[int] = 1,
        padding: Padding | list[Padding] = "same",
        groups: int | list[int] = 1,
        pool: Pool | list[Pool] = "max",
        pool_size: int | list[int] = 2,
        pool_stride: int | list[int] | None = None,
        norm: Norm | list[Norm] = "none",
        activation: Activation = "relu",
        pieces: int = 2,
        dropout: float | list[float] = 0.0,
        conv_dropout: float | list[float] = 0.0,
    ) -> None:
        super().__init__()
        act = Act(activation, pieces)
        blocks = [row if isinstance(row, list) else [row] for row in widths]
        if not all(blocks):
            raise ValueError(f"widths must have a number for each convolution, got {list(widths)}")
        layers = _convolutions(
            in_channels,
            blocks,
            kernel=kernel,
            stride=stride,
            padding=padding,
            groups=groups,
            norm=norm,
        )
        ends = _ends(len(blocks), pool, pool_size, pool_stride, conv_dropout)
        features: list[nn.Module] = []
        for block, end in zip(blocks, ends, strict=True):
            for layer in itertools.islice(layers, len(block)):
                features += layer.build(act)
            features += end
        self.features = nn.Sequential(*features)
        height, width = map_size(self.features, size, "this ConvNet")
        inputs = (blocks[-1][-1] if blocks else in_channels) * height * width
        self.classifier = nn.Sequential(*_dense(inputs, dense, num_classes, act, dropout))
        self._initialise(activation)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.classifier(self.features(pixels))

    def _initialise(self, activation: str) -> None:
        layers = [m for m in self.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
        for layer in layers:
            if activation in _SATURATING:
                nn.init.xavier_normal_(layer.weight)
            else:
                keeps = layer is layers[-1] or activation in ("selu", "maxout")
                nn.init.kaiming_normal_(layer.weight, nonlinearity="linear" if keeps else "relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


@dataclass(frozen=True)
class Act:
    """An activation by name; ``pieces`` is how many values it makes one of."""

    name: str
    of_maxout: int

    def __post_init__(self) -> None:
        names = [*_ACTIVATIONS, "maxout"]
        if self.name not in names:
            raise ValueError(f'activation must be one of {", ".join(names)}, got "{self.name}"')
        if self.of_maxout < 2:
            raise ValueError(f"pieces must be at least 2, got {self.of_maxout}")

    @property
    def pieces(self) -> int:
        return self.of_maxout if self.name == "maxout" else 1

    def build(self) -> nn.Module:
        if self.name == "maxout":
            return Maxout(self.of_maxout)
        return nn.ReLU(inplace=True) if self.name == "relu" else _ACTIVATIONS[self.name]()


@dataclass(frozen=True)
class Convolution:
    """One convolution with what surrounds it; ``number`` counts them from 1, for errors."""

    number: int
    given: int
    width: int
    kernel: int
    stride: int
    padding: Padding
    groups: int
    norm: str

    def __post_init__(self) -> None:
        for name in ("width", "kernel", "stride", "groups"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.padding != "same" and (isinstance(self.padding, str) or self.padding < 0):
            raise ValueError(f'padding must be "same" or at least 0, got {self.padding}')
        if self.padding == "same" and self.kernel % 2 == 0:
            raise ValueError(
                f'padding "same" is (kernel - 1) / 2, which kernel {self.kernel} has not: give '
                "padding as a number"
            )
        if self.given % self.groups or self.width % self.groups:
            raise ValueError(
                f"groups must divide the channels: convolution {self.number} has {self.given} -> "
                f"{self.width} of them and {self.groups} groups"
            )
        if self.norm not in ("none", "batch", "lrn"):
            raise ValueError(f'norm must be "none", "batch" or "lrn", got "{self.norm}"')

    def build(self, act: Act) -> Iterator[nn.Module]:
        made = self.width * act.pieces
        padding = self.kernel // 2 if isinstance(self.padding, str) else self.padding
        batch = self.norm == "batch"
        yield nn.Conv2d(
            *(self.given, made, self.kernel, self.stride, padding),
            groups=self.groups,
            bias=not batch,  # batch norm has one
        )
        if batch:
            yield nn.BatchNorm2d(made)
        yield act.build()
        if self.norm == "lrn":
            yield LocalResponse()


def _convolutions(given: int, blocks: list[list[int]], **settings: Any) -> Iterator[Convolution]:
    """All of them in order, of whatever block."""
    widths = [width for block in blocks for width in block]
    each = [_each(value, len(widths), key, "convolution") for key, value in settings.items()]
    for number, (width, *values) in enumerate(zip(widths, *each, strict=True), 1):
        named = dict(zip(settings, values, strict=True))
        yield Convolution(number, given, width, **named)
        given = width


def _ends(count: int, pool: Any, size: Any, stride: Any, dropout: Any) -> Iterator[list[nn.Module]]:
    """What closes each block: pooling and dropout, if any."""
    kinds = {"max": nn.MaxPool2d, "average": nn.AvgPool2d, "l2": L2Pool2d}
    sides = _each(size, count, "pool_size", "block")
    steps = sides if stride is None else _each(stride, count, "pool_stride", "block")
    rates = _rates(dropout, count, "conv_dropout", "block")
    for kind, side, step, rate in zip(
        _each(pool, count, "pool", "block"), sides, steps, rates, strict=True
    ):
        if kind != "none" and kind not in kinds:
            raise ValueError(f'pool must be "max", "average", "l2" or "none", got "{kind}"')
        if side < 1 or step < 1:
            raise ValueError(f"pool_size and pool_stride must be at least 1, got {side} and {step}")
        yield [
            *([] if kind == "none" else [kinds[kind](side, step)]),
            *([nn.Dropout(rate)] if rate else []),
        ]


def _dense(
    inputs: int, widths: list[int], num_classes: int, act: Act, dropout: Any
) -> Iterator[nn.Module]:
    if any(width < 1 for width in widths):
        raise ValueError(f"dense must all be at least 1, got {list(widths)}")
    yield nn.Flatten()
    rates = _rates(dropout, len(widths), "dropout", "hidden dense layer")
    for width, rate in zip(widths, rates, strict=True):
        yield nn.Linear(inputs, width * act.pieces)
        yield act.build()
        if rate:
            yield nn.Dropout(rate)
        inputs = width
    yield nn.Linear(inputs, num_classes)


def _each(value: Any, count: int, name: str, what: str) -> Sequence[Any]:
    """``count`` values: those of a list, or one for all."""
    if not isinstance(value, (list, tuple)):
        return [value] * count
    if len(value) != count:
        raise ValueError(
            f"{name} must be one value or a list of {count}, one for each {what}, got {len(value)}"
        )
    return value


def _rates(value: Any, count: int, name: str, what: str) -> Sequence[float]:
    rates = _each(value, count, name, what)
    for rate in rates:
        if not 0 <= rate < 1:
            raise ValueError(f"{name} must be in [0, 1), got {rate}")
    return rates
