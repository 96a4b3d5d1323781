"""Histograms of oriented gradients: Dalal, Triggs, "Histograms of oriented gradients for human
detection", CVPR 2005, section 6.

What scikit-image's ``feature.hog`` computes, for whole batches on any device: tests/ops holds the
two against each other. Differs from the paper as that does: a pixel's gradient counts for one
orientation of one cell, where the paper divides it among the nearest; blocks have no Gaussian
weight.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

_AT_ONCE = 1 << 24  # numbers in the largest table of a part of a batch: 64 MB


def cell_histograms(pixels: Tensor, cell: int, orientations: int, signed: bool = False) -> Tensor:
    """How strong the gradients of each orientation are in each cell, a mean over its pixels.

    The channel with the largest gradient speaks for a pixel. The gradient is the difference of
    the two neighbours, 0 at the border. Cells start in the upper left corner; what is left over
    is left out.

    Args:
        pixels: (N, C, H, W) of 0 to 255.
        cell: side in pixels.
        orientations: bins O over half a turn, or over a whole one.
        signed: from dark to bright is another orientation than from bright to dark.

    Returns:
        (N, O, H // cell, W // cell)
    """
    rows = max(1, _AT_ONCE // (orientations * math.prod(pixels.shape[1:])))
    parts = [_histograms(part, cell, orientations, signed) for part in pixels.split(rows)]
    return torch.cat(parts)


def _histograms(pixels: Tensor, cell: int, orientations: int, signed: bool) -> Tensor:
    down, right = torch.zeros_like(pixels), torch.zeros_like(pixels)  # (N, C, H, W)
    down[..., 1:-1, :] = pixels[..., 2:, :] - pixels[..., :-2, :]
    right[..., 1:-1] = pixels[..., 2:] - pixels[..., :-2]
    strength, channel = torch.hypot(down, right).max(1, keepdim=True)  # (N, 1, H, W)
    down, right = down.gather(1, channel), right.gather(1, channel)
    turn = torch.atan2(down, right) / (2 * math.pi if signed else math.pi)  # of the range: -1..1
    # An angle on the edge of a bin (45 degrees, 90) is in the bin that it begins, rounded or not.
    bins = (turn * orientations + 1e-5).floor().long() % orientations
    spread = pixels.new_zeros(len(pixels), orientations, *pixels.shape[2:])
    return F.avg_pool2d(spread.scatter_(1, bins, strength), cell)


def normalised_blocks(histograms: Tensor, block: int, step: int = 1) -> Tensor:
    """Overlapping blocks of block x block cells, each brought to length 1 (the paper's L2-Hys).

    Lowe's way with SIFT, which the paper takes over: length 1, nothing above 0.2, length 1 again.

    Args:
        histograms: (N, O, h, w).
        step: cells between the beginnings of two blocks.

    Returns:
        (N, (h - block) // step + 1, (w - block) // step + 1, block * block * O), the orientations
        of a cell together.
    """
    windows = histograms.unfold(2, block, step).unfold(3, block, step)  # (N, O, h', w', b, b)
    blocks = windows.permute(0, 2, 3, 4, 5, 1).flatten(3)
    return _unit(_unit(blocks).clamp(max=0.2))


def _unit(blocks: Tensor) -> Tensor:
    return blocks / (blocks.square().sum(-1, keepdim=True) + 1e-5**2).sqrt()
