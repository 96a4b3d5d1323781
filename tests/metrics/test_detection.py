"""The evaluator of detectors: the same figures for any batches and processes, and by hand."""

import contextlib
import io
import json
import math
import os
import pickle
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import parse

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from cnnctl.errors import Exit, UserError
from cnnctl.metrics.detection import METRICS, DetectionEvaluator
from cnnctl.structures import Predictions, Targets

CLASSES = ("cat", "dog", "cow")
BOX = [10.0, 10, 30, 30]
FAR = [50.0, 50, 80, 80]


def batch_of(
    rows: list[tuple[int, list[tuple], list[tuple]]], wide: int = 0
) -> tuple[Predictions, Targets]:
    """(id, detections (label, score, box), truth (label, box[, mark])) of each image, padded."""
    d = wide + max(len(found) for _, found, _ in rows)
    r = wide + max(len(there) for *_, there in rows)
    n = len(rows)
    predictions = Predictions(
        boxes=torch.zeros(n, d, 4), scores=torch.zeros(n, d), labels=torch.full((n, d), -1)
    )
    columns = {
        "boxes": torch.zeros(n, r, 4),
        "labels": torch.full((n, r), -1),
        "crowd": torch.zeros(n, r, dtype=torch.bool),
        "difficult": torch.zeros(n, r, dtype=torch.bool),
        "area": torch.zeros(n, r),
    }
    for row, (_, found, there) in enumerate(rows):
        for place, (label, score, box) in enumerate(found):
            assert predictions.labels is not None
            assert predictions.scores is not None
            assert predictions.boxes is not None
            predictions.labels[row, place] = label
            predictions.scores[row, place] = score
            predictions.boxes[row, place] = torch.tensor(box)
        for place, (label, box, *mark) in enumerate(there):
            x0, y0, x1, y1 = box
            columns["boxes"][row, place] = torch.tensor(box)
            columns["labels"][row, place] = label
            columns["area"][row, place] = (x1 - x0) * (y1 - y0)
            for name in mark:
                columns[name][row, place] = True
    return predictions, Targets(torch.tensor([number for number, *_ in rows]), **columns)


def evaluator_of(*rows: tuple[int, list[tuple], list[tuple]]) -> DetectionEvaluator:
    evaluator = DetectionEvaluator(CLASSES)
    evaluator.update(*batch_of(list(rows)))
    return evaluator


def random_rows(seed: int, images: int) -> list[tuple[int, list[tuple], list[tuple]]]:
    generator = np.random.default_rng(seed)
    rows = []
    for number in generator.permutation(10 * images)[:images].tolist():
        found, there = [], []
        for _ in range(int(generator.integers(0, 5))):
            x, y = (generator.integers(0, 4, 2) * 10.0).tolist()
            side = float(generator.choice([8, 40, 120]))
            label, mark = int(generator.integers(0, 3)), generator.random()
            box = [x, y, x + side, y + side]
            marks = ["crowd"] if mark < 0.1 else ["difficult"] if mark > 0.9 else []
            there.append((label, box, *marks))
            for _ in range(int(generator.integers(0, 3))):
                moved = (np.array(box) + generator.choice([0, 0, 2, 5], 4)).tolist()
                said = label if generator.random() < 0.8 else 0
                found.append((said, generator.integers(1, 10) / 10, moved))
        found.sort(key=lambda row: -row[1])
        rows.append((number, found, there))
    return rows


def cut(rows: list, size: int) -> list[list]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def test_names():
    assert len(METRICS) == 14
    assert DetectionEvaluator(CLASSES).names == (*METRICS, "loss")
    everything = evaluator_of(*random_rows(0, 30)).compute()
    assert tuple(everything) == METRICS
    assert all(0 < value < 1 for value in everything.values())


def test_by_hand():
    """Cat: a wrong one first, then right; dog: never found; cow: not there."""
    evaluator = evaluator_of(
        (4, [(0, 0.9, FAR), (0, 0.8, BOX)], [(0, BOX), (1, FAR)]),
        (2, [], []),
        (9, [], [(1, BOX, "difficult")]),
    )
    assert evaluator.per_class() == {"cat": 0.5, "dog": 0}
    quarter = ["coco_ap", "coco_ap50", "coco_ap75", "coco_ap_small", "voc07_map", "voc10_map"]
    half = ["coco_ar10", "coco_ar100", "coco_ar_small"]
    expected = {**dict.fromkeys(quarter, 0.25), **dict.fromkeys(half, 0.5)}
    # The most likely cat is the wrong one; no object is of medium size or large.
    assert evaluator.compute() == pytest.approx({**expected, "coco_ar1": 0})
    recall, precision = evaluator.curves()["cat"]
    assert recall.tolist() == [0, 1]
    assert precision.tolist() == [0, 0.5]
    assert set(evaluator.curves()) == set(evaluator.coco_curves()) == {"cat", "dog"}
    assert evaluator.coco_curves()["cat"] == pytest.approx(np.full(101, 0.5))
    assert {kind: count for kind, count in evaluator.errors().items() if count} == {
        "classification": 1  # and the dog that was taken for a cat is not missed
    }
    assert {name: values.tolist() for name, values in evaluator.scores().items()} == {
        "right": [pytest.approx(0.8)],
        "wrong": [pytest.approx(0.9)],
    }


def test_exported_results_score_the_same_with_pycocotools():
    """To the last digit: sides of float32 boxes are exact in a file."""
    evaluator, category_ids, images = evaluator_of(*random_rows(2, 12)), [90, 3, 18], range(120)
    truth = evaluator.rows().truth
    annotations = [
        {
            "id": number,
            "image_id": image,
            "category_id": category_ids[label],
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "area": area,
            "iscrowd": ignored,
        }
        for number, (image, label, (x0, y0, x1, y1), area, ignored) in enumerate(
            zip(
                *(truth.image.tolist(), truth.labels.tolist(), truth.boxes.tolist()),
                *(truth.area.tolist(), truth.ignored.astype(int).tolist()),
                strict=True,
            ),
            1,
        )
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        there: Any = COCO()
        there.dataset = {
            "images": [{"id": image} for image in images],
            "categories": [{"id": k} for k in category_ids],
            "annotations": annotations,
        }
        there.createIndex()
        results = json.loads(json.dumps(evaluator.results(category_ids, images)))
        evaluation = COCOeval(there, there.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    metrics = evaluator.compute()
    assert [metrics[name] for name in METRICS[:12]] == pytest.approx(evaluation.stats, abs=1e-14)


EXACT = {
    "image": np.array([3, 7, 9]),
    "boxes": np.array([[0, 0, 0.4, 1], [0, 0, 5, 5], [0, 0, 0.4, 1]]),
    "labels": np.array([0, 1, 0]),
    "crowd": np.zeros(3, bool),
    "difficult": np.zeros(3, bool),
    "area": np.array([0.4, 25, 0.4]),
}
THREE_QUARTERS = [0, 0, 3 * 0.1, 1]  # of [0, 0, 0.4, 1], whose float32 is larger


def rounded(image: int) -> tuple[Predictions, Targets]:
    """A cat of EXACT with the detection, in float64, that covers three quarters of it."""
    predictions, targets = batch_of([(image, [(0, 0.5, THREE_QUARTERS)], [(0, [0, 0, 0.4, 1])])])
    predictions.boxes = torch.tensor([[THREE_QUARTERS]], dtype=torch.float64)
    return predictions, targets


def test_the_rounding_of_targets_does_not_decide():
    rough = DetectionEvaluator(CLASSES)
    rough.update(*rounded(3))
    assert rough.compute()["coco_ap75"] == 0
    parts = [DetectionEvaluator(CLASSES, truth=lambda: EXACT) for _ in range(2)]
    for part, image in zip(parts, (9, 3), strict=True):
        part.update(*rounded(image))
    parts[0].merge([parts[1].rows()])
    assert parts[0].compute()["coco_ap75"] == 1
    rows = parts[0].rows()
    assert rows.truth.image.tolist() == [3, 9], "the dog of image 7 was not looked for"
    assert rows.truth.boxes.dtype == rows.detections.boxes.dtype == np.float64
    assert rows.truth.area.tolist() == [0.4, 0.4]


def test_coarser_predictions_are_float32():
    predictions, targets = rounded(3)
    assert predictions.boxes is not None
    predictions.boxes = predictions.boxes.bfloat16()
    evaluator = DetectionEvaluator(CLASSES, truth=lambda: None)
    evaluator.update(predictions, targets)
    assert evaluator.rows().detections.boxes.dtype == np.float32
    assert evaluator.rows().truth.boxes.dtype == np.float32, "no truth of its own: the targets"


@pytest.mark.parametrize("change", ["absent", "labels", "crowd"])
def test_truth_that_is_not_that_of_the_targets(change):
    other = {name: column.copy() for name, column in EXACT.items()}
    if change == "absent":
        other = {name: column[1:] for name, column in other.items()}
    else:
        other[change][0] = 1
    evaluator = DetectionEvaluator(CLASSES, truth=lambda: other)
    evaluator.update(*rounded(3))
    with pytest.raises(ValueError, match="own truth of these images is not that of their targets"):
        evaluator.compute()


@pytest.mark.parametrize(("batch", "processes"), [(1, 1), (2, 3), (5, 2), (20, 1)])
def test_figures_do_not_depend_on_batches_or_processes(batch, processes):
    rows = random_rows(1, 20)
    whole = DetectionEvaluator(CLASSES)
    whole.update(*batch_of(sorted(rows)))
    parts = [DetectionEvaluator(CLASSES) for _ in range(processes)]
    for number, some in enumerate(cut(rows, batch)):
        parts[number % processes].update(*batch_of(some, wide=number))
    last = parts.pop()
    last.merge([pickle.loads(pickle.dumps(part.rows())) for part in parts])
    assert last.compute() == whole.compute()  # to the last bit
    assert last.details() == whole.details()
    assert last.results([1, 2, 3], range(200)) == whole.results([1, 2, 3], range(200))


def test_figures_follow_what_is_added():
    evaluator = evaluator_of((0, [(0, 0.9, BOX)], [(0, BOX)]))
    assert evaluator.compute()["voc10_map"] == 1
    evaluator.update(*batch_of([(1, [], [(0, BOX)])]))
    assert evaluator.compute()["voc10_map"] == 0.5
    assert evaluator.details()["images"] == 2


def test_an_image_that_is_given_twice_is_refused():
    evaluator = evaluator_of((3, [], [(0, BOX)]))
    evaluator.merge([evaluator_of((3, [], [(0, BOX)])).rows()])
    with pytest.raises(ValueError, match="image 3 was evaluated twice"):
        evaluator.compute()


def test_rows_are_small_and_hold_on_to_nothing():
    predictions, targets = batch_of([(0, [(0, 0.9, BOX)], [(0, BOX)])], wide=1000)
    evaluator = DetectionEvaluator(CLASSES)
    evaluator.update(predictions, targets)
    assert len(pickle.dumps(evaluator.rows())) < 3000
    predictions.boxes.fill_(math.nan)  # pyright: ignore[reportOptionalMemberAccess]
    targets.boxes.fill_(math.nan)  # pyright: ignore[reportOptionalMemberAccess]
    targets.image_id.fill_(7)
    assert evaluator.compute()["coco_ap"] == 1
    assert evaluator.rows().images.tolist() == [0]


def test_predictions_of_half_precision_made_in_inference_mode():
    with torch.inference_mode():
        predictions, targets = batch_of([(0, [(0, 0.75, BOX)], [(0, BOX)])])
        assert predictions.scores is not None
        predictions.scores = predictions.scores.bfloat16()
        evaluator = DetectionEvaluator(CLASSES)
        evaluator.update(predictions, targets)
    assert evaluator.compute()["coco_ap"] == 1
    assert evaluator.rows().detections.scores.tolist() == [0.75]
    assert evaluator.rows().detections.boxes.dtype == np.float32


@pytest.mark.parametrize("place", ["scores", "boxes"])
def test_a_network_that_diverged_is_no_score(place):
    predictions, targets = batch_of([(0, [(0, 0.9, BOX)], [(0, BOX)])])
    column: Tensor = getattr(predictions, place)
    column.fill_(math.nan)
    evaluator = DetectionEvaluator(CLASSES)
    evaluator.update(predictions, targets)
    with pytest.raises(UserError, match="1 of 1 detections") as refused:
        evaluator.compute()
    assert refused.value.code == Exit.DIVERGED


def test_nothing():
    empty = DetectionEvaluator(CLASSES)
    for evaluator in (empty, evaluator_of((0, [(0, 0.9, BOX)], []))):
        assert evaluator.compute() == {}
        assert evaluator.per_class() == evaluator.curves() == evaluator.coco_curves() == {}
        assert evaluator.details()["images"] == (evaluator is not empty)
    missed = evaluator_of((0, [], [(0, BOX)]))
    assert set(missed.compute().values()) == {0}
    assert "coco_ap_large" not in missed.compute()


def test_details_are_plain_values():
    evaluator = evaluator_of(
        (0, [(0, 0.9, BOX), (1, 0.6, FAR), (1, 0.4, BOX)], [(0, BOX), (2, FAR), (1, BOX, "crowd")]),
        (1, [], []),
    )
    details = evaluator.details()
    assert json.loads(json.dumps(details)) == details
    assert details["classes"] == list(CLASSES)
    assert (details["images"], details["objects"], details["ignored_objects"]) == (2, 2, 1)
    assert (details["detections"], details["right"], details["threshold"]) == (3, 1, 0.5)
    ap = details["per_class"]
    assert ap["voc10_ap"] == ap["voc07_ap"] == {"cat": 1, "cow": 0}
    assert ap["coco_ap"] == ap["coco_ap50"] == {"cat": pytest.approx(1), "cow": 0}
    assert not details.keys() & evaluator.compute().keys(), "both go into one record"
    assert details["errors"]["classification"] == sum(details["errors"].values()) == 1
    assert details["confusion"] == [[1, 0, 0, 0], [0] * 4, [0, 1, 0, 0], [0] * 4]
    # The one in the crowd is neither right nor wrong.
    assert [sum(details["scores"][name]) for name in ("right", "wrong")] == [1, 1]
    assert details["sizes"]["objects"] == [0, 0, 0, 2, *[0] * 6]
    assert details["sizes"]["found"] == [0, 0, 0, 1, *[0] * 6]


def test_results_have_the_data_sets_own_ids():
    evaluator = evaluator_of((1, [(2, 0.5, [1, 2, 11, 22])], []), (0, [(0, 0.25, BOX)], []))
    assert evaluator.results([18, 3, 90], [777, 42]) == [
        {"image_id": 777, "category_id": 18, "bbox": [10, 10, 20, 20], "score": 0.25},
        {"image_id": 42, "category_id": 90, "bbox": [1, 2, 10, 20], "score": 0.5},
    ]


def numbers_of(file: Path) -> list[list[float]]:
    return [[float(word) for word in line.split()] for line in file.read_text().splitlines()]


@pytest.mark.data
def test_a_real_detector_on_voc_images():
    """Recorded detections of 83 images, none on two more; every protocol's mean is its classes'."""
    root = Path(os.environ.get("CNNCTL_DATA", "nowhere"))
    folder = root / "eval_reference/voc100_detections/abs_xyx2y2"
    annotations = sorted((root / "VOCdevkit/VOC2012/Annotations").glob("*.xml"))
    if not (folder.is_dir() and annotations):
        pytest.skip("$CNNCTL_DATA does not hold eval_reference/voc100_detections and VOC2012")
    classes = sorted({e.text or "" for f in annotations for e in parse(f).iterfind("object/name")})
    assert len(classes) == 20  # and in the order of the files of detections
    rows = []
    for number, file in enumerate(annotations):
        said = folder / f"{file.stem}.txt"
        found = numbers_of(said) if said.exists() else []
        there = []
        for thing in parse(file).iterfind("object"):
            corners = [thing.findtext(f"bndbox/{n}", "") for n in ("xmin", "ymin", "xmax", "ymax")]
            x0, y0, x1, y1 = map(float, corners)
            mark = ["difficult"] if thing.findtext("difficult") == "1" else []
            there.append(
                (classes.index(thing.findtext("name", "")), [x0 - 1, y0 - 1, x1, y1], *mark)
            )
        found = [(int(k), p, [x0 - 1, y0 - 1, x1, y1]) for k, p, x0, y0, x1, y1 in found]
        rows.append((number, sorted(found, key=lambda row: -row[1]), there))
    evaluator = DetectionEvaluator(classes)
    evaluator.update(*batch_of(rows))
    metrics, details = evaluator.compute(), evaluator.details()
    assert details["images"] == 85
    for name, of_classes in (("voc07_map", "voc07_ap"), ("coco_ap50", "coco_ap50")):
        assert metrics[name] == pytest.approx(np.mean([*details["per_class"][of_classes].values()]))
    assert 0.3 < metrics["coco_ap"] < metrics["coco_ap50"] < 1
    assert metrics["coco_ap50"] == pytest.approx(metrics["voc10_map"], abs=0.02)
