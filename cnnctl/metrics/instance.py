"""What an instance segmenter found in a data set: its boxes as a detector's, and its masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnnctl.metrics import detection, mask_ap
from cnnctl.metrics.average_precision import area_under
from cnnctl.metrics.detection import DetectionEvaluator, Truth
from cnnctl.metrics.mask_rows import (
    MaskDetections,
    MaskTruth,
    VoidRows,
    truth_counts,
    void_counts,
    without_void,
)
from cnnctl.structures import Predictions, Targets

METRICS = (*detection.METRICS, *mask_ap.METRICS)


@dataclass(frozen=True)
class Rows(detection.Rows):
    """All that the figures are made of, with masks; ``void`` belongs to nobody."""

    detections: MaskDetections
    truth: MaskTruth
    void: VoidRows


_NO_MASKS: dict[str, Any] = {"sizes": np.zeros((0, 2), np.int32), "counts": np.zeros(0, object)}
_NO_ROWS = Rows(
    detection.NO_ROWS.images,
    MaskDetections(**vars(detection.NO_ROWS.detections), **_NO_MASKS),
    MaskTruth(**vars(detection.NO_ROWS.truth), **_NO_MASKS),
    VoidRows(np.zeros(0, np.int64), **_NO_MASKS),
)


class InstanceEvaluator(DetectionEvaluator):
    """Scores boxes as ``DetectionEvaluator`` does, errors and confusion too, and the masks.

    Masks are kept as run lengths. Void pixels (VOC's borders) are taken out of the masks that were
    found before these are compared.

    Args:
        boundary: boundary AP too, which takes about half a millisecond for each mask that overlaps
            one of its class by half.
    """

    _nothing = _NO_ROWS

    def __init__(
        self,
        classes: Sequence[str],
        threshold: float = 0.5,
        truth: Truth = None,
        boundary: bool = False,
    ) -> None:
        super().__init__(classes, threshold, truth)
        self.names = (*METRICS, *((mask_ap.BOUNDARY,) if boundary else ()), "loss")
        self.boundary = boundary
        self._mask_scores: mask_ap.MaskScores | None = None

    def update(self, predictions: Predictions, targets: Targets) -> None:
        """Take a batch: as a detector's, with the masks of what was found and the sizes of images.

        The truth has all columns of masks, in original pixels.
        """
        masks, sizes = predictions.masks, predictions.sizes
        assert masks is not None, "predictions of instances have masks"
        assert sizes is not None, "masks have the sizes of their images"
        rows = detection.rows_of(predictions, targets)
        of_image = np.array(sizes, np.int32).reshape(-1, 2)  # (N, 2)
        place = {image: n for n, image in enumerate(rows.images.tolist())}

        def masked(boxes: Any, counts: Sequence[bytes]) -> dict[str, Any]:
            if len(counts) != len(boxes):
                raise ValueError(f"there are {len(boxes)} boxes and {len(counts)} masks")
            where = np.array([place[image] for image in boxes.image.tolist()], np.int64)
            return {**vars(boxes), "sizes": of_image[where], "counts": np.array(counts, object)}

        void = void_counts(targets, sizes)
        where = np.array([row for row, _ in void], np.int64)
        self._take(
            Rows(
                rows.images,
                MaskDetections(**masked(rows.detections, [m for some in masks for m in some])),
                MaskTruth(**masked(rows.truth, truth_counts(targets, sizes))),
                VoidRows(
                    rows.images[where], of_image[where], np.array([c for _, c in void], object)
                ),
            )
        )

    def _take(self, rows: Any) -> None:
        super()._take(rows)
        self._mask_scores = None

    def rows(self) -> Rows:
        """Everything, ordered by image id.

        Raises:
            ValueError: as of boxes.
        """
        rows = super().rows()
        assert isinstance(rows, Rows)
        return rows

    def _ordered(self, rows: Any) -> Any:
        void = rows.void.at(np.argsort(rows.void.image, kind="stable"))
        return replace(super()._ordered(rows), void=void)

    def compute(self) -> dict[str, float]:
        """Fractions by the names of ``METRICS``; one that is not defined is left out, as of boxes.

        Raises:
            UserError: a score or a box is not a finite number (code 6).
        """
        boxes = super().compute()
        if not boxes:
            return {}
        scores = self._masks_scored()
        found = {_of_masks(name): value for name, value in scores.coco.metrics.items()}
        for name, curves in scores.curves.items():
            found[name] = float(np.nanmean([area_under(curve) for curve in curves]))
        if scores.boundary is not None:
            found[mask_ap.BOUNDARY] = scores.boundary.metrics["coco_ap"]
        return {**boxes, **found}

    def per_class(self) -> dict[str, float]:
        """AP^r at IoU .5 of every class that has truth: means to voc_mask_ap50."""
        return self._of_curves("voc_mask_ap50")

    def mask_curves(
        self, metric: str = "voc_mask_ap50"
    ) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
        """(recall, precision) of every class with truth, detection by detection, by AP^r."""
        curves = zip(self.classes, self._masks_scored().curves[metric], strict=True)
        return {name: (one.recall, one.precision) for name, one in curves if one.positives}

    def coco_mask_curves(self) -> dict[str, NDArray[np.float64]]:
        """(101,) COCO's precision of every class with truth at mask IoU .5, as ``coco_curves``."""
        rows = zip(self.classes, self._masks_scored().coco.precision, strict=True)
        return {name: row for name, row in rows if not np.isnan(row).any()}

    def details(self) -> dict[str, Any]:
        """As of boxes, with what masks reach in each class."""
        details, scores = super().details(), self._masks_scored()
        figures = {
            "coco_mask_ap": self._of_classes(scores.coco.ap.tolist()),
            "coco_mask_ap50": self._of_classes(scores.coco.ap50.tolist()),
            **{name: self._of_curves(name) for name in mask_ap.THRESHOLDS},
        }
        if scores.boundary is not None:
            figures[mask_ap.BOUNDARY] = self._of_classes(scores.boundary.ap.tolist())
        return {**details, "per_class": {**details["per_class"], **figures}}

    def results(self, category_ids: Sequence[int], image_ids: Sequence[int]) -> list[dict]:
        """Everything found as COCO's list of results, with boxes and run lengths.

        pycocotools takes the area of the box for small, medium and large where a result has a
        ``bbox``; leave that out to have it take that of the mask, as is done here.

        Args:
            category_ids, image_ids: as of boxes.
        """
        found = self.rows().detections
        masks = zip(found.sizes.tolist(), found.counts.tolist(), strict=True)
        return [
            {**record, "segmentation": {"size": size, "counts": counts.decode()}}
            for record, (size, counts) in zip(
                super().results(category_ids, image_ids), masks, strict=True
            )
        ]

    def _masks_scored(self) -> mask_ap.MaskScores:
        if self._mask_scores is None:
            rows = self.rows()
            found = without_void(rows.detections, rows.void)
            self._mask_scores = mask_ap.mask_scores(
                found, rows.truth, rows.images, len(self.classes), self.boundary
            )
        return self._mask_scores

    def _of_curves(self, metric: str) -> dict[str, float]:
        curves = self._masks_scored().curves[metric]
        return self._of_classes([area_under(curve) for curve in curves])


def _of_masks(name: str) -> str:
    return name.replace("coco_", "coco_mask_")
