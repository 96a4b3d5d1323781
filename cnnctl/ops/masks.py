"""Masks of objects as bits: cropped, packed, and sampled where they are wanted.

A mask stays in the pixels that it was drawn in. What moves with its image is its frame: where the
corners of the crop lie now, xyxy in the pixels of the image, x1 > x2 where it is mirrored. So
resizing, cropping and flipping change four numbers and no pixel, and a network's target (He et al.,
"Mask R-CNN", arXiv:1703.06870, section 3: m x m of a region) is sampled once, from the original.

The crops of an image lie one after another in its bits: row by row, each row in whole bytes, the
most significant bit first. A crop is (first byte, height, width).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass
class Masks:
    """The masks of N images.

    Args:
        bits: (N, L) uint8.
        frames: (N, R, 4) float xyxy, in the pixels that are worked in.
        crops: (N, R, 3) int64.
        void_frame, void_crop: (N, 4) and (N, 3): pixels that belong to nobody (VOC); None: none.
    """

    bits: Tensor
    frames: Tensor
    crops: Tensor
    void_frame: Tensor | None = None
    void_crop: Tensor | None = None

    def at(self, rows: Tensor | slice) -> Masks:
        """Those of some images."""
        columns = {name: c[rows] for name, c in vars(self).items() if c is not None}
        return Masks(**columns)


def cropped(mask: Tensor) -> tuple[Tensor, Tensor]:
    """(h, w) bool -> its smallest part with all that is set, and the frame (4,) float of that.

    Where nothing is set both are empty: (0, 0) and zeros.
    """
    down, across = mask.any(1).nonzero(), mask.any(0).nonzero()
    if not len(down):
        return mask[:0, :0], torch.zeros(4)
    top, bottom = int(down[0]), int(down[-1]) + 1
    left, right = int(across[0]), int(across[-1]) + 1
    frame = torch.tensor([left, top, right, bottom], dtype=torch.float32)
    return mask[top:bottom, left:right], frame


def pack(crops: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Crops (h, w) bool of one image -> bits (L,) uint8 and (R, 3) int64 where each is."""
    parts = [np.packbits(crop.numpy().astype(bool), axis=1).ravel() for crop in crops]
    ends = np.cumsum([0, *(len(part) for part in parts)])
    where = [(int(end), *crop.shape) for end, crop in zip(ends, crops, strict=False)]
    bits = np.concatenate(parts) if parts else np.zeros(0, np.uint8)
    return torch.from_numpy(bits), torch.tensor(where, dtype=torch.int64).reshape(-1, 3)


def unpack(bits: Tensor, crop: Tensor) -> Tensor:
    """One crop (3,) of bits (L,) -> (h, w) bool, on the CPU."""
    start, h, w = crop.tolist()
    row = -(-w // 8)
    packed = bits[start : start + h * row].cpu().numpy().reshape(h, row)
    return torch.from_numpy(np.unpackbits(packed, axis=1, count=w).astype(bool))


def whole_mask(bits: Tensor, crop: Tensor, frame: Tensor, size: tuple[int, int]) -> Tensor:
    """One crop in its image of ``size``, (h, w) bool: each pixel as where its centre falls."""
    h, w = int(crop[1]), int(crop[2])
    if not h * w:
        return torch.zeros(size, dtype=torch.bool)
    source = torch.nn.functional.pad(unpack(bits, crop), (1, 1, 1, 1))  # nothing around it
    left, top, right, bottom = frame.double().tolist()
    lines = []
    for first, last, side, count in ((top, bottom, h, size[0]), (left, right, w, size[1])):
        centre = torch.arange(count, dtype=torch.float64) + 0.5
        place = (centre - first) / ((last - first) or 1.0) * side
        lines.append(place.floor().clamp(-1, side).long() + 1)
    return source[lines[0][:, None], lines[1]]


def sampled_masks(
    masks: Masks,
    image: Tensor,
    row: Tensor,
    regions: Tensor,
    side: int,
    samples: int = 2,
    within: Tensor | None = None,
) -> Tensor:
    """What regions show of a mask: (B, side, side) float 0..1, the mean of the points of each bin.

    Of a mask that was not resized this is RoI align of the dense mask (torchvision's ``roi_align``
    with ``aligned=True``), but a pixel beyond the crop is 0 and not the edge's.

    Args:
        image, row: (B,) which mask of ``masks`` each region is asked about.
        regions: (B, 4) xyxy in the pixels of the frames.
        samples: points of a bin, each way.
        within: (B, 4) boxes beyond which nothing is shown: where a window or a neighbour in a
            mosaic cut the image off.
    """
    crop, frame = masks.crops[image, row], masks.frames[image, row].float()
    points = (torch.arange(side * samples, device=regions.device) + 0.5) / (side * samples)
    lines = []
    for axis in (0, 1):  # x, y
        low, high = regions[:, axis, None], regions[:, axis + 2, None]
        place = low + (high - low) * points  # (B, side * samples)
        first, last = frame[:, axis, None], frame[:, axis + 2, None]
        extent = torch.where(last == first, torch.ones_like(last), last - first)
        inside = torch.ones_like(place, dtype=torch.bool)
        if within is not None:
            inside = (place >= within[:, axis, None]) & (place < within[:, axis + 2, None])
        own = (place - first) / extent * crop[:, 2 - axis, None] - 0.5
        lines.append((own, inside))
    shown = _bilinear(masks.bits, image, crop, lines[0][0], lines[1][0])
    shown = shown * (lines[1][1][:, :, None] & lines[0][1][:, None, :])
    return shown.unflatten(2, (side, samples)).unflatten(1, (side, samples)).mean((2, 4))


def _bilinear(bits: Tensor, image: Tensor, crop: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """(B, P, Q) of crops (B, 3) at x (B, Q) and y (B, P), in their pixels, the first's centre 0."""
    left, top = x.floor(), y.floor()
    right_share, down_share = (x - left)[:, None, :], (y - top)[:, :, None]
    left, top = left.long(), top.long()
    flat, length = bits.flatten(), bits.shape[1]
    base = image * length + crop[:, 0]
    stride = (crop[:, 2] + 7) // 8
    total = torch.zeros((), device=bits.device)
    for down in (0, 1):
        line = top + down
        there_y = (line >= 0) & (line < crop[:, 1, None])
        first = base[:, None] + line.clamp(min=0) * stride[:, None]  # (B, P)
        share_y = down_share if down else 1 - down_share
        for across in (0, 1):
            column = left + across
            there = there_y[:, :, None] & ((column >= 0) & (column < crop[:, 2, None]))[:, None]
            place = first[:, :, None] + (column >> 3)[:, None]
            byte = flat[torch.where(there, place, 0)] if length else place.clamp(0, 0)
            bit = (byte >> (7 - (column & 7))[:, None].to(byte.dtype)) & 1
            share_x = right_share if across else 1 - right_share
            total = total + torch.where(there, bit, 0) * (share_x * share_y)
    return total
