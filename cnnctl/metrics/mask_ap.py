"""Average precision of masks: COCO's twelve numbers, VOC's area (AP^r) and boundary AP.

* COCO's ``segm`` is its protocol for boxes (``coco_ap``) with the IoU of masks and the area of the
  mask; run lengths are compared by native code and figures are identical to pycocotools'.
* AP^r is Hariharan, Arbelaez, Girshick and Malik, "Simultaneous Detection and Segmentation" (ECCV
  2014, arXiv:1407.1808), section 3: VOC's protocol (``average_precision``) with the IoU of masks.
* Boundary AP is Cheng, Girshick, Dollar, Berg and Kirillov, "Boundary IoU: Improving
  Object-Centric Image Segmentation Evaluation" (arXiv:2103.16562), section 5: COCO's AP with the
  smaller one of the IoU of masks and that of the pixels within d of their contours, inside; d is
  2 % of the image's diagonal. A crowd is compared as a mask alone, as in the authors' program.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnnctl.metrics import coco_ap
from cnnctl.metrics.average_precision import Curve, curves_by, pairs_of_classes
from cnnctl.metrics.box_rows import Index, check
from cnnctl.metrics.mask_rows import MaskDetections, MaskTruth, areas, run_lengths

COCO_METRICS = tuple(name.replace("coco_", "coco_mask_") for name in coco_ap.METRICS)
THRESHOLDS = {"voc_mask_ap50": 0.5, "voc_mask_ap70": 0.7}  # IoU of AP^r
METRICS = (*COCO_METRICS, *THRESHOLDS)
BOUNDARY = "coco_boundary_ap"
_DILATION = 0.02  # d, of the diagonal
_LEAST = 0.5  # IoU from which COCO counts a detection at all


@dataclass(frozen=True)
class MaskScores:
    """What the protocols say.

    Args:
        coco: as of boxes; its metrics have the names of boxes.
        curves: of each of ``THRESHOLDS``, one of each class.
        boundary: None where it was not asked for.
    """

    coco: coco_ap.CocoScores
    curves: dict[str, list[Curve]]
    boundary: coco_ap.CocoScores | None


def mask_scores(
    detections: MaskDetections,
    truth: MaskTruth,
    images: Index,
    num_classes: int,
    boundary: bool = False,
) -> MaskScores:
    """Score all detections by their masks; no two are compared twice.

    Args:
        images: (N,) ids of all images that were looked at.

    Raises:
        UserError: a box or score is not a finite number.
    """
    check(detections, truth, num_classes)
    own = areas(detections)
    groups = _Groups(detections, truth, num_classes)
    a, b = pairs_of_classes(detections, truth, num_classes)
    shared = np.zeros(len(a))
    begins = np.searchsorted(a, np.arange(len(detections)))
    masks: dict[tuple[int, int], NDArray[np.float64]] = {}
    contours: dict[tuple[int, int], NDArray[np.float64]] = {}
    for key, found, there in groups:
        compared = _compared(detections.at(found), truth.at(there))
        shared[begins[found, None] + np.arange(len(there))] = _mutual(
            compared, own[found], truth.at(there)
        )
        masks[key] = compared[: coco_ap.LOOKED_AT]
        if boundary:
            few = found[: coco_ap.LOOKED_AT]
            contours[key] = _of_contours(masks[key], detections.at(few), truth.at(there))
    rows = (detections, truth, images, num_classes)
    return MaskScores(
        coco_ap.coco_scores(*rows, coco_ap.Regions(own, masks)),
        {
            name: curves_by(detections, truth, num_classes, (a, b, shared), threshold)
            for name, threshold in THRESHOLDS.items()
        },
        coco_ap.coco_scores(*rows, coco_ap.Regions(own, contours)) if boundary else None,
    )


@dataclass(frozen=True)
class _Groups:
    """The detections and the truths of each image and class that has both."""

    detections: MaskDetections
    truth: MaskTruth
    num_classes: int

    def __iter__(self) -> Iterator[tuple[tuple[int, int], Index, Index]]:
        """((image, class), detections from the highest score down, truths in order)."""
        found, there = self._keys
        ranked = np.lexsort((-self.detections.scores, found))  # stable
        order = np.argsort(there, kind="stable")
        both = np.intersect1d(found, there)
        edges = [
            np.searchsorted(keys[rows], both, side)
            for keys, rows in ((found, ranked), (there, order))
            for side in ("left", "right")
        ]
        for key, first, last, begin, end in zip(both.tolist(), *edges, strict=True):
            yield divmod(key, self.num_classes), ranked[first:last], order[begin:end]

    @cached_property
    def _keys(self) -> tuple[Index, Index]:
        rows = (self.detections, self.truth)
        found, there = (part.image * self.num_classes + part.labels for part in rows)
        return found, there


def _compared(found: MaskDetections, there: MaskTruth) -> NDArray[np.float64]:
    """(d, r) IoU; with an ignored truth the share of the detection's own area, as COCO has it."""
    return _iou(run_lengths(found), run_lengths(there), there.ignored)


def _iou(found: list[dict], there: list[dict], ignored: NDArray[np.bool_]) -> NDArray[np.float64]:
    from faster_coco_eval.core import mask as native

    return np.asarray(native.iou(found, there, ignored.astype(int).tolist()))


def _mutual(
    compared: NDArray[np.float64], own: NDArray[np.float64], there: MaskTruth
) -> NDArray[np.float64]:
    """(d, r) IoU with ignored truths too, as VOC has it; pixels are whole numbers."""
    ignored = np.flatnonzero(there.ignored)
    if not len(ignored):
        return compared
    compared = compared.copy()
    common = np.rint(compared[:, ignored] * own[:, None])
    either = own[:, None] + areas(there.at(ignored)) - common
    compared[:, ignored] = common / np.maximum(either, 1)
    return compared


def _of_contours(
    masks: NDArray[np.float64], found: MaskDetections, there: MaskTruth
) -> NDArray[np.float64]:
    """(d, r) the smaller one of IoU and boundary IoU; ``masks`` as it is for ignored truths.

    An IoU below all thresholds decides nothing, and stays what it is: contours take a hundred
    times as long as masks.
    """
    near = (masks >= _LEAST) & ~there.ignored
    few, some = (np.flatnonzero(near.any(axis)) for axis in (1, 0))
    if not len(few):
        return masks
    masks = masks.copy()
    none = np.zeros(len(some), bool)
    contours = _iou(_contours(found.at(few)), _contours(there.at(some)), none)
    masks[np.ix_(few, some)] = np.minimum(masks[np.ix_(few, some)], contours)
    return masks


def _contours(rows: MaskDetections | MaskTruth) -> list[dict[str, Any]]:
    """The pixels within d of the contour of each mask, inside; the image's border is one."""
    from faster_coco_eval.core import mask as native

    diagonals = np.hypot(*rows.sizes.T.astype(np.float64))
    shares = []
    for diagonal in diagonals.tolist():
        # Rounded as in the authors' program: the native one does so in float32, and 1.5 becomes 1.
        shares.append(max(1, round(_DILATION * diagonal)) / diagonal)
    both = zip(run_lengths(rows), shares, strict=True)
    return [native.rleToBoundary(mask, share) for mask, share in both]
