"""Measures of points: OKS AP as pycocotools has it; PCK and PCP by hand."""

from __future__ import annotations

import contextlib
import io
import math
from typing import Any

import numpy as np
import pytest

from cnnctl.errors import Exit, UserError
from cnnctl.metrics.box_rows import DetectionRows, TruthRows
from cnnctl.metrics.keypoints import OKS, Figures, oks_scores, owners, pck, pcp

COCO_SIGMAS = (
    np.array([26, 25, 25, 35, 35, 79, 79, 72, 72, 62, 62, 107, 107, 87, 87, 89, 89]) / 1000
)


def random_figures(seed: int, images: int, classes: int, joints: int) -> Figures:
    """Truth of all sizes, some ignored or without points; detections near it, far, and doubled."""
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.integers(images, size=4 * images))
    count = len(rows)
    corner, sides = rng.uniform(0, 300, (count, 2)), rng.uniform(10, 250, (count, 2))
    points = np.empty((count, joints, 3))
    points[..., :2] = (
        corner[:, None] + sides[:, None] * rng.uniform(0, 1, (count, joints, 2))
    ) // 1
    points[..., 2] = rng.integers(0, 3, (count, joints))
    points[rng.random(count) < 0.1, :, 2] = 0
    points *= points[..., 2:] > 0
    labels = rng.integers(classes, size=count)
    truth = TruthRows(
        rows,
        np.concatenate([corner, corner + sides], 1),
        labels,
        rng.random(count) < 0.08,
        rng.random(count) < 0.05,
        sides.prod(1) * rng.uniform(0.3, 0.9, count),
    )
    source = np.sort(rng.integers(count, size=3 * count))
    noise = (
        rng.choice([0.005, 0.03, 0.2], (len(source), 1, 1)) * sides[source].mean(1)[:, None, None]
    )
    found = points[source].copy()
    found[..., :2] += noise * rng.normal(size=(len(source), joints, 2))
    boxes = truth.boxes[source]
    scores = rng.random(len(source)).round(2)  # with ties
    flipped = np.where(rng.random(len(source)) < 0.1, rng.integers(classes), labels[source])
    return Figures(DetectionRows(rows[source], boxes, scores, flipped), found, truth, points)


def pycocotools_stats(figures: Figures, images: int, sigmas, classes: int) -> np.ndarray:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth: Any = COCO()
        there = figures.truth
        truth.dataset = {
            "info": {},
            "images": [{"id": i} for i in range(images)],
            "categories": [{"id": k + 1} for k in range(classes)],
            "annotations": [
                {
                    "id": i + 1,
                    "image_id": int(there.image[i]),
                    "category_id": int(there.labels[i]) + 1,
                    "bbox": [*box[:2], box[2] - box[0], box[3] - box[1]],
                    "area": float(there.area[i]),
                    "iscrowd": int(there.crowd[i] or there.difficult[i]),
                    "keypoints": figures.true_points[i].flatten().tolist(),
                    "num_keypoints": int((figures.true_points[i, :, 2] > 0).sum()),
                }
                for i, box in enumerate(there.boxes.tolist())
            ],
        }
        truth.createIndex()
        found = figures.found
        results = [
            {
                "image_id": int(found.image[i]),
                "category_id": int(found.labels[i]) + 1,
                "keypoints": figures.points[i].flatten().tolist(),
                "score": float(found.scores[i]),
            }
            for i in range(len(found))
        ]
        evaluation = COCOeval(truth, truth.loadRes(results), "keypoints")
        evaluation.params.kpt_oks_sigmas = np.array(sigmas)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats


@pytest.mark.parametrize(
    ("seed", "classes", "sigmas"), [(0, 1, COCO_SIGMAS), (1, 3, COCO_SIGMAS), (2, 2, (0.05, 0.1))]
)
def test_oks_ap_is_pycocotools(seed, classes, sigmas):
    figures = random_figures(seed, 25, classes, len(sigmas))
    scores = oks_scores(figures, np.arange(25), sigmas, classes)
    expected = pycocotools_stats(figures, 25, sigmas, classes)
    assert 0.1 < expected[0] < 0.9
    assert list(scores.metrics) == list(OKS)
    np.testing.assert_allclose(list(scores.metrics.values()), expected, rtol=0, atol=1e-12)
    assert scores.ap.mean() == pytest.approx(expected[0], abs=1e-12)


def figures_of(points, scores, truth, crowd=None) -> Figures:
    """All in image 0 and of class 0; points (D, J, 2 or 3)."""
    points, truth = np.array(points, float), np.array(truth, float)
    count, there = len(points), len(truth)
    zeros = np.zeros(there, bool)
    return Figures(
        DetectionRows(
            np.zeros(count, int),
            np.zeros((count, 4)),
            np.array(scores, float),
            np.zeros(count, int),
        ),
        points,
        TruthRows(
            np.zeros(there, int),
            np.tile([0.0, 0, 100, 100], (there, 1)),
            np.zeros(there, int),
            zeros if crowd is None else np.array(crowd),
            zeros,
            np.full(there, 10_000.0),
        ),
        truth,
    )


def test_similarity_by_hand():
    """One figure of area 10,000 and sigma 0.05: d = 2 * 100 * 0.05 * sqrt(2 * log(1 / oks)) / 2."""
    for similarity, ap in ((0.81, 0.7), (0.79, 0.6), (0.49, 0.0)):
        far = 10 * math.sqrt(2 * math.log(1 / similarity))
        figures = figures_of([[[50 + far, 50, 1]]], [0.9], [[[50, 50, 2]]])
        scores = oks_scores(figures, np.arange(1), [0.05], 1)
        assert scores.metrics["coco_oks_ap"] == pytest.approx(ap)
        assert "coco_oks_ap_medium" not in scores.metrics  # no figure is medium
    empty = figures_of(np.zeros((0, 1, 3)), [], [[[50, 50, 2]]])
    assert oks_scores(empty, np.arange(1), [0.05], 1).metrics["coco_oks_ap"] == 0
    assert pck(empty, owners(empty), (0, 0)).mean is None
    nothing = figures_of([[[0, 0, 1]]], [0.9], [[[0, 0, 0]]])
    assert oks_scores(nothing, np.arange(1), [0.05], 1).metrics == {}
    assert np.isnan(oks_scores(nothing, np.arange(1), [0.05], 1).ap).all()


def test_pck_and_pcp_by_hand():
    truth = [
        [[0, 0, 2], [10, 0, 2], [10, 10, 1]],
        [[50, 0, 2], [60, 0, 2], [0, 0, 0]],
        [[99, 99, 2], [99, 99, 2], [90, 90, 2]],  # its reference has no length
    ]
    found = [
        [[2, 0, 1], [10, 2.1, 1], [10, 14.9, 1]],
        [[50, 5, 1], [64, 0, 1], [7, 7, 1]],
    ]
    figures = figures_of(found, [0.5, 0.9], truth)
    owner = owners(figures)
    assert owner.tolist() == [0, 1, -1]
    points = pck(figures, owner, (0, 1))
    assert points.right.tolist() == [1, 0, 0]  # 2 of 10 is near, 2.1 is not
    assert points.counted.tolist() == [2, 2, 1]
    assert points.mean == pytest.approx(1 / 5)
    assert pck(figures, owner, (0, 1), 0.5).right.tolist() == [2, 2, 1]
    sticks = pcp(figures, owner, ((0, 1), (1, 2)))
    assert sticks.counted.tolist() == [2, 2]  # the third figure's first has no length
    assert sticks.right.tolist() == [2, 1]
    assert sticks.mean == pytest.approx(3 / 4)
    assert sticks.each.tolist() == [1.0, 0.5]


def test_a_figure_is_judged_by_the_likeliest_detection_that_is_left():
    one = [[[0, 0, 2]]]
    assert owners(figures_of([[[0, 0, 1]], [[90, 90, 1]]], [0.4, 0.6], one)).tolist() == [1]
    two = [[[0, 0, 2]], [[10, 0, 2]]]
    # The likeliest is nearer to the second, so the other one has the first, far as it is.
    found = [[[9, 0, 1]], [[6, 0, 1]], [[0, 0, 1]]]
    assert owners(figures_of(found, [0.2, 0.9, 0.1], two)).tolist() == [0, 1]
    crowd = figures_of(found, [0.2, 0.9, 0.1], two, crowd=[False, True])
    assert owners(crowd).tolist() == [1, -1]
    assert pck(crowd, owners(crowd), (0, 0)).mean is None


def test_points_that_are_no_numbers_are_refused():
    for value in (np.nan, np.inf):
        with pytest.raises(UserError, match="1 of 1 detections") as caught:
            oks_scores(figures_of([[[value, 0, 1]]], [1], [[[0, 0, 2]]]), np.arange(1), [0.1], 1)
        assert caught.value.code == Exit.DIVERGED
        with pytest.raises(UserError, match="true point") as caught:
            oks_scores(figures_of([[[0, 0, 1]]], [1], [[[value, 0, 2]]]), np.arange(1), [0.1], 1)
        assert caught.value.code == Exit.DATA
