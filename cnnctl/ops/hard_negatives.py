"""One linear SVM for each class, trained on the negatives that are hard to tell from it.

Girshick et al., "Rich feature hierarchies", arXiv:1311.2524, section 2.3 and appendix B: the true
boxes of a class are its positives, proposals that overlap each of them by less than 0.3 its
negatives, all others count for nothing. There are too many negatives to hold, and nearly all of
them are easy: the SVM is trained on some, those that it is wrong or unsure of are added, those that
became easy are dropped (Felzenszwalb et al., "Object detection with discriminatively trained part
based models", PAMI 2010, section 4.4). A row beyond the margin has no loss, so where a round adds
none, the planes are those of all rows.

The numbers are those of the paper's code (github.com/rbgirshick/rcnn, rcnn_train.m): C = 0.001 with
the hinge loss on features of an average norm of 20, positives count twice, the constant is a column
of 10 that is held back as all others are, negatives above a margin of -1.0001 are hard and below
-1.2 easy. Differs from that code: rounds over all rows, as many as are needed, in place of one pass
that trains anew after every 2000 hard negatives.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cnnctl.ops.linear_svm import NEVER

NORM = 20.0  # the average length of a row, once scaled
HARD, EASY = -1.0001, -1.2  # margins
CHUNK = 1 << 24  # numbers of rows that are read together
HELD = 1 << 27  # numbers of the negatives of a class; each takes 8 bytes here, 16 in scikit-learn


@dataclass(frozen=True)
class Mining:
    """How the SVMs are trained.

    Args:
        C: weight of the losses against the margin.
        positives: how many times a positive counts.
        constant: of the column for the bias.
        start: negatives of a class that it is first trained on.
        most: hard negatives, the hardest, that a round adds to a class at most.
        rounds: passes over the negatives at most.
        few: a class is done when a pass adds at most this share of its negatives.
        seed: of the first negatives and of the order within a solution.
    """

    C: float = 1e-3
    positives: float = 2.0
    constant: float = 10.0
    start: int = 5000
    most: int = 20000
    rounds: int = 10
    few: float = 0.001
    seed: int = 0


def mined_planes(
    rows: Any, own: Any, blocked: Any, mining: Mining, names: Sequence[str] | None = None
) -> tuple[Tensor, Tensor]:
    """(weights (K, D), biases (K,)), float32, of the margins of rows as they are.

    A class without positives is never said: its margin is ``NEVER`` everywhere, with a warning.

    Args:
        rows: (M, D) features, numpy or mapped from a file; read in chunks.
        own: (M,) int: the class of a positive, below 0 of all others.
        blocked: (M, K) bool, likewise: rows that are no negatives of a class.
        names: of the classes, for the warning.
    """
    m, d = rows.shape
    k = blocked.shape[1]
    own = np.asarray(own)
    scale = NORM / max(total_norm(rows) / max(1, m), 1e-12)
    weights, biases = np.zeros((k, d)), np.full(k, NEVER)
    classes = [_OneClass(j, d, own == j, mining) for j in range(k)]
    absent = [one.number for one in classes if not len(one.positives)]
    if absent:
        warnings.warn(_without_examples(absent, names), stacklevel=2)
    open_ones = [one for one in classes if len(one.positives)]
    first = np.random.default_rng(mining.seed).permutation(m)[: mining.start * 2]
    first.sort()
    for one in open_ones:
        one.negatives = first[~np.asarray(blocked[first, one.number]).astype(bool)][: mining.start]
    for turn in range(mining.rounds + 1):
        for one in open_ones:
            weights[one.number], biases[one.number] = one.solved(rows, scale)
        if turn == mining.rounds or not open_ones:
            break
        hard = _hard_rows(rows, blocked, open_ones, weights * scale, biases)
        open_ones = [one for one in open_ones if one.add(*hard[one.number])]
    return torch.from_numpy(weights * scale).float(), torch.from_numpy(biases).float()


class _OneClass:
    """The rows that a class is trained on."""

    def __init__(self, number: int, width: int, positive: np.ndarray, mining: Mining) -> None:
        self.number, self.width, self.mining = number, width, mining
        self.positives = positive.nonzero()[0]
        self.negatives = np.empty(0, np.int64)

    def solved(self, rows: Any, scale: float) -> tuple[np.ndarray, float]:
        """The plane of scaled rows; the easy ones among the negatives are dropped after it."""
        if not len(self.negatives):
            return np.zeros(rows.shape[1]), 1.0  # nothing to tell it from
        chosen = np.concatenate([self.positives, self.negatives])
        features = rows[chosen].astype(np.float64)
        features *= scale  # in place: these are the most that is held
        labels = np.arange(len(chosen)) < len(self.positives)
        plane, bias = solve(features, labels, self.mining)
        margins = features[len(self.positives) :] @ plane + bias
        self.negatives = self.negatives[margins >= EASY]
        return plane, bias

    def add(self, hard: np.ndarray, margins: np.ndarray) -> bool:
        """Take the hardest rows that are new; False: so few that the class is done."""
        new = ~np.isin(hard, self.negatives)
        hard, margins = hard[new], margins[new]
        if len(hard) <= self.mining.few * len(self.negatives):
            return False
        room = min(self.mining.most, max(1, HELD // self.width - len(self.negatives)))
        if len(hard) > room:
            hard = hard[np.argpartition(-margins, room)[:room]]
        self.negatives = np.sort(np.concatenate([self.negatives, hard]))
        return True


def solve(features: Any, positive: np.ndarray, mining: Mining) -> tuple[np.ndarray, float]:
    """The plane (D,) and the bias of features (M, D), of an average norm of 20."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.svm import LinearSVC

    made: Any = LinearSVC  # whose types are narrower than what it takes
    svm = made(
        C=mining.C,
        loss="hinge",
        dual=True,
        intercept_scaling=mining.constant,
        class_weight={True: mining.positives},
        random_state=mining.seed,
        max_iter=5000,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # nearly there is enough
        svm.fit(features, positive)
    return svm.coef_[0], float(svm.intercept_[0])


def _hard_rows(
    rows: Any, blocked: Any, classes: list[_OneClass], planes: np.ndarray, biases: np.ndarray
) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Of each class the negatives (H,) that it is not sure of, and their margins (H,)."""
    numbers = [one.number for one in classes]
    weights = torch.from_numpy(planes[numbers]).float().T.contiguous()
    offsets = torch.from_numpy(biases[numbers]).float()
    found: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {number: [] for number in numbers}
    for start, chunk in chunks(rows):
        margins = torch.addmm(offsets, torch.from_numpy(chunk), weights).numpy()
        barred = np.asarray(blocked[start : start + len(chunk)]).astype(bool)[:, numbers]
        hard = (margins > HARD) & ~barred
        for column, number in enumerate(numbers):
            own = hard[:, column].nonzero()[0]
            found[number].append((own + start, margins[own, column]))
    return {
        number: (np.concatenate([a for a, _ in parts]), np.concatenate([b for _, b in parts]))
        for number, parts in found.items()
    }


def chunks(rows: Any, numbers: int = CHUNK):
    """(first row, rows as float32 in memory), in order."""
    step = max(1, numbers // max(1, rows.shape[1]))
    for start in range(0, len(rows), step):
        yield start, np.asarray(rows[start : start + step], np.float32)


def total_norm(rows: Any) -> float:
    """The lengths of all rows, summed."""
    return sum(float(np.linalg.norm(chunk, axis=1).sum()) for _, chunk in chunks(rows))


def _without_examples(absent: list[int], names: Sequence[str] | None) -> str:
    said = ", ".join(str(names[number]) if names else str(number) for number in absent[:5])
    more = f" and {len(absent) - 5} more" if len(absent) > 5 else ""
    return f"no true box of class {said}{more} among the images that the SVMs are trained on:" + (
        " it is never found" if len(absent) == 1 else " they are never found"
    )
