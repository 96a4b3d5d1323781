"""What the outlines of COCO's objects cover, by the rule of the COCO API: extents, and bits.

No mask of a whole image is made: an object is drawn to the lengths of its runs down the columns,
and these are all that is looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cnnctl.data.coco_index import Index, between, derived


def extents(index: Index, file: Path) -> np.ndarray:
    """(A, 5) int32 of every annotation: x1, y1, x2, y2 of what its outline covers, and its pixels.

    The right and lower sides are exclusive. All are 0 where nothing is covered: there is no outline
    that can be drawn, or it is beyond the image, or no centre of a pixel is inside.
    """
    # The number is of the form; about half a minute for the 860,000 of train2017.
    return derived(file, "extents-1", "drawing the outlines of", lambda: _extents(index))


def _extents(index: Index) -> np.ndarray:
    from faster_coco_eval.core import mask as native

    found = np.zeros((len(index.annotation_ids), 5), np.int32)
    for image, (h, w) in enumerate(index.sizes.tolist()):
        drawn: dict[int, Any] = {}
        for row in index.annotations(image):
            runs = index.runs[between(index.run_ends, row)]
            if len(runs):
                found[row] = extent(runs, h)
            elif polygons := index.polygons(row):
                parts: Any = native.frPyObjects(polygons, h, w)
                drawn[row] = parts[0] if len(parts) == 1 else native.merge(parts)
        if drawn:
            rows, shapes = list(drawn), list(drawn.values())
            boxes = np.asarray(native.toBbox(shapes)).astype(np.int32)  # x, y, width, height
            found[rows, :2] = boxes[:, :2]
            found[rows, 2:4] = boxes[:, :2] + boxes[:, 2:]
            found[rows, 4] = native.area(shapes)
    found[found[:, 4] == 0] = 0
    return found


def extent(runs: np.ndarray, height: int) -> tuple[int, int, int, int, int]:
    """x1, y1, x2, y2 and pixels of the runs (U,) of 0s, 1s, 0s, ... of an image ``height`` high."""
    ends = np.cumsum(runs, dtype=np.int64)[1::2]
    lengths = runs[1::2]
    ends, lengths = ends[lengths > 0], lengths[lengths > 0]
    if not len(ends):
        return 0, 0, 0, 0, 0
    (left, top), (right, bottom) = (
        np.divmod(place, height) for place in (ends - lengths, ends - 1)
    )
    over = (
        left < right
    ).any()  # a run that goes on in the next column has its last pixel and first
    y1, y2 = (0, height) if over else (int(top.min()), int(bottom.max()) + 1)
    return int(left[0]), y1, int(right[-1]) + 1, y2, int(lengths.sum())


def bits_of(runs: Sequence[int], height: int, box: tuple[int, int, int, int]) -> np.ndarray:
    """The part ``box`` (xyxy, not empty) of an object as bits: (rows * ceil(columns / 8),) uint8.

    Args:
        runs: (U,) lengths of 0s, 1s, 0s, ... down the columns of an image ``height`` high.

    Returns:
        As a crop of ops/masks.py: row by row, each in whole bytes.
    """
    x1, y1, x2, y2 = box
    ends = (np.cumsum(runs) - x1 * height).clip(0, (x2 - x1) * height)
    ones = (np.arange(len(ends)) & 1).astype(np.uint8)
    flat = np.repeat(ones, np.diff(ends, prepend=0))  # of the box's columns alone
    columns = flat.reshape(x2 - x1, height)[:, y1:y2]
    return np.ascontiguousarray(np.packbits(columns, axis=0).T).ravel()
