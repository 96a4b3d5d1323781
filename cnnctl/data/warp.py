"""Where the pixels of a view come from: windows of a scaled image, and warps by points.

Points are (x, y) in pixels; pixel k covers k to k + 1, so that its centre is k + 0.5. Images are
interpolated (bilinear), maps of classes take the nearest pixel, and both agree on where the image
ends: beyond it an image has its ``fill``, a mask 255 and a weight 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cnnctl.data.augmentations.base import resize, resize_mask
from cnnctl.structures import IGNORE


@dataclass(frozen=True)
class View:
    """A window on one image that is scaled first; nothing outside the window is computed.

    Args:
        scaled: (h, w) that the image would have after scaling.
        corner: (top, left) of the window in it, negative where it begins outside.
        size: (H, W) of the window.
        points: (1, 2, H, W), the place of each of its pixels relative to the corner; None where
            each has its own.
        flip: whether the window is mirrored (across, down) at last.
    """

    scaled: tuple[int, int]
    corner: tuple[int, int]
    size: tuple[int, int]
    points: Tensor | None = None
    flip: tuple[bool, bool] = (False, False)

    def image(self, image: Tensor, fill: Tensor) -> Tensor:
        """(C, h, w) uint8 -> (C, H, W) uint8, with ``fill`` (C, 1, 1) uint8 from outside."""
        if self.points is None:
            return self._flipped(self._straight(image, fill, smooth=True))
        canvas, points = self._canvas(image, self.points, smooth=True)
        if canvas is None:
            return fill.expand(len(image), *self.size).clone()
        return self._flipped(warp(canvas[None], points, fill)[0].round_().to(torch.uint8))

    def map(self, values: Tensor, outside: int) -> Tensor:
        """(h, w) uint8 or float -> (H, W), the nearest pixel's; ``outside`` beyond the image."""
        if self.points is None:
            fill = torch.tensor(outside, dtype=values.dtype)[None, None, None]
            return self._flipped(self._straight(values[None], fill, smooth=False)[0])
        canvas, points = self._canvas(values[None], self.points, smooth=False)
        if canvas is None:
            return values.new_full(self.size, outside)
        return self._flipped(warp_map(canvas, points, outside)[0])

    def _straight(self, maps: Tensor, fill: Tensor, smooth: bool) -> Tensor:
        whole = (0, 0, *self.scaled)
        box = _common(whole, (*self.corner, *self.size))
        if box is None:
            return fill.expand(len(maps), *self.size).clone()
        part = scaled_part(maps, self.scaled, box, smooth)
        if tuple(part.shape[1:]) == self.size:
            return part
        window = fill.expand(len(maps), *self.size).clone()
        top, left = box[0] - self.corner[0], box[1] - self.corner[1]
        window[:, top : top + box[2], left : left + box[3]] = part
        return window

    def _canvas(self, maps: Tensor, points: Tensor, smooth: bool) -> tuple[Tensor | None, Tensor]:
        """The part of the scaled image that is looked at, and the points in it."""
        (left, right), (top, bottom) = (_bounds(points[0, axis]) for axis in (0, 1))
        corner = (self.corner[0] + top, self.corner[1] + left)
        box = _common((0, 0, *self.scaled), (*corner, bottom - top, right - left))
        if box is None:
            return None, points
        moved = xy(points, self.corner[1] - box[1], self.corner[0] - box[0]) + points
        return scaled_part(maps, self.scaled, box, smooth), moved

    def _flipped(self, window: Tensor) -> Tensor:
        axes = [axis for axis, wanted in zip((-1, -2), self.flip, strict=True) if wanted]
        return window.flip(axes) if axes else window


def _bounds(places: Tensor) -> tuple[int, int]:
    """Whole pixels below and above all ``places``, and what is interpolated beside them."""
    least, most = places.aminmax()  # over a whole tensor it is ten times faster than along one axis
    return math.floor(least) - 1, math.ceil(most) + 1


Box = tuple[int, int, int, int]  # top, left, height, width


def _common(one: Box, other: Box) -> Box | None:
    """What two boxes share; None where that is nothing."""
    top, left = max(one[0], other[0]), max(one[1], other[1])
    h = min(one[0] + one[2], other[0] + other[2]) - top
    w = min(one[1] + one[3], other[1] + other[3]) - left
    return (top, left, h, w) if h > 0 and w > 0 else None


def scaled_part(maps: Tensor, scaled: tuple[int, int], box: Box, smooth: bool) -> Tensor:
    """A box of (C, h, w) scaled to ``scaled``, (C, height, width), where only the box is scaled.

    Its edges are moved to whole pixels of the source, alike for an image and its mask.

    Args:
        box: wholly inside of ``scaled``.
        smooth: bilinear (uint8); else the nearest pixel of any type.
    """
    source = []
    for start, length, have, want in zip(box[:2], box[2:], maps.shape[1:], scaled, strict=True):
        first = min(round(start * have / want), have - 1)
        source.append(slice(first, max(first + 1, round((start + length) * have / want))))
    part = maps[:, source[0], source[1]]
    return resize(part[None], box[2:])[0] if smooth else resize_mask(part, box[2:])


def warp(pixels: Tensor, points: Tensor, fill: Tensor) -> Tensor:
    """(N, C, h, w) seen at ``points`` (N, 2, H, W) -> (N, C, H, W) float32, bilinear.

    Args:
        fill: (C, 1, 1), what lies outside.
    """
    # What lies outside is zero for grid_sample, and so it is once the fill is taken away.
    fill = fill.to(pixels.device, non_blocking=True).float()
    return _sampled(pixels.float() - fill, points, "bilinear") + fill


def warp_map(values: Tensor, points: Tensor, outside: int) -> Tensor:
    """(N, h, w) uint8 or float seen at ``points`` (N, 2, H, W) -> (N, H, W), the nearest pixel."""
    shifted = _sampled(values[:, None].float() - outside, points, "nearest")[:, 0]
    return shifted.add_(outside).to(values.dtype)


def _sampled(maps: Tensor, points: Tensor, mode: str) -> Tensor:
    h, w = maps.shape[-2:]
    grid = (points * xy(points, 2 / w, 2 / h) - 1).permute(0, 2, 3, 1)
    return F.grid_sample(maps, grid, mode=mode, padding_mode="zeros", align_corners=False)


def xy(like: Tensor, x: float, y: float) -> Tensor:
    """(2, 1, 1), to calculate with points."""
    # Filled on the device: a tensor of Python numbers would be waited for.
    return torch.cat([like.new_full((1, 1, 1), value) for value in (x, y)])


def centres(size: tuple[int, int], device: torch.device | None = None) -> Tensor:
    """(2, H, W): the centre of each pixel."""
    y, x = (torch.arange(side, device=device) + 0.5 for side in size)
    return torch.stack([x.expand(size), y[:, None].expand(size)])


def turned(points: Tensor, angle: Tensor, size: tuple[int, int]) -> Tensor:
    """``points`` (N or 1, 2, H, W) turned by ``angle`` (N,), radians, around the middle of size."""
    middle = xy(points, size[1] / 2, size[0] / 2)
    cos, sin = angle.cos(), angle.sin()
    rotation = torch.stack([cos, -sin, sin, cos], -1).view(-1, 2, 2)
    around = (points - middle).flatten(2).expand(len(angle), -1, -1)  # (N, 2, H * W)
    return (rotation @ around).view(-1, 2, *size) + middle


def displacement(vectors: Tensor, size: tuple[int, int]) -> Tensor:
    """Vectors (N, 2, g, g) on a coarse grid -> (N, 2, H, W), bicubic between them.

    The outer vectors of the grid lie on the corners of the view.
    """
    return F.interpolate(vectors, size, mode="bicubic", align_corners=True)


def largest_share(masks: Tensor) -> Tensor:
    """(M, ...) uint8 -> (M,) float32: of the labelled pixels, the share of the commonest class.

    Infinite where no pixel is labelled.
    """
    rows = torch.arange(len(masks), device=masks.device) * 256
    index = (masks.flatten(1) + rows[:, None]).flatten()
    counts = torch.zeros(256 * len(masks), dtype=torch.int64, device=masks.device)
    # Unlike bincount it asks the device for nothing.
    counts = counts.scatter_add_(0, index, torch.ones_like(index)).view(-1, 256)
    labelled = counts[:, :IGNORE]
    total = labelled.sum(1)
    share = labelled.amax(1) / total.clamp(min=1)
    return torch.where(total > 0, share, torch.inf)
