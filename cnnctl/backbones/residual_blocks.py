"""torchvision's residual blocks, with batch norm, addition and ReLU in one where that is faster.

The modules, and so the names of weights, are torchvision's; elsewhere the values are to the bit.
"""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from cnnctl.ops.batch_norm_relu import batch_norm_relu


class FusedBasicBlock(BasicBlock):
    def forward(self, x: Tensor) -> Tensor:
        out = batch_norm_relu(self.bn1, self.conv1(x))  # pyright: ignore[reportArgumentType]
        out = self.conv2(out)
        shortcut = x if self.downsample is None else self.downsample(x)
        return batch_norm_relu(self.bn2, out, shortcut)  # pyright: ignore[reportArgumentType]


class FusedBottleneck(Bottleneck):
    def forward(self, x: Tensor) -> Tensor:
        out = batch_norm_relu(self.bn1, self.conv1(x))  # pyright: ignore[reportArgumentType]
        out = batch_norm_relu(self.bn2, self.conv2(out))  # pyright: ignore[reportArgumentType]
        out = self.conv3(out)
        shortcut = x if self.downsample is None else self.downsample(x)
        return batch_norm_relu(self.bn3, out, shortcut)  # pyright: ignore[reportArgumentType]


_FUSED = {BasicBlock: FusedBasicBlock, Bottleneck: FusedBottleneck}


def fuse(network: nn.Module) -> None:
    """Make all residual blocks of torchvision's within ``network`` such blocks, in place."""
    for module in network.modules():
        if type(module) in _FUSED:
            module.__class__ = _FUSED[type(module)]
