"""Pixels as they were before the data's mean and deviation were removed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class RawPixels(nn.Module):
    """Normalised pixels (N, C, H, W) -> float32 of 0 to 255: undoes ``data.loaders.Normalize``.

    Args:
        mean, std: of each channel, of pixels scaled to 0..1. They are the data's and come with
            it: the state holds none of them.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.mean: Tensor
        self.std: Tensor
        for name, values in (("mean", mean), ("std", std)):
            scaled = 255 * torch.tensor(tuple(values))[:, None, None]  # (C, 1, 1)
            self.register_buffer(name, scaled, persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        return torch.addcmul(self.mean, pixels.float(), self.std).clamp(0, 255)
