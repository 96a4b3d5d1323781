"""Regions of images brought to one square with some of what is around them: R-CNN's input.

Girshick, Donahue, Darrell, Malik, "Rich feature hierarchies for accurate object detection and
semantic segmentation", arXiv:1311.2524, section 2.1 and appendix A: the tightest box is stretched
to the square whatever its shape, so that there are p = 16 of 227 pixels of context on each side,
and what lies beyond the image is its mean.

Differs from the paper: sides are not rounded to pixels. Each pixel is interpolated between four,
also where a region shrinks: as in the published code, nothing is smoothed before.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

CONTEXT = 16 / 227  # of a crop's side, on each side of it
AT_ONCE = 1 << 22  # numbers of the points that are interpolated together


def warped_crops(
    pixels: Tensor,
    boxes: Tensor,
    image: Tensor,
    side: int,
    sizes: Sequence[tuple[int, int]] | None = None,
    context: float = CONTEXT,
) -> Tensor:
    """(B, C, side, side) of boxes (B, 4) with context, 0 (the mean) beyond the image.

    A box with no area gives what is at its place; the memory beside the result is bounded.

    Args:
        pixels: (N, C, H, W) float, normalised.
        boxes: xyxy in pixels, the right and the lower side exclusive.
        image: (B,) int64, the row of ``pixels`` that each lies in.
        sizes: (h, w) of each image inside its padding; None: all of H x W.
        context: share of ``side`` that is around a box on each side.
    """
    wide = with_context(boxes.float(), context)
    crops = pixels.new_empty(len(boxes), pixels.shape[1], side, side)
    order = image.argsort(stable=True)
    counts = image.bincount(minlength=len(pixels)).tolist()
    for row, own in enumerate(order.split(counts)):
        h, w = sizes[row] if sizes is not None else (pixels.shape[2], pixels.shape[3])
        for some in own.split(max(1, AT_ONCE // side**2)):
            crops[some] = _cut(pixels[row, :, :h, :w], wide[some], side)
    return crops


def with_context(boxes: Tensor, context: float = CONTEXT) -> Tensor:
    """(B, 4) grown about their centres so that they are all but ``context`` on each side."""
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = (boxes[:, 2:] - boxes[:, :2]) / 2 / (1 - 2 * context)
    return torch.cat([centre - half, centre + half], 1)


def _cut(pixels: Tensor, boxes: Tensor, side: int) -> Tensor:
    """(B, C, side, side) of one image (C, h, w)."""
    h, w = pixels.shape[1:]
    share = (torch.arange(side, device=boxes.device) + 0.5) / side
    low, extent = boxes[:, :2, None], (boxes[:, 2:] - boxes[:, :2])[:, :, None]
    x, y = (low + extent * share).unbind(1)  # (B, side) each, the middles of the crop's pixels
    inside = ((y >= 0) & (y < h))[:, :, None] & ((x >= 0) & (x < w))[:, None]  # (B, side, side)
    # From -1 to 1 across the image.
    across, down = 2 * x / w - 1, 2 * y / h - 1
    grid = torch.stack(torch.broadcast_tensors(across[:, None], down[:, :, None]), 3)
    grid = grid.flatten(0, 1)[None].to(pixels.dtype)  # (1, B * side, side, 2): one below the other
    # Within half a pixel of the border its own pixels are repeated.
    cut = F.grid_sample(pixels[None], grid, padding_mode="border", align_corners=False)
    return cut[0].unflatten(1, (-1, side)).transpose(0, 1) * inside[:, None]
