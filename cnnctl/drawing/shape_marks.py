"""Objects painted on images by their masks: filled, outlined, and told apart by lightness.

A shape keeps the pixels that its mask was drawn in and is read at the pixels of the picture, within
its frame alone. All shapes of an image are then one map of numbers, so that filling and outlining
cost as much for a hundred as for one.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cnnctl.data.palette import Colour
from cnnctl.drawing.box_marks import Mark, marked, sized
from cnnctl.drawing.pictures import BLACK
from cnnctl.ops.masks import cropped, unpack

OPACITY = 0.5
# How far the colour of a class goes to white, or below 0 to black, for its first object, second...
_SHADES = (0.0, 0.45, -0.35, 0.7, -0.6)


Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Shape:
    """A mask and where it lies.

    Args:
        mask: (h, w) bool on the CPU, in pixels of its own.
        frame: xyxy in pixels of an image, where the corners of the mask lie; x1 > x2: mirrored.
        within: xyxy beyond which nothing of it is seen, where something cut it off; None: nothing.
    """

    mask: Tensor
    frame: Box
    within: Box | None = None

    def scaled(self, across: float, down: float) -> Shape:
        """The same in an image that is that many times as wide and as high."""
        frames = [
            None if box is None
            else (box[0] * across, box[1] * down, box[2] * across, box[3] * down)
            for box in (self.frame, self.within)
        ]  # fmt: skip
        assert frames[0] is not None
        return Shape(self.mask, frames[0], frames[1])


def shape_of(mask: Tensor) -> Shape:
    """What is set of (h, w) bool, in the pixels of that."""
    crop, frame = cropped(mask)
    left, top, right, bottom = frame.tolist()
    return Shape(crop, (left, top, right, bottom))


def shapes_of(bits: Tensor, crops: Tensor, frames: Tensor) -> list[Shape]:
    """Those of one image, as ``ops.masks.Masks`` has them: (L,), (R, 3) and (R, 4)."""
    bits = bits.cpu()
    return [
        Shape(unpack(bits, crop), (left, top, right, bottom))
        for crop, (left, top, right, bottom) in zip(crops.cpu(), frames.tolist(), strict=True)
    ]


def shades(labels: Sequence[int], colours: Sequence[Colour]) -> list[Colour]:
    """The colour of each object: its class's, lighter or darker where there are more of them."""
    seen: Counter[int] = Counter()
    found = []
    for label in labels:
        found.append(_shaded(colours[label], _SHADES[seen[label] % len(_SHADES)]))
        seen[label] += 1
    return found


def _shaded(colour: Colour, share: float) -> Colour:
    end = 255 if share > 0 else 0
    red, green, blue = (round(c + (end - c) * abs(share)) for c in colour)
    return red, green, blue


def numbered(shapes: Sequence[Shape], size: tuple[int, int]) -> Tensor:
    """(h, w) int32: 1 where the first shape is, 2 the second, 0 none; later ones on top.

    A pixel is as where its centre falls in a mask.
    """
    found = torch.zeros(size, dtype=torch.int32)
    for number, shape in enumerate(shapes, 1):
        left, top, right, bottom = shape.frame
        if not all(map(math.isfinite, shape.frame)) or not shape.mask.numel():
            continue
        low_x, low_y, high_x, high_y = shape.within or (0, 0, size[1], size[0])
        rows, y = _places(top, bottom, shape.mask.shape[0], low_y, min(high_y, size[0]))
        columns, x = _places(left, right, shape.mask.shape[1], low_x, min(high_x, size[1]))
        found[rows, columns].masked_fill_(shape.mask[y[:, None], x], number)
    return found


def first_on_top(shapes: Sequence[Shape], size: tuple[int, int]) -> Tensor:
    """As ``numbered``, but where shapes overlap the first of them is seen."""
    found = numbered(shapes[::-1], size)
    return torch.where(found > 0, len(shapes) + 1 - found, found)


def _places(first: float, last: float, side: int, low: float, high: float) -> tuple[slice, Tensor]:
    """The pixels of a line whose centres are within, and where each falls in ``side`` of them.

    Args:
        first, last: where the mask begins and ends; low, high: what is seen of the line.
    """
    begin, end = math.floor(min(first, last) - 0.5), math.ceil(max(first, last) + 0.5)
    start = max(math.ceil(max(low, 0.0) - 0.5), begin)
    stop = max(start, min(math.ceil(high - 0.5), end))
    centre = torch.arange(start, stop, dtype=torch.float64) + 0.5
    own = ((centre - first) / ((last - first) or 1.0) * side).floor()
    inside = ((own >= 0) & (own < side)).nonzero()[:, 0].tolist()  # one after another
    if not inside:
        return slice(0, 0), own[:0].long()
    return slice(start + inside[0], start + inside[-1] + 1), own[inside].long()


def smallest_first(
    shapes: Sequence[Shape], colours: Sequence[Colour]
) -> tuple[list[Shape], list[Colour]]:
    """Both by the area of the shapes, so that on top are those that would be hidden."""

    def area(place: int) -> float:
        left, top, right, bottom = shapes[place].frame
        share = float(shapes[place].mask.float().mean()) if shapes[place].mask.numel() else 0.0
        return share * abs((right - left) * (bottom - top))

    order = sorted(range(len(shapes)), key=area)
    return [shapes[place] for place in order], [colours[place] for place in order]


def painted(image: Tensor, index: Tensor, colours: Sequence[Colour], width: int) -> Tensor:
    """(3, h, w) uint8 with the shapes of ``numbered`` on it.

    Args:
        index: (h, w); colours: of shape 1, 2, ...
        width: pixels of the outline, which lies inside its shape; a dark one lies outside.
    """
    table = torch.tensor([BLACK, *colours], dtype=torch.float32)
    inside, changes = index > 0, _changes(index)
    own = table[index.long()].permute(2, 0, 1)
    mixed = image * (1 - OPACITY) + own * OPACITY
    mixed = torch.where(_near(changes, width - 1), own, mixed).round().to(torch.uint8)
    dark = torch.tensor(BLACK, dtype=torch.uint8)[:, None, None]
    return torch.where(inside, mixed, torch.where(changes, dark, image))


def _changes(index: Tensor) -> Tensor:
    """(h, w) bool: pixels that one of their eight neighbours differs from."""
    found = torch.zeros_like(index, dtype=torch.bool)
    h, w = index.shape
    for down, across in ((0, 1), (1, 0), (1, 1), (1, -1)):
        left = slice(max(0, -across), w - max(0, across))
        right = slice(max(0, across), w - max(0, -across))
        other = index[: h - down, left] != index[down:, right]
        found[: h - down, left] |= other
        found[down:, right] |= other
    return found


def _near(pixels: Tensor, reach: int) -> Tensor:
    """(h, w) bool: those with one of ``pixels`` in the square of that reach around them."""
    for axis in (0, 1):
        span = 0
        while span < reach:  # each turn sees up to three times as far
            step = min(2 * span + 1, reach - span, pixels.shape[axis])
            there, length = pixels.clone(), pixels.shape[axis] - step
            there.narrow(axis, 0, length).logical_or_(pixels.narrow(axis, step, length))
            there.narrow(axis, step, length).logical_or_(pixels.narrow(axis, 0, length))
            pixels, span = there, span + step
    return pixels


def over(picture: Tensor, shapes: Sequence[Shape], colours: Sequence[Colour]) -> Tensor:
    """(3, h, w) uint8 with shapes in its own pixels, the first on top; lines grow with it."""
    h, w = picture.shape[1:]
    return painted(picture, first_on_top(shapes, (h, w)), colours, max(1, round(max(h, w) / 300)))


def drawn(
    image: Tensor,
    shapes: Sequence[Shape],
    colours: Sequence[Colour],
    marks: Sequence[Mark],
    side: int,
) -> Tensor:
    """(C, h, w) -> (3, H, W) uint8, enlarged as ``marked`` does it.

    Args:
        shapes: in pixels of the image, the first on top; colours: of each.
        marks: boxes in pixels of the image, the last on top.
    """
    picture = sized(image, side)
    across, down = picture.shape[2] / image.shape[2], picture.shape[1] / image.shape[1]
    picture = over(picture, [shape.scaled(across, down) for shape in shapes], colours)
    placed = []
    for mark in marks:
        left, top, right, bottom = mark.box
        box = (left * across, top * down, right * across, bottom * down)
        placed.append(replace(mark, box=box))
    return marked(picture, placed, max(picture.shape[1:])).permute(2, 0, 1)
