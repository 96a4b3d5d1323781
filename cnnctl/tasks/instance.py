"""Boxes with classes, scores and masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cnnctl import instance_pictures
from cnnctl.metrics.instance import InstanceEvaluator
from cnnctl.models.instance import InstanceModel
from cnnctl.structures import Predictions
from cnnctl.tasks import detect
from cnnctl.tasks.base import Description, Table, Task, best_and_worst_class


def instance(shown: float = 0.5, boundary: bool = False) -> Task:
    """A box, a class, a score and a mask for every object.

    Args:
        shown: the score from which a detection is drawn and, by ``predict``, said; the metrics
            rank all of them.
        boundary: score boundary AP too.
    """
    if not 0 <= shown < 1:
        raise ValueError(f"shown must be at least 0 and below 1, got {shown}")

    def evaluator(data: Any) -> InstanceEvaluator:
        return InstanceEvaluator(data.classes, shown, getattr(data, "all_truth", None), boundary)

    evaluated = InstanceEvaluator((), shown, None, boundary).names
    return Task(
        name="instance",
        fields=("boxes", "masks"),
        model=InstanceModel,
        evaluator=evaluator,
        metrics={name: name != "loss" for name in evaluated},
        best="coco_mask_ap",
        line=("coco_mask_ap", "coco_mask_ap50", "coco_ap", "coco_ap50"),
        draw_batch=instance_pictures.draw_batch,
        draw_evaluation=instance_pictures.draw_evaluation,
        describe=lambda predictions, classes, top: _found(predictions, classes, top, shown),
        annotate=instance_pictures.annotated,
        headline=detect.most_likely,
        table=best_and_worst_class,
        tables=_tables,
        results=detect.results,
    )


def _found(
    predictions: Predictions, classes: Sequence[str], top: int, shown: float
) -> list[Description]:
    return detect.found(predictions, classes, top, shown)


def _tables(evaluator: InstanceEvaluator) -> list[Table]:
    return detect.tables(evaluator)
