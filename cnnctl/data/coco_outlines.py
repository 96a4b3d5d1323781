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
            elif shape := _native(index, row, h, w):
                drawn[row] = shape
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


def bits_of(runs: np.ndarray, height: int, box: tuple[int, int, int, int]) -> np.ndarray:
    """The part ``box`` (xyxy, not empty) of an object as bits: (rows * ceil(columns / 8),) uint8.

    Args:
        runs: (U,) lengths of 0s, 1s, 0s, ... down the columns of an image ``height`` high.

    Returns:
        As a crop of ops/masks.py: row by row, each in whole bytes.
    """
    x1, y1, x2, y2 = box
    ends = runs.cumsum(dtype=np.int64)
    ends -= x1 * height
    np.minimum(np.maximum(ends, 0, out=ends), (x2 - x1) * height, out=ends)
    ends[1:] -= ends[:-1].copy()  # lengths again, within the box's columns alone
    ones = np.zeros(len(ends), bool)
    ones[1::2] = True
    columns = ones.repeat(ends).reshape(x2 - x1, height)[:, y1:y2]
    return np.packbits(np.ascontiguousarray(columns.T), axis=1).ravel()  # packed across is slow


def runs_of_all(index: Index, rows: Sequence[int], height: int, width: int) -> list[np.ndarray]:
    """As ``runs_of`` of each of ``rows``, objects of one image, in a half of the time."""
    drawn = {row: shape for row in rows if (shape := _native(index, row, height, width))}
    decoded = dict(zip(drawn, _decoded([one["counts"] for one in drawn.values()]), strict=True))
    return [
        decoded[row] if row in decoded else index.runs[between(index.run_ends, row)] for row in rows
    ]


def _native(index: Index, row: int, height: int, width: int) -> Any:
    """The polygons of an annotation as the native code draws them; None where it has none."""
    from faster_coco_eval.core import mask as native

    polygons = index.polygons(row)
    if not polygons:
        return None
    parts: Any = native.frPyObjects(polygons, height, width)
    return parts[0] if len(parts) == 1 else native.merge(parts)


def _decoded(counts: Sequence[bytes]) -> list[np.ndarray]:
    """As ``decode_counts`` of each, which are right, all at once."""
    if not counts:
        return []
    joined = np.frombuffer(b"".join(counts), np.uint8).astype(np.int64) - 48
    last = (joined & 32 == 0).nonzero()[0]  # characters of a number
    first = np.concatenate(([0], last[:-1] + 1))
    shift = 5 * (np.arange(len(joined)) - first.repeat(last - first + 1))
    values = np.add.reduceat((joined & 31) << shift, first)
    below = (joined[last] & 16).nonzero()[0]
    values[below] -= 32 << shift[last[below]]
    stops = np.searchsorted(last, np.cumsum([len(text) for text in counts]))
    runs = np.split(values, stops[:-1])
    for row in runs:  # from the third on they are differences from the last but one
        row[1::2] = row[1::2].cumsum()
        row[2::2] = row[2::2].cumsum()
    return runs
