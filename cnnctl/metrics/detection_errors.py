"""What is wrong with a detector: errors by kind, confusion with the background, histograms.

The kinds are those of Bolya, Foley, Hays and Hoffman, "TIDE: A General Toolbox for Identifying
Object Detection Errors" (arXiv:2008.08115), section 2.2, with its thresholds t_f = .5 and t_b = .1.
A detection that is not right is the first of these that fits, in the order of the authors' program:

    localisation    its largest IoU with a truth of its class is from t_b to t_f
    classification  its largest IoU with a truth of another class is at least t_f
    duplicate       its IoU with a truth of its class is at least t_f, and another has taken that
    background      no IoU is above t_b
    both            what remains: its largest IoU is with another class, and from t_b to t_f

and a truth is ``missed`` if none took it and no localisation or classification error is on it.

Matching is COCO's: from the highest score down, each detection takes the truth of its class that it
overlaps most among those not taken. A truth that is difficult or a crowd is not demanded, and a
detection that would else be an error, and has an IoU of t_f with one of its class (with a crowd: a
share of its own area), does not count.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cnnctl.metrics.box_rows import (
    DetectionRows,
    Index,
    TruthRows,
    best_of,
    check,
    overlap,
    pairs,
)

FOREGROUND, BACKGROUND = 0.5, 0.1  # t_f and t_b
KINDS = ("classification", "localisation", "both", "duplicate", "background", "missed")
CLASSIFICATION, LOCALISATION = KINDS.index("classification"), KINDS.index("localisation")
RIGHT, UNCOUNTED = -1, -2  # beside the numbers of KINDS
NONE = -1  # no truth

# Pairs of a detection and a truth that are looked at together: some 100 MB.
_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Errors:
    """What each detection and each truth turned out to be.

    Args:
        kind: (D,) number in ``KINDS``, or RIGHT or UNCOUNTED.
        taken: (D,) number of the truth that a right detection took; NONE elsewhere.
        instead: (D,) number of the truth that a detection of another class should have said, as
            ``confusion_matrix`` counts it; NONE elsewhere.
        missed: (R,) bool.
    """

    kind: Index
    taken: Index
    instead: Index
    missed: NDArray[np.bool_]

    @property
    def counts(self) -> dict[str, int]:
        """How many errors there are of each of ``KINDS``."""
        found = {name: int((self.kind == number).sum()) for number, name in enumerate(KINDS)}
        return {**found, "missed": int(self.missed.sum())}

    @property
    def right(self) -> int:
        """How many detections are right."""
        return int((self.kind == RIGHT).sum())


def find_errors(
    detections: DetectionRows,
    truth: TruthRows,
    num_classes: int,
    foreground: float = FOREGROUND,
    background: float = BACKGROUND,
) -> Errors:
    """Sort every detection and every truth into its kind; of equal scores the first given ranks.

    Args:
        detections: those from a score on: of all of them, most are background.

    Raises:
        UserError: a box or score is not a finite number.
    """
    check(detections, truth, num_classes)
    kind, taken, instead = (np.full(len(detections), NONE) for _ in range(3))
    missed = np.zeros(len(truth), bool)
    for some, there in _parts(detections, truth):
        part = _find_errors(detections.at(some), truth.at(there), foreground, background)
        kind[some], missed[there] = part.kind, part.missed
        for whole, local in ((taken, part.taken), (instead, part.instead)):
            whole[some] = np.where(local == NONE, NONE, np.append(there, NONE)[local])
    return Errors(kind, taken, instead, missed)


def confusion_matrix(
    detections: DetectionRows, truth: TruthRows, errors: Errors, num_classes: int
) -> NDArray[np.int64]:
    """(K + 1, K + 1) counts: truth in rows, what was said in columns, the background last.

    On the diagonal are right detections. Of what these leave, a detection belongs to the truth of
    another class that it overlaps most with at least IoU t_f, from the highest score down, one to
    each; a truth without any is in the last column, a detection without any in the last row.
    """
    counts = np.zeros((num_classes + 1, num_classes + 1), np.int64)
    owner = np.where(errors.taken != NONE, errors.taken, errors.instead)
    owned = owner != NONE
    np.add.at(counts, (truth.labels[owner[owned]], detections.labels[owned]), 1)
    alone = ~owned & (errors.kind != UNCOUNTED)
    counts[-1] += np.bincount(detections.labels[alone], minlength=num_classes + 1)
    left = ~truth.ignored
    left[owner[owned]] = False
    counts[:, -1] += np.bincount(truth.labels[left], minlength=num_classes + 1)
    return counts


def score_histogram(scores: NDArray[np.floating], bins: int = 20) -> tuple[list[int], list[float]]:
    """How many scores lie in each of ``bins`` equal parts of 0 to 1, and the edges."""
    counts, edges = np.histogram(np.clip(scores.astype(np.float64), 0, 1), bins, (0, 1))
    return counts.tolist(), edges.tolist()


def size_histogram(areas: NDArray[np.floating]) -> tuple[list[int], list[float]]:
    """How many sizes (the root of the area, in pixels) lie in each octave, and the edges.

    The first part begins at 0; what is larger than the last edge counts in the last part.
    """
    edges = [0.0, *(float(2**octave) for octave in range(2, 12))]
    counts, _ = np.histogram(np.clip(np.sqrt(areas), 0, edges[-1]), edges)
    return counts.tolist(), edges


def _parts(detections: DetectionRows, truth: TruthRows) -> list[tuple[Index, Index]]:
    """Numbers of detections and of truths, image by image, with few enough pairs in each part."""
    images, where = np.unique(np.concatenate([detections.image, truth.image]), return_inverse=True)
    found, there = where[: len(detections)], where[len(detections) :]
    many = [np.bincount(rows, minlength=len(images)) for rows in (found, there)]
    part = np.cumsum(many[0] * many[1]) // _AT_ONCE  # (images,)
    return [
        (np.flatnonzero(part[found] == number), np.flatnonzero(part[there] == number))
        for number in np.unique(part)
    ]


def _find_errors(
    detections: DetectionRows, truth: TruthRows, foreground: float, background: float
) -> Errors:
    a, b = pairs(detections.image, truth.image)
    demanded = ~truth.ignored[b]
    same = detections.labels[a] == truth.labels[b]
    shared = overlap(detections.boxes[a], truth.boxes[b], truth.crowd[b])
    rank = np.empty(len(detections), np.int64)
    rank[np.argsort(-detections.scores, kind="stable")] = np.arange(len(detections))
    enough = demanded & (shared >= foreground)
    first = enough & same
    taken = _taken(a[first], b[first], shared[first], rank, len(truth))

    near = demanded & (shared >= background) & (shared < foreground)
    size = len(detections)
    repeated = _any(a[first], size)  # if it did not take it
    kinds = {
        "localisation": _any(a[near & same], size) & ~repeated,
        "classification": _any(a[enough & ~same], size),
        "duplicate": repeated,
        "background": ~_any(a[demanded & (shared > background)], size),
    }
    numbers = [KINDS.index(name) for name in kinds]
    kind = np.select([*kinds.values()], numbers, KINDS.index("both"))
    wrong = taken == NONE
    excused = _any(a[~demanded & same & (shared >= foreground)], size)
    kind = np.where(wrong, np.where(excused, UNCOUNTED, kind), RIGHT)

    covered = np.zeros(len(truth), bool)
    covered[taken[~wrong]] = True
    missed = ~truth.ignored & ~covered
    missed[_owners(a, b, shared, near & same & (kind == LOCALISATION)[a])] = False
    missed[_owners(a, b, shared, enough & ~same & (kind == CLASSIFICATION)[a])] = False

    others = enough & ~same & (wrong & ~excused)[a] & ~covered[b]
    instead = _taken(a[others], b[others], shared[others], rank, len(truth))
    return Errors(kind, taken, instead, missed)


def _any(index: Index, size: int) -> NDArray[np.bool_]:
    """(size,) whether it occurs in ``index``."""
    return np.bincount(index, minlength=size) > 0


def _owners(a: Index, b: Index, shared: NDArray[np.float64], chosen: NDArray[np.bool_]) -> Index:
    """The truth that each detection of the chosen pairs overlaps most."""
    a, b, shared = a[chosen], b[chosen], shared[chosen]
    return b[best_of(a, shared)]


def _taken(a: Index, b: Index, shared: NDArray[np.float64], rank: Index, truths: int) -> Index:
    """(D,) the truth that each detection takes: by rank, the one it overlaps most of those left.

    Args:
        a, b, shared: (P,) the pairs that may be matched, ordered by a. rank: (D,).

    All ask for what they overlap most at once; of those that ask for the same truth the first in
    rank holds it, until one before it asks; the others strike it off and ask for their next. As all
    truths prefer by the same rank, this ends where one after the other would, in as many rounds as
    the longest chain of refusals: a few, whatever the number of detections.
    """
    taken = np.full(len(rank), NONE)
    while len(a):
        asks = best_of(a, shared)
        last_to_first = asks[np.argsort(-rank[a[asks]])]
        held = np.full(truths, NONE)  # the pair by which a truth is held
        held[b[last_to_first]] = last_to_first  # of equal indices the last is written
        refused = asks[held[b[asks]] != asks]
        if not len(refused):
            taken[a[asks]] = b[asks]
            break
        a, b, shared = np.delete(a, refused), np.delete(b, refused), np.delete(shared, refused)
    return taken
