"""Top-k accuracy, negative log-likelihood, per-class accuracy and the confusion matrix.

``top_k_hits``, ``predicted_class`` and ``confusion_matrix`` are pure functions;
``ClassificationEvaluator`` keeps one small row for each image, so that its figures do not depend on
the batch size or on how the images were dealt out to processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cnnctl.structures import Predictions, Targets


def top_k_hits(scores: Tensor, label: Tensor, k: int) -> Tensor:
    """Whether the true class is among the k best: scores (N, K), label (N,) -> (N,) bool.

    Ties count against the network: a class ranks behind every class with an equal score, so a
    constant output scores zero and not chance. A NaN ranks before every number, and a true class
    whose score is NaN is a miss.
    """
    true = scores.gather(1, label[:, None])  # (N, 1)
    rank = (~(scores < true)).sum(1)  # (N,), from 1: the true class does not beat itself
    return (rank <= k) & ~true[:, 0].isnan()


def predicted_class(scores: Tensor, label: Tensor) -> Tensor:
    """The best class of (N, K), K > 1 -> (N,); the true one loses ties, as in ``top_k_hits``."""
    finite = scores.clamp(min=torch.finfo(scores.dtype).min)  # so that -inf is below all others
    others = finite.scatter(1, label[:, None], -torch.inf).argmax(1)
    return torch.where(top_k_hits(scores, label, 1), label, others)


def confusion_matrix(label: Tensor, predicted: Tensor, num_classes: int) -> Tensor:
    """(N,), (N,) -> (K, K) int64 counts, truth in rows and prediction in columns."""
    flat = torch.bincount(label * num_classes + predicted, minlength=num_classes**2)
    return flat.reshape(num_classes, num_classes)


class ClassificationEvaluator:
    """Gathers a row for each image and scores them once, at the end.

    Args:
        classes: class names, for the best and the worst class.
        suffix: of every metric's name but the loss's: how one tested.
    """

    def __init__(self, classes: Sequence[str], suffix: str = "") -> None:
        self.classes = classes
        self.suffix = suffix
        names = ("top1", "top5", "nll") if len(classes) > 5 else ("top1", "nll")
        self.names = (*(f"{name}{suffix}" for name in names), "loss")
        # id, label, predicted, in the top 5: (n, 4) int64; log p(label): (n,) float, of each batch
        self._batches: list[tuple[Tensor, Tensor]] = []
        self._merged: list[Tensor] = []  # rows() of other processes

    def update(self, predictions: Predictions, targets: Targets) -> None:
        """Take a batch: log_probs (N, K), label (N,); stays on the device, no synchronisation."""
        assert predictions.log_probs is not None
        assert targets.label is not None
        log_probs, label = predictions.log_probs, targets.label
        predicted, hits = predicted_class(log_probs, label), top_k_hits(log_probs, label, 5)
        counts = torch.stack([targets.image_id, label, predicted, hits.long()], 1)
        self._batches.append((counts, log_probs.gather(1, label[:, None])))

    def merge(self, others: Sequence[Tensor]) -> None:
        """Take the rows of other processes (their ``rows()``)."""
        self._merged.extend(others)

    def rows(self) -> Tensor:
        """(N, 5) float64 on the CPU, ordered by id: id, label, predicted, top-5, log p(label)."""
        parts = [torch.cat([part.cpu().double() for part in batch], 1) for batch in self._batches]
        rows = torch.cat([torch.zeros(0, 5, dtype=torch.float64), *parts, *self._merged])
        return rows[rows[:, 0].argsort(stable=True)]

    def confusion(self) -> Tensor:
        """(K, K) int64, truth in rows."""
        rows = self.rows()[:, :3].long()  # not the log p, which may be infinite
        return confusion_matrix(rows[:, 1], rows[:, 2], len(self.classes))

    def per_class(self) -> dict[str, float]:
        """Accuracy of every class that has images, as a fraction."""
        counts = self.confusion()
        hits, totals = counts.diagonal().tolist(), counts.sum(1).tolist()
        rows = zip(self.classes, hits, totals, strict=True)
        return {name: hit / total for name, hit, total in rows if total}

    def details(self) -> dict[str, Any]:
        """What a program may want beside the metrics: per-class accuracy, confusion matrix."""
        return {
            "classes": list(self.classes),
            "per_class": self.per_class(),
            "confusion": self.confusion().tolist(),
        }

    def compute(self) -> dict[str, float]:
        """top1, top5 (only with more than five classes), nll; fractions and nats. Empty: {}."""
        rows = self.rows()
        if not len(rows):
            return {}
        metrics = {"top1": float((rows[:, 1] == rows[:, 2]).double().mean())}
        if len(self.classes) > 5:
            metrics["top5"] = float(rows[:, 3].mean())
        metrics["nll"] = float(-rows[:, 4].mean())
        return {f"{name}{self.suffix}": value for name, value in metrics.items()}
