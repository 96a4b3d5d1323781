"""Plain-18 and plain-34: He, Zhang, Ren, Sun, "Deep residual learning for image recognition",
arXiv:1512.03385, table 1 and figure 3 (middle): ResNet-18 and 34 without shortcuts. Aims at table
2: 27.94 and 28.54 % top-1 error on ImageNet, against 27.88 and 25.03 % with shortcuts.

Differs from the paper: nothing; ``small_input`` is not in the paper. The names of the weights are
those of torchvision's ResNets.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from cnnctl.backbones.base import Backbone

_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
_WIDTHS = {"c2": 64, "c3": 128, "c4": 256, "c5": 512}


class Plain(Backbone):
    """Maps c2, c3, c4, c5 at strides 4, 8, 16, 32 (1, 2, 4, 8 with ``small_input``).

    Args:
        depth: 18 or 34 layers with weights, the classifier's included.
        in_channels: C of the pixels.
        small_input: a 3x3 stem of stride 1 without pooling, for images of about 32 x 32.

    Raises:
        ValueError: the depth is another.
    """

    def __init__(
        self, depth: Literal[18, 34], in_channels: int = 3, small_input: bool = False
    ) -> None:
        super().__init__()
        if depth not in _BLOCKS:
            raise ValueError(f"depth must be 18 or 34, got {depth}")
        kernel, stride, padding = (3, 1, 1) if small_input else (7, 2, 3)
        inputs = _WIDTHS["c2"]
        self.conv1 = nn.Conv2d(in_channels, inputs, kernel, stride, padding, bias=False)
        self.bn1, self.relu = nn.BatchNorm2d(inputs), nn.ReLU(inplace=True)
        self.maxpool = nn.Identity() if small_input else nn.MaxPool2d(3, 2, padding=1)
        groups = []
        for width, blocks in zip(_WIDTHS.values(), _BLOCKS[depth], strict=True):
            first = PlainBlock(inputs, width, 2 if groups else 1)
            groups.append(
                nn.Sequential(first, *(PlainBlock(width, width, 1) for _ in range(blocks - 1)))
            )
            inputs = width
        self.layer1, self.layer2, self.layer3, self.layer4 = groups
        self.channels = dict(_WIDTHS)
        finest = 1 if small_input else 4
        self.strides = {name: finest << i for i, name in enumerate(_WIDTHS)}
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        out = self.maxpool(self.relu(self.bn1(self.conv1(pixels))))
        maps = {}
        groups = (self.layer1, self.layer2, self.layer3, self.layer4)
        for name, group in zip(_WIDTHS, groups, strict=True):
            out = maps[name] = group(out)
        return maps


class PlainBlock(nn.Module):
    """conv 3x3 - bn - relu - conv 3x3 - bn - relu."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(inputs))))))
