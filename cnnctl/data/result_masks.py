"""The masks of results in COCO's format: their run lengths, checked before native code sees them.

``segmentation`` is {"size": [height, width], "counts": ...}: compressed text, as the COCO API has
it in results, or a list of lengths.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnnctl.data.coco_json import Wrong
from cnnctl.data.coco_shapes import check_runs, kind

_AT_ONCE = 1 << 20  # characters that are decoded together: some 100 MB
_MOST = 7  # characters of a length, of 5 bits each

Sizes = Mapping[int, list[int]]  # [height, width] of an image, by its id


def counts_of(rows: Sequence[Any], sizes: Sizes) -> NDArray[np.object_] | None:
    """(D,) bytes, the compressed run lengths of each result; None if some are wrong."""
    counts, pixels = [], []
    try:
        for row in rows:
            shape, size = row["segmentation"], sizes[row["image_id"]]
            if shape["size"] != size:
                return None
            runs = shape["counts"]
            counts.append(runs.encode() if isinstance(runs, str) else _compressed(shape, size))
            pixels.append(size[0] * size[1])
    except (TypeError, KeyError, AttributeError, ValueError):
        return None
    return np.array(counts, object) if _fill(counts, pixels) else None


def check_mask(row: Mapping[str, Any], sizes: Sizes) -> None:
    """Raise Wrong where a result's mask is not one of its image, which is known."""
    if "segmentation" not in row:
        raise Wrong("segmentation: is missing, and the task scores masks")
    shape = row["segmentation"]
    if not isinstance(shape, dict):
        said = "polygons" if isinstance(shape, list) else kind(shape)
        raise Wrong(f"segmentation: is {said}, must be run lengths: an object of size and counts")
    try:
        check_runs(shape, *sizes[row["image_id"]])
    except ValueError as error:
        raise Wrong(f"segmentation: {error}") from None


def boxes_of(counts: NDArray[np.object_], sizes: Sequence[list[int]]) -> list[list[float]]:
    """x, y, width, height around the pixels of each mask; zeros where there is none."""
    from faster_coco_eval.core import mask as native

    masks = [
        {"size": size, "counts": runs} for runs, size in zip(counts.tolist(), sizes, strict=True)
    ]
    return np.asarray(native.toBbox(masks)).reshape(-1, 4).tolist() if masks else []


def _compressed(shape: dict[str, Any], size: list[int]) -> bytes:
    from faster_coco_eval.core import mask as native

    counts = check_runs(shape, *size)
    made: Any = native.frPyObjects({"size": size, "counts": counts}, *size)
    return made["counts"]


def _fill(counts: Sequence[bytes], pixels: Sequence[int]) -> bool:
    """Whether all are run lengths that end with the last pixel of their image."""
    return all(_all_fill(counts[part], np.array(pixels[part], np.int64)) for part in _parts(counts))


def _parts(counts: Sequence[bytes]) -> Iterator[slice]:
    first, total = 0, 0
    for place, runs in enumerate(counts):
        if total + len(runs) > _AT_ONCE and place > first:
            yield slice(first, place)
            first, total = place, 0
        total += len(runs)
    if counts:
        yield slice(first, len(counts))


def _all_fill(counts: Sequence[bytes], pixels: NDArray[np.int64]) -> bool:
    """As ``check_runs`` with ``decode_counts``, of many at once."""
    lengths = np.array([len(runs) for runs in counts])
    data = np.frombuffer(b"".join(counts), np.uint8).astype(np.int64) - 48
    last = (data & 32) == 0  # of a number
    if (
        not lengths.all()
        or ((data < 0) | (data > 63)).any()
        or not last[lengths.cumsum() - 1].all()
    ):
        return False
    ends = np.flatnonzero(last)
    starts = np.append(0, ends[:-1] + 1)
    count = ends - starts + 1  # characters of each number
    if count.max() > _MOST:
        return False
    shifts = 5 * (np.arange(len(data)) - np.repeat(starts, count))
    values = np.add.reduceat((data & 31) << shifts, starts)
    values -= np.where(data[ends] & 16, np.left_shift(1, 5 * count), 0)
    mask = np.repeat(np.arange(len(counts)), lengths)[starts]  # of each number
    first = np.searchsorted(mask, np.arange(len(counts)))
    place = np.arange(len(mask)) - first[mask]
    # From the fourth on a number is what the length has more than the last but one.
    chain = mask * 3 + np.where(place == 0, 0, 1 + place % 2)
    order = np.argsort(chain, kind="stable")
    sums = np.cumsum(values[order])
    begins = np.flatnonzero(np.diff(chain[order], prepend=-1))
    before = np.repeat(sums[begins] - values[order][begins], np.diff(begins, append=len(order)))
    runs = np.empty_like(sums)
    runs[order] = sums - before
    return bool((runs >= 0).all() and (np.add.reduceat(runs, first) == pixels).all())
