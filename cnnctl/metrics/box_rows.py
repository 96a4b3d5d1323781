"""Every detection and every truth box of a data set as columns, and the pairs to compare.

The measures of detection are functions of these two records: no image is a Python object. Boxes are
xyxy in original pixels with an exclusive right and lower side.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Self

import numpy as np
from numpy.typing import NDArray

from cnnctl.errors import Exit, UserError

Index = NDArray[np.int64]


@dataclass(frozen=True)
class Columns:
    """Arrays of one length, the first of which is ``image``."""

    def __len__(self) -> int:
        return len(vars(self)["image"])

    def at(self, index: Index | NDArray[np.bool_]) -> Self:
        """The rows that ``index`` (numbers or bool) chooses, in its order."""
        return type(self)(*(vars(self)[field.name][index] for field in fields(self)))


@dataclass(frozen=True)
class DetectionRows(Columns):
    """What was found, in the order that decides between equal scores.

    Args:
        image: (D,) int64 id of the image, boxes: (D, 4), scores: (D,), labels: (D,) int64 0..K-1.
    """

    image: Index
    boxes: NDArray[np.floating]
    scores: NDArray[np.floating]
    labels: Index


@dataclass(frozen=True)
class TruthRows(Columns):
    """What is there.

    Args:
        image: (R,) int64 id of the image, boxes: (R, 4), labels: (R,) int64 0..K-1, crowd: (R,)
            bool, difficult: (R,) bool, area: (R,) pixels of the object, for COCO's size ranges.
    """

    image: Index
    boxes: NDArray[np.floating]
    labels: Index
    crowd: NDArray[np.bool_]
    difficult: NDArray[np.bool_]
    area: NDArray[np.floating]

    @property
    def ignored(self) -> NDArray[np.bool_]:
        """(R,) neither demanded nor penalised, whichever data set calls it what."""
        return self.crowd | self.difficult


def check(detections: DetectionRows, truth: TruthRows, num_classes: int) -> None:
    """Refuse what native code would score in silence, or not survive.

    Raises:
        UserError: a detection's score or box is not a finite number (code 6), or a truth box or
            area is not (code 3).
        ValueError: a label is not in 0..K-1.
    """
    broken = ~np.isfinite(detections.scores) | ~np.isfinite(detections.boxes).all(1)
    if broken.any():
        raise UserError(
            f"{int(broken.sum()):,} of {len(broken):,} detections have a score or a box that is"
            " not a finite number",
            advice="the training had diverged, or trainer.precision=fp16 overflowed",
            code=Exit.DIVERGED,
        )
    broken = ~np.isfinite(truth.area) | ~np.isfinite(truth.boxes).all(1)
    if broken.any():
        raise UserError(
            "a truth box is not a finite number",
            record=f"image {truth.image[broken][0]}",
            advice="correct the annotation",
            code=Exit.DATA,
        )
    for labels in (detections.labels, truth.labels):
        if len(labels) and not 0 <= labels.min() <= labels.max() < num_classes:
            raise ValueError(f"labels must be 0 to {num_classes - 1}")


def pairs(keys: Index, others: Index) -> tuple[Index, Index]:
    """(A,), (B,) -> (P,), (P,): all (a, b) with ``keys[a] == others[b]``, ordered by a, then b."""
    if not len(others):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    order = np.argsort(others, kind="stable")
    known, first, counts = np.unique(others[order], return_index=True, return_counts=True)
    place = np.minimum(np.searchsorted(known, keys), len(known) - 1)
    count = np.where(known[place] == keys, counts[place], 0)
    first = first[place]
    a = np.repeat(np.arange(len(keys)), count)
    begins = np.cumsum(count) - count  # where the pairs of each a begin
    within = np.arange(len(a)) - np.repeat(begins, count)
    return a, order[np.repeat(first, count) + within]


def overlap(
    boxes: NDArray[np.floating],
    others: NDArray[np.floating],
    crowd: NDArray[np.bool_] | None = None,
    plus_one: bool = False,
) -> NDArray[np.float64]:
    """(P, 4), (P, 4) -> (P,) intersection over union of each row; 0 where nothing is shared.

    Args:
        crowd: (P,) bool: where True, intersection over the area of the first box alone.
        plus_one: sides are high - low + 1, for boxes whose right and lower side is inclusive.
    """
    one = np.ascontiguousarray(boxes.T, np.float64)
    other = np.ascontiguousarray(others.T, np.float64)
    extra = float(plus_one)
    width = np.minimum(one[2], other[2]) - np.maximum(one[0], other[0]) + extra
    height = np.minimum(one[3], other[3]) - np.maximum(one[1], other[1]) + extra
    shared = np.where((width > 0) & (height > 0), width * height, 0.0)
    own = (one[2] - one[0] + extra) * (one[3] - one[1] + extra)
    either = own + (other[2] - other[0] + extra) * (other[3] - other[1] + extra) - shared
    if crowd is not None:
        either = np.where(crowd, own, either)
    return np.divide(shared, either, out=np.zeros_like(shared), where=shared > 0)


def best_of(a: Index, values: NDArray[np.float64]) -> Index:
    """Positions of the largest value of each a, the first of equal ones; ``a`` (P,) is sorted."""
    begins = np.flatnonzero(np.diff(a, prepend=-1))
    if not len(begins):
        return begins
    largest = np.maximum.reduceat(values, begins)
    lengths = np.diff(begins, append=len(a))
    found = np.flatnonzero(values == np.repeat(largest, lengths))
    return found[np.diff(a[found], prepend=-1) != 0]
