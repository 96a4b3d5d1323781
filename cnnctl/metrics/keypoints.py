"""How right the points of figures are: COCO's OKS AP, PCK and PCP.

OKS AP: COCO's keypoint evaluation (Lin et al., "Microsoft COCO: Common Objects in Context",
arXiv:1405.0312, and its site), as the authors' program pycocotools computes it: AP of detections
whose overlap with a figure is its object keypoint similarity, the mean over its labelled points of
exp(-d^2 / (2 area (2 sigma)^2)); at most 20 detections of a class in an image; no small figures.

PCK: the share of points that are within 0.2 of a reference length, the torso of a person (Yang and
Ramanan, "Articulated human detection with flexible mixtures of parts", TPAMI 2013, with the
reference that is usual for LSP). PCP: the share of sticks both of whose ends are within half of the
stick's length ("strict" PCP; Ferrari, Marin-Jimenez and Zisserman, "Progressive search space
reduction for human pose estimation", CVPR 2008).

Points are (..., J, 3): x, y in original pixels, and visibility (0 none, 1 hidden, 2 seen) of the
truth, a score of what was found. Hidden points count as those that are seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnnctl.errors import Exit, UserError
from cnnctl.metrics.box_rows import DetectionRows, Index, TruthRows
from cnnctl.skeleton import Pairs

OKS = (
    *("coco_oks_ap", "coco_oks_ap50", "coco_oks_ap75", "coco_oks_ap_medium", "coco_oks_ap_large"),
    *("coco_oks_ar", "coco_oks_ar50", "coco_oks_ar75", "coco_oks_ar_medium", "coco_oks_ar_large"),
)
PCK, PCP = "pck20", "pcp50"
PCK_SHARE, PCP_SHARE = 0.2, 0.5  # of the reference length, of a stick

Points = NDArray[np.floating]  # (..., J, 3)


@dataclass(frozen=True)
class Figures:
    """Everything found and everything there, row by row.

    Args:
        found: D detections; points: (D, J, 3) of each.
        truth: R figures; true_points: (R, J, 3) of each.
    """

    found: DetectionRows
    points: Points
    truth: TruthRows
    true_points: Points

    @property
    def demanded(self) -> NDArray[np.bool_]:
        """(R,) figures that must be found: with a point, and not ignored."""
        return ~self.truth.ignored & (self.true_points[..., 2] > 0).any(1)

    def check(self) -> None:
        """Refuse what would be scored in silence.

        Raises:
            UserError: a point is not a finite number (code 6 of what was found, 3 of the truth).
        """
        broken = ~np.isfinite(self.points).all((1, 2))
        if broken.any():
            raise UserError(
                f"{int(broken.sum()):,} of {len(self.points):,} detections have a point that is"
                " not a finite number",
                advice="the training had diverged, or trainer.precision=fp16 overflowed",
                code=Exit.DIVERGED,
            )
        broken = ~np.isfinite(self.true_points).all((1, 2))
        if broken.any():
            raise UserError(
                "a true point is not a finite number",
                record=f"image {self.truth.image[broken][0]}",
                advice="correct the annotation",
                code=Exit.DATA,
            )


@dataclass(frozen=True)
class OksScores:
    """What COCO's protocol says.

    Args:
        metrics: those of ``OKS`` that are defined, as fractions; {} where nothing is demanded.
        ap: (K,) mean over OKS .50:.95 of each class; NaN for one without figures.
    """

    metrics: dict[str, float]
    ap: NDArray[np.float64]


def oks_scores(
    figures: Figures, images: Index, sigmas: Sequence[float], num_classes: int
) -> OksScores:
    """Score all detections by the similarity of their points.

    Args:
        images: (N,) ids of all images that were looked at.
        sigmas: (J,) of the points.

    Raises:
        UserError: a point is not a finite number.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    figures.check()
    nothing = np.full(num_classes, np.nan)
    if not figures.demanded.any():
        return OksScores({}, nothing)
    shared = {
        "images": [{"id": image} for image in images.tolist()],
        "categories": [{"id": k} for k in range(1, num_classes + 1)],
    }
    evaluation = COCOeval_faster(
        COCO({**shared, "annotations": _truth_records(figures)}),
        COCO({**shared, "annotations": _found_records(figures)}),
        "keypoints",
        kpt_oks_sigmas=list(sigmas),
    )
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    values = zip(OKS, map(float, evaluation.stats), strict=True)
    # (OKS, recall, classes that there are, area, most detections), -1 where undefined
    precision = np.asarray(evaluation.eval["precision"])[:, :, :, 0, -1]
    known = np.array(evaluation.params.catIds) - 1
    nothing[known] = np.where(precision < 0, np.nan, precision).mean((0, 1))
    return OksScores({name: value for name, value in values if value >= 0}, nothing)


def _truth_records(figures: Figures) -> list[dict[str, Any]]:
    truth, points = figures.truth, figures.true_points
    boxes = truth.boxes.astype(np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    counts = (points[..., 2] > 0).sum(1)
    columns = (
        *(truth.image, truth.labels + 1, boxes, truth.area, truth.ignored.astype(int)),
        *(counts, flattened(points)),
    )
    return [
        {
            **{"id": i, "image_id": image, "category_id": k, "bbox": box, "area": area},
            **{"iscrowd": crowd, "num_keypoints": count, "keypoints": flat},
        }
        for i, (image, k, box, area, crowd, count, flat) in enumerate(
            zip(*(column.tolist() for column in columns), strict=True), 1
        )
    ]


def _found_records(figures: Figures) -> list[dict[str, Any]]:
    """A detection is as large as the rectangle around all its points."""
    found, points = figures.found, figures.points.astype(np.float64)
    low, high = points[..., :2].min(1), points[..., :2].max(1)  # (D, 2)
    sides = high - low
    columns = (
        *(found.image, found.labels + 1, np.concatenate([low, sides], 1), sides.prod(1)),
        *(found.scores, flattened(points)),
    )
    return [
        {
            **{"id": i, "image_id": image, "category_id": k, "bbox": box, "area": area},
            **{"iscrowd": 0, "score": score, "keypoints": flat},
        }
        for i, (image, k, box, area, score, flat) in enumerate(
            zip(*(column.tolist() for column in columns), strict=True), 1
        )
    ]


def flattened(points: Points) -> NDArray[np.float64]:
    """(n, J, 3) -> (n, 3 * J), for n of 0 too."""
    return points.astype(np.float64).reshape(len(points), 3 * points.shape[1])


def owners(figures: Figures) -> Index:
    """(R,) the detection that each demanded figure is judged by; -1: none.

    Of each image and class the likeliest detection takes the figure whose labelled points are the
    nearest to its own on average, the next one the nearest of the rest, and so on: where an image
    has one figure, it is judged by the likeliest detection, wherever that is.
    """
    owner = np.full(len(figures.truth), -1)
    taken = figures.found, figures.truth
    keys = [rows.image * (1 + _largest(*taken)) + rows.labels for rows in taken]
    order = np.argsort(-figures.found.scores, kind="stable")
    order = order[np.argsort(keys[0][order], kind="stable")]  # the likeliest of a group first
    rows = np.flatnonzero(figures.demanded)
    rows = rows[np.argsort(keys[1][rows], kind="stable")]
    groups, starts, counts = np.unique(keys[1][rows], return_index=True, return_counts=True)
    first, last = (np.searchsorted(keys[0][order], groups, side) for side in ("left", "right"))
    for start, count, begin, end in zip(starts, counts, first, last, strict=True):
        free = rows[start : start + count]
        for detection in order[begin:end]:
            if not len(free):
                break
            points, truth = figures.points[detection], figures.true_points[free]
            nearest = int(_mean_distance(points, truth).argmin())
            owner[free[nearest]] = detection
            free = np.delete(free, nearest)
    return owner


def _largest(*several: DetectionRows | TruthRows) -> int:
    return max(int(rows.labels.max(initial=0)) for rows in several)


def _mean_distance(points: Points, truth: Points) -> NDArray[np.float64]:
    """(J, 3) and (F, J, 3) -> (F,) mean distance of labelled points."""
    labelled = truth[..., 2] > 0
    apart = np.hypot(*np.moveaxis(truth[..., :2] - points[:, :2], -1, 0))  # (F, J)
    return np.where(labelled, apart, 0).sum(1) / labelled.sum(1)


@dataclass(frozen=True)
class Shares:
    """How many of each point, or stick, are right, of how many."""

    right: Index
    counted: Index

    @property
    def each(self) -> NDArray[np.float64]:
        """The share of each; NaN where none was counted."""
        return self.right / np.where(self.counted, self.counted, np.nan)

    @property
    def mean(self) -> float | None:
        """Of all together; None where nothing was counted."""
        return float(self.right.sum() / self.counted.sum()) if self.counted.any() else None


def pck(
    figures: Figures, owner: Index, reference: tuple[int, int], share: float = PCK_SHARE
) -> Shares:
    """Points (J,) within a share of the distance of two true points, the reference.

    A figure whose reference has no label, or no length, is not counted.

    Args:
        owner: (R,) of ``owners``.
    """
    truth, found, there = _judged(figures, owner)
    length = _length(truth, reference)
    counted = (truth[..., 2] > 0) & (length > 0)[:, None]  # (F, J)
    right = counted & there & (_apart(found, truth) <= share * length[:, None])
    return Shares(right.sum(0), counted.sum(0))


def pcp(figures: Figures, owner: Index, sticks: Pairs, share: float = PCP_SHARE) -> Shares:
    """Sticks (S,) both of whose ends are within a share of the true stick's length.

    Args:
        owner: (R,) of ``owners``.
    """
    truth, found, there = _judged(figures, owner)
    apart = _apart(found, truth)
    columns = []
    for stick in sticks:
        length = _length(truth, stick)
        near = (apart[:, list(stick)] <= share * length[:, None]).all(1)
        columns.append((near & there[:, 0] & (length > 0), length > 0))
    right, counted = (np.array([column[i].sum() for column in columns], int) for i in (0, 1))
    return Shares(right, counted)


def _judged(figures: Figures, owner: Index) -> tuple[Points, Points, NDArray[np.bool_]]:
    """Of demanded figures: their points, those found (F, J, 3), and is there a detection (F, 1)?"""
    rows = figures.demanded
    there = owner[rows] >= 0
    found = np.zeros_like(figures.true_points[rows], np.float64)
    found[there] = figures.points[owner[rows][there]]
    return figures.true_points[rows].astype(np.float64), found, there[:, None]


def _apart(found: Points, truth: Points) -> NDArray[np.float64]:
    return np.hypot(found[..., 0] - truth[..., 0], found[..., 1] - truth[..., 1])


def _length(truth: Points, ends: tuple[int, int]) -> NDArray[np.float64]:
    """(F,) distance of two points; 0 where one of them has no label."""
    a, b = truth[:, ends[0]], truth[:, ends[1]]
    return np.where((a[:, 2] > 0) & (b[:, 2] > 0), _apart(a, b), 0.0)
