"""COCO's keypoints: what is true of a sample, the skeleton, and each way to be wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from cnnctl.data import coco_index
from cnnctl.data.coco import COCO
from cnnctl.data.coco_boxes import COCOBoxes
from cnnctl.data.coco_points import COCOPoints
from cnnctl.data.coco_skeletons import skeleton_of
from cnnctl.data.faults import Faulty
from cnnctl.errors import UserError

COCO_NAMES = (
    *("nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder"),
    *("left_elbow", "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip"),
    *("left_knee", "right_knee", "left_ankle", "right_ankle"),
)
PERSON = {
    **{"id": 1, "name": "person", "keypoints": ["nose", "left_eye", "right_eye"]},
    "skeleton": [[1, 2], [3, 1]],
}
BALL = {"id": 37, "name": "ball"}
NONE = [0.0] * 9


def person(number: int, image: int, points: Any, **more: Any) -> dict[str, Any]:
    row = {"id": number, "image_id": image, "category_id": 1, "bbox": [2, 3, 20, 30], "area": 200}
    return {**row, "keypoints": points, **more}


def write(root: Path, rows: list[dict[str, Any]], *categories: dict[str, Any]) -> Path:
    file = root / "mine.json"
    (root / "images").mkdir(exist_ok=True)
    images = [{"id": n, "height": 40, "width": 60, "file_name": f"{n}.png"} for n in (1, 2)]
    for row in images:
        Image.new("RGB", (60, 40)).save(root / "images" / row["file_name"])
    said = {"images": images, "annotations": rows, "categories": [*(categories or (PERSON,))]}
    file.write_text(json.dumps(said))
    return file


def own(root: Path, rows: list[dict[str, Any]], *categories: dict[str, Any], **more: Any):
    file = write(root, rows, *categories)
    shares: Any = {"validation": 0.0, "test": 0.0, **more}
    return COCOPoints("train", annotations=str(file), images=str(root / "images"), **shares)


ROWS = [
    person(5, 2, [10, 11, 2, 12.5, 9, 1, 99, 99, 0], num_keypoints=2),
    {"id": 6, "image_id": 2, "category_id": 37, "bbox": [0, 0, 5, 5]},
    person(7, 2, NONE, iscrowd=1, num_keypoints=0),
    person(8, 1, [1, 2, 1, 3, 4, 2, 5, 6, 2]),
]


def test_figures_are_those_of_the_file(tmp_path: Path):
    data = own(tmp_path, ROWS, PERSON, BALL)
    assert data.classes == ("person",)  # a ball has no points
    truth = data[1][1]
    assert truth["keypoints"].tolist() == [
        [[10, 11, 2], [12.5, 9, 1], [0, 0, 0]],
        [[0, 0, 0]] * 3,
    ]
    assert truth["boxes"].tolist() == [[2, 3, 22, 33]] * 2
    assert truth["crowd"].tolist() == [False, True]
    assert truth["swap"].tolist() == [0, 2, 1]
    assert data[0][1]["keypoints"].tolist() == [[[1, 2, 1], [3, 4, 2], [5, 6, 2]]]
    assert data.skeleton is not None
    assert data.skeleton.names == ("nose", "left_eye", "right_eye")
    assert data.skeleton.sticks == ((0, 1), (2, 0))
    assert data.skeleton.sigmas == (0.026, 0.025, 0.025)
    assert len(data.all_truth()["image"]) == 3


def test_figures_come_from_the_cache_as_from_the_file(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(coco_index, "_LARGE", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    first = own(tmp_path, ROWS, PERSON, BALL)
    again = COCOPoints(
        "train",
        annotations=str(tmp_path / "mine.json"),
        images=str(tmp_path / "images"),
        validation=0.0,
        test=0.0,
    )
    assert (tmp_path / "cache").exists()
    assert again.skeleton == first.skeleton
    assert torch.equal(again[1][1]["keypoints"], first[1][1]["keypoints"])
    assert again.fingerprint() == first.fingerprint()
    assert again.fingerprint() != COCOBoxes.fingerprint(again)


def test_coco_has_cocos_skeleton():
    skeleton = skeleton_of((COCO_NAMES, ((0, 1),)))
    expected = [26, 25, 25, 35, 35, 79, 79, 72, 72, 62, 62, 107, 107, 87, 87, 89, 89]
    assert [round(1000 * sigma) for sigma in skeleton.sigmas] == expected
    assert skeleton.swap == tuple((n, n + 1) for n in range(1, 17, 2))
    assert skeleton.reference == (5, 12)  # left shoulder, right hip
    other = skeleton_of((("tip", "left_end", "eye"), ()))
    assert other.sigmas == (0.07,) * 3
    assert other.swap == ()
    assert other.reference == (0, 2)


def test_an_image_without_a_figure_has_no_points(tmp_path: Path):
    data = own(tmp_path, ROWS[:1])
    truth = data[0][1]
    assert truth["keypoints"].shape == (0, 3, 3)
    assert truth["boxes"].shape == (0, 4)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"keypoints": None}, "keypoints: is missing"),
        ({"keypoints": [1, 2, 2]}, "keypoints: is 3 numbers, must be x, y and visibility of 3"),
        ({"keypoints": "here"}, "keypoints: is text"),
        ({"keypoints": [1, "2", 2, *NONE[3:]]}, "keypoints: holds text"),
        ({"keypoints": [1, float("nan"), 2, *NONE[3:]]}, "keypoints: holds nan"),
        ({"keypoints": [1, 1e9, 2, *NONE[3:]]}, "no place in an image"),
        ({"keypoints": [1, 2, 3, *NONE[3:]]}, "a visibility is 3"),
        ({"keypoints": [1, 2, 0.5, *NONE[3:]]}, "a visibility is 0.5"),
        ({"num_keypoints": 2}, "num_keypoints: is 2, 1 points have a visibility"),
    ],
)
def test_wrong_points_are_named(tmp_path: Path, row: dict[str, Any], problem: str):
    wrong = {**person(88, 1, [1, 2, 2, *NONE[3:]]), **row}
    with pytest.raises(Faulty) as caught:
        own(tmp_path, [person(5, 2, NONE), wrong])
    assert problem in str(caught.value)
    assert "annotations[1] (id 88)" in str(caught.value)
    # Boxes do without.
    file, images = tmp_path / "mine.json", tmp_path / "images"
    boxes = COCOBoxes("train", annotations=str(file), images=str(images), validation=0, test=0)
    assert len(boxes) == 2


@pytest.mark.parametrize(
    ("category", "problem"),
    [
        ({"keypoints": ["a", "a", "b"]}, "two points have one name"),
        ({"keypoints": []}, "must be a list of names"),
        ({"keypoints": [1, 2, 3]}, "must be a list of names"),
        ({"skeleton": [[0, 1]]}, "no pair of points from 1 to 3"),
        ({"skeleton": [[1, 2, 3]]}, "no pair of points"),
    ],
)
def test_wrong_categories_are_named(tmp_path: Path, category: dict[str, Any], problem: str):
    with pytest.raises(Faulty, match=problem):
        own(tmp_path, ROWS[:1], {**PERSON, **category})


def test_categories_must_have_the_same_points(tmp_path: Path):
    with pytest.raises(UserError, match="different keypoints, or with none"):
        own(tmp_path, [ROWS[1]], BALL)
    dog = {**PERSON, "id": 18, "name": "dog", "keypoints": ["nose", "left_eye", "tail"]}
    rows = [ROWS[0], {**person(9, 1, NONE), "category_id": 18}]
    with pytest.raises(UserError, match="different keypoints"):
        own(tmp_path, rows, PERSON, dog)
    assert own(tmp_path, rows, PERSON, dog, classes=("dog",)).classes == ("dog",)


def test_it_is_what_coco_serves_and_has_files_of_its_own(tmp_path: Path):
    assert COCO.serving(("boxes", "keypoints")) is COCOPoints
    assert COCOPoints.option() == "coco"
    with pytest.raises(UserError, match=r"person_keypoints_train2017\.json"):
        COCOPoints("train", str(tmp_path))
