"""The tight rectangle around the ink of a digit, in the frame that is turned with the digit."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_REACH, _FINE = 1.05, 85  # how far, and at how many points each way, ink is looked for


def rectangles(glyphs: Tensor) -> Tensor:
    """(G, 4) xyxy of what is drawn of (G, 1, 8, 8), where the whole is -1 to 1 each way."""
    line = torch.linspace(-_REACH, _REACH, _FINE)
    grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), 2)  # x, y
    grid = grid.expand(len(glyphs), -1, -1, -1)
    drawn = F.grid_sample(glyphs, grid, mode="bicubic", align_corners=False)[:, 0] > 0.5
    sides = []
    for axis in (1, 2):  # columns give x, rows y
        shown = drawn.any(axis)  # (G, F)
        sides += [
            torch.where(shown, line, _REACH).amin(1),
            torch.where(shown, line, -_REACH).amax(1),
        ]
    return torch.stack(sides, 1)[:, [0, 2, 1, 3]]


def turned(inked: Tensor, place: Tensor, size: Tensor, angle: Tensor) -> Tensor:
    """(n, D, 5) as ``Scenes.placed``, of digits (n, D) centred at ``place`` with a ``size`` (w, h).

    Args:
        inked: (n, D, 4), see ``rectangles``.
    """
    low, high = inked[..., :2], inked[..., 2:]
    across, down = ((low + high) / 2 * size / 2).unbind(2)  # of the ink's centre, in its own frame
    cos, sin = angle.cos(), angle.sin()
    centre = place + torch.stack([across * cos - down * sin, across * sin + down * cos], 2)
    return torch.cat([centre, (high - low) / 2 * size, angle[..., None]], 2)
