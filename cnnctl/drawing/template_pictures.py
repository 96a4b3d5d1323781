"""Templates of oriented gradients as bars: pure functions from weights to (H, W, 3) uint8.

The picture that Dalal and Triggs (CVPR 2005, figure 6) draw: what speaks for a class, cell by cell.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from cnnctl.drawing import pictures
from cnnctl.models.base import Templates

_CELL = 20  # pixels
_SIDE = 200  # of a template in the picture
_MOST = 100  # classes that are drawn


def draw_templates(templates: Templates | None, classes: Sequence[str]) -> Tensor | None:
    """A template for each class: in every cell a bar along the edge for each orientation, the
    brighter the more it speaks for the class; what speaks against it is not drawn."""
    if templates is None:
        return None
    weights = templates.weights[:_MOST].clamp(min=0).float().cpu()
    bars = edges(weights.shape[1], templates.turn)  # (O, _CELL, _CELL)
    drawn = torch.einsum("kors,oyx->krysx", weights, bars).flatten(1, 2).flatten(2)
    # A few cells that are far above all others would leave the rest dark.
    bright = drawn.flatten(1).quantile(0.995, dim=1).clamp(min=1e-12)[:, None, None]
    grey = (drawn / bright).clamp(max=1).mul(255).round().to(torch.uint8)
    images = list(pictures.coloured(grey[:, None]))
    return pictures.gallery(images, [[name] for name in classes[:_MOST]], columns=5, side=_SIDE)


def edges(orientations: int, turn: float = 0.5) -> Tensor:
    """(O, side, side) of 0..1: for each orientation of a gradient a bar across it, which is how an
    edge with such a gradient runs."""
    angle = (torch.arange(orientations) + 0.5) / orientations * turn * 2 * math.pi
    place = torch.arange(_CELL) - (_CELL - 1) / 2
    y, x = torch.meshgrid(place, place, indexing="ij")
    along = angle.cos()[:, None, None] * x + angle.sin()[:, None, None] * y  # the gradient
    across = angle.sin()[:, None, None] * x - angle.cos()[:, None, None] * y
    return (along.abs() <= 1) * (across.abs() <= _CELL / 2 - 0.5) * 1.0
