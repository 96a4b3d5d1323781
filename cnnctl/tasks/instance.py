"""Boxes with classes, scores and masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cnnctl.data.base import Dataset
from cnnctl.drawing import instance_mistakes, instance_pictures
from cnnctl.drawing.shape_marks import first_on_top
from cnnctl.metrics.instance import InstanceEvaluator
from cnnctl.metrics.mask_ap import BOUNDARY
from cnnctl.models.instance import InstanceModel
from cnnctl.structures import Predictions, collate
from cnnctl.tasks import detect
from cnnctl.tasks.base import Description, Table, Task, best_and_worst_class


def instance(shown: float = 0.5, boundary: bool = False, maps: bool = False) -> Task:
    """A box, a class, a score and a mask for every object.

    Args:
        shown: the score from which a detection is drawn and, by ``predict``, said; the metrics
            rank all of them.
        boundary: score boundary AP too.
        maps: ``predict`` writes the number of the detection at each pixel too, as a PNG.
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
        draw_sample=instance_pictures.draw_sample,
        describe=lambda predictions, classes, top: _found(predictions, classes, top, shown, maps),
        annotate=instance_pictures.annotated,
        headline=detect.most_likely,
        table=best_and_worst_class,
        tables=_tables,
        results=detect.results,
        mistakes=instance_mistakes.draw_mistakes,
        held=_bytes,
    )


def _found(
    predictions: Predictions, classes: Sequence[str], top: int, shown: float, maps: bool
) -> list[Description]:
    """As ``detect.found``, each detection with the run lengths of its mask, in COCO's form.

    Args:
        maps: with (h, w) int32 too, the number of the detection at each pixel, from 1 up.
    """
    assert predictions.labels is not None
    assert predictions.scores is not None
    assert predictions.masks is not None
    assert predictions.sizes is not None
    described = detect.found(predictions, classes, top, shown)
    for said, labels, scores, masks, size in zip(
        described,
        predictions.labels.cpu(),
        predictions.scores.cpu(),
        predictions.masks,
        predictions.sizes,
        strict=True,
    ):
        likely = (scores[labels >= 0] >= shown).tolist()
        counts = [mask.decode("ascii") for mask, kept in zip(masks, likely, strict=True) if kept]
        said["top"] = [{**row} for row in said["top"]]  # without masks: they are long
        for row, own in zip(said["detections"], counts, strict=True):
            row["segmentation"] = {"size": [*size], "counts": own}
        if maps:
            shapes = instance_mistakes.decoded([count.encode() for count in counts], size)
            said["instance"] = first_on_top(shapes, size)
    return described


def _tables(evaluator: InstanceEvaluator) -> list[Table]:
    """Boxes and masks side by side, of all and of each class, and what is wrong."""
    metrics, details = evaluator.compute(), evaluator.details()
    pairs = [
        (name, metrics.get(f"coco_{key}"), metrics.get(f"coco_mask_{key}"))
        for name, key in _SIDE_BY_SIDE.items()
    ]
    rows = [(name, *(_percent(value) for value in pair)) for name, *pair in pairs]
    if BOUNDARY in metrics:
        rows.append(("boundary AP", "", _percent(metrics[BOUNDARY])))
    figures = details["per_class"]
    columns = [figures[key] for key in _PER_CLASS]
    _, (title, header, counts) = detect.tables(evaluator)
    return [
        ("COCO", ("", "box", "mask"), rows),
        ("average precision", ("class", *_PER_CLASS.values()), detect.of_classes(columns)),
        (f"{title}, judged by their boxes", header, counts),
    ]


_SIDE_BY_SIDE = {
    **{"AP": "ap", "AP50": "ap50", "AP75": "ap75"},
    **{"AP small": "ap_small", "AP medium": "ap_medium", "AP large": "ap_large"},
    **{"AR 1": "ar1", "AR 10": "ar10", "AR 100": "ar100"},
}
_PER_CLASS = {
    **{"coco_ap": "box AP", "coco_mask_ap": "mask AP"},
    **{"coco_ap50": "box AP50", "coco_mask_ap50": "mask AP50"},
}


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2%}"


def _bytes(data: Dataset, batch_size: int) -> dict[str, int]:
    """What the masks of a batch take as they are held, and what they would take as pixels."""
    count = min(batch_size, len(data))
    places = [place * len(data) // count for place in range(count)]
    batch = collate([(place, *data[place]) for place in places])
    truth, (h, w) = batch.targets, batch.images.pixels.shape[2:]
    columns = [c for c in (truth.bits, truth.crops, truth.frames) if c is not None]
    assert truth.labels is not None
    return {
        "as bits of masks": sum(column.numel() * column.element_size() for column in columns),
        f"as a byte for each pixel of {w} x {h}": truth.labels.numel() * h * w,
    }
