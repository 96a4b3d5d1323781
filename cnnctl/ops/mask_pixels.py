"""The pixels that masks cover where they lie in an image: listed a few masks at a time, counted,
and packed anew, with nothing as large as an image for each of them.

A pixel is an object's where its centre falls on a bit that is set (``whole_mask`` of
cnnctl/ops/masks.py) and inside of its box.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from cnnctl.ops.masks import Masks

AT_ONCE = 1 << 20  # pixels of boxes that are looked at together


@dataclass
class Pixels:
    """P pixels of some of B masks, (P,) int64 each: of which mask, in which image, and where."""

    which: Tensor
    image: Tensor
    y: Tensor
    x: Tensor

    def chosen(self, kept: Tensor) -> Pixels:
        """Those ``kept`` (P,) bool."""
        return Pixels(*(column[kept] for column in vars(self).values()))


def pixels_of(
    masks: Masks, image: Tensor, row: Tensor, boxes: Tensor, size: tuple[int, int]
) -> Iterator[Pixels]:
    """What is seen of B masks, in lists of bounded length; each mask is in one of them.

    Args:
        image, row: (B,) which masks of ``masks``.
        boxes: (B, 4) xyxy, in the pixels of the frames; nothing beyond them is seen.
        size: (h, w) of the images in those pixels.
    """
    frames = masks.frames[image, row]
    # A pixel more than the frame, so that what lies on its edge is decided by ``_lines`` alone.
    low = torch.maximum(boxes[:, :2], torch.minimum(frames[:, :2], frames[:, 2:]) - 1)
    high = torch.minimum(boxes[:, 2:], torch.maximum(frames[:, :2], frames[:, 2:]) + 1)
    limit = torch.tensor(size[::-1], device=boxes.device)
    # From the first pixel with its centre inside to the first without.
    low, high = (torch.minimum((v - 0.5).ceil().long().clamp(min=0), limit) for v in (low, high))
    sides = (high - low).clamp(min=0)
    for first, last in _parts(sides.prod(1).tolist()):
        part = slice(first, last)
        pixels = _listed(masks, image[part], row[part], low[part], sides[part])
        pixels.which += first
        yield pixels


def _parts(counts: list[int]) -> Iterator[tuple[int, int]]:
    """(first, last) of runs of masks with at most AT_ONCE pixels, or of one mask with more."""
    first, total = 0, 0
    for position, count in enumerate(counts):
        if total + count > AT_ONCE and position > first:
            yield first, position
            first, total = position, 0
        total += count
    if counts:
        yield first, len(counts)


def _listed(masks: Masks, image: Tensor, row: Tensor, low: Tensor, sides: Tensor) -> Pixels:
    """Those of rectangles of pixels, ``sides`` (B, 2) from ``low`` (B, 2), that are the mask's."""
    frame, crop = masks.frames[image, row], masks.crops[image, row]
    _, x, column, inside = _lines(low[:, 0], sides[:, 0], frame[:, ::2], crop[:, 2])
    owner, y, line, there = _lines(low[:, 1], sides[:, 1], frame[:, 1::2], crop[:, 1])
    owner, y, line = owner[there], y[there], line[there]
    stride = (crop[:, 2] + 7) // 8
    byte = (image * masks.bits.shape[1] + crop[:, 0])[owner] + line * stride[owner]
    bit = torch.where(inside, 128 >> (column & 7), 0).to(torch.uint8)
    column = torch.where(inside, column >> 3, 0)
    # Pixel by pixel from here on: one line after another, each over all columns of its mask.
    width = sides[owner, 0]
    on = torch.arange(len(owner), device=width.device).repeat_interleave(width)
    first = sides[:, 0].cumsum(0) - sides[:, 0]
    place = torch.arange(len(on), device=on.device) + (first[owner] - width.cumsum(0) + width)[on]
    found = (masks.bits.flatten()[byte[on] + column[place]] & bit[place]).nonzero()[:, 0]
    on, place = on[found], place[found]
    return Pixels(owner[on], image[owner][on], y[on], x[place])


def _lines(
    first: Tensor, count: Tensor, edges: Tensor, side: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows (or columns) of pixels of B rectangles, ``count`` (B,) from ``first`` (B,), in a list.

    Args:
        edges: (B, 2) between which the crop lies.
        side: (B,) rows of the crop.

    Returns:
        Of each row (T,): which rectangle's it is, where it is, the crop's row that its centre
        falls on, and whether the crop has that row.
    """
    owner = torch.arange(len(first), device=first.device).repeat_interleave(count)
    place = torch.arange(len(owner), device=first.device) + (first - count.cumsum(0) + count)[owner]
    start, extent = edges[:, 0], edges[:, 1] - edges[:, 0]
    extent = torch.where(extent == 0, torch.ones_like(extent), extent)
    line = ((place + 0.5 - start[owner]) * side[owner] / extent[owner]).floor().long()
    return owner, place, line, (line >= 0) & (line < side[owner])


class Extents:
    """How many pixels each of B masks has, and the box around them, from list after list.

    Args:
        count: B.
    """

    def __init__(self, count: int, device: torch.device) -> None:
        self.low = torch.full((count, 2), torch.iinfo(torch.int64).max, device=device)
        self.high = torch.zeros(count, 2, dtype=torch.int64, device=device)
        self.pixels = torch.zeros(count, dtype=torch.int64, device=device)  # (B,)

    def add(self, pixels: Pixels) -> None:
        corner = torch.stack([pixels.x, pixels.y], 1)
        index = pixels.which[:, None].expand(-1, 2)
        self.low.scatter_reduce_(0, index, corner, "amin")
        self.high.scatter_reduce_(0, index, corner + 1, "amax")
        self.pixels += torch.bincount(pixels.which, minlength=len(self.pixels))

    def boxes(self) -> Tensor:
        """(B, 4) int64 xyxy; zeros of a mask without a pixel."""
        low = self.low.masked_fill(self.pixels[:, None] == 0, 0)
        return torch.cat([low, self.high], 1)


def packed(
    parts: Iterable[Pixels], image: Tensor, boxes: Tensor, images: int
) -> tuple[Tensor, Tensor]:
    """Lists of pixels -> bits (N, L) uint8 of N images and crops (B, 3), as ``pack`` makes them.

    Args:
        image: (B,) where each mask is.
        boxes: (B, 4) int64 xyxy: the frame of each crop, with all pixels of its mask.
        images: N.
    """
    sides = boxes[:, 2:] - boxes[:, :2]
    stride = (sides[:, 0] + 7) // 8
    length = sides[:, 1] * stride
    of_image = torch.zeros(images, dtype=torch.int64, device=image.device)
    of_image.index_add_(0, image, length)
    order = image.argsort(stable=True)
    ends = torch.empty_like(length)
    ends[order] = length[order].cumsum(0)
    start = ends - length - (of_image.cumsum(0) - of_image)[image]
    most = int(of_image.max())
    bits = torch.zeros(images * most, dtype=torch.uint8, device=image.device)
    for pixels in parts:
        which = pixels.which
        x, y = pixels.x - boxes[which, 0], pixels.y - boxes[which, 1]
        place = pixels.image * most + start[which] + y * stride[which] + (x >> 3)
        # A bit comes once, so the sum of the bits of a byte is the byte.
        bits.index_add_(0, place, (128 >> (x & 7)).to(torch.uint8))
    return bits.view(images, most), torch.stack([start, sides[:, 1], sides[:, 0]], 1)
