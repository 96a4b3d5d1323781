"""Rows of detections and truth with a mask each, as COCO's compressed run lengths.

A mask is of its whole image, in original pixels; ``sizes`` are (h, w) of that image. Columns of
bytes take what the masks themselves take, so that they can be sent to another process.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnnctl.metrics.box_rows import Columns, DetectionRows, Index, TruthRows
from cnnctl.ops.masks import unpack, whole_mask
from cnnctl.ops.run_lengths import encode
from cnnctl.structures import Targets

_AT_ONCE = 1 << 14  # masks that are handed to native code together


@dataclass(frozen=True)
class MaskDetections(DetectionRows):
    """What was found.

    Args:
        sizes: (D, 2) int32, counts: (D,) object, bytes.
    """

    sizes: NDArray[np.int32]
    counts: NDArray[np.object_]


@dataclass(frozen=True)
class MaskTruth(TruthRows):
    """What is there.

    Args:
        sizes: (R, 2) int32, counts: (R,) object, bytes.
    """

    sizes: NDArray[np.int32]
    counts: NDArray[np.object_]


@dataclass(frozen=True)
class VoidRows(Columns):
    """Pixels of some images that belong to nobody and are not judged (VOC).

    Args:
        image: (V,) int64, sizes: (V, 2) int32, counts: (V,) object, bytes.
    """

    image: Index
    sizes: NDArray[np.int32]
    counts: NDArray[np.object_]


Masked = MaskDetections | MaskTruth | VoidRows


def run_lengths(rows: Masked) -> list[dict[str, Any]]:
    """The masks of some rows as native code takes them."""
    both = zip(rows.sizes.tolist(), rows.counts.tolist(), strict=True)
    return [{"size": size, "counts": counts} for size, counts in both]


def in_parts(rows: Masked) -> Iterator[list[dict[str, Any]]]:
    """``run_lengths`` of all rows, some at a time: they take much more memory than the bytes."""
    for start in range(0, len(rows), _AT_ONCE):
        yield run_lengths(rows.at(np.arange(start, min(start + _AT_ONCE, len(rows)))))


def areas(rows: Masked) -> NDArray[np.float64]:
    """(n,) pixels of each mask."""
    from faster_coco_eval.core import mask as native

    parts = [native.area(part) for part in in_parts(rows)]
    return np.concatenate([np.zeros(0), *parts]).astype(np.float64)


def without_void(detections: MaskDetections, void: VoidRows) -> MaskDetections:
    """The detections, each without the pixels of its image that are not judged."""
    from faster_coco_eval.core import mask as native

    kept = {
        image: _inverse(mask)
        for image, mask in zip(void.image.tolist(), run_lengths(void), strict=True)
    }
    rows = np.flatnonzero(np.isin(detections.image, void.image))
    if not len(rows):
        return detections
    counts = detections.counts.copy()
    some = detections.at(rows)
    masks = zip(some.image.tolist(), run_lengths(some), strict=True)
    counts[rows] = [native.merge([mask, kept[image]], 1)["counts"] for image, mask in masks]
    return replace(detections, counts=counts)


def _inverse(mask: dict[str, Any]) -> dict[str, Any]:
    """All other pixels: a run of 0s of no length in front, or the one that is there left out."""
    from faster_coco_eval.core import mask as native

    pixels = 1 - native.decode(mask)
    return native.encode(np.asfortranarray(pixels))


def truth_counts(targets: Targets, sizes: Sequence[tuple[int, int]]) -> list[bytes]:
    """The run lengths of every truth of a batch, image by image.

    Args:
        targets: truth in original pixels, with the columns of masks.
        sizes: (h, w) of each image.
    """
    frames, crops, bits, labels = targets.frames, targets.crops, targets.bits, targets.labels
    assert frames is not None, "the truth of instances has masks"
    assert crops is not None
    assert bits is not None
    assert labels is not None
    counts = []
    columns = (labels.cpu() >= 0, frames.cpu(), crops.cpu(), bits.cpu())
    for size, there, frame, crop, packed in zip(sizes, *columns, strict=True):
        for row in there.nonzero().flatten().tolist():
            counts.append(_counts(packed, crop[row], frame[row], size))
    return counts


def void_counts(targets: Targets, sizes: Sequence[tuple[int, int]]) -> list[tuple[int, bytes]]:
    """(position in the batch, run lengths) of each image that has pixels which are not judged."""
    if targets.void_crop is None:
        return []
    assert targets.void_frame is not None
    assert targets.bits is not None
    columns = (targets.void_frame.cpu(), targets.void_crop.cpu(), targets.bits.cpu())
    return [
        (place, _counts(bits, crop, frame, size))
        for place, (size, frame, crop, bits) in enumerate(zip(sizes, *columns, strict=True))
        if crop[1] * crop[2]
    ]


def _counts(bits: Any, crop: Any, frame: Any, size: tuple[int, int]) -> bytes:
    """A mask in its image; where its frame is whole pixels, as everywhere but in odd data, no
    pixel but its own is looked at."""
    h, w = crop[1:].tolist()
    left, top, right, bottom = frame.tolist()
    whole = left.is_integer() and top.is_integer() and (right - left, bottom - top) == (w, h)
    if whole and left >= 0 and top >= 0 and right <= size[1] and bottom <= size[0]:
        return encode(unpack(bits, crop), int(left), int(top), size)
    return encode(whole_mask(bits, crop, frame, size), 0, 0, size)
