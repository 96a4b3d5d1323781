"""ResNet for CIFAR: He, Zhang, Ren, Sun, "Deep residual learning for image recognition",
arXiv:1512.03385, section 4.2. Aims at table 6: 8.75, 7.51, 7.17, 6.97, 6.43 and 7.93 % test error
on CIFAR-10 with 20, 32, 44, 56, 110 and 1202 layers.

Differs from the paper: nothing in the network by default. Shortcut "B" (projection) is the paper's
ImageNet option; its section 4.2 uses "A" throughout.

The names of the weights are those of the widely used weights of akamaster/pytorch_resnet_cifar10.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from cnnctl.models.base import ClassificationModel


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

    def forward(self, pixels: Tensor) -> Tensor:
        out = F.relu_(self.bn1(self.conv1(pixels)))
        out = self.layer3(self.layer2(self.layer1(out)))
        return self.linear(out.mean((2, 3)))


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
        out = F.relu_(self.bn1(self.conv1(inputs)))
        out = self.bn2(self.conv2(out))
        if not self.plain:
            out += self.shortcut(inputs)  # in place: batch norm keeps its input, not its output
        return F.relu_(out)


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
