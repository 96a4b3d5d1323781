"""ResNet for CIFAR: He, Zhang, Ren, Sun, "Deep residual learning for image recognition",
arXiv:1512.03385, section 4.2. Aims at table 6: 8.75, 7.51, 7.17, 6.97, 6.43 and 7.93 % test error
on CIFAR-10 with 20, 32, 44, 56, 110 and 1202 layers.

Differs from the paper: nothing in the network by default. Shortcut "B" (projection) is the paper's
ImageNet option; its section 4.2 uses "A" throughout.

The names of the weights are those of the widely used weights of akamaster/pytorch_resnet_cifar10,
so that weights=<file> loads them: they expect pixels normalised by ImageNet's mean and deviation.
"""

from __future__ import annotations

import re
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnctl.models.base import ClassificationModel
from cnnctl.ops.batch_norm_relu import batch_norm_relu

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of what published weights expect


class CifarResNet(ClassificationModel):
    """3x3 conv (16), then three groups of n blocks with 16, 32, 64 maps, average pool, fc (K).

    Args:
        in_channels: C.
        num_classes: K.
        size: (h, w) of the input, 32 x 32 in the paper; the last maps are a quarter of it.
        depth: layers with weights, 6n + 2.
        shortcut: where a block changes the shape, "A" subsamples and pads with zero maps (no
            parameters), "B" is a strided 1x1 convolution with batch normalisation.
        plain: leave all shortcuts out: the paper's plain networks.
        mean, std: of each channel, by which the data's pixels are normalised.

    Raises:
        ValueError: depth is not 6n + 2, the shortcut is unknown, or the input is too small.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        size: tuple[int, int],
        depth: int,
        shortcut: Literal["A", "B"] = "A",
        plain: bool = False,
        mean: tuple[float, ...] = _MEAN,
        std: tuple[float, ...] = _STD,
    ) -> None:
        super().__init__()
        if depth < 8 or depth % 6 != 2:
            raise ValueError(f"depth must be 6n + 2 (8, 14, 20, ... 110, ... 1202), got {depth}")
        if shortcut not in ("A", "B"):
            raise ValueError(f'shortcut must be "A" or "B", got "{shortcut}"')
        if min(size) < 4:
            raise ValueError(
                f"a CIFAR ResNet needs images of at least 4 x 4, got {size[0]} x {size[1]}"
            )
        blocks = (depth - 2) // 6
        kind = None if plain else shortcut
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _group(16, 16, blocks, 1, kind)  # (N, 16, 32, 32)
        self.layer2 = _group(16, 32, blocks, 2, kind)  # (N, 32, 16, 16)
        self.layer3 = _group(32, 64, blocks, 2, kind)  # (N, 64, 8, 8)
        self.linear = nn.Linear(64, num_classes)
        self.apply(_initialise)
        self.normal = (mean, std)

    def features(self, pixels: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, 64, about H / 4, W / 4)."""
        out = batch_norm_relu(self.bn1, self.conv1(pixels))
        return self.layer3(self.layer2(self.layer1(out)))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.linear(self.features(pixels).mean((2, 3)))

    def translate(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Published weights, which are known by the "module." before each name, for pixels as they
        are normalised here; others are taken as they are.

        Raises:
            ValueError: they are of another depth, or the data has neither 1 nor 3 channels.
        """
        if not all(name.startswith("module.") for name in state):
            return state
        state = {name.removeprefix("module."): value for name, value in state.items()}
        if not {"conv1.weight", "bn1.running_mean", "layer1.0.conv1.weight"} <= state.keys():
            return state  # another network's
        own, theirs = _depth(self.state_dict()), _depth(state)
        if own != theirs:
            raise ValueError(f"these weights are of depth {theirs}, the network is of {own}")
        _fit_pixels(state, self.conv1.in_channels, *self.normal)
        return state


class Block(nn.Module):
    """conv - bn - relu - conv - bn, plus the shortcut, relu; ``kind`` None is a plain block."""

    def __init__(self, inputs: int, outputs: int, stride: int, kind: str | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.plain = kind is None
        self.shortcut: nn.Module = nn.Sequential()  # the identity
        if stride != 1 and kind == "A":
            self.shortcut = PadShortcut(stride, outputs - inputs)
        elif stride != 1 and kind == "B":
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, inputs: Tensor) -> Tensor:
        out = batch_norm_relu(self.bn1, self.conv1(inputs))
        out = self.conv2(out)
        return batch_norm_relu(self.bn2, out, None if self.plain else self.shortcut(inputs))


class PadShortcut(nn.Module):
    """Option A: every ``stride``-th pixel, and ``maps`` maps of zeros, half before, half after."""

    def __init__(self, stride: int, maps: int) -> None:
        super().__init__()
        self.stride = stride
        self.maps = maps

    def forward(self, inputs: Tensor) -> Tensor:
        # inputs[:, :, ::stride, ::stride], as a pooling of one pixel: the backward of a strided
        # slice is slow enough to be 10 % of a training step of ResNet-20 on a CPU.
        kept = F.avg_pool2d(inputs, 1, self.stride)
        return F.pad(kept, (0, 0, 0, 0, self.maps // 2, self.maps - self.maps // 2))


def _group(inputs: int, outputs: int, blocks: int, stride: int, kind: str | None) -> nn.Sequential:
    first = Block(inputs, outputs, stride, kind)
    return nn.Sequential(first, *(Block(outputs, outputs, 1, kind) for _ in range(blocks - 1)))


def _initialise(module: nn.Module) -> None:
    """He et al., arXiv:1502.01852, equation 10; batch norm starts at scale 1 and shift 0."""
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _depth(state: dict[str, Tensor]) -> int:
    """Layers with weights: two for each block, the stem and the last."""
    return 2 + 2 * sum(bool(re.fullmatch(r"layer[123]\.\d+\.conv1\.weight", key)) for key in state)


def _fit_pixels(
    state: dict[str, Tensor], in_channels: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    """Make the first convolution and its normalisation take pixels normalised otherwise.

    At the border, where pixels are zeros in both, this is right but for the difference of the
    means. Grey pixels count as three equal channels.
    """
    if in_channels not in (1, 3):
        raise ValueError(f"these weights are of 3 channels, the data has {in_channels}")
    weight, moving = state["conv1.weight"], state["bn1.running_mean"]  # (16, 3, 3, 3), (16,)
    own_mean, own_std, their_mean, their_std = (
        torch.tensor(part).expand(3) for part in (mean, std, _MEAN, _STD)
    )
    shift = (weight * ((own_mean - their_mean) / their_std)[:, None, None]).sum((1, 2, 3))
    weight = weight * (own_std / their_std)[:, None, None]
    state["bn1.running_mean"] = moving - shift
    state["conv1.weight"] = weight if in_channels == 3 else weight.sum(1, keepdim=True)
