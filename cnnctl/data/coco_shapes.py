"""What an object's outline and run lengths must be for native code to draw them."""

from __future__ import annotations

import math
from array import array
from typing import Any

import numpy as np

_TURNS = 100  # of its image's height and width, that outlines may be long; COCO's longest: 4


def check_polygon(polygon: Any, height: int, width: int) -> None:
    """Raise ValueError where it is none, or not about this image."""
    if not isinstance(polygon, array):
        raise ValueError("must be a list of polygons, each a list of numbers x, y, x, y, ...")
    if len(polygon) < 6 or len(polygon) % 2:
        raise ValueError(f"a polygon has {len(polygon)} numbers, must have 2 for each of 3 points")
    low, high = min(polygon), max(polygon)
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError("a polygon has a number that is not finite")
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
