"""COCO's twelve numbers: identical to pycocotools, on published sets and on random ones."""

import contextlib
import copy
import io
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from cnnctl.errors import Exit, UserError
from cnnctl.metrics.box_rows import DetectionRows, TruthRows
from cnnctl.metrics.coco_ap import METRICS, CocoScores, coco_scores

BOX = [10.0, 10, 30, 30]


def pycocotools(truth: dict[str, Any], results: list[dict[str, Any]]) -> Any:
    """Its evaluation of annotations and results as they are in files."""
    with contextlib.redirect_stdout(io.StringIO()):
        there: Any = COCO()
        there.dataset = copy.deepcopy(truth)
        there.createIndex()
        found = there.loadRes(copy.deepcopy(results))
        evaluation = COCOeval(there, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def columns(
    truth: dict[str, Any], results: list[dict[str, Any]]
) -> tuple[DetectionRows, TruthRows, np.ndarray, int]:
    """What a file says, as the columns that are scored: category ids become 0..K-1."""
    numbers = {k: n for n, k in enumerate(sorted(c["id"] for c in truth["categories"]))}
    there = truth["annotations"]

    def boxes(records: list[dict[str, Any]]) -> np.ndarray:
        corners = np.array([record["bbox"] for record in records], np.float64).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        return corners

    def column(records: list[dict[str, Any]], name: str, kind: type) -> np.ndarray:
        return np.array([record[name] for record in records], kind)

    def labels(records: list[dict[str, Any]]) -> np.ndarray:
        return np.array([numbers[record["category_id"]] for record in records], np.int64)

    return (
        DetectionRows(
            column(results, "image_id", np.int64),
            boxes(results),
            column(results, "score", np.float64),
            labels(results),
        ),
        TruthRows(
            column(there, "image_id", np.int64),
            boxes(there),
            labels(there),
            column(there, "iscrowd", bool),
            np.zeros(len(there), bool),
            column(there, "area", np.float64),
        ),
        column(truth["images"], "id", np.int64),
        len(numbers),
    )


def assert_identical(scores: CocoScores, evaluation: Any) -> None:
    stats = dict(zip(METRICS, evaluation.stats.tolist(), strict=True))
    # The sums are the same numbers added in another order.
    assert scores.metrics == pytest.approx({n: v for n, v in stats.items() if v >= 0}, abs=1e-14)
    precision = evaluation.eval["precision"][:, :, :, 0, 2]  # (IoU, recall, class)
    precision = np.where(precision < 0, np.nan, precision)
    np.testing.assert_allclose(scores.precision, precision[0].T, atol=1e-14)
    np.testing.assert_allclose(scores.ap50, precision[0].mean(0), atol=1e-14)
    np.testing.assert_allclose(scores.ap, precision.mean((0, 1)), atol=1e-14)


def random_files(seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Crowds, equal scores, exact IoUs of .5, images without boxes, ids with gaps.

    Coordinates are whole halves, so that corners and sides say exactly the same.
    """
    rng = np.random.default_rng(seed)
    images = rng.choice(10_000, 5, replace=False).tolist()
    kinds = rng.choice(np.arange(1, 91), 3, replace=False).tolist()
    scale = float(rng.choice([2, 8, 32]))

    def boxes(count: int) -> list[list[float]]:
        corners, sides = rng.integers(0, 4, (count, 2)), rng.integers(1, 12, (count, 2)) / 2
        return (np.hstack([corners, sides]) * scale).tolist()

    annotations = [
        {
            "id": number,
            "image_id": int(rng.choice(images)),
            "category_id": int(rng.choice(kinds)),
            "bbox": box,
            "area": box[2] * box[3] * float(rng.choice([0.5, 1])),
            "iscrowd": int(rng.random() < 0.15),
        }
        for number, box in enumerate(boxes(int(rng.integers(1, 30))), 1)
    ]
    results = []
    for box in boxes(int(rng.integers(1, 80))):
        near = annotations[rng.integers(len(annotations))]
        if rng.random() < 0.6:
            box = (np.array(near["bbox"]) + rng.integers(0, 2, 4) * scale / 2).tolist()
        results.append(
            {
                "image_id": near["image_id"] if rng.random() < 0.8 else int(rng.choice(images)),
                "category_id": near["category_id"],
                "bbox": box,
                "score": int(rng.integers(0, 10)) / 10,
            }
        )
    truth = {
        "images": [{"id": image} for image in images],
        "categories": [{"id": k} for k in kinds],
        "annotations": annotations,
    }
    return truth, results


@pytest.mark.parametrize("twenty", range(10))
def test_random_sets_are_scored_as_pycocotools_does(twenty):
    means = []
    for seed in range(20 * twenty, 20 * twenty + 20):
        truth, results = random_files(seed)
        scores = coco_scores(*columns(truth, results))
        if not all(record["iscrowd"] for record in truth["annotations"]):
            assert_identical(scores, pycocotools(truth, results))
            means.append(scores.metrics["coco_ap"])
    assert 0.02 < float(np.mean(means)) < 0.9


def test_more_than_a_hundred_detections_of_a_class_in_an_image():
    truth, _ = random_files(3)
    near = truth["annotations"][0]
    rng = np.random.default_rng(0)
    results = [
        {
            "image_id": near["image_id"],
            "category_id": near["category_id"],
            "bbox": [*near["bbox"][:2], *(rng.random(2) * 60).tolist()],
            "score": float(rng.integers(50)) / 50,
        }
        for _ in range(150)
    ]
    assert_identical(coco_scores(*columns(truth, results)), pycocotools(truth, results))


def one_box(label: int = 0, **changed: np.ndarray) -> tuple[DetectionRows, TruthRows]:
    """One truth and one detection in its place."""
    there = {
        "image": np.zeros(1, np.int64),
        "boxes": np.array([BOX]),
        "labels": np.array([label]),
        "crowd": np.zeros(1, bool),
        "difficult": np.zeros(1, bool),
        "area": np.array([400.0]),
    }
    truth = TruthRows(**{**there, **changed})
    return DetectionRows(truth.image, truth.boxes, np.array([0.5]), truth.labels), truth


def test_the_first_box_of_the_first_image_and_class():
    """Ids of 0 are where both programs score nothing."""
    scores = coco_scores(*one_box(), np.array([0]), 1)
    assert scores.metrics == {name: 1 for name in METRICS if not name.endswith(("medium", "large"))}
    assert scores.ap.tolist() == scores.ap50.tolist() == [1]
    assert scores.precision.tolist() == [[1] * 101]


def test_a_class_without_truth_is_not_a_number_and_not_in_the_means():
    scores = coco_scores(*one_box(label=1), np.array([0, 5]), 3)
    assert [math.isnan(value) for value in scores.ap] == [True, False, True]
    assert scores.metrics["coco_ap"] == 1


def test_nothing_found():
    detections, truth = one_box()
    nothing = detections.at(np.zeros(0, np.int64))
    scores = coco_scores(nothing, truth, np.array([0, 1]), 2)
    assert scores.metrics == {name: 0 for name in METRICS if not name.endswith(("medium", "large"))}
    assert scores.ap50[0] == 0
    assert scores.precision[0].tolist() == [0] * 101


@pytest.mark.parametrize("mark", ["crowd", "difficult"])
def test_nothing_that_is_demanded(mark):
    detections, truth = one_box(0, **{mark: np.ones(1, bool)})
    for there in (truth, truth.at(np.zeros(0, np.int64))):
        scores = coco_scores(detections, there, np.array([0]), 2)
        assert scores.metrics == {}
        assert np.isnan(scores.ap).all()
        assert scores.precision.shape == (2, 101)


def test_difficult_is_neither_demanded_nor_penalised():
    _, truth = one_box(
        image=np.zeros(3, np.int64),
        boxes=np.array([BOX, [60, 60, 80, 80], [5, 60, 25, 80]]),
        labels=np.zeros(3, np.int64),
        crowd=np.zeros(3, bool),
        difficult=np.array([False, True, True]),
        area=np.full(3, 400.0),
    )
    found = truth.at(np.arange(2))  # the third is not found
    detections = DetectionRows(found.image, found.boxes, np.array([0.5, 0.9]), found.labels)
    scores = coco_scores(detections, truth, np.array([0]), 1).metrics
    assert (scores["coco_ap"], scores["coco_ar100"]) == (1, 1)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_a_number_never_reaches_native_code(bad):
    detections, truth = one_box()
    with pytest.raises(UserError, match="not a finite number") as refused:
        coco_scores(
            DetectionRows(truth.image, truth.boxes, np.array([bad]), truth.labels),
            truth,
            np.array([0]),
            1,
        )
    assert refused.value.code == Exit.DIVERGED
    _, broken = one_box(boxes=np.array([[0, 0, bad, 1]]))
    with pytest.raises(UserError, match="image 0: a truth box") as refused:
        coco_scores(detections, broken, np.array([0]), 1)
    assert refused.value.code == Exit.DATA


def test_a_box_of_an_image_that_was_not_looked_at():
    with pytest.raises(ValueError, match="not looked at"):
        coco_scores(*one_box(), np.array([1]), 1)


def published(folder: str, truth: str, results: str) -> tuple[dict[str, Any], list[dict]]:
    root = Path(os.environ.get("CNNCTL_DATA", "nowhere")) / "eval_reference" / folder
    if not root.is_dir():
        pytest.skip(f"$CNNCTL_DATA does not hold eval_reference/{folder}")
    found = json.loads((root / results).read_text())
    return json.loads((root / truth).read_text()), (
        found["annotations"] if isinstance(found, dict) else found
    )


FAKE100 = "505 697 573 586 519 501 387 594 595 640 566 564"
SAMPLED = "503647 696973 571667 593252 557991 489363 386813 593680 595353 654764 603130 553744"


@pytest.mark.data
@pytest.mark.parametrize(
    ("folder", "truth", "results", "expected"),
    [
        (
            "coco_fake100",
            "instances_val2014_100.json",
            "instances_val2014_fakebbox100_results.json",
            FAKE100,
        ),
        ("coco_sampled", "sampled_gts_bbox_area.json", "sampled_bbox_results.json", SAMPLED),
    ],
)
def test_published_numbers(folder, truth, results, expected):
    there, found = published(folder, truth, results)
    scores = coco_scores(*columns(there, found))
    digits = len(expected.split()[0])
    measured = [f"{value:.{digits}f}".removeprefix("0.") for value in scores.metrics.values()]
    assert list(scores.metrics) == list(METRICS)
    assert measured == expected.split()
    assert_identical(scores, pycocotools(there, found))
