"""Local response normalisation across maps: Krizhevsky, Sutskever, Hinton, "ImageNet classification
with deep convolutional neural networks", NIPS 2012, section 3.3."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class LocalResponse(nn.Module):
    """Each value over (k + alpha * sum of squares of ``maps`` neighbouring maps) ** beta.

    The sum is the paper's; ``torch.nn.LocalResponseNorm`` has the mean, so its alpha is ``maps``
    times this one, and its gradient on CUDA is not deterministic. Computed in float32.

    Args:
        maps: neighbours at a position, itself included (n); an odd number.
        alpha, beta, k: the paper's by default.

    Raises:
        ValueError: a number is out of range.
    """

    def __init__(
        self, maps: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 2.0
    ) -> None:
        super().__init__()
        if maps < 1 or maps % 2 == 0:
            raise ValueError(f"a neighbourhood must have an odd number of maps, got {maps}")
        if k <= 0 or alpha < 0:
            raise ValueError(f"k must be above 0 and alpha at least 0, got {k} and {alpha}")
        self.maps = maps
        self.alpha = alpha
        self.beta = beta
        self.k = k

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape and type."""
        channels, reach = features.shape[1], self.maps // 2
        values = features.float()  # the square of a half-precision value may be infinite
        padded = F.pad(values.square(), (0, 0, 0, 0, reach, reach))
        total = padded[:, :channels]
        for shift in range(1, self.maps):
            total = total + padded[:, shift : shift + channels]  # (N, C, H, W)
        scaled = values * (self.k + self.alpha * total).pow(-self.beta)
        return scaled.to(features.dtype)

    def extra_repr(self) -> str:
        return f"maps={self.maps}, alpha={self.alpha}, beta={self.beta}, k={self.k}"
