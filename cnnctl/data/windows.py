"""Windows on images: a rectangle of each becomes the whole of what is seen, its boxes with it.

A window's sides are whole pixels of its image. It may reach beyond the image; what comes from
there has a fill. The edges of what is inside go to whole pixels of the output, and boxes and the
frames of masks are moved by exactly the same map. One image is resized by Pillow's arithmetic; a
batch by two products with matrices, which hold the same weights: the same picture, with no Python
per image.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cnnctl.data.augmentations.base import Truth, resize
from cnnctl.data.augmentations.boxes import (
    carried,
    cut,
    mapped,
    mirrored,
    mirrored_frames,
    move_frames,
    moved_frames,
    set_boxes,
    sides,
    with_boxes,
)
from cnnctl.structures import Images, Targets


@dataclass(frozen=True)
class Windows:
    """What is seen of N images.

    Args:
        rectangles: (N, 4) xyxy, whole pixels of each image.
        mirror: (N,) bool, whether it is mirrored at last.
        kept: (N, R) bool, the boxes that stay.
    """

    rectangles: Tensor
    mirror: Tensor
    kept: Tensor

    def sample(
        self, image: Tensor, target: Truth, size: tuple[int, int], fill: Tensor
    ) -> tuple[Tensor, Truth]:
        """The one window on (C, h, w) uint8 -> (C, *size) uint8, and the truth in its pixels.

        Args:
            fill: (C, 1, 1) uint8.
        """
        source, into = placed(self.rectangles, (image.shape[1], image.shape[2]), size)
        boxes = carried(target["boxes"], source[0], into[0])
        seen = shown(image, source[0], into[0], size, fill)
        if self.mirror[0]:
            seen, boxes = seen.flip(2), mirrored(boxes, size[1])
        target = target | moved_frames(
            target, lambda f: self._frames(f, source, into, size[1])[0], whole(size, boxes)
        )
        return seen, with_boxes(target, boxes, self.kept[0])

    def batch(self, images: Images, targets: Targets, fill: Tensor) -> None:
        """A batch and its truth seen through the windows, at the size that it has; float pixels."""
        assert targets.boxes is not None
        size = (images.pixels.shape[2], images.pixels.shape[3])
        source, into = placed(self.rectangles, size, size)
        images.pixels = resampled(images.pixels, source, into, size, fill, self.mirror)
        boxes = carried(targets.boxes, source, into)
        mirror = self.mirror[:, None, None]
        seen = whole(size, boxes).expand(len(boxes), -1)
        move_frames(targets, lambda frames: self._frames(frames, source, into, size[1]), seen)
        set_boxes(targets, torch.where(mirror, mirrored(boxes, size[1]), boxes), self.kept)

    def _frames(self, frames: Tensor, source: Tensor, into: Tensor, width: int) -> Tensor:
        """Frames (N, R, 4), or (R, 4) of one image, in the pixels of what is seen."""
        frames = mapped(frames, source, into)
        mirror = self.mirror[:, None, None]
        return torch.where(mirror, mirrored_frames(frames, width), frames)


def alone(purpose: str, count: int) -> Tensor:
    """(1, count) uniform numbers for one sample, of the generator that the loader seeds."""
    return torch.rand(1, count)


def whole(shape: tuple[int, int], like: Tensor) -> Tensor:
    """(4,): the rectangle of a whole image of (h, w)."""
    # Filled on the device: a tensor of Python numbers would be waited for.
    return torch.stack([like.new_full((), side) for side in (0, 0, shape[1], shape[0])])


def present(targets: Targets) -> tuple[Tensor, Tensor]:
    """A batch's boxes (N, R, 4), and which of the rows hold one (N, R)."""
    assert targets.boxes is not None
    assert targets.labels is not None
    return targets.boxes, targets.labels >= 0


def placed(windows: Tensor, shape: tuple[int, int], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """What is inside of an image of ``shape`` (h, w), and where it goes in an output of ``size``.

    Returns:
        Both (N, 4), whole pixels; each at least one pixel wide and high, or without area where a
        window lies outside of its image.
    """
    source = cut(windows[:, None], whole(shape, windows))[:, 0]
    limit = whole(size, windows)[2:]
    factor = limit / sides(windows)
    first = windows[:, :2]
    low = ((source[:, :2] - first) * factor).round().minimum(limit - 1)
    high = ((source[:, 2:] - first) * factor).round().maximum(low + 1)
    high = torch.where(sides(source) > 0, high, low)
    return source, torch.cat([low, high], 1)


def shown(
    image: Tensor, source: Tensor, into: Tensor, size: tuple[int, int], fill: Tensor
) -> Tensor:
    """(C, h, w) uint8 -> (C, *size) uint8: rectangle ``source`` (4,) resized into ``into`` (4,)."""
    left, top, right, bottom = source.int().tolist()
    x, y, x_end, y_end = into.int().tolist()
    if (x, y, y_end, x_end) == (0, 0, *size):
        return resize(image[None, :, top:bottom, left:right], size)[0]
    framed = fill.expand(len(image), *size).clone()
    if right > left and bottom > top:
        part = resize(image[None, :, top:bottom, left:right], (y_end - y, x_end - x))[0]
        framed[:, y:y_end, x:x_end] = part
    return framed


def resampled(
    pixels: Tensor,
    source: Tensor,
    into: Tensor,
    size: tuple[int, int],
    fill: Tensor,
    mirror: Tensor | None = None,
) -> Tensor:
    """``shown`` for (N, C, h, w) -> (N, C, *size) float32, each image with rectangles (N, 4)."""
    across, down = (
        _weights(source[:, axis::2], into[:, axis::2], length, count)
        for axis, length, count in zip((0, 1), pixels.shape[:1:-1], size[::-1], strict=True)
    )  # (N, W, w), (N, H, h)
    if mirror is not None:
        across = torch.where(mirror[:, None, None], across.flip(1), across)
    fill = fill.to(pixels.device, non_blocking=True).float()
    # What is outside has no weight: it is zero, and so it is fill once that is added again.
    return down[:, None] @ ((pixels.float() - fill) @ across.mT[:, None]) + fill


def _weights(source: Tensor, into: Tensor, length: int, count: int) -> Tensor:
    """(N, count, length): each output pixel's share of each of a line's pixels.

    Bilinear, over as many pixels as go into one where a line shrinks; lines ``source`` (N, 2)
    become ``into`` (N, 2).
    """
    (first, last), (start, end) = source.mT[..., None], into.mT[..., None]  # (N, 1) each
    step = (last - first) / (end - start).clamp(min=1)
    place = torch.arange(count, device=source.device) + 0.5
    points = first + (place - start) * step  # (N, count)
    centre = torch.arange(length, device=source.device) + 0.5
    share = 1 - (points[..., None] - centre).abs() / step.clamp(min=1)[..., None]
    share = share.clamp_(min=0) * ((centre > first) & (centre < last))[:, None]
    inside = (place > start) & (place < end)
    return share / share.sum(2, keepdim=True).clamp_(min=1e-6) * inside[..., None]
