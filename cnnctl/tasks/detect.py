"""Boxes with classes and scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cnnctl.data.base import Dataset
from cnnctl.data.coco_results import ids_of
from cnnctl.drawing import box_pictures, pictures
from cnnctl.metrics.detection import METRICS, DetectionEvaluator
from cnnctl.models.detection import DetectionModel
from cnnctl.structures import Predictions
from cnnctl.tasks.base import Description, Table, Task, best_and_worst_class

_LISTED = 100  # classes whose figures are printed; a file has all


def detect(shown: float = 0.5) -> Task:
    """A box, a class and a score for every object.

    Args:
        shown: the score from which a detection is drawn and, by ``predict``, said; the metrics
            rank all of them.
    """
    if not 0 <= shown < 1:
        raise ValueError(f"shown must be at least 0 and below 1, got {shown}")
    return Task(
        name="detect",
        fields=("boxes",),
        model=DetectionModel,
        evaluator=lambda data: DetectionEvaluator(
            data.classes, shown, getattr(data, "all_truth", None)
        ),
        metrics={**dict.fromkeys(METRICS, True), "loss": False},
        best="coco_ap",
        line=("coco_ap", "coco_ap50", "voc07_map"),
        draw_batch=box_pictures.draw_batch,
        draw_evaluation=box_pictures.draw_evaluation,
        draw_sample=box_pictures.draw_sample,
        describe=lambda predictions, classes, top: found(predictions, classes, top, shown),
        annotate=box_pictures.annotated,
        headline=most_likely,
        table=best_and_worst_class,
        tables=tables,
        results=results,
    )


def found(
    predictions: Predictions, classes: Sequence[str], top: int, shown: float
) -> list[Description]:
    """The detections of each image that have a score of ``shown`` at least, the likeliest first."""
    assert predictions.boxes is not None
    assert predictions.scores is not None
    assert predictions.labels is not None
    described: list[Description] = []
    columns = (predictions.labels, predictions.scores, predictions.boxes)
    for labels, scores, boxes in zip(*(column.tolist() for column in columns), strict=True):
        rows: list[dict[str, Any]] = [
            {"class": classes[label], "score": score, "box": box}
            for label, score, box in zip(labels, scores, boxes, strict=True)
            if label >= 0 and score >= shown
        ]
        described.append({"detections": rows, "top": rows[:top]})
    return described


def most_likely(said: Description) -> str:
    if not said["detections"]:
        return "nothing"
    listed = ", ".join(f"{row['class']} {pictures.percent(row['score'])}" for row in said["top"])
    more = len(said["detections"]) - len(said["top"])
    return f"{listed} and {more} more" if more else listed


def tables(evaluator: DetectionEvaluator) -> list[Table]:
    """What each class reaches, and what is wrong with the detections."""
    details = evaluator.details()
    protocols = {
        "coco_ap": "COCO AP",
        "coco_ap50": "AP50",
        "voc07_ap": "VOC07",
        "voc10_ap": "VOC10",
    }
    rows = of_classes([details["per_class"][key] for key in protocols])
    threshold, right = details["threshold"], details["right"]
    kinds = [("right", f"{right:,}"), *((k, f"{n:,}") for k, n in details["errors"].items())]
    return [
        ("average precision", ("class", *protocols.values()), rows),
        (f"detections with a score of at least {threshold:g}", ("", "count"), kinds),
    ]


def of_classes(figures: Sequence[Mapping[str, float]]) -> list[tuple[str, ...]]:
    """The first classes, each with its figure of every column."""
    named = list(figures[0])
    rows = [
        (name, *(f"{one[name]:.2%}" if name in one else "" for one in figures))
        for name in named[:_LISTED]
    ]
    if more := len(named) - len(rows):
        rows.append((f"and {more:,} more", *[""] * len(figures)))
    return rows


def results(evaluator: DetectionEvaluator, data: Dataset) -> list[dict[str, Any]]:
    images, categories = ids_of(data)
    return evaluator.results(categories.tolist(), images.tolist())
