"""What lies beyond the border of an image: its mirror image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def mirrored(place: Tensor, side: Tensor | int) -> Tensor:
    """Positions on a line of ``side`` that goes on as its mirror image, again and again.

    -1 is 1, and ``side`` is ``side - 2``; on a line of one pixel all are 0.
    """
    period = torch.as_tensor(2 * (side - 1), device=place.device).clamp(min=1)
    place = place % period
    return torch.minimum(place, period - place)


def mirror_pad(pixels: Tensor, before: tuple[int, int], after: tuple[int, int]) -> Tensor:
    """(N, C, H, W) with so many mirrored lines above and below, left and right: as many as asked
    for, also of an image that is smaller.

    Args:
        before: lines above, and left.
        after: lines below, and right.
    """
    if max(before[0], after[0]) < pixels.shape[2] and max(before[1], after[1]) < pixels.shape[3]:
        return F.pad(pixels, (before[1], after[1], before[0], after[0]), mode="reflect")
    for axis, start, stop in zip((2, 3), before, after, strict=True):
        side = pixels.shape[axis]
        place = torch.arange(-start, side + stop, device=pixels.device)
        pixels = pixels.index_select(axis, mirrored(place, side))
    return pixels
