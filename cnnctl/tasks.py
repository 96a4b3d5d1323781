"""A task is a record: what its targets hold, which models do it, how it is scored and drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from cnnctl.data.base import Dataset
from cnnctl.metrics.classification import ClassificationEvaluator
from cnnctl.models.base import ClassificationModel, Model
from cnnctl.structures import Batch, Predictions


@dataclass(frozen=True)
class Task:
    """What the trainer and the commands need to know of a task.

    Args:
        name: as in ``task=``.
        fields: the columns of ``Targets`` that its data must fill.
        model: the class its models derive from.
        evaluator: class names -> an object with update, merge, rows and compute.
        metrics: those that can choose best.pt -> whether larger is better.
        best: the one that does unless ``trainer.monitor`` names another.
        draw_batch: (batch, data) -> named pictures (H, W, 3) uint8 of a training batch.
        draw_evaluation: (batch, predictions, evaluator, model, data) -> named pictures.
        table: evaluator -> rows (title, value) that the summary adds to the metrics.
    """

    name: str
    fields: tuple[str, ...]
    model: type[Model]
    evaluator: Callable[[Sequence[str]], Any]
    metrics: dict[str, bool]
    best: str
    draw_batch: Callable[[Batch, Dataset], dict[str, Tensor]]
    draw_evaluation: Callable[[Batch, Predictions, Any, Model, Dataset], dict[str, Tensor]]
    table: Callable[[Any], list[tuple[str, str]]]


def classify() -> Task:
    """One label for each image."""
    return Task(
        name="classify",
        fields=("label",),
        model=ClassificationModel,
        evaluator=ClassificationEvaluator,
        metrics={"top1": True, "top5": True, "nll": False, "loss": False},
        best="top1",
        draw_batch=lambda batch, data: {},
        draw_evaluation=lambda batch, predictions, evaluator, model, data: {},
        table=_best_and_worst_class,
    )


def _best_and_worst_class(evaluator: ClassificationEvaluator) -> list[tuple[str, str]]:
    ranked = sorted(evaluator.per_class().items(), key=lambda item: item[1])
    if not ranked:
        return []
    (worst, low), (best, high) = ranked[0], ranked[-1]
    return [("best class", f"{best} {high:.2%}"), ("worst class", f"{worst} {low:.2%}")]
