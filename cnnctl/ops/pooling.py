"""Poolings that torch has not: over neighbouring channels, and by the L2 norm."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Maxout(nn.Module):
    """The largest of each ``pieces`` neighbouring channels (or features): (N, C, ...) -> (N, C /
    pieces, ...)."""

    def __init__(self, pieces: int) -> None:
        super().__init__()
        self.pieces = pieces

    def forward(self, features: Tensor) -> Tensor:
        return features.unflatten(1, (-1, self.pieces)).amax(2)

    def extra_repr(self) -> str:
        return f"pieces={self.pieces}"


class L2Pool2d(nn.AvgPool2d):
    """The root of the sum of squares in each window; its gradient at zero is zero."""

    def forward(self, input: Tensor) -> Tensor:
        sums = F.avg_pool2d(
            input.float().square(), self.kernel_size, self.stride, divisor_override=1
        )
        return (sums + 1e-12).sqrt().to(input.dtype)
