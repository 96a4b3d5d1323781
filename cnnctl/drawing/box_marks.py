"""Boxes drawn on images: lines that are seen on any background, and names that do not collide.

Boxes are xyxy, the right and lower sides exclusive. A line lies inside its box with a dark pixel on
either side. Small images are enlarged by whole factors, pixels kept, before anything is drawn.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cnnctl.data.palette import Colour
from cnnctl.drawing import pictures
from cnnctl.drawing.pictures import BLACK, coloured

if TYPE_CHECKING:
    from PIL.Image import Image

WHITE: Colour = (255, 255, 255)
_FAR = 1e6  # pixels: what lies beyond is no place in a picture
_GAP, _LINE, _FONT, _SWATCH = 8, 22, 14, 18  # pixels, of a legend
_HIDDEN = 0.5  # a text that others cover by more than this share is left out
_COVERED = 0.06  # of a picture: where texts cover more, a text larger than its box is left out
_LIGHT = 0.42  # luminance that a class's colour has at least
_BEHIND = (110, 110, 110)  # a thin line in a legend
_GOLDEN = 0.618034  # multiples of it never come close to each other, modulo 1

Corners = tuple[int, int, int, int]  # left, top, right, bottom, all inclusive


@dataclass(frozen=True)
class Mark:
    """A box to draw.

    Args:
        box: xyxy in pixels of the image.
        text: stands on a label of the box's colour, where there is room.
        thin: half as wide, and with a dark line beside it only where it is white.
        dashed: the gaps are dark.
        hatched: thin lines across the box (a crowd).
    """

    box: Sequence[float]
    colour: Colour
    text: str = ""
    thin: bool = False
    dashed: bool = False
    hatched: bool = False


def class_colours(count: int, palette: Sequence[Colour] | None = None) -> list[Colour]:
    """A bright colour for each class: the data set's own, else hues far from their neighbours'.

    Red and yellow are left out: they say what is false and what is missed.
    """
    own = [(r, g, b) for r, g, b in palette or ()][:count]
    return own + [_bright(number) for number in range(len(own), count)]


def _bright(number: int) -> Colour:
    turn = 0.40 + number * _GOLDEN
    hue = turn % 1 * 0.79
    hue += 0.08 if hue < 0.05 else 0.15  # 0 is red and 1/6 is yellow
    saturation, value = ((0.85, 1.0), (0.55, 1.0), (0.95, 0.8))[number // 5 % 3]
    channels = colorsys.hsv_to_rgb(hue, saturation, value)
    whiter = max(0.0, 1 - (1 - _LIGHT) / (1 - luminance(channels)))  # blue is dark as it is
    red, green, blue = (round(255 * (level + whiter * (1 - level))) for level in channels)
    return red, green, blue


def luminance(channels: Sequence[float]) -> float:
    """How bright red, green and blue look, in their own unit (ITU-R BT.601)."""
    red, green, blue = channels
    return 0.299 * red + 0.587 * green + 0.114 * blue


def marked(image: Tensor, marks: Sequence[Mark], side: int) -> Tensor:
    """(C, h, w) uint8 -> (H, W, 3) uint8 with boxes: later ones on top, their texts above all.

    Boxes that are no numbers, or wholly outside the image, are left out; those that reach outside
    end at its edge.

    Args:
        side: the longer side is brought to this, or, where the image is at most half as large, to
            the largest whole multiple below. Lines and texts grow with it from 600 pixels on.
    """
    from PIL import ImageDraw

    picture = _sized(coloured(image.cpu()), side)
    scale = (picture.width / image.shape[-1], picture.height / image.shape[-2])
    longer = max(picture.size)
    width = max(2, round(longer / 300))
    pen = ImageDraw.Draw(picture)
    placed = [(mark, _placed(mark.box, scale, picture.size)) for mark in marks]
    seen = [(mark, corners) for mark, corners in placed if corners is not None]
    for mark, corners in seen:
        if mark.hatched:
            _hatch(picture, corners, mark.colour, 5 * width)
        _frame(pen, corners, mark, width)
    named = [(mark, corners) for mark, corners in reversed(seen) if mark.text]
    _write(pen, named, picture.size, max(12, round(longer / 45)))
    return pictures._tensor(picture)


def sized(image: Tensor, side: int) -> Tensor:
    """(C, h, w) uint8 -> (3, H, W) uint8 as ``marked`` brings it to ``side``, with nothing on it.

    Of that size ``marked`` leaves it.
    """
    return pictures._tensor(_sized(coloured(image.cpu()), side)).permute(2, 0, 1)


def _sized(pixels: Tensor, side: int) -> Image:
    """(3, h, w) uint8, its longer side ``side``, or the largest whole multiple from two up."""
    from PIL import Image

    longer = max(pixels.shape[1:])
    if side >= 2 * longer:
        return pictures._fitted(pixels, side)
    picture = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    if longer == side:
        return picture
    size = [max(1, round(length * side / longer)) for length in picture.size]
    return picture.resize((size[0], size[1]), Image.Resampling.BICUBIC)


def _placed(
    box: Sequence[float], scale: tuple[float, float], size: tuple[int, int]
) -> Corners | None:
    """The pixels of a picture of (width, height) ``size`` that a box spans, at least one."""
    values = [float(value) for value in box]
    if not all(math.isfinite(value) for value in values):
        return None
    corners = []
    for low, high, factor, length in (
        (values[0], values[2], scale[0], size[0]),
        (values[1], values[3], scale[1], size[1]),
    ):
        first = math.floor(max(-_FAR, min(low * factor, _FAR)) + 0.5)
        last = math.floor(max(-_FAR, min(high * factor, _FAR)) + 0.5) - 1
        last = max(first, last)
        if last < 0 or first >= length:
            return None
        corners.append((max(first, 0), min(last, length - 1)))
    (left, right), (top, bottom) = corners
    return left, top, right, bottom


def _frame(pen: Any, corners: Corners, mark: Mark, width: int) -> None:
    left, top, right, bottom = corners
    if mark.thin:
        if mark.colour == WHITE:  # which is not seen on white
            _line(pen, (left - 1, top - 1, right + 1, bottom + 1), BLACK, 1)
        _line(pen, corners, mark.colour, max(1, width // 2))
        return
    _line(pen, (left - 1, top - 1, right + 1, bottom + 1), BLACK, width + 2)
    if not mark.dashed:
        _line(pen, corners, mark.colour, width)
        return
    dash, step = 4 * width, 7 * width
    for x in range(left, right + 1, step):
        end = min(x + dash - 1, right)
        for y in (top, max(top, bottom - width + 1)):
            pen.rectangle((x, y, end, min(y + width - 1, bottom)), fill=mark.colour)
    for y in range(top, bottom + 1, step):
        end = min(y + dash - 1, bottom)
        for x in (left, max(left, right - width + 1)):
            pen.rectangle((x, y, min(x + width - 1, right), end), fill=mark.colour)


def _line(pen: Any, corners: Corners, colour: Colour, width: int) -> None:
    """A line that stays inside its box; Pillow's does not where the box is narrower than two."""
    left, top, right, bottom = corners
    narrow = min(right - left, bottom - top) < 2 * width
    pen.rectangle(corners, colour if narrow else None, colour, 1 if narrow else width)


def _hatch(picture: Image, corners: Corners, colour: Colour, step: int) -> None:
    """Thin diagonal lines, ``step`` pixels apart along a side."""
    import numpy as np
    from PIL import Image

    left, top, right, bottom = corners
    rows = np.arange(top, bottom + 1)[:, None]
    line = (rows + np.arange(left, right + 1)) % step == 0
    picture.paste(colour, (left, top), Image.fromarray(line.astype(np.uint8) * 255))


def _write(
    pen: Any, named: Sequence[tuple[Mark, Corners]], size: tuple[int, int], points: int
) -> None:
    """Each text where it hides least of those before it: the most important come first."""
    font, taken, covered = pictures._font(points), [], 0
    height = round(points * 1.25)
    room = _COVERED * size[0] * size[1]
    for mark, (left, top, right, bottom) in named:
        text = pictures._cut(mark.text, font, max(size[0] // 2, 8 * points))
        width = math.ceil(font.getlength(text)) + points // 2
        small = (right - left + 1) * (bottom - top + 1) < width * height
        if small and covered + width * height > room:
            continue
        best, least = None, math.inf
        for x in (left, right - width + 1):
            for y in (top - height, top, bottom + 1, bottom - height + 1):
                x = max(0, min(x, size[0] - width))
                y = max(0, min(y, size[1] - height))
                hidden = sum(_shared((x, y, width, height), other) for other in taken)
                if hidden < least:
                    best, least = (x, y), hidden
        if best is None or least > _HIDDEN * width * height:
            continue
        x, y = best
        taken.append((x, y, width, height))
        covered += width * height
        pen.rectangle((x, y, x + width - 1, y + height - 1), fill=mark.colour)
        pen.text((x + points // 4, y + height // 2), text, ink(mark.colour), font, anchor="lm")


def _shared(one: Corners, other: Corners) -> int:
    """Pixels that two (x, y, width, height) have in common."""
    across = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    down = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    return max(across, 0) * max(down, 0)


def ink(colour: Colour) -> Colour:
    """Black or white: what is read on ``colour``."""
    return BLACK if luminance(colour) > 120 else WHITE


def with_legend(picture: Tensor, entries: Sequence[Mark], points: int = _FONT) -> Tensor:
    """(H, W, 3) uint8 with a strip below it that shows each kind of line with its text."""
    from PIL import Image, ImageDraw

    grown = points / _FONT
    gap, line, swatch = (round(length * grown) for length in (_GAP, _LINE, _SWATCH))
    above = Image.fromarray(picture.contiguous().numpy())
    font, x, row, places = pictures._font(points), gap, 0, []
    room = max(above.width, round(240 * grown))
    for entry in entries:
        text = pictures._cut(entry.text, font, room - swatch - 4 * gap)
        long = swatch + gap + math.ceil(font.getlength(text))
        if x > gap and x + long > room - gap:
            x, row = gap, row + 1
        places.append((entry, text, x, row))
        x += long + 2 * gap
    height = (row + 1) * line + gap if entries else 0
    canvas = Image.new("RGB", (room, above.height + height), "white")
    canvas.paste(above, ((room - above.width) // 2, 0))
    pen, width = ImageDraw.Draw(canvas), max(2, round(3 * grown))
    for entry, text, x, row in places:
        middle = above.height + gap // 2 + row * line + line // 2
        corners = (x, middle - swatch // 2, x + swatch - 1, middle + swatch // 2 - 1)
        if entry.thin:  # white is not seen on white
            pen.rectangle((x - 2, corners[1] - 2, x + swatch + 1, corners[3] + 2), fill=_BEHIND)
        if entry.hatched:
            _hatch(canvas, corners, entry.colour, max(4, swatch // 4))
        _frame(pen, corners, entry, width)
        pen.text((x + swatch + gap, middle), text, BLACK, font, anchor="lm")
    return pictures._tensor(canvas)


def faded(image: Tensor, share: float = 0.35) -> Tensor:
    """(C, h, w) uint8 -> (3, h, w): that share of it towards grey, so that lines stand out."""
    grey = 128 * share
    return (coloured(image.cpu()).float() * (1 - share) + grey).round().to(torch.uint8)


def counted(number: int, one: str, many: str = "") -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"
