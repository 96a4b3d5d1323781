"""COCO's twelve numbers, by faster-coco-eval from columns: of boxes, or of any other regions.

Lin et al., "Microsoft COCO: Common Objects in Context" (arXiv:1405.0312), as the authors' program
pycocotools computes them: a mean over IoU .50:.05:.95 of the precision at 101 recalls, at most 100
detections of a class in an image, areas below 32**2, to 96**2 and above. Figures are identical to
pycocotools'.

A difficult truth (VOC) is taken as a crowd: neither demanded nor penalised. Ids are made here,
from 1: with an annotation id of 0, or one that occurs twice, both programs score a match as none.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnnctl.metrics.box_rows import DetectionRows, TruthRows, check

METRICS = (
    *("coco_ap", "coco_ap50", "coco_ap75", "coco_ap_small", "coco_ap_medium", "coco_ap_large"),
    *("coco_ar1", "coco_ar10", "coco_ar100", "coco_ar_small", "coco_ar_medium", "coco_ar_large"),
)


@dataclass(frozen=True)
class CocoScores:
    """What COCO's protocol says.

    Args:
        metrics: those of ``METRICS`` that are defined, as fractions: no ``coco_ap_large`` where
            no object is large; {} without any truth that is demanded.
        ap: (K,) mean of IoU .50:.95, ap50: (K,) at .50; NaN for a class without truth.
        precision: (K, 101) at IoU .50, at recall 0, .01, ... 1; NaN for a class without truth.
    """

    metrics: dict[str, float]
    ap: NDArray[np.float64]
    ap50: NDArray[np.float64]
    precision: NDArray[np.float64]


@dataclass(frozen=True)
class Regions:
    """What is compared where it is not the boxes of detections and truth.

    Args:
        areas: (D,) pixels of each detection.
        overlaps: (image, class) -> (d, r) IoU of the detections there, from the highest score down
            (equal ones in the order of the rows), at most ``LOOKED_AT``, with the truths there in
            the order of the rows; of an ignored truth, the share of the detection's own area. An
            image and class with no detection or no truth has none.
    """

    areas: NDArray[np.floating]
    overlaps: Mapping[tuple[int, int], NDArray[np.float64]]


LOOKED_AT = 100  # detections of a class in an image; more are as if they were not there


def coco_scores(
    detections: DetectionRows,
    truth: TruthRows,
    images: NDArray[np.int64],
    num_classes: int,
    regions: Regions | None = None,
) -> CocoScores:
    """Score all detections.

    Args:
        images: (N,) ids of all images that were looked at, those without any box too.
        regions: None compares boxes.

    Raises:
        UserError: a box or score is not a finite number.
        ValueError: a box belongs to an image that is not in ``images``.
    """
    check(detections, truth, num_classes)
    for rows in (detections, truth):
        if not np.isin(rows.image, images).all():
            raise ValueError("a box belongs to an image that was not looked at")
    if truth.ignored.all():
        nothing = np.full((num_classes, 101), np.nan)
        return CocoScores({}, nothing[:, 0], nothing[:, 0], nothing)
    evaluated = _evaluated(detections, truth, images, num_classes, regions)
    values = dict(zip(METRICS, map(float, evaluated.stats), strict=True))
    # (IoU, recall, class, area, most detections), -1 where undefined; all areas, 100 detections
    precision = np.asarray(evaluated.eval["precision"])[:, :, :, 0, -1]
    precision = np.where(precision < 0, np.nan, precision)
    return CocoScores(
        {name: value for name, value in values.items() if value >= 0},
        precision.mean((0, 1)),
        precision[0].mean(0),
        precision[0].T,
    )


def _evaluated(
    detections: DetectionRows,
    truth: TruthRows,
    images: NDArray[np.int64],
    num_classes: int,
    regions: Regions | None,
) -> Any:
    from faster_coco_eval import COCO, COCOeval_faster

    class Evaluation(COCOeval_faster):
        def computeIoU(self, imgId: int, catId: int) -> Any:
            if regions is None:
                return super().computeIoU(imgId, catId)
            return regions.overlaps[imgId, catId - 1]

    with _no_collection():
        shared = {
            "images": [{"id": image} for image in images.tolist()],
            "categories": [{"id": k} for k in range(1, num_classes + 1)],
        }
        areas = _area(detections.boxes) if regions is None else regions.areas
        found = _records(detections, areas, np.zeros(len(detections), int))
        for record, score in zip(found, detections.scores.tolist(), strict=True):
            record["score"] = score
        there = _records(truth, truth.area, truth.ignored.astype(int))
        evaluation = Evaluation(
            COCO({**shared, "annotations": there}), COCO({**shared, "annotations": found}), "bbox"
        )
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def _records(rows: DetectionRows | TruthRows, area: Any, crowd: Any) -> list[dict[str, Any]]:
    """COCO's annotations with ids from 1, and the category k + 1."""
    boxes = rows.boxes.astype(np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    columns = (rows.image, rows.labels + 1, boxes, area, crowd)
    return [
        {"id": i, "image_id": image, "category_id": k, "bbox": box, "area": a, "iscrowd": crowd}
        for i, (image, k, box, a, crowd) in enumerate(
            zip(*(column.tolist() for column in columns), strict=True), 1
        )
    ]


def _area(boxes: NDArray[np.floating]) -> NDArray[np.float64]:
    sides = boxes[:, 2:].astype(np.float64) - boxes[:, :2]
    return sides[:, 0] * sides[:, 1]


@contextmanager
def _no_collection() -> Iterator[None]:
    """Python looks through half a million new records for circles otherwise, again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
