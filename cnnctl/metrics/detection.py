"""What a detector found in a data set, scored once under VOC's and COCO's protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cnnctl.metrics import coco_ap, detection_errors
from cnnctl.metrics.average_precision import Curve, area_under, eleven_point, voc_curves
from cnnctl.metrics.box_rows import DetectionRows, Index, TruthRows
from cnnctl.structures import Predictions, Targets

METRICS = (*coco_ap.METRICS, "voc07_map", "voc10_map")

Truth = Callable[[], Mapping[str, NDArray[Any]] | None] | None


@dataclass(frozen=True)
class Rows:
    """All that the figures are made of, ordered by image: arrays, so that it pickles compactly.

    Args:
        images: (N,) int64 ids of all images, those without any box too.
    """

    images: Index
    detections: DetectionRows
    truth: TruthRows


NO_ROWS = Rows(
    np.zeros(0, np.int64),
    DetectionRows(
        np.zeros(0, np.int64),
        np.zeros((0, 4), np.float32),
        np.zeros(0, np.float32),
        np.zeros(0, np.int64),
    ),
    TruthRows(
        np.zeros(0, np.int64),
        np.zeros((0, 4), np.float32),
        np.zeros(0, np.int64),
        np.zeros(0, bool),
        np.zeros(0, bool),
        np.zeros(0, np.float32),
    ),
)


@dataclass(frozen=True)
class _Scores:
    coco: coco_ap.CocoScores
    curves: list[Curve]  # of each class, by VOC's protocol
    found: DetectionRows  # those from the threshold on
    errors: detection_errors.Errors  # of these


class DetectionEvaluator:
    """Gathers the detections and the truth of each image and scores them once, at the end.

    Only boxes are kept, as columns on the CPU; figures do not depend on the batch size or on how
    the images were dealt out to processes.

    Args:
        classes: their names.
        threshold: the score from which a detection counts as an error and in the confusion matrix.
            Average precision ranks all of them.
        truth: gives the columns of ``TruthRows`` for the whole data set, by image, without the
            rounding of the targets; None, and what returns None, leaves it to the targets. An
            overlap of exactly 0.75 must not be decided by that rounding: it moves AP in the fourth
            digit where detections were made from the truth.
    """

    _nothing = NO_ROWS  # of the kind that is gathered

    def __init__(self, classes: Sequence[str], threshold: float = 0.5, truth: Truth = None) -> None:
        self.classes = classes
        self.threshold = threshold
        self.names = (*METRICS, "loss")
        self._truth = truth
        self._rows: list[Rows] = []  # of each batch, and of other processes
        self._whole: Rows | None = None  # all of them, until there are more
        self._scores: _Scores | None = None  # likewise

    def update(self, predictions: Predictions, targets: Targets) -> None:
        """Take a batch: boxes (N, D, 4), scores and labels (N, D), and all columns of its truth.

        Boxes and scores in float64 keep their digits: those of a file that is scored.
        """
        self._take(rows_of(predictions, targets))

    def merge(self, others: Sequence[Rows]) -> None:
        """Take the rows of other processes (their ``rows()``)."""
        for rows in others:
            self._take(rows)

    def _take(self, rows: Rows) -> None:
        self._rows.append(rows)
        self._whole = self._scores = None

    def rows(self) -> Rows:
        """Everything, ordered by image id.

        Raises:
            ValueError: an image was given twice, or the data set's own truth of the images that
                were evaluated is not that of their targets.
        """
        if self._whole is None:
            self._whole = self._ordered(joined([self._nothing, *self._rows]))
            self._rows = [self._whole]
        return self._whole

    def _ordered(self, rows: Rows) -> Rows:
        images = np.sort(rows.images)
        twice = images[1:][images[1:] == images[:-1]]
        if len(twice):
            raise ValueError(f"image {twice[0]} was evaluated twice")
        found = rows.detections.at(np.argsort(rows.detections.image, kind="stable"))
        there = rows.truth.at(np.argsort(rows.truth.image, kind="stable"))
        columns = self._truth() if self._truth is not None else None
        if columns is not None:
            there = _exactly(there, images, TruthRows(**columns))
        return replace(rows, images=images, detections=found, truth=there)

    def compute(self) -> dict[str, float]:
        """Fractions, by the names of ``METRICS``; one that is not defined is left out.

        That is: COCO's for a size of which there is no object; all of them, {}, where there is no
        truth. Means are over the classes that have truth.

        Raises:
            UserError: a score or a box is not a finite number (code 6).
        """
        scores = self._scored()
        if not scores.coco.metrics:
            return {}
        eleven, area = ([of(curve) for curve in scores.curves] for of in (eleven_point, area_under))
        means = {"voc07_map": float(np.nanmean(eleven)), "voc10_map": float(np.nanmean(area))}
        return {**scores.coco.metrics, **means}

    def per_class(self) -> dict[str, float]:
        """AP at IoU .5 by VOC's area (2010) of every class that has truth: means to voc10_map."""
        return self._of_classes([area_under(curve) for curve in self._scored().curves])

    def curves(self) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
        """(recall, precision) of every class with truth at IoU .5, detection by detection (VOC)."""
        curves = zip(self.classes, self._scored().curves, strict=True)
        return {name: (one.recall, one.precision) for name, one in curves if one.positives}

    def coco_curves(self) -> dict[str, NDArray[np.float64]]:
        """(101,) COCO's precision of every class with truth at IoU .5 and recall 0, .01, ... 1."""
        precision = self._scored().coco.precision
        rows = zip(self.classes, precision, strict=True)
        return {name: row for name, row in rows if not np.isnan(row).any()}

    def details(self) -> dict[str, Any]:
        """What a program may want beside the metrics, as plain values.

        ``errors`` and ``confusion`` (K + 1 rows of truth, the background last) are of the
        detections from the threshold on. ``scores`` counts them all, right and wrong at IoU .5;
        ``sizes`` counts objects that are demanded, all and those found, by the root of their area.
        """
        scores, rows = self._scored(), self.rows()
        confusion = detection_errors.confusion_matrix(
            scores.found, rows.truth, scores.errors, len(self.classes)
        )
        return {
            "classes": list(self.classes),
            "images": len(rows.images),
            "objects": int((~rows.truth.ignored).sum()),
            "ignored_objects": int(rows.truth.ignored.sum()),
            "detections": len(rows.detections),
            "per_class": {  # within, as means have these names
                "coco_ap": self._of_classes(scores.coco.ap.tolist()),
                "coco_ap50": self._of_classes(scores.coco.ap50.tolist()),
                "voc07_ap": self._of_classes([eleven_point(curve) for curve in scores.curves]),
                "voc10_ap": self._of_classes([area_under(curve) for curve in scores.curves]),
            },
            "threshold": self.threshold,
            "errors": self.errors(),
            "right": scores.errors.right,
            "confusion": confusion.tolist(),
            "scores": _histograms(self.scores(), detection_errors.score_histogram),
            "sizes": _histograms(self.areas(), detection_errors.size_histogram),
        }

    def errors(self) -> dict[str, int]:
        """How many errors there are of each kind, see ``detection_errors``."""
        return self._scored().errors.counts

    def scores(self) -> dict[str, NDArray[np.floating]]:
        """The scores of all detections that are right, and of those that are wrong, by VOC."""
        curves = self._scored().curves
        return {
            name: np.concatenate([curve.scores[curve.right == right] for curve in curves])
            for name, right in (("right", True), ("wrong", False))
        }

    def areas(self) -> dict[str, NDArray[np.floating]]:
        """The areas in pixels of all objects that are demanded, and of those that are found."""
        truth, taken = self.rows().truth, self._scored().errors.taken
        taken = taken[taken != detection_errors.NONE]
        return {"objects": truth.area[~truth.ignored], "found": truth.area[taken]}

    def results(self, category_ids: Sequence[int], image_ids: Sequence[int]) -> list[dict]:
        """Everything found as COCO's list of results: bbox is x, y, width, height.

        Args:
            category_ids: the data set's own id of each class.
            image_ids: the data set's own id of each image, by its position.
        """
        found = self.rows().detections
        boxes = found.boxes.astype(np.float64)
        boxes[:, 2:] -= boxes[:, :2]
        columns = (found.image, found.labels, boxes, found.scores)
        return [
            {
                "image_id": image_ids[image],
                "category_id": category_ids[label],
                "bbox": box,
                "score": score,
            }
            for image, label, box, score in zip(*(c.tolist() for c in columns), strict=True)
        ]

    def _scored(self) -> _Scores:
        if self._scores is None:
            rows, k = self.rows(), len(self.classes)
            found, truth = rows.detections, rows.truth
            curves = voc_curves(found, truth, k)
            coco = coco_ap.coco_scores(found, truth, rows.images, k)
            found = found.at(found.scores >= self.threshold)
            errors = detection_errors.find_errors(found, truth, k)
            self._scores = _Scores(coco, curves, found, errors)
        return self._scores

    def _of_classes(self, values: Sequence[float]) -> dict[str, float]:
        return {n: float(v) for n, v in zip(self.classes, values, strict=True) if v == v}


def rows_of(predictions: Predictions, targets: Targets) -> Rows:
    """The boxes of a batch without the rows that pad them."""
    images = targets.image_id.cpu().numpy().astype(np.int64)
    found = (predictions.boxes, predictions.scores, predictions.labels)
    there = (targets.boxes, targets.labels, targets.crowd, targets.difficult, targets.area)
    return Rows(
        images,
        DetectionRows(*_unpadded(images, predictions.labels, found)),
        TruthRows(*_unpadded(images, targets.labels, there)),
    )


def _unpadded(images: Index, labels: Any, columns: Sequence[Any]) -> list[Any]:
    """(N, ...) padded columns -> the image of each row that is one, and those rows."""
    arrays = []
    for column in columns:
        assert column is not None, "a detector's predictions and truth have all their columns"
        array = column.detach().cpu()
        if array.is_floating_point() and array.dtype != torch.float64:
            array = array.float()
        arrays.append(array.numpy())
    there = labels.cpu().numpy() >= 0  # (N, R)
    image = np.broadcast_to(images[:, None], there.shape)
    return [image[there], *(array[there] for array in arrays)]


def _exactly(there: TruthRows, images: Index, exact: TruthRows) -> TruthRows:
    """The rows of ``exact`` that ``there`` says in rounded numbers; ``images`` are theirs."""
    exact = exact.at(np.isin(exact.image, images))
    same = (np.array_equal(getattr(exact, name), getattr(there, name)) for name in _DISCRETE)
    if not all(same):
        raise ValueError("the data set's own truth of these images is not that of their targets")
    return replace(there, **vars(exact))


_DISCRETE = ("image", "labels", "crowd", "difficult")  # columns that no rounding changes


def joined(parts: Sequence[Any]) -> Any:
    """Records of one kind, of arrays or of such records -> one with the rows of all."""
    first = parts[0]
    if isinstance(first, np.ndarray):
        return np.concatenate(parts)
    names = [field.name for field in fields(first)]
    return type(first)(*(joined([getattr(part, name) for part in parts]) for name in names))


def _histograms(groups: dict[str, Any], histogram: Any) -> dict[str, Any]:
    counted = {name: histogram(values) for name, values in groups.items()}
    (_, edges), *_ = counted.values()
    return {"edges": edges, **{name: counts for name, (counts, _) in counted.items()}}
