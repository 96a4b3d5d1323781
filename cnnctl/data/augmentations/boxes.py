"""The truth of boxes moved with their image: rows of one sample, padded columns of a batch.

The frame of a mask (see cnnctl/ops/masks.py) moves as its box does, but is never cut. So do points:
a mirror exchanges left and right ones, and one that is no longer in the image has no visibility.

Boxes are xyxy in pixels, (..., R, 4); rectangles have one row for each image, (..., 4), and their
sides are whole numbers of pixels. What belongs to a box stays in its row: class, flags, area.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from cnnctl.data.augmentations.base import Truth
from cnnctl.structures import NO_BOX, Targets

LEAST = 0.2  # share of a box that must be left of it, or it goes
_NEAR = 1e-3  # pixels that a point may lie outside by rounding


def sides(boxes: Tensor) -> Tensor:
    """(..., 4) -> (..., 2) width and height; 0 where a box is turned inside out."""
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0)


def cut(boxes: Tensor, rectangles: Tensor) -> Tensor:
    """Boxes (..., R, 4) without what lies outside of rectangles (..., 4)."""
    low, high = rectangles[..., None, :2], rectangles[..., None, 2:]
    corners = boxes.unflatten(-1, (2, 2))
    corners = torch.maximum(torch.minimum(corners, high[..., None, :]), low[..., None, :])
    return corners.flatten(-2)


def share_left(boxes: Tensor, rectangles: Tensor) -> Tensor:
    """(..., R): how much of the area of each box lies inside of its rectangle."""
    whole = sides(boxes).prod(-1).clamp(min=1e-6)
    return sides(cut(boxes, rectangles)).prod(-1) / whole


def centre_inside(boxes: Tensor, rectangles: Tensor) -> Tensor:
    """(..., R) bool: whether the centre of each box lies strictly inside of its rectangle."""
    centre = (boxes[..., :2] + boxes[..., 2:]) / 2
    above = centre > rectangles[..., None, :2]
    return (above & (centre < rectangles[..., None, 2:])).all(-1)


def carried(boxes: Tensor, source: Tensor, into: Tensor) -> Tensor:
    """Boxes (..., R, 4) where rectangles ``source`` (..., 4) became ``into``, cut off at it."""
    return cut(mapped(boxes, source, into), into)


def mapped(boxes: Tensor, source: Tensor, into: Tensor) -> Tensor:
    """``carried``, but not cut off."""
    factor = sides(into) / sides(source).clamp(min=1e-6)
    factor, first, start = (v[..., None, :].repeat_interleave(2, -2).flatten(-2)[..., None, :]
                            for v in (factor, source[..., :2], into[..., :2]))  # fmt: skip
    return (boxes - first) * factor + start


def mirrored(boxes: Tensor, width: int | Tensor) -> Tensor:
    """Boxes (..., R, 4) left to right in an image of that width."""
    left, top, right, bottom = boxes.unbind(-1)
    return torch.stack([width - right, top, width - left, bottom], -1)


def mirrored_frames(frames: Tensor, width: int | Tensor) -> Tensor:
    """``mirrored``, but each corner stays the same corner of the crop: x1 and x2 change places."""
    return mirrored(frames, width)[..., [2, 1, 0, 3]]


def moved_frames(
    truth: Mapping[str, Any], move: Callable[[Tensor], Tensor], within: Tensor | None = None
) -> dict[str, Tensor]:
    """What ``truth`` has of ``frames`` (..., R, 4), ``void_frame`` (..., 4) and ``keypoints``
    (..., R, J, 3), moved.

    Args:
        within: (..., 4) rectangles beyond which there are no points; None: none goes.
    """
    moved = {}
    if truth.get("keypoints") is not None:
        moved["keypoints"] = moved_points(truth["keypoints"], truth["swap"], move, within)
    if truth.get("frames") is not None:
        moved["frames"] = move(truth["frames"])
    if truth.get("void_frame") is not None:
        moved["void_frame"] = move(truth["void_frame"][..., None, :])[..., 0, :]
    return moved


def moved_points(
    points: Tensor, swap: Tensor, move: Callable[[Tensor], Tensor], within: Tensor | None
) -> Tensor:
    """Points (..., R, J, 3) moved as the corners of frames are.

    Args:
        swap: (..., J) int64 which point each point of a mirror image is.
        move, within: see ``moved_frames``.
    """
    place, seen = points[..., :2], points[..., 2:]
    frames = torch.cat([place, place + 1], -1)  # a pixel's: a mirror turns it inside out
    moved = move(frames.flatten(-3, -2)).unflatten(-2, frames.shape[-3:-1])
    if within is not None:
        low, high = within[..., None, None, :2] - _NEAR, within[..., None, None, 2:] + _NEAR
        inside = (moved[..., :2] >= low) & (moved[..., :2] <= high)
        seen = seen * inside.all(-1, keepdim=True)
    placed = torch.cat([moved[..., :2], seen], -1) * (seen > 0)
    other = placed.gather(-2, swap[..., None, :, None].expand(placed.shape))
    return torch.where(moved[..., :1] > moved[..., 2:3], other, placed)


def move_frames(
    targets: Targets, move: Callable[[Tensor], Tensor], within: Tensor | None = None
) -> None:
    """``moved_frames`` of a batch, which has the columns from then on."""
    for name, frames in moved_frames(vars(targets), move, within).items():
        setattr(targets, name, frames)


def with_boxes(target: Truth, boxes: Tensor, kept: Tensor) -> Truth:
    """One sample's truth with its boxes (R, 4) moved to ``boxes``, and the rows ``kept`` (R,).

    The area changes as that of the box does.
    """
    rows = {name: target[name] for name in NO_BOX if name in target}
    if "area" in rows:
        rows["area"] = _area(rows["area"], rows["boxes"], boxes)
    rows["boxes"] = boxes
    return {**target, **{name: row[kept] for name, row in rows.items()}}


def set_boxes(targets: Targets, boxes: Tensor, kept: Tensor) -> None:
    """A batch's boxes moved to ``boxes`` (N, R, 4); rows not ``kept`` (N, R) hold none any more."""
    assert targets.boxes is not None
    if targets.area is not None:
        targets.area = _area(targets.area, targets.boxes, boxes)
    targets.boxes = boxes
    keep_rows(targets, kept)


def keep_rows(targets: Targets, kept: Tensor) -> None:
    """A batch's rows that are not ``kept`` (N, R) hold no box any more."""
    for name, nothing in NO_BOX.items():
        if (column := getattr(targets, name)) is not None:
            gone = ~kept.view(*kept.shape, *[1] * (column.dim() - 2))
            setattr(targets, name, column.masked_fill(gone, nothing))


def _area(area: Tensor, before: Tensor, after: Tensor) -> Tensor:
    return area * sides(after).prod(-1) / sides(before).prod(-1).clamp(min=1e-6)
