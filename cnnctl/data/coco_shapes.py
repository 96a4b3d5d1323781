"""What an object's box must be to be learned, its outline and run lengths for native code."""

from __future__ import annotations

import math
import sys
from array import array
from typing import Any

import numpy as np

_LEAST = 0.01  # pixels of a side; where an image is mirrored float32 may tell no less
_TURNS = 100  # of its image's height and width, that outlines may be long; COCO's longest: 4


class Flat(ValueError):
    """A box without width or height; COCO's own training file has two."""


def check_box(box: Any, height: int, width: int) -> tuple[float, float, float, float]:
    """x, y, width, height as a file says them -> x1, y1, x2, y2, which may reach past the edge.

    Raises:
        Flat: it has no width or no height, or less than ``_LEAST``.
        ValueError: ``bbox[2]: is text, must be a number``: it is no box, or not in this image.
    """
    x, y, w, h = check_four(box)
    for place, name in ((2, "width"), (3, "height")):
        if box[place] < 0:
            raise ValueError(f"bbox[{place}]: the {name} is {box[place]}, must be > 0")
    if x < -width or y < -height or x + w > 2 * width or y + h > 2 * height:
        raise ValueError(f"bbox: {box} reaches far outside the image of {width} x {height}")
    for place, name, low, most in ((2, "width", x, width), (3, "height", y, height)):
        first, last = max(low, 0), min(low + box[place], most)
        if last - first < _LEAST:
            if box[place] < _LEAST:
                raise Flat(f"bbox[{place}]: the {name} is {box[place]}, must be > 0")
            raise ValueError(f"bbox: {box} is wholly outside the image of {width} x {height}")
    return x, y, x + w, y + h


def check_four(box: Any) -> list[float]:
    """Four finite numbers; raises ValueError."""
    if not isinstance(box, list):
        raise ValueError(f"bbox: is {kind(box)}, must be [x, y, width, height]")
    if len(box) != 4:
        raise ValueError(f"bbox: has {len(box)} numbers, must have 4: [x, y, width, height]")
    for place, value in enumerate(box):
        if type(value) not in (float, int):
            raise ValueError(f"bbox[{place}]: is {kind(value)}, must be a number")
        if not -sys.float_info.max <= value <= sys.float_info.max:
            raise ValueError(f"bbox[{place}]: is not finite")
    return box


def check_area(area: Any, height: int, width: int) -> float:
    """Raise ValueError where it is no number of pixels of an object in this image."""
    if type(area) not in (float, int):
        raise ValueError(f"area: is {kind(area)}, must be a number of pixels")
    if not 0 <= area <= 9 * height * width:  # what a box may cover, in the image and around it
        raise ValueError(f"area: is {area}, which no object in an image of {width} x {height} has")
    return float(area)


def check_polygon(polygon: Any, height: int, width: int) -> None:
    """Raise ValueError where it is none, or not about this image."""
    if not isinstance(polygon, array):
        raise ValueError("must be a list of polygons, each a list of numbers x, y, x, y, ...")
    if len(polygon) < 6 or len(polygon) % 2:
        raise ValueError(f"a polygon has {len(polygon)} numbers, must have 2 for each of 3 points")
    if not math.isfinite(sum(polygon)):
        raise ValueError("a polygon has a number that is not finite")
    low, high = min(polygon), max(polygon)
    # Somewhat outside is common and is cut off; far outside is a fault, and slow to draw.
    for axis, side, length in (("x", 0, width), ("y", 1, height)):
        if low < -length or high > 2 * length:
            values = polygon[side::2]
            if min(values) < -length or max(values) > 2 * length:
                raise ValueError(
                    f"a polygon's {axis} is far outside the image of {width} x {height}"
                )


def check_length(polygons: list[array[float]], height: int, width: int) -> None:
    """Raise ValueError where an object's outlines are longer than any real ones.

    The native code takes 40 bytes and more for each pixel of their length, whatever it covers.
    """
    most = _TURNS * (height + width)
    bound = sum(len(p) // 2 * (max(p) - min(p)) for p in polygons)  # no side is longer
    if bound <= most:
        return
    length = 0.0
    for polygon in polygons:
        points = np.frombuffer(polygon).reshape(-1, 2)
        length += np.abs(points - np.roll(points, 1, 0)).max(1).sum()
    if length > most:
        raise ValueError(
            f"its outlines are {length:,.0f} pixels long, more than {_TURNS} times the height and "
            f"width of the image of {width} x {height}"
        )


def check_runs(shape: dict[str, Any], height: int, width: int) -> list[int]:
    """The lengths of the runs of 0s, 1s, 0s, ... that fill the image; raises ValueError."""
    if shape.get("size") != [height, width]:
        size = shape.get("size")
        raise ValueError(f"its size is {size}, its image's [height, width] is {[height, width]}")
    counts = shape.get("counts")
    if isinstance(counts, str):
        counts = decode_counts(counts)
    if not isinstance(counts, list):
        raise ValueError("counts must be a list of run lengths or text")
    if not all(type(run) is int and run >= 0 for run in counts):
        raise ValueError("a run length is no whole number from 0 up")
    if sum(counts) != height * width:
        raise ValueError(
            f"its runs are {sum(counts):,} pixels long, its image has {height * width:,}"
        )
    return counts


def decode_counts(text: str) -> list[int]:
    """COCO's compressed run lengths: 5 bits a character, the third on as differences.

    As ``rleFrString`` in the COCO API's maskApi.c. Raises ValueError where they cannot be.
    """
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 30:
            raise ValueError("its counts are no run lengths of COCO")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    if shift:
        raise ValueError("its counts are cut off")
    return runs


def kind(value: Any) -> str:
    """What a value of JSON is, in words."""
    kinds = {dict: "an object", list: "a list", str: "text", bool: "true or false"}
    kinds |= {type(None): "null", float: f"the number {value}", int: f"the number {value}"}
    return kinds.get(type(value), type(value).__name__)
