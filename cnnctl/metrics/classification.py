"""Top-k accuracy, negative log-likelihood, per-class accuracy and the confusion matrix.

``top_k_hits`` and ``confusion_matrix`` are pure functions; ``ClassificationEvaluator`` keeps one
small row for each image, so that its figures do not depend on the batch size or on how the images
were dealt out to processes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cnnctl.structures import Predictions, Targets


def top_k_hits(scores: Tensor, label: Tensor, k: int) -> Tensor:
    """Whether the true class is among the k best: scores (N, K), label (N,) -> (N,) bool.

    Ties count against the network: a class ranks behind every class with an equal score, so a
    constant output scores zero and not chance. A true class with a NaN score is a miss.
    """
    true = scores.gather(1, label[:, None])
    better_or_equal = (scores >= true).sum(1)  # includes the true class itself
    return (better_or_equal <= k) & (better_or_equal > 0)


def confusion_matrix(label: Tensor, predicted: Tensor, num_classes: int) -> Tensor:
    """(N,), (N,) -> (K, K) int64 counts, truth in rows and prediction in columns."""
    flat = torch.bincount(label * num_classes + predicted, minlength=num_classes**2)
    return flat.reshape(num_classes, num_classes)


class ClassificationEvaluator:
    """Gathers a row for each image and scores them once, at the end.

    Args:
        classes: class names, for the best and the worst class.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = classes
        self._rows: list[Tensor] = []  # (n, 5) float64: id, label, predicted, log p(label), top-5

    def update(self, predictions: Predictions, targets: Targets) -> None:
        """Take a batch: log_probs (N, K), label (N,); stays on the device, no synchronisation."""
        assert predictions.log_probs is not None
        assert targets.label is not None
        log_probs, label = predictions.log_probs, targets.label
        # top-1 by the same rule as top-k: where the best score is tied, the truth loses the tie
        predicted = log_probs.argmax(1)
        tied = ~top_k_hits(log_probs, label, 1) & (predicted == label)
        runner_up = log_probs.scatter(1, label[:, None], -torch.inf).argmax(1)
        predicted = torch.where(tied, runner_up, predicted)
        columns = [
            targets.image_id,
            label,
            predicted,
            log_probs.gather(1, label[:, None])[:, 0],
            top_k_hits(log_probs, label, 5),
        ]
        self._rows.append(torch.stack([column.double() for column in columns], 1))

    def merge(self, others: Sequence[Tensor]) -> None:
        """Take the rows of other processes (their ``rows()``)."""
        self._rows.extend(others)

    def rows(self) -> Tensor:
        """(N, 5) float64 on the CPU, ordered by image id."""
        if not self._rows:
            return torch.zeros(0, 5, dtype=torch.float64)
        rows = torch.cat([part.cpu() for part in self._rows])
        return rows[rows[:, 0].argsort(stable=True)]

    def confusion(self) -> Tensor:
        """(K, K) int64, truth in rows."""
        rows = self.rows().long()
        return confusion_matrix(rows[:, 1], rows[:, 2], len(self.classes))

    def per_class(self) -> dict[str, float]:
        """Accuracy of every class that has images, as a fraction."""
        counts = self.confusion()
        hits, totals = counts.diagonal().tolist(), counts.sum(1).tolist()
        rows = zip(self.classes, hits, totals, strict=True)
        return {name: hit / total for name, hit, total in rows if total}

    def compute(self) -> dict[str, float]:
        """top1, top5 (only with more than five classes), nll; fractions and nats. Empty: {}."""
        rows = self.rows()
        if not len(rows):
            return {}
        metrics = {"top1": float((rows[:, 1] == rows[:, 2]).double().mean())}
        if len(self.classes) > 5:
            metrics["top5"] = float(rows[:, 4].mean())
        metrics["nll"] = float(-rows[:, 3].mean())
        return metrics
