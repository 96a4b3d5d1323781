"""Average precision as PASCAL VOC defines it: 11-point (VOC 2007) and area (VOC 2010 and later).

Everingham, Van Gool, Williams, Winn and Zisserman, "The PASCAL Visual Object Classes (VOC)
Challenge", IJCV 2010, and the development kit's VOCevaldet. Of each class by itself:

* detections are taken from the highest score down, equal scores in the order given;
* each one belongs to the truth of its image that it overlaps most, taken or not;
* it is right if IoU >= the threshold and no detection before it took that truth; a second one is
  wrong;
* a difficult truth is not demanded, and a detection that belongs to it is neither right nor wrong.
  A crowd, which VOC does not know, is treated alike;
* recall is counted against all truths that are demanded.

The kit's boxes are 1-based with an inclusive right and lower side, so it counts a side as
``xmax - xmin + 1``. A box with an exclusive side has ``xmin - 1`` and ``xmax`` for these, whose
difference is the same number: no 1 is added here unless ``plus_one`` says that sides are inclusive.

The 11 points are floating-point numbers, as in the programs that papers' figures come from: 3 of 10
truths are less than 3 * 0.1 (and so are 6 and 7 of 10), and a recall of exactly that does not reach
the point. In whole numbers it would, and the figures of a published case would not be met.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cnnctl.metrics.box_rows import DetectionRows, TruthRows, best_of, check, overlap, pairs


@dataclass(frozen=True)
class Curve:
    """One class's detections in order of score, without those that do not count.

    Args:
        right: (n,) bool, scores: (n,), positives: truths that are demanded.
    """

    right: NDArray[np.bool_]
    scores: NDArray[np.floating]
    positives: int

    @property
    def precision(self) -> NDArray[np.float64]:
        """(n,) share of right ones among the first 1 to n."""
        return np.cumsum(self.right) / np.arange(1, len(self.right) + 1)

    @property
    def recall(self) -> NDArray[np.float64]:
        """(n,) share of the truths that the first 1 to n have found; NaN without truth."""
        return np.cumsum(self.right) / (self.positives or np.nan)

    @property
    def envelope(self) -> NDArray[np.float64]:
        """(n,) the best precision at this recall or a higher one."""
        return np.maximum.accumulate(self.precision[::-1])[::-1]


def eleven_point(curve: Curve) -> float:
    """The mean of the best precision at recall >= 0, 0.1, ... 1 (VOC 2007); NaN without truth."""
    if not curve.positives:
        return float("nan")
    reached = np.searchsorted(curve.recall, 0.1 * np.arange(11))
    return float(np.append(curve.envelope, 0.0)[reached].sum() / 11)


def area_under(curve: Curve) -> float:
    """The area under the monotone precision-recall curve (VOC 2010); NaN without truth.

    Recall grows by 1 / positives at each right detection and nowhere else.
    """
    if not curve.positives:
        return float("nan")
    return float(curve.envelope[curve.right].sum() / curve.positives)


def voc_curves(
    detections: DetectionRows,
    truth: TruthRows,
    num_classes: int,
    threshold: float = 0.5,
    plus_one: bool = False,
) -> list[Curve]:
    """One ``Curve`` for each of K classes.

    Args:
        threshold: IoU from which a detection is right.
        plus_one: boxes have an inclusive right and lower side, see above.

    Raises:
        UserError: a box or score is not a finite number.
    """
    check(detections, truth, num_classes)
    a, b = pairs_of_classes(detections, truth, num_classes)
    found = overlap(detections.boxes[a], truth.boxes[b], plus_one=plus_one)
    return curves_by(detections, truth, num_classes, (a, b, found), threshold)


def curves_by(
    detections: DetectionRows,
    truth: TruthRows,
    num_classes: int,
    overlaps: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]],
    threshold: float,
) -> list[Curve]:
    """One ``Curve`` for each of K classes by any overlaps, of masks too.

    Args:
        overlaps: (P,) detection and (P,) truth of ``pairs_of_classes``, and (P,) their IoU.
        threshold: IoU from which a detection is right.
    """
    order = _ranked(detections)
    owner, share = _most_overlapped(len(detections), *overlaps)
    owner, share = owner[order], share[order]
    hit = np.flatnonzero(share >= threshold)
    demanded = ~truth.ignored
    taken = np.empty(len(truth), np.int64)
    taken[owner[hit][::-1]] = hit[::-1]  # of equal indices the last is written: the first in rank
    right = np.zeros(len(order), bool)
    right[hit] = (taken[owner[hit]] == hit) & demanded[owner[hit]]
    counts = np.ones(len(order), bool)
    counts[hit] = demanded[owner[hit]]
    right, order = right[counts], order[counts]
    scores, labels = detections.scores[order], detections.labels[order]
    edges = np.searchsorted(labels, np.arange(num_classes + 1))
    positives = np.bincount(truth.labels[demanded], minlength=num_classes)
    return [
        Curve(right[begin:end], scores[begin:end], int(count))
        for begin, end, count in zip(edges[:-1], edges[1:], positives, strict=True)
    ]


def _ranked(detections: DetectionRows) -> NDArray[np.int64]:
    """(D,) numbers of detections by class, then from the highest score down, then as given."""
    order = np.argsort(-detections.scores, kind="stable")
    labels = detections.labels[order]
    if len(labels) and labels.max() < 1 << 16:
        labels = labels.astype(np.uint16)  # sorted by radix, which is much faster
    return order[np.argsort(labels, kind="stable")]


def pairs_of_classes(
    detections: DetectionRows, truth: TruthRows, num_classes: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(P,), (P,): each detection with each truth of its image and class, in order."""
    own = detections.image * num_classes + detections.labels
    return pairs(own, truth.image * num_classes + truth.labels)


def _most_overlapped(
    count: int, a: NDArray[np.int64], b: NDArray[np.int64], overlaps: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(D,) the truth of a detection's image and class that it overlaps most, and (D,) its IoU.

    The first of equal ones; -1 and -inf where the image has no such truth.
    """
    owner, share = np.full(count, -1), np.full(count, -np.inf)
    best = best_of(a, overlaps)
    owner[a[best]], share[a[best]] = b[best], overlaps[best]
    return owner, share
