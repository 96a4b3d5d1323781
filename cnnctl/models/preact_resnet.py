"""Pre-activation ResNet for CIFAR: He, Zhang, Ren, Sun, "Identity mappings in deep residual
networks", arXiv:1603.05027, figure 4 (e) and appendix. Aims at table 3: 6.37 % test error on
CIFAR-10 with 110 layers, 5.46 % with 164 and 4.92 % with 1001 (bottlenecks).

Differs from the paper: nothing in the network.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from cnnctl.models.base import ClassificationModel
from cnnctl.models.cifar_resnet import PadShortcut
from cnnctl.models.torchvision_classifiers import require

_WIDTHS = (16, 32, 64)  # of the 3x3 convolutions of the three groups
_LEAST = 4  # pixels: one of the last map


class PreactResNet(ClassificationModel):
    """3x3 conv (16), three groups of n units, batch norm, relu, average pool, fc (K).

    Args:
        in_channels: C.
        num_classes: K.
        size: (h, w) of the input, 32 x 32 in the paper; the last maps are a quarter of it.
        depth: layers with weights, 6n + 2 or, with bottlenecks, 9n + 2.
        bottleneck: 1x1, 3x3 and 1x1 convolutions with four times the maps at the end, projections
            where the shape changes; otherwise two 3x3, and zeros for the maps that are new.

    Raises:
        ValueError: there is no network of this depth, or the input is too small.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        size: tuple[int, int],
        depth: int,
        bottleneck: bool = True,
    ) -> None:
        super().__init__()
        each = 9 if bottleneck else 6
        if depth < each + 2 or depth % each != 2:
            kind = "with" if bottleneck else "without"
            raise ValueError(f"depth must be {each}n + 2 {kind} bottlenecks, got {depth}")
        require("a pre-activation ResNet", size, _LEAST)
        unit = BottleneckUnit if bottleneck else BasicUnit
        inputs = _WIDTHS[0]
        self.conv1 = nn.Conv2d(in_channels, inputs, 3, padding=1, bias=False)
        self.bn1, self.relu = nn.BatchNorm2d(inputs), nn.ReLU(inplace=True)
        groups: list[nn.Module] = []
        for number, width in enumerate(_WIDTHS):
            units = []
            for place in range((depth - 2) // each):
                stride = 2 if number and not place else 1
                units.append(unit(inputs, width, stride, activated=not groups and not place))
                inputs = units[-1].outputs
            groups.append(nn.Sequential(*units))
        self.layer1, self.layer2, self.layer3 = groups
        self.bn2 = nn.BatchNorm2d(inputs)
        self.linear = nn.Linear(inputs, num_classes)
        self.apply(_initialise)

    def features(self, pixels: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, 64 or 256, about H / 4, W / 4)."""
        out = self.relu(self.bn1(self.conv1(pixels)))
        out = self.layer3(self.layer2(self.layer1(out)))
        return self.relu(self.bn2(out))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.linear(self.features(pixels).mean((2, 3)))


class BasicUnit(nn.Module):
    """bn - relu - conv 3x3 - bn - relu - conv 3x3, plus the input; shortcuts without weights.

    Args:
        activated: the input has been through batch norm and relu: the first unit, for which the
            stem does so before the two paths part (appendix).
    """

    def __init__(self, inputs: int, width: int, stride: int, activated: bool) -> None:
        super().__init__()
        self.outputs = width
        self.activated = activated
        if not activated:
            self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.shortcut = PadShortcut(stride, width - inputs) if stride != 1 else nn.Identity()

    def forward(self, inputs: Tensor) -> Tensor:
        out = inputs if self.activated else F.relu_(self.bn1(inputs))
        out = self.conv2(F.relu_(self.bn2(self.conv1(out))))
        return out + self.shortcut(inputs)


class BottleneckUnit(nn.Module):
    """bn - relu - conv 1x1 - bn - relu - conv 3x3 - bn - relu - conv 1x1, plus the input.

    Where the shape changes the input is projected, after the first batch norm and relu (appendix).
    """

    def __init__(self, inputs: int, width: int, stride: int, activated: bool) -> None:
        super().__init__()
        self.outputs = 4 * width
        self.activated = activated
        if not activated:
            self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, self.outputs, 1, bias=False)
        self.projection: nn.Conv2d | None = None
        if stride != 1 or inputs != self.outputs:
            self.projection = nn.Conv2d(inputs, self.outputs, 1, stride, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        first = inputs if self.activated else F.relu_(self.bn1(inputs))
        out = F.relu_(self.bn2(self.conv1(first)))
        out = self.conv3(F.relu_(self.bn3(self.conv2(out))))
        return out + (inputs if self.projection is None else self.projection(first))


def _initialise(module: nn.Module) -> None:
    """He et al., arXiv:1502.01852, equation 10; batch norm starts at scale 1 and shift 0."""
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
