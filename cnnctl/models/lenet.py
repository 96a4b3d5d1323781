"""LeNet-5: LeCun, Bottou, Bengio, Haffner, "Gradient-based learning applied to document
recognition", Proc. IEEE 86(11), 1998, section II.B and figure 2. Aims at the 0.95 % test error on
MNIST of its figure 9 (0.8 % with distortions).

Differs from the paper by default: ReLU for the scaled tanh, max pooling for the trainable
subsampling, all 6 maps connected to all 16 (the paper's table 1 connects some), a linear layer for
the radial basis output. model=lenet1998 has the paper's of all four, with its 60,000 parameters.

Differs from the paper always: MNIST's 28 x 28 are enlarged to 32 x 32, not centred in them; the
loss is cross-entropy, which with a radial basis output is the paper's equation 9 without its
constant for rubbish, of distances over the root of their number, so that usual learning rates will
do; the codes of the classes are random signs, not pictures of the characters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnctl.models.base import ClassificationModel

# Table 1: the maps of S2 that each map of C3 sees.
_SEEN = (
    *((0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5), (0, 4, 5), (0, 1, 5)),
    *((0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (0, 3, 4, 5), (0, 1, 4, 5), (0, 1, 2, 5)),
    *((0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5), (0, 1, 2, 3, 4, 5)),
)
_CODES = 1998  # seed of the classes' codes


class LeNet(ClassificationModel):
    """conv 5x5 (6) - pool - conv 5x5 (16) - pool - conv 5x5 (120) - fc (84) - fc (K).

    Args:
        in_channels: 1 for grey, 3 for colour.
        num_classes: K.
        size: (h, w) of the input; 32 x 32 in the paper, other sizes change the layer to 120.
        activation: "relu", "tanh" or "scaled_tanh", the paper's, with its initial weights.
        subsampling: "max", "average", or "trainable": the sum of 2x2 pixels times a coefficient
            and plus a bias for each map, and the activation again (the paper's S2 and S4).
        connections: of the second convolution: "full", or those of the paper's "table".
        output: "linear", or "rbf": distances of the 84 features to a code for each class.

    Raises:
        ValueError: an argument is unknown, or the input is too small for the three convolutions.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        size: tuple[int, int],
        activation: Literal["relu", "tanh", "scaled_tanh"] = "relu",
        subsampling: Literal["max", "average", "trainable"] = "max",
        connections: Literal["full", "table"] = "full",
        output: Literal["linear", "rbf"] = "linear",
    ) -> None:
        super().__init__()
        if min(size) < 32:
            raise ValueError(f"LeNet-5 needs images of at least 32 x 32, got {size[0]} x {size[1]}")
        height, width = (((side - 4) // 2 - 4) // 2 for side in size)
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, 6, 5),  # C1 (N, 6, 28, 28)
            _activation(activation),
            *_subsampling(subsampling, 6, activation),  # S2 (N, 6, 14, 14)
            _second_convolution(connections),  # C3 (N, 16, 10, 10)
            _activation(activation),
            *_subsampling(subsampling, 16, activation),  # S4 (N, 16, 5, 5)
        )
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(16 * height * width, 120),  # C5: a 5x5 convolution over a 5x5 map
            _activation(activation),
            nn.Linear(120, 84),  # F6
            _activation(activation),
            _output(output, num_classes),
        )
        if activation == "scaled_tanh":
            self.apply(_initialise)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.classifier(self.features(pixels))


class ScaledTanh(nn.Module):
    """1.7159 tanh(2x / 3): f(1) = 1 and f(-1) = -1 (the paper's appendix A)."""

    def forward(self, features: Tensor) -> Tensor:
        return 1.7159 * torch.tanh(features * (2 / 3))


class Subsampling(nn.Module):
    """The sum of 2x2 pixels, times a coefficient, plus a bias, both one for each map."""

    def __init__(self, maps: int) -> None:
        super().__init__()
        self.kernel_size = self.stride = 2
        self.padding = 0
        self.coefficient = nn.Parameter(torch.full((maps, 1, 1), 0.25))  # starts as the average
        self.bias = nn.Parameter(torch.zeros(maps, 1, 1))

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H / 2, W / 2)."""
        total = F.avg_pool2d(features, 2, divisor_override=1)
        return total * self.coefficient + self.bias


class PartialConv2d(nn.Module):
    """A 5x5 convolution whose output maps see some of the input maps: a filter a connection.

    Args:
        maps: of the input.
        seen: the input maps that each output map sees.
    """

    def __init__(self, maps: int, seen: tuple[tuple[int, ...], ...]) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.padding = 5, 1, 0
        self.maps = maps
        self.seen = seen
        pairs = [out * maps + given for out, chosen in enumerate(seen) for given in chosen]
        self.register_buffer("_pairs", torch.tensor(pairs), persistent=False)
        self.weight = nn.Parameter(torch.empty(len(pairs), 5, 5))
        self.bias = nn.Parameter(torch.empty(len(seen)))
        self.initialise([(25 * len(chosen)) ** -0.5 for chosen in seen])  # as torch's own

    @torch.no_grad()
    def initialise(self, bounds: Sequence[float]) -> None:
        """Uniform within a bound for each output map."""
        each = [bound for bound, given in zip(bounds, self.seen, strict=True) for _ in given]
        self.weight.uniform_(-1, 1).mul_(self.weight.new_tensor(each)[:, None, None])
        self.bias.uniform_(-1, 1).mul_(self.bias.new_tensor(bounds))

    def dense(self) -> Tensor:
        """(out, in, 5, 5), with zeros where nothing is connected."""
        pairs = self.get_buffer("_pairs")
        zeros = self.weight.new_zeros(len(self.seen) * self.maps, 5, 5)
        return zeros.index_copy(0, pairs, self.weight).unflatten(0, (len(self.seen), self.maps))

    def forward(self, features: Tensor) -> Tensor:
        return F.conv2d(features, self.dense(), self.bias)


class RadialBasis(nn.Module):
    """Minus the squared distances of (N, D) features to a code of D signs for each class, over the
    root of D.

    The codes are not trained, as in the paper: with centres that move the trivial solution is that
    all are the same. They are the same in every run.
    """

    def __init__(self, features: int, num_classes: int) -> None:
        super().__init__()
        with torch.device("cpu"):
            generator = torch.Generator().manual_seed(_CODES)
            signs = torch.randint(2, (num_classes, features), generator=generator)
        codes = torch.zeros(num_classes, features)  # on the device in use
        self.register_buffer("codes", codes.copy_(2 * signs - 1))

    def forward(self, features: Tensor) -> Tensor:
        """(N, D) -> (N, K): -sum (x - w)^2 (equation 7) / sqrt(D), written as matrix products."""
        codes = self.get_buffer("codes")
        count = codes.shape[1]  # all codes are as long: w^2 sums up to it
        squares = features.square().sum(1, keepdim=True) + count
        return (2 * F.linear(features, codes) - squares) / count**0.5


def _activation(name: str) -> nn.Module:
    kinds = {"tanh": nn.Tanh, "scaled_tanh": ScaledTanh}
    if name == "relu":
        return nn.ReLU(inplace=True)
    if name not in kinds:
        raise ValueError(f'activation must be "relu", "tanh" or "scaled_tanh", got "{name}"')
    return kinds[name]()


def _subsampling(name: str, maps: int, activation: str) -> list[nn.Module]:
    if name == "trainable":
        return [Subsampling(maps), _activation(activation)]
    kinds = {"max": nn.MaxPool2d, "average": nn.AvgPool2d}
    if name not in kinds:
        raise ValueError(f'subsampling must be "max", "average" or "trainable", got "{name}"')
    return [kinds[name](2)]


def _second_convolution(connections: str) -> nn.Module:
    if connections not in ("full", "table"):
        raise ValueError(f'connections must be "full" or "table", got "{connections}"')
    return nn.Conv2d(6, 16, 5) if connections == "full" else PartialConv2d(6, _SEEN)


def _output(name: str, num_classes: int) -> nn.Module:
    if name not in ("linear", "rbf"):
        raise ValueError(f'output must be "linear" or "rbf", got "{name}"')
    return nn.Linear(84, num_classes) if name == "linear" else RadialBasis(84, num_classes)


def _initialise(module: nn.Module) -> None:
    """Uniform within 2.4 over the number of a unit's inputs (section III.A.6)."""
    if isinstance(module, PartialConv2d):
        module.initialise([2.4 / (25 * len(given)) for given in module.seen])
    elif isinstance(module, (nn.Conv2d, nn.Linear, Subsampling)):
        inputs = 4 if isinstance(module, Subsampling) else module.weight[0].numel()
        for parameter in module.parameters():
            nn.init.uniform_(parameter, -2.4 / inputs, 2.4 / inputs)
