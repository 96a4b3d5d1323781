"""Anchors: boxes of a few sizes and shapes at every position of a map, the same everywhere.

Ren et al., "Faster R-CNN", arXiv:1506.01497, section 3.1.1: k boxes at each position, so that a
map of h x w has h * w * k of them, and a shift of the image by a stride shifts them alike.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def shapes(scales: Sequence[float], ratios: Sequence[float]) -> Tensor:
    """(k, 4) boxes around the origin: each side length with each ratio (height / width), area kept.

    Ratios vary slower: all scales of the first ratio come first, as published weights have them.
    """
    side = torch.tensor([float(scale) for scale in scales])[None]
    root = torch.tensor([float(ratio) for ratio in ratios]).sqrt()[:, None]
    half = torch.stack([side / root, side * root], -1).flatten(0, 1) / 2  # (k, 2) width, height
    return torch.cat([-half, half], 1)


def tiled(base: Tensor, size: tuple[int, int], stride: tuple[float, float], centre: float = 0.0):
    """(h * w * k, 4): ``base`` (k, 4) at every position, row by row, the k of one together.

    Args:
        size: (h, w) of the map.
        stride: input pixels between neighbours, (down, across).
        centre: where in its cell a position lies, 0 at the upper left and 0.5 in the middle.
    """
    y = (torch.arange(size[0], device=base.device) + centre) * stride[0]
    x = (torch.arange(size[1], device=base.device) + centre) * stride[1]
    down, across = torch.meshgrid(y, x, indexing="ij")
    shift = torch.stack([across, down, across, down], -1).flatten(0, 1)  # (h * w, 4)
    return (shift[:, None] + base[None]).flatten(0, 1)
