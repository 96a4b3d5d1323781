"""Average precision of masks: identical to pycocotools, by hand, and against dense pixels."""

import contextlib
import copy
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as mask_api
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from cnnctl.metrics.average_precision import area_under
from cnnctl.metrics.coco_ap import METRICS
from cnnctl.metrics.mask_ap import MaskScores, mask_scores
from cnnctl.metrics.mask_rows import MaskDetections, MaskTruth, VoidRows, areas, without_void
from cnnctl.ops.run_lengths import encode

api: Any = mask_api


def pycocotools(truth: dict[str, Any], results: list[dict[str, Any]]) -> Any:
    """Its evaluation of masks: boxes are left out, whose area it would take for the masks'."""
    with contextlib.redirect_stdout(io.StringIO()):
        there: Any = COCO()
        there.dataset = copy.deepcopy(truth)
        there.createIndex()
        masks = [{n: v for n, v in row.items() if n != "bbox"} for row in results]
        evaluation = COCOeval(there, there.loadRes(copy.deepcopy(masks)), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def mask_columns(truth: dict[str, Any], records: list[dict[str, Any]]) -> dict[str, Any]:
    """Of annotations or results: everything but what only one of them has."""
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    numbers = {k: n for n, k in enumerate(sorted(c["id"] for c in truth["categories"]))}
    of = [sizes[record["image_id"]] for record in records]
    return {
        "image": np.array([record["image_id"] for record in records], np.int64),
        "boxes": np.zeros((len(records), 4)),
        "labels": np.array([numbers[record["category_id"]] for record in records], np.int64),
        "sizes": np.array(of, np.int32).reshape(-1, 2),
        "counts": np.array(
            [counts_of(r["segmentation"], size) for r, size in zip(records, of, strict=True)],
            object,
        ),
    }


def counts_of(shape: Any, size: tuple[int, int]) -> bytes:
    if isinstance(shape, list):
        return api.merge(api.frPyObjects(shape, *size))["counts"]
    if isinstance(shape["counts"], list):
        return api.frPyObjects(shape, *size)["counts"]
    return shape["counts"].encode()


def scored(truth: dict[str, Any], results: list[dict[str, Any]], **more: Any) -> MaskScores:
    there = truth["annotations"]
    return mask_scores(
        MaskDetections(
            **mask_columns(truth, results), scores=np.array([row["score"] for row in results])
        ),
        MaskTruth(
            **mask_columns(truth, there),
            crowd=np.array([row["iscrowd"] for row in there], bool),
            difficult=np.zeros(len(there), bool),
            area=np.array([row["area"] for row in there], np.float64),
        ),
        np.array([image["id"] for image in truth["images"]]),
        len(truth["categories"]),
        **more,
    )


def assert_identical(scores: MaskScores, evaluation: Any) -> None:
    stats = dict(zip(METRICS, evaluation.stats.tolist(), strict=True))
    # The sums are the same numbers added in another order.
    expected = pytest.approx({n: v for n, v in stats.items() if v >= 0}, abs=1e-14)
    assert scores.coco.metrics == expected
    precision = evaluation.eval["precision"][:, :, :, 0, 2]  # (IoU, recall, class)
    precision = np.where(precision < 0, np.nan, precision)
    np.testing.assert_allclose(scores.coco.precision, precision[0].T, atol=1e-14)
    np.testing.assert_allclose(scores.coco.ap, precision.mean((0, 1)), atol=1e-14)


def blob(rng: np.random.Generator, size: tuple[int, int], centre: Any, radius: float) -> np.ndarray:
    """(h, w) bool: an ellipse with a bite or a hole, seldom nothing."""
    y, x = np.mgrid[: size[0], : size[1]]
    dy, dx = (y - centre[0]) / radius, (x - centre[1]) / (radius * rng.uniform(0.5, 1.5))
    shape = dy**2 + dx**2 < 1
    shape &= (dy - rng.uniform(-1, 1)) ** 2 + (dx - rng.uniform(-1, 1)) ** 2 > 0.2
    return shape if rng.random() > 0.05 else shape & False


def compressed(mask: np.ndarray) -> dict[str, Any]:
    counts = api.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]
    return {"size": list(mask.shape), "counts": counts.decode()}


def random_files(seed: int, most: int = 40) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Crowds, equal scores, images without objects or detections, images of several sizes."""
    rng = np.random.default_rng(seed)
    images = [
        {"id": int(i), "height": int(h), "width": int(w)}
        for i, h, w in zip(
            rng.choice(10_000, 5, replace=False), *rng.choice([24, 80, 130], (2, 5)), strict=True
        )
    ]
    kinds = rng.choice(np.arange(1, 91), 3, replace=False).tolist()
    annotations, results = [], []
    for number in range(1, int(rng.integers(2, most // 2))):
        image = images[rng.integers(4)]
        size = (image["height"], image["width"])
        centre, radius = rng.random(2) * size, rng.choice([4, 12, 30, 70])
        mask = blob(rng, size, centre, radius)
        shape = compressed(mask)
        row = {"image_id": image["id"], "category_id": int(rng.choice(kinds))}
        area = float(mask.sum()) * float(rng.choice([0.5, 1]))  # sizes go by what is said
        crowd = int(rng.random() < 0.15)
        annotations.append(
            {**row, "id": number, "segmentation": shape, "area": area, "iscrowd": crowd}
        )
        for _ in range(int(rng.integers(0, 4))):
            moved = blob(rng, size, centre + rng.normal(0, radius / 9, 2), radius)
            said = shape if rng.random() < 0.3 else compressed(moved)
            score = int(rng.integers(0, 10)) / 10
            results.append({**row, "segmentation": said, "score": score})
    results = [results[place] for place in rng.permutation(len(results))]
    categories = [{"id": k} for k in kinds]
    return {"images": images, "categories": categories, "annotations": annotations}, results


@pytest.mark.parametrize("ten", range(4))
def test_random_sets_are_scored_as_pycocotools_does(ten):
    means = []
    for seed in range(10 * ten, 10 * ten + 10):
        truth, results = random_files(seed)
        if results and not all(record["iscrowd"] for record in truth["annotations"]):
            scores = scored(truth, results)
            assert_identical(scores, pycocotools(truth, results))
            means.append(scores.coco.metrics["coco_ap"])
    assert 0.1 < float(np.mean(means)) < 0.9
    assert len(means) > 7


def test_more_than_a_hundred_detections_of_a_class_in_an_image():
    truth, _ = random_files(3)
    rng = np.random.default_rng(0)
    near = max((row for row in truth["annotations"] if not row["iscrowd"]), key=lambda r: r["area"])
    size = tuple(near["segmentation"]["size"])
    results = [
        {
            **{name: near[name] for name in ("image_id", "category_id")},
            "segmentation": compressed(blob(rng, size, rng.random(2) * size, 8)),
            "score": float(rng.integers(50)) / 50,
        }
        for _ in range(150)
    ]
    low = {**results[0], "segmentation": near["segmentation"], "score": -1.0}
    scores = scored(truth, [*results, low])
    assert_identical(scores, pycocotools(truth, [*results, low]))
    label = sorted(c["id"] for c in truth["categories"]).index(near["category_id"])
    assert scores.curves["voc_mask_ap50"][label].right[-1], "VOC looks at all"


def test_nothing_found_and_nothing_there():
    truth, results = random_files(1)
    scores = scored(truth, [])
    assert set(scores.coco.metrics.values()) == {0}
    kept = [row for row in truth["annotations"] if row["iscrowd"]]
    nothing = scored({**truth, "annotations": kept}, results, boundary=True)
    assert nothing.coco.metrics == {}
    assert nothing.boundary is not None
    assert nothing.boundary.metrics == {}


def rows(
    kind: type, *masks: tuple[int, np.ndarray], scores: list[float] | None = None, **marks: Any
) -> Any:
    """Masks of class 0 in images."""
    n = len(masks)
    columns: dict[str, Any] = {
        "image": np.array([image for image, _ in masks], np.int64),
        "sizes": np.array([mask.shape for _, mask in masks], np.int32).reshape(-1, 2),
        "counts": np.array([encode(mask, 0, 0, mask.shape) for _, mask in masks], object),
    }
    if kind is VoidRows:
        return kind(**columns)
    columns |= {"boxes": np.zeros((n, 4)), "labels": np.zeros(n, np.int64)}
    if scores is not None:
        return kind(**columns, scores=np.array(scores))
    area = np.array([float(mask.sum()) for _, mask in masks])
    free = {"crowd": np.zeros(n, bool), "difficult": np.zeros(n, bool)} | marks
    return kind(**columns, area=area, **free)


def bar(length: int, first: int = 0) -> np.ndarray:
    """(1, 40) with ``length`` pixels from ``first`` on."""
    mask = np.zeros((1, 40), bool)
    mask[0, first : first + length] = True
    return mask


def test_ap_r_by_hand():
    """Three objects of 10 pixels: found with IoU .6, then one wrong, then .9, never; by hand."""
    there = rows(MaskTruth, (0, bar(10)), (0, bar(10, 20)), (1, bar(10)))
    found = rows(
        MaskDetections,
        *((0, bar(6)), (1, bar(10, 30)), (0, bar(9, 20)), (0, bar(10, 20))),
        scores=[0.9, 0.8, 0.7, 0.6],
    )
    curves = mask_scores(found, there, np.arange(2), 1).curves
    half, more = curves["voc_mask_ap50"][0], curves["voc_mask_ap70"][0]
    assert half.right.tolist() == [True, False, True, False], "the last finds what is taken"
    assert more.right.tolist() == [False, False, True, False]
    assert area_under(half) == pytest.approx((1 + 2 / 3) / 3)
    assert area_under(more) == pytest.approx(1 / 3 / 3)


@pytest.mark.parametrize("mark", ["crowd", "difficult"])
def test_ignored_truth_is_compared_by_both_protocols(mark):
    """4 of its 5 pixels in an ignored one of 20: COCO's share is .8, VOC's IoU is .19."""
    ignored: dict[str, Any] = {mark: np.array([False, True])}
    there = rows(MaskTruth, (0, bar(10)), (0, bar(20, 15)), **ignored)
    found = rows(MaskDetections, (0, bar(5, 14)), (0, bar(10)), scores=[0.9, 0.5])
    scores = mask_scores(found, there, np.arange(1), 1)
    assert scores.coco.metrics["coco_ap50"] == 1, "neither right nor wrong"
    assert scores.curves["voc_mask_ap50"][0].right.tolist() == [False, True]
    large = rows(MaskDetections, (0, bar(16, 15)), (0, bar(10)), scores=[0.9, 0.5])
    scores = mask_scores(large, there, np.arange(1), 1)
    assert scores.curves["voc_mask_ap70"][0].right.tolist() == [True], "IoU .8 of the ignored one"


def test_void_is_taken_out_of_what_was_found():
    rng = np.random.default_rng(0)
    masks = [rng.random((7, 9)) < 0.5 for _ in range(4)]
    voids = {1: rng.random((7, 9)) < 0.3, 2: np.ones((7, 9), bool), 3: np.zeros((7, 9), bool)}
    found = rows(MaskDetections, *enumerate(masks), scores=[0.5] * 4)
    void = rows(VoidRows, *voids.items())
    cut = without_void(found, void)
    for image, mask in enumerate(masks):
        kept = mask & ~voids.get(image, np.zeros((7, 9), bool))
        assert cut.counts[image] == encode(kept, 0, 0, (7, 9)), image
    assert areas(found).tolist() == [mask.sum() for mask in masks], "a copy"


def eroded(mask: np.ndarray, times: int) -> np.ndarray:
    """By a 3 x 3 square, with nothing beyond the image."""
    for _ in range(times):
        wide = np.pad(mask, 1)
        near = np.lib.stride_tricks.sliding_window_view(wide, (3, 3))
        mask = np.asarray(near.all((2, 3)))
    return mask


def boundary_iou(one: np.ndarray, other: np.ndarray) -> float:
    """Of dense masks, as section 4 defines it, and the smaller one of it and the IoU of masks."""
    distance = max(1, round(0.02 * float(np.hypot(*one.shape))))
    edges = [mask & ~eroded(mask, distance) for mask in (one, other)]
    return min(
        (a & b).sum() / max((a | b).sum(), 1) for a, b in ((one, other), (edges[0], edges[1]))
    )


@pytest.mark.parametrize("size", [(150, 110), (75, 45), (105, 140), (30, 20)])
def test_boundary_ap_compares_contours(size):
    """Each IoU decides alone: a mask of one image and class is right from its IoU down.

    2 % of a diagonal are 3.72, 1.75, 3.5 (which rounds to 4) and .72 pixels.
    """
    rng = np.random.default_rng(1)
    thresholds, expected = np.linspace(0.5, 0.95, 10), []
    for image in range(10):
        one = blob(rng, size, rng.random(2) * size, rng.uniform(0.15, 0.5) * size[1])
        other = np.roll(one, rng.integers(0, 3, 2).tolist(), (0, 1))
        if not one.any():
            continue
        iou = boundary_iou(one, other)
        there = rows(MaskTruth, (image, one))
        found = rows(MaskDetections, (image, other), scores=[0.5])
        scores = mask_scores(found, there, np.array([image]), 1, boundary=True)
        assert scores.boundary is not None
        assert scores.boundary.metrics["coco_ap"] == pytest.approx((iou >= thresholds).mean())
        expected.append(iou)
    assert 0.2 < np.mean(expected) < 0.95


def test_contours_of_a_crowd_are_not_compared():
    """Half of the detection lies in the crowd, with a contour all of its own."""
    size = (60, 80)
    object_, crowd = np.zeros((2, *size), bool)
    object_[:10, :10] = True
    crowd[20:, :40] = True
    half = np.zeros(size, bool)
    half[30:50, 20:59] = True
    there = rows(MaskTruth, (0, object_), (0, crowd), crowd=np.array([False, True]))
    found = rows(MaskDetections, (0, half), (0, object_), scores=[0.9, 0.5])
    scores = mask_scores(found, there, np.arange(1), 1, boundary=True)
    assert scores.boundary is not None
    assert scores.boundary.metrics["coco_ap50"] == 1
    assert scores.boundary.metrics["coco_ap"] == scores.coco.metrics["coco_ap"] < 1


PUBLISHED = "320 562 299 387 310 327 268 415 417 469 377 381"


@pytest.mark.data
def test_published_numbers():
    root = Path(os.environ.get("CNNCTL_DATA", "nowhere")) / "eval_reference/coco_fake100"
    if not root.is_dir():
        pytest.skip("$CNNCTL_DATA does not hold eval_reference/coco_fake100")
    truth = json.loads((root / "instances_val2014_100.json").read_text())
    found = json.loads((root / "instances_val2014_fakesegm100_results.json").read_text())
    scores = scored(truth, found)
    measured = [f"{value:.3f}".removeprefix("0.") for value in scores.coco.metrics.values()]
    assert measured == PUBLISHED.split()
    assert_identical(scores, pycocotools(truth, found))
