"""Default boxes and hard negatives: what SSD adds to anchors and their matching.

Liu et al., "SSD: single shot multibox detector", arXiv:1512.02325, section 2.2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def spread(count: int, low: float, high: float) -> list[float]:
    """``count`` + 1 scales of the default boxes of ``count`` maps, evenly from ``low`` to ``high``
    (equation 4), and the next one, which the last map's larger square is made of.
    """
    if count == 1:
        return [low, high]
    step = (high - low) / (count - 1)
    return [low + step * k for k in range(count + 1)]


def default_shapes(scales: Sequence[float], ratios: Sequence[Sequence[float]]) -> list[Tensor]:
    """(k, 2) width and height of the default boxes of each map, in sides of the image.

    Two squares (of the map's own scale, and of the geometric mean with the next one's), then each
    ratio lying and standing; none is larger than the image. In the order of published weights.

    Args:
        scales: one more than there are maps.
        ratios: of each map, above 1.
    """
    shapes = []
    for own, following, kinds in zip(scales[:-1], scales[1:], ratios, strict=True):
        middle = math.sqrt(own * following)
        sides = [(own, own), (middle, middle)]
        for ratio in kinds:
            long, short = own * math.sqrt(ratio), own / math.sqrt(ratio)
            sides += [(long, short), (short, long)]
        shapes.append(torch.tensor(sides).clamp(max=1))
    return shapes


def ratios_of(count: int) -> list[tuple[float, ...]]:
    """Of each of ``count`` maps: 2, and but for the first and the last two, 3 (section 3.1)."""
    few, many = (2.0,), (2.0, 3.0)
    return [few if k == 0 or k >= count - 2 else many for k in range(count)]


def hard_negative_sum(losses: Tensor, positive: Tensor, share: float) -> Tensor:
    """The sum over (N, A) ``losses`` of the most wrong negatives of each image, ``share`` times as
    many as it has positives at most.

    Args:
        losses: at least 0; positive: (N, A) bool.
    """
    hardest = losses.masked_fill(positive, 0.0).sort(dim=1, descending=True).values
    rank = torch.arange(losses.shape[1], device=losses.device)
    return torch.where(rank < share * positive.sum(1, keepdim=True), hardest, 0.0).sum()
