"""Boxes with classes, scores and the points of a skeleton."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from cnnctl.drawing import box_pictures, pose_pictures
from cnnctl.metrics.pose import METRICS, PoseEvaluator
from cnnctl.models.pose import PoseModel
from cnnctl.skeleton import Skeleton
from cnnctl.structures import Predictions
from cnnctl.tasks import detect
from cnnctl.tasks.base import Description, Table, Task, best_and_worst_class


def pose(shown: float = 0.5) -> Task:
    """A box, a class, a score and keypoints for every figure.

    Args:
        shown: the score from which a figure is drawn and, by ``predict``, said; the metrics rank
            all of them.
    """
    if not 0 <= shown < 1:
        raise ValueError(f"shown must be at least 0 and below 1, got {shown}")
    task = Task(
        name="pose",
        fields=("boxes", "keypoints"),
        model=PoseModel,
        evaluator=lambda data: PoseEvaluator(
            data.classes, data.skeleton, shown, getattr(data, "all_truth", None)
        ),
        metrics={**dict.fromkeys(METRICS, True), "loss": False},
        best="coco_oks_ap",
        line=("coco_oks_ap", "coco_oks_ap50", "pck20", "coco_ap"),
        draw_batch=pose_pictures.draw_batch,
        draw_evaluation=pose_pictures.draw_evaluation,
        describe=lambda predictions, classes, top: detect.found(predictions, classes, top, shown),
        annotate=box_pictures.annotated,
        headline=detect.most_likely,
        table=best_and_worst_class,
        tables=_tables,
        results=detect.results,
    )
    return replace(task, knowing=lambda facts: _knowing(task, facts.skeleton, shown))


def _knowing(task: Task, skeleton: Skeleton, shown: float) -> Task:
    """The task where the names of the points are known, and can be said."""
    return replace(
        task,
        describe=lambda predictions, classes, top: _found(
            predictions, classes, top, shown, skeleton
        ),
        annotate=partial(pose_pictures.annotated, skeleton=skeleton),
    )


def _found(
    predictions: Predictions, classes: Sequence[str], top: int, shown: float, skeleton: Skeleton
) -> list[Description]:
    """What a detector says of each image, with "keypoints" of each detection: named [x, y, score].

    Of the detections of an image those that are said are the first.
    """
    assert predictions.keypoints is not None
    described = detect.found(predictions, classes, top, shown)
    for said, figures in zip(described, predictions.keypoints, strict=True):
        rows: list[dict[str, Any]] = said["detections"]
        for row, points in zip(rows, figures.tolist(), strict=False):
            row["keypoints"] = dict(zip(skeleton.names, points, strict=True))
    return described


def _tables(evaluator: PoseEvaluator) -> list[Table]:
    """What a detector's tables say, and how many points and sticks are right."""
    details = evaluator.details()
    reference = " - ".join(evaluator.skeleton.names[end] for end in evaluator.skeleton.reference)
    titles = {
        "per_point": f"points within 0.2 of {reference} (PCK)",
        "per_stick": "sticks whose ends are within half of their length (PCP)",
    }
    tables = []
    for key, title in titles.items():
        (figures,) = details[key].values()
        rows = [(name, f"{value:.2%}") for name, value in figures.items()]
        tables.append((title, ("", "right"), rows))
    return [*detect.tables(evaluator), *tables]
