"""VGG-16 as SSD has it, and its extra layers: Liu et al., "SSD: single shot multibox detector",
arXiv:1512.02325, section 3 and figure 2; names of weights are those of torchvision's ssd300_vgg16.

Differs from the paper: fc6 and fc7 start at random, not as parts of VGG-16's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnctl.backbones.vgg import VGG

LARGE = 512  # pixels of the shorter side from which the network is that of SSD512
_SCALE = 20.0  # that conv4_3's features have at the start (section 3.1)
_WIDTHS = (512, 1024)  # of conv4_3 and fc7

# Hidden and output channels, kernel, stride and padding of the last of the two convolutions.
_Extra = tuple[int, int, int, int, int]
_HALVING: _Extra = (128, 256, 3, 2, 1)
_PLAIN: _Extra = (128, 256, 3, 1, 0)
_SMALL: tuple[_Extra, ...] = ((256, 512, 3, 2, 1), _HALVING, _PLAIN, _PLAIN)
_HIGH: tuple[_Extra, ...] = ((256, 512, 3, 2, 1), *[_HALVING] * 3, (128, 256, 4, 1, 1))


class ReducedVGG(nn.Module):
    """Maps of conv4_3 (L2-normalised), fc7 and the extra layers, by "0", "1", ...

    Layers whose map would vanish on the training input are left out.

    Args:
        body: VGG-16, whose convolutions are taken.
        size: (h, w) of the training input; from 512 pixels on there is one extra layer more.

    Attributes:
        channels: of each map.
        steps: pixels from one to the next of each map; None where its convolution has no padding,
            so that the map's cells are parts of the image.
        least: pixels of the smallest side of an image that leaves no map without a pixel.

    Raises:
        ValueError: the input leaves less than a pixel of fc7.
    """

    def __init__(self, body: VGG, size: tuple[int, int]) -> None:
        super().__init__()
        if min(size) < 16:
            raise ValueError(f"SSD needs images of at least 16 x 16, got {size[0]} x {size[1]}")
        layers = body.features
        pools = [row for row, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d)]
        third, fourth = layers[pools[2]], pools[3]
        assert isinstance(third, nn.MaxPool2d)
        third.ceil_mode = True  # 75 pixels become 38
        self.scale_weight = nn.Parameter(torch.full((_WIDTHS[0],), _SCALE))
        self.features = layers[:fourth]
        blocks = [nn.Sequential(*layers[fourth:-1], _fully_convolutional())]
        self.channels: list[int] = [*_WIDTHS]
        self.steps: list[int | None] = [8, 16]
        step: int | None = 16
        extras = _fitting(size)
        self.least = _least(extras)
        for extra in extras:
            hidden, width, kernel, stride, padding = extra
            blocks.append(
                nn.Sequential(
                    nn.Conv2d(self.channels[-1], hidden, 1),
                    nn.ReLU(inplace=True),
                    nn.Conv2d(hidden, width, kernel, stride, padding),
                    nn.ReLU(inplace=True),
                )
            )
            _start(blocks[-1])
            self.channels.append(width)
            step = step * 2 if step and padding else None
            self.steps.append(step)
        self.extra = nn.ModuleList(blocks)

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        out = self.features(pixels)
        maps = [self.scale_weight.view(1, -1, 1, 1) * F.normalize(out)]
        for block in self.extra:
            out = block(out)
            maps.append(out)
        return {str(place): one for place, one in enumerate(maps)}


def _fully_convolutional() -> nn.Sequential:
    """pool5 without a stride, fc6 with holes, fc7: (N, 512, h, w) -> (N, 1024, h, w)."""
    layers = nn.Sequential(
        nn.MaxPool2d(3, stride=1, padding=1),
        nn.Conv2d(512, _WIDTHS[1], 3, padding=6, dilation=6),
        nn.ReLU(inplace=True),
        nn.Conv2d(_WIDTHS[1], _WIDTHS[1], 1),
        nn.ReLU(inplace=True),
    )
    _start(layers)
    return layers


def _fitting(size: tuple[int, int]) -> list[_Extra]:
    """The extra layers that leave a map of its own on an image of (h, w)."""
    side = -(-(min(size) // 4) // 2) // 2  # of fc7's map
    found = []
    for extra in _HIGH if min(size) >= LARGE else _SMALL:
        _, _, kernel, stride, padding = extra
        if side == 1 or side + 2 * padding < kernel:
            break
        side = (side + 2 * padding - kernel) // stride + 1
        found.append(extra)
    return found


def _least(extras: list[_Extra]) -> int:
    """The smallest side of an image that all these layers leave a pixel of."""
    side = 1  # of the last map, and then of each one before it
    for _, _, kernel, stride, padding in reversed(extras):
        side = max(1, (side - 1) * stride + kernel - 2 * padding)
    return 16 * side - 4  # the poolings round down, up and down


def _start(layers: nn.Module) -> None:
    for layer in layers.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.xavier_uniform_(layer.weight)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
