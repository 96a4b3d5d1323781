"""Softmax regression on raw pixels: the baseline of LeCun, Bottou, Bengio, Haffner, "Gradient-based
learning applied to document recognition", Proc. IEEE 86(11), 1998, section III.C.1 (12.0 % test
error on MNIST).

Differs from the paper: softmax and cross-entropy for ten separate output units.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from cnnctl.models.base import ClassificationModel
from cnnctl.ops.score_maps import Trunk


class Linear(ClassificationModel):
    """One matrix from all pixels to K logits.

    Args:
        in_channels: C.
        num_classes: K.
        size: (h, w) of the input.
    """

    def __init__(self, in_channels: int, num_classes: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.classifier = nn.Linear(in_channels * math.prod(size), num_classes)

    def parts(self) -> tuple[Trunk, Sequence[nn.Module]]:
        """The pixels are its map, and the matrix is a convolution as large as the input."""
        return nn.Identity(), [self.classifier]

    def forward(self, pixels: Tensor) -> Tensor:
        return self.classifier(pixels.flatten(1))  # (N, C * H * W) -> (N, K)
