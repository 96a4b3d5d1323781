"""Pixel accuracy, mean IU and their kin, from one matrix of integer counts; boundary IoU.

``pair_counts`` and what follows it are pure functions. ``SegmentationEvaluator`` adds the counts
up on the device, so its memory does not grow with the images, and its figures do not depend on the
batch size or on how the images were dealt out to processes.

The four measures are those of Long, Shelhamer and Darrell, "Fully Convolutional Networks for
Semantic Segmentation" (arXiv:1411.4038), section 5. With n_ij pixels of class i taken for class j
and t_i = sum_j n_ij pixels of class i:

    pixel accuracy          sum_i n_ii / sum_i t_i
    mean accuracy           mean of n_ii / t_i
    mean IU                 mean of n_ii / (t_i + sum_j n_ji - n_ii)
    frequency weighted IU   sum_i t_i IU_i / sum_i t_i

A class that is neither in the truth nor in the prediction is left out of the means. One that is
only predicted has no accuracy, and an IU of 0 that counts in mean IU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cnnctl.errors import Exit, UserError
from cnnctl.structures import IGNORE, Predictions, Targets

BOUNDARY = 0.02  # of an image's diagonal: how far from a contour the boundary reaches

_LANES = 32  # columns after which a tally is used again
# Pixels whose codes are worked out together. They stay in the cache until they are counted, and are
# too few for torch to wake other threads, which costs more than it saves where a core is busy.
_AT_ONCE = 1 << 15


def pair_counts(truth: Tensor, predicted: Tensor, num_classes: int) -> Tensor:
    """(N, H, W) uint8 each -> (K + 1, K + 1) int64 counts, truth in rows; the last is void.

    On the device, without waiting for it. Codes are int16 where they fit, half of int32's memory
    traffic. Neighbouring pixels are mostly alike, and a processor that adds to the same tally
    twice in a row waits for the first sum: so columns take turns at several tallies, which are
    added up at the end.
    """
    side, width = num_classes + 1, truth.shape[-1]
    codes, largest = side * side, torch.iinfo(torch.int16).max
    dtype = torch.int16 if codes <= largest else torch.int32
    lanes, rows = 1, 1 << 30
    if truth.device.type == "cpu":  # elsewhere one short row of tallies fits fast memory
        lanes = max(1, min(_LANES, largest // codes))
        rows = max(1, _AT_ONCE // max(width, 1))
    lane = (torch.arange(width, device=truth.device) % lanes * codes).to(dtype)  # (W,)
    counts = torch.zeros(codes, dtype=torch.int64, device=truth.device)
    truth, predicted = truth.reshape(-1, width), predicted.reshape(-1, width)
    for one, other in zip(truth.split(rows), predicted.split(rows), strict=True):
        code = one.clamp(max=num_classes).to(dtype).mul_(side).add_(lane)
        code += other.clamp(max=num_classes)
        counts += _tally(code.view(-1), lanes * codes).view(lanes, codes).sum(0)
    return counts.view(side, side)


def _tally(code: Tensor, length: int) -> Tensor:
    """How often each of 0 to ``length - 1`` is in ``code`` (n,) -> (length,)."""
    if code.device.type == "cpu":
        return torch.bincount(code, minlength=length)
    # bincount waits for the device, to learn the largest code; a histogram is told.
    return torch.histc(code.int(), bins=length, min=0, max=length).long()


def confusion_matrix(truth: Tensor, predicted: Tensor, num_classes: int) -> Tensor:
    """(N, H, W) uint8 each, on any device -> (K, K) int64 counts, truth in rows.

    A pixel whose truth is 255 does not count.

    Raises:
        ValueError: a pixel whose truth is a class was predicted void.
    """
    return classes_only(pair_counts(truth, predicted, num_classes))


def classes_only(counts: Tensor) -> Tensor:
    """(K + 1, K + 1) of ``pair_counts`` -> (K, K): without void.

    Leaving out a labelled pixel for which no class was predicted would flatter the network, and
    giving it a class would blame a class that was not predicted; VOC's own program refuses it too.

    Raises:
        UserError: there is such a pixel (code 6).
    """
    missing = int(counts[:-1, -1].sum())
    if missing:
        raise UserError(
            f"{missing:,} labelled pixels have no predicted class: the network's output is not a"
            " number there",
            advice="the training had diverged, or trainer.precision=fp16 overflowed",
            code=Exit.DIVERGED,
        )
    return counts[:-1, :-1]


def pixel_accuracy(counts: Tensor) -> float:
    """(K, K) -> the share of pixels that are right; NaN without pixels, as all of these."""
    return float(counts.diagonal().sum().double() / counts.sum())


def mean_accuracy(counts: Tensor) -> float:
    """(K, K) -> the mean over the classes of the truth of the share of pixels that are right."""
    return float((counts.diagonal().double() / counts.sum(1)).nanmean())


def per_class_iu(counts: Tensor) -> Tensor:
    """(K, K) -> (K,) float64 intersection over union, NaN where a class is nowhere."""
    right = counts.diagonal().double()
    return right / (counts.sum(1) + counts.sum(0) - counts.diagonal())


def mean_iu(counts: Tensor) -> float:
    """(K, K) -> the mean of IU over the classes that are in the truth or predicted."""
    return float(per_class_iu(counts).nanmean())


def frequency_weighted_iu(counts: Tensor) -> float:
    """(K, K) -> the mean of IU weighted by each class's share of the truth."""
    pixels = counts.sum(1).double()
    return float((pixels * per_class_iu(counts).nan_to_num(0.0)).sum() / pixels.sum())


def boundary_counts(truth: Tensor, predicted: Tensor, num_classes: int) -> Tensor:
    """(h, w) uint8 each, of one image -> (K + 1, K + 1) int64: ``pair_counts`` of boundaries.

    Cheng, Girshick, Dollár, Berg and Kirillov, "Boundary IoU" (arXiv:2103.16562): of each mask
    only the pixels count that lie within 2 % of the image's diagonal of its contour, in a square
    neighbourhood as in the authors' program; the image's edge is a contour too.

    Void in the truth is made void in the prediction first, so that both have the contour which
    void leaves, and a perfect prediction scores 1: VOC draws void around every object.
    """
    radius = max(1, round(BOUNDARY * math.hypot(*truth.shape[-2:])))
    predicted = predicted.masked_fill(truth == IGNORE, IGNORE)
    return pair_counts(_rim(truth, radius), _rim(predicted, radius), num_classes)


def boundary_iu(counts: Tensor) -> float:
    """(K + 1, K + 1) of ``boundary_counts`` -> the mean of boundary IoU over classes."""
    shared = counts.diagonal()[:-1]
    either = (counts.sum(1) + counts.sum(0))[:-1] - shared
    return float((shared.double() / either).nanmean())


def _rim(mask: Tensor, radius: int) -> Tensor:
    """(h, w) uint8, 255 but within ``radius`` of another class, of void or of the edge.

    A pixel is inside where the largest and the smallest class around it agree: one erosion for
    all classes at once.
    """
    largest = smallest = F.pad(mask, (radius,) * 4, value=IGNORE)
    for dimension in (0, 1):
        largest = _windowed(torch.maximum, largest, 2 * radius + 1, dimension)
        smallest = _windowed(torch.minimum, smallest, 2 * radius + 1, dimension)
    return mask.masked_fill(largest == smallest, IGNORE)


def _windowed(extreme: Any, values: Tensor, length: int, dimension: int) -> Tensor:
    """The extreme of every window of that length: max-pooling in log2(length) steps of bytes."""
    covered = 1
    while covered < length:
        step = min(covered, length - covered)
        rest = values.shape[dimension] - step
        shifted = values.narrow(dimension, step, rest)
        values, covered = extreme(values.narrow(dimension, 0, rest), shifted), covered + step
    return values


class SegmentationEvaluator:
    """Adds up a matrix of counts and scores it once, at the end.

    Args:
        classes: their names.
        boundary: score boundary IoU too, from a matrix of its own.
        suffix: added to the name of every metric: how it was tested, where that is not plainly.
    """

    def __init__(self, classes: Sequence[str], boundary: bool = False, suffix: str = "") -> None:
        self.classes = classes
        self.suffix = suffix
        self.boundary = boundary
        measured = ["mean_iu", "pixel_accuracy", "mean_accuracy", "fw_iu"]
        measured += ["boundary_iu"] * boundary
        self.names = (*(f"{name}{suffix}" for name in measured), "loss")
        self._counts: Tensor | None = None  # on the device of the first update
        self._merged: list[Tensor] = []  # rows() of other processes

    def update(self, predictions: Predictions, targets: Targets) -> None:
        """Take a batch of masks (N, H, W) uint8, 255 beyond each image; no synchronisation.

        Boundary IoU needs the size of every image, and waits for the device once in a batch.
        """
        assert predictions.mask is not None
        assert targets.mask is not None
        truth, predicted = targets.mask, predictions.mask
        k = len(self.classes)
        counts = [pair_counts(truth, predicted, k)]
        if self.boundary:
            inside = predicted != IGNORE
            sizes = torch.stack([inside.any(2).sum(1), inside.any(1).sum(1)], 1).tolist()
            edges = [
                boundary_counts(one[:h, :w], other[:h, :w], k)
                for one, other, (h, w) in zip(truth, predicted, sizes, strict=True)
            ]
            counts.append(torch.stack(edges).sum(0))
        added = torch.stack(counts)
        self._counts = added if self._counts is None else self._counts + added

    def merge(self, others: Sequence[Tensor]) -> None:
        """Take the counts of other processes (their ``rows()``)."""
        self._merged.extend(others)

    def rows(self) -> Tensor:
        """(1 or 2, K + 1, K + 1) int64 on the CPU: ``pair_counts``, and those of boundaries."""
        side = len(self.classes) + 1
        total = torch.zeros(1 + self.boundary, side, side, dtype=torch.int64)
        own = [] if self._counts is None else [self._counts.cpu()]
        for part in [*own, *self._merged]:
            total = total + part
        return total

    def confusion(self) -> Tensor:
        """(K, K) int64, truth in rows.

        Raises:
            UserError: a labelled pixel was predicted void (code 6).
        """
        return classes_only(self.rows()[0])

    def per_class(self) -> dict[str, float]:
        """IU of every class that is in the truth or predicted."""
        iu = per_class_iu(self.confusion()).tolist()
        return {n: value for n, value in zip(self.classes, iu, strict=True) if value == value}

    def details(self) -> dict[str, Any]:
        """What a program may want beside the metrics: per-class IU, confusion matrix, pixels."""
        counts = self.rows()[0]
        return {
            "classes": list(self.classes),
            "per_class": self.per_class(),
            "confusion": self.confusion().tolist(),
            "labelled_pixels": int(counts[:-1].sum()),
            "void_pixels": int(counts[-1, :-1].sum()),  # and not what pads a batch
        }

    def compute(self) -> dict[str, float]:
        """Fractions, by the names of ``names`` without the loss. No labelled pixel: {}."""
        counts = self.confusion()
        if not counts.any():
            return {}
        metrics = {
            "mean_iu": mean_iu(counts),
            "pixel_accuracy": pixel_accuracy(counts),
            "mean_accuracy": mean_accuracy(counts),
            "fw_iu": frequency_weighted_iu(counts),
        }
        if self.boundary:
            metrics["boundary_iu"] = boundary_iu(self.rows()[1])
        return {f"{name}{self.suffix}": value for name, value in metrics.items()}
