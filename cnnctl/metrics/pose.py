"""What a network said of the figures of a data set: their boxes as a detector's, and points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnnctl.metrics import detection, keypoints
from cnnctl.metrics.box_rows import DetectionRows, TruthRows
from cnnctl.metrics.detection import DetectionEvaluator, Truth
from cnnctl.skeleton import Skeleton
from cnnctl.structures import Predictions, Targets

METRICS = (*detection.METRICS, *keypoints.OKS, keypoints.PCK, keypoints.PCP)


@dataclass(frozen=True)
class PointDetections(DetectionRows):
    """What was found; points: (D, J, 3) x, y in original pixels, and a score."""

    points: NDArray[np.floating]


@dataclass(frozen=True)
class PointTruth(TruthRows):
    """What is there; points: (R, J, 3) x, y in original pixels, and visibility 0, 1, 2."""

    points: NDArray[np.floating]


@dataclass(frozen=True)
class Rows(detection.Rows):
    """All that the figures are made of, with points."""

    detections: PointDetections
    truth: PointTruth


@dataclass(frozen=True)
class _Scores:
    oks: keypoints.OksScores
    pck: keypoints.Shares  # of each point
    pcp: keypoints.Shares  # of each stick


class PoseEvaluator(DetectionEvaluator):
    """Scores boxes as ``DetectionEvaluator`` does, errors and confusion too, and points.

    Args:
        skeleton: of the data: sigmas of OKS, the reference of PCK, the sticks of PCP.
    """

    def __init__(
        self,
        classes: Sequence[str],
        skeleton: Skeleton,
        threshold: float = 0.5,
        truth: Truth = None,
    ) -> None:
        super().__init__(classes, threshold, truth)
        self.names = (*METRICS, "loss")
        self.skeleton = skeleton
        nothing, none = detection.NO_ROWS, np.zeros((0, len(skeleton), 3), np.float32)
        self._nothing = Rows(
            nothing.images,
            PointDetections(**vars(nothing.detections), points=none),
            PointTruth(**vars(nothing.truth), points=none),
        )
        self._point_scores: _Scores | None = None

    def update(self, predictions: Predictions, targets: Targets) -> None:
        """Take a batch: as a detector's, and keypoints (N, D, J, 3) and (N, R, J, 3)."""
        rows = detection.rows_of(predictions, targets)
        self._take(
            Rows(
                rows.images,
                PointDetections(
                    **vars(rows.detections), points=_there(predictions.keypoints, predictions)
                ),
                PointTruth(**vars(rows.truth), points=_there(targets.keypoints, targets)),
            )
        )

    def _take(self, rows: Any) -> None:
        super()._take(rows)
        self._point_scores = None

    def rows(self) -> Rows:
        """Everything, ordered by image id.

        Raises:
            ValueError: as of boxes.
        """
        rows = super().rows()
        assert isinstance(rows, Rows)
        return rows

    def compute(self) -> dict[str, float]:
        """Fractions by the names of ``METRICS``; one that is not defined is left out.

        Raises:
            UserError: a score, a box or a point is not a finite number (code 6).
        """
        boxes = super().compute()
        if not boxes:
            return {}
        scores = self._points_scored()
        shares = {keypoints.PCK: scores.pck.mean, keypoints.PCP: scores.pcp.mean}
        found = {name: value for name, value in shares.items() if value is not None}
        return {**boxes, **scores.oks.metrics, **found}

    def per_class(self) -> dict[str, float]:
        """OKS AP of every class that has figures with points: means to coco_oks_ap."""
        return self._of_classes(self._points_scored().oks.ap.tolist())

    def details(self) -> dict[str, Any]:
        """As of boxes, with OKS AP of each class, and PCK and PCP of each point and stick."""
        details, scores = super().details(), self._points_scored()
        names = self.skeleton.names
        sticks = [f"{names[a]} - {names[b]}" for a, b in self.skeleton.sticks]
        return {
            **details,
            "per_class": {**details["per_class"], "coco_oks_ap": self.per_class()},
            "per_point": {keypoints.PCK: _named(names, scores.pck)},
            "per_stick": {keypoints.PCP: _named(sticks, scores.pcp)},
        }

    def results(self, category_ids: Sequence[int], image_ids: Sequence[int]) -> list[dict]:
        """Everything found as COCO's list of results for keypoints.

        pycocotools takes such records for boxes where they have a ``bbox`` too, so they have none.

        Args:
            category_ids, image_ids: as of boxes.
        """
        flat = keypoints.flattened(self.rows().detections.points).tolist()
        rows = []
        for record, own in zip(super().results(category_ids, image_ids), flat, strict=True):
            del record["bbox"]
            rows.append({**record, "keypoints": own})
        return rows

    def _points_scored(self) -> _Scores:
        if self._point_scores is None:
            rows, skeleton = self.rows(), self.skeleton
            figures = keypoints.Figures(
                rows.detections, rows.detections.points, rows.truth, rows.truth.points
            )
            oks = keypoints.oks_scores(figures, rows.images, skeleton.sigmas, len(self.classes))
            owner = keypoints.owners(figures)
            self._point_scores = _Scores(
                oks,
                keypoints.pck(figures, owner, skeleton.reference),
                keypoints.pcp(figures, owner, skeleton.sticks),
            )
        return self._point_scores


def _there(points: Any, record: Predictions | Targets) -> NDArray[np.floating]:
    """(N, D, J, 3) padded -> the rows that hold a box."""
    assert points is not None, "poses and their truth have keypoints"
    assert record.labels is not None
    array = points.detach().cpu()
    return (array if array.dtype.itemsize == 8 else array.float()).numpy()[
        record.labels.cpu().numpy() >= 0
    ]


def _named(names: Sequence[str], shares: keypoints.Shares) -> dict[str, float]:
    """The share of each that was counted."""
    return {n: float(v) for n, v in zip(names, shares.each, strict=True) if v == v}
