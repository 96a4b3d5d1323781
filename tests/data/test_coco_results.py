"""Results in COCO's format: what they become, and each way in which they can be wrong."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cnnctl.data.base import Dataset
from cnnctl.data.coco_boxes import COCOBoxes
from cnnctl.data.coco_results import Results, read_results
from cnnctl.errors import Exit, UserError
from cnnctl.metrics.detection import METRICS
from cnnctl.structures import collate
from cnnctl.tasks.detect import detect


class Three(Dataset):
    """Images 7, 5 and 9 with two classes of ids 90 and 3, in this order."""

    classes = ("toothbrush", "cat")
    category_ids = (90, 3)
    image_ids = np.array([7, 5, 9])

    def __len__(self):
        return 3

    def __getitem__(self, index):
        raise NotImplementedError

    def fingerprint(self):
        return ""


class Plain(Dataset):
    """A data set that knows no ids."""

    classes = ("a", "b")
    __len__, __getitem__, fingerprint = Three.__len__, Three.__getitem__, Three.fingerprint


def result(image: Any, category: Any, box: Any, score: Any) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "bbox": box, "score": score}


def read(folder: Path, said: Any, data: Dataset | None = None) -> Results:
    file = folder / "results.json"
    file.write_text(said if isinstance(said, str) else json.dumps(said))
    return read_results(file, data or Three())


GOOD = [
    result(9, 3, [1, 2, 3, 4], 0.25),
    result(7, 90, [0.5, 0, 0, 2], 0.5),
    result(9, 90, [-1, -2, 500, 6], 1),
    result(9, 3, [1, 2, 3, 4], 0.25),
    result(9, 90, [5, 5, 5, 5], 0.25),
]


def test_rows_by_image_and_score(tmp_path):
    found = read(tmp_path, GOOD)
    assert (len(found), found.images) == (5, 3)
    assert found.image.tolist() == [0, 2, 2, 2, 2]
    assert found.scores.tolist() == [0.5, 1, 0.25, 0.25, 0.25]
    assert found.labels.tolist() == [0, 0, 1, 1, 0], "equal scores in the file's order"
    assert found.boxes[:3].tolist() == [[0.5, 0, 0.5, 2], [-1, -2, 499, 4], [1, 2, 4, 6]]
    whole = read(tmp_path, {"info": {}, "annotations": GOOD})
    assert np.array_equal(whole.boxes, found.boxes)
    assert len(read(tmp_path, [])) == 0


def test_predictions_of_some_images(tmp_path):
    found = read(tmp_path, GOOD).predictions(0, 3)
    assert found.boxes is not None
    assert found.labels is not None
    assert found.scores is not None
    assert found.boxes.dtype == found.scores.dtype == torch.float64
    assert found.labels.tolist() == [[0, -1, -1, -1], [-1] * 4, [0, 1, 1, 0]]
    assert found.scores.tolist() == [[0.5, 0, 0, 0], [0] * 4, [1, 0.25, 0.25, 0.25]]
    assert found.boxes[0].tolist() == [[0.5, 0, 0.5, 2], [0] * 4, [0] * 4, [0] * 4]
    part = read(tmp_path, GOOD).predictions(1, 3)
    assert part.labels is not None
    assert part.labels.tolist() == found.labels[1:].tolist()
    none = read(tmp_path, GOOD).predictions(1, 2)
    assert none.boxes is not None
    assert none.boxes.shape == (1, 0, 4)


def test_ids_count_from_one_where_the_data_has_none(tmp_path):
    found = read(tmp_path, [result(3, 1, [0, 0, 1, 1], 0.5)], Plain())
    assert (found.image.tolist(), found.labels.tolist()) == ([2], [0])
    with pytest.raises(UserError, match="image_id: 0 is no id of an image of this split"):
        read(tmp_path, [result(0, 1, [0, 0, 1, 1], 0.5)], Plain())


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("image_id", 6, "image_id: 6 is no id of an image of this split"),
        ("image_id", "7", "image_id: is text, must be a whole number"),
        ("image_id", 7.0, "image_id: is the number 7.0, must be a whole number"),
        ("image_id", 2**70, "image_id: is beyond 64 bits"),
        ("category_id", 4, "category_id: 4 is no id of a class: 3 to 90, with gaps"),
        ("category_id", None, "category_id: is null, must be a whole number"),
        ("bbox", [1, 2, 3], "bbox: has 3 numbers, must have 4: [x, y, width, height]"),
        ("bbox", [1, 2, 3, 4, 5], "bbox: has 5 numbers, must have 4: [x, y, width, height]"),
        ("bbox", "1234", "bbox: is text, must be [x, y, width, height]"),
        ("bbox", [1, 2, "3", 4], "bbox[2]: is text, must be a number"),
        ("bbox", [1, 2, True, 4], "bbox[2]: is true or false, must be a number"),
        ("bbox", [1, 2, 3, float("nan")], "bbox[3]: is not finite"),
        ("bbox", [1, 2, float("inf"), 4], "bbox[2]: is not finite"),
        ("bbox", [1, 2, 10**400, 4], "bbox[2]: is not finite"),
        ("bbox", [1, 2, 1e39, 4], "bbox: [1, 2, 1e+39, 4] is beyond any image"),
        ("bbox", [1, 2, 3, -1], "bbox: [1, 2, 3, -1] has a negative width or height"),
        ("score", float("nan"), "score: is not finite"),
        ("score", float("-inf"), "score: is not finite"),
        ("score", "0.5", "score: is text, must be a number"),
        ("score", True, "score: is true or false, must be a number"),
        ("score", None, "score: is null, must be a number"),
    ],
)
def test_results_that_are_wrong(tmp_path, key, value, words):
    rows = [*GOOD, {**GOOD[0], key: value}, {**GOOD[0], key: value}]
    with pytest.raises(UserError) as caught:
        read(tmp_path, rows)
    assert caught.value.problem == f"{words} (and 1 more fault)"
    assert caught.value.record == "results[5]"
    assert caught.value.file == str(tmp_path / "results.json")
    assert caught.value.code == Exit.DATA
    assert caught.value.advice
    del rows[5][key]
    with pytest.raises(UserError, match=f"{key}: is missing"):
        read(tmp_path, {"annotations": rows[:6]})


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("", "is no whole JSON file"),
        ('[{"image_id": 7}', "is no whole JSON file"),
        ("7", "holds the number 7, must hold a list of results"),
        ({"images": []}, "holds an object, must hold a list of results"),
        ({"annotations": 5}, "holds an object, must hold a list of results"),
        ([7], r"results\[0\]: is the number 7, must be an object"),
    ],
)
def test_files_that_are_no_results(tmp_path, said, words):
    with pytest.raises(UserError, match=words) as caught:
        read(tmp_path, said)
    assert caught.value.code == Exit.DATA
    assert caught.value.advice


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_results(tmp_path / "none.json", Three())


def reference(name: str) -> Path:
    root = os.environ.get("CNNCTL_DATA")
    if root is None or not (Path(root) / "eval_reference" / name).is_dir():
        pytest.skip("$CNNCTL_DATA does not hold eval_reference")
    return Path(root) / "eval_reference" / name


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "truth", "found", "published"),
    [
        (
            "coco_fake100",
            "instances_val2014_100.json",
            "instances_val2014_fakebbox100_results.json",
            (0.505, 0.697, 0.573, 0.586, 0.519, 0.501, 0.387, 0.594, 0.595, 0.640, 0.566, 0.564),
        ),
        (
            "coco_sampled",
            "sampled_gts_bbox_area.json",
            "sampled_bbox_results.json",
            (
                *(0.503647, 0.696973, 0.571667, 0.593252, 0.557991, 0.489363),
                *(0.386813, 0.593680, 0.595353, 0.654764, 0.603130, 0.553744),
            ),
        ),
    ],
)
def test_published_scores_from_files(tmp_path, coco_api, name, truth, found, published):
    """The files of others through every part of ours, to the twelve numbers that they print."""
    file = reference(name) / truth
    for row in json.loads(file.read_text())["images"]:
        (tmp_path / row["file_name"]).touch()  # no image is read
    place: Any = {"annotations": str(file), "images": str(tmp_path)}
    data = COCOBoxes("train", **place, validation=0.0, test=0.0)
    results = read_results(reference(name) / found, data)
    evaluator = detect().evaluator(data)
    for start in range(0, len(data), 7):  # batch by batch, with targets as a loader makes them
        stop = min(start + 7, len(data))
        pixel = torch.zeros(1, 1, 1, dtype=torch.uint8)
        batch = collate([(index, pixel, data.truth(index)) for index in range(start, stop)])
        evaluator.update(results.predictions(start, stop), batch.targets)
    scores = [evaluator.compute()[name] for name in METRICS[:12]]
    digits = 3 if name == "coco_fake100" else 6
    assert tuple(round(score, digits) for score in scores) == published
    expected = coco_api(file, reference(name) / found)
    assert scores == pytest.approx(expected, rel=0, abs=1e-12)
