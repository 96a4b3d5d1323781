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
    limit = torch.tensor([*size[::-1]] * 2, device=boxes.device)
    # From the first pixel with its centre inside to the first without.
    whole = torch.minimum((boxes - 0.5).ceil().long().clamp(min=0), limit)  # (B, 4)
    width, height = (whole[:, 2:] - whole[:, :2]).clamp(min=0).unbind(1)
    counts = width * height
    for first, last in _parts(counts.tolist()):
        part, count = slice(first, last), counts[first:last]
        which = torch.arange(first, last, device=boxes.device).repeat_interleave(count)
        before = (count.cumsum(0) - count).repeat_interleave(count)
        place = torch.arange(len(which), device=boxes.device) - before
        wide, left, top = (
            v[part].repeat_interleave(count) for v in (width, whole[:, 0], whole[:, 1])
        )
        y, x = top + place // wide, left + place % wide
        there = _is_set(masks, image[which], row[which], y, x)
        yield Pixels(which, image[which], y, x).chosen(there)


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


def _is_set(masks: Masks, image: Tensor, row: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """(P,) bool: whether the centre of pixel (x, y) falls on a bit of that mask that is set."""
    frame, crop = masks.frames[image, row], masks.crops[image, row]
    inside, lines = torch.ones_like(y, dtype=torch.bool), []
    for axis, pixel in enumerate((x, y)):
        first, extent = frame[:, axis], frame[:, axis + 2] - frame[:, axis]
        extent = torch.where(extent == 0, torch.ones_like(extent), extent)
        side = crop[:, 2 - axis]
        line = ((pixel + 0.5 - first) * side / extent).floor().long()
        inside &= (line >= 0) & (line < side)
        lines.append(line)
    column, line = lines
    if not masks.bits.shape[1]:
        return inside & False
    place = image * masks.bits.shape[1] + crop[:, 0] + line * ((crop[:, 2] + 7) // 8)
    byte = masks.bits.flatten()[torch.where(inside, place + (column >> 3), 0)]
    return inside & ((byte >> (7 - (column & 7)).to(torch.uint8)) & 1).bool()


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
