"""Keypoints in results of any program: read, boxed, and each way to be wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cnnctl.data.coco_results import read_results
from cnnctl.data.digit_points import DigitPoints
from cnnctl.data.faults import Faulty


@pytest.fixture(scope="module")
def data() -> DigitPoints:
    return DigitPoints("test", size=32, digits=(1, 1), scale=(0.5, 0.9), test_images=3)


def result(**change: Any) -> dict[str, Any]:
    points = [1, 2, 0.5, 9, 2, 0.5, 9, 12, 0.5, 1, 12.5, 0.5, 5, 7, 1]
    return {"image_id": 2, "category_id": 4, "keypoints": points, "score": 0.5, **change}


def read(folder: Path, data: DigitPoints, *rows: dict[str, Any]):
    file = folder / "found.json"
    file.write_text(json.dumps(rows))
    return read_results(file, data, points=5)


def test_points_are_read_in_order_and_boxed(tmp_path: Path, data: DigitPoints):
    other = result(score=0.9, bbox=[0, 0, 3, 3], keypoints=[0] * 15)
    found = read(tmp_path, data, result(), other, result(image_id=1)).predictions(0, 3)
    assert found.keypoints is not None
    assert found.boxes is not None
    assert found.labels is not None
    assert found.keypoints.shape == (3, 2, 5, 3)
    assert not found.keypoints[1, 0].any()  # the likeliest first
    assert found.keypoints[1, 1, 3].tolist() == [1, 12.5, 0.5]
    assert found.boxes[1].tolist() == [[0, 0, 3, 3], [1, 2, 9, 12.5]]
    assert found.labels.tolist() == [[3, -1], [3, 3], [-1, -1]]
    assert not found.keypoints[2].any()
    keypoints = read(tmp_path, data).predictions(0, 3).keypoints
    assert keypoints is not None
    assert keypoints.shape == (3, 0, 5, 3)


@pytest.mark.parametrize(
    ("points", "problem"),
    [
        ([1, 2, 3], "is 3 numbers, must be x, y and a score of 5 points"),
        ("here", "is text"),
        ([True, *[0] * 14], "holds true or false"),
        ([1e7, *[0] * 14], "is no place in an image"),
        ([float("nan"), *[0] * 14], "is no place in an image"),
    ],
)
def test_wrong_points_are_named(tmp_path: Path, data: DigitPoints, points: Any, problem: str):
    with pytest.raises(Faulty, match=problem) as caught:
        read(tmp_path, data, result(), result(keypoints=points))
    assert "results[1]" in str(caught.value)


def test_results_without_points_are_not_scored_as_poses(tmp_path: Path, data: DigitPoints):
    row = result(bbox=[0, 0, 3, 3])
    del row["keypoints"]
    with pytest.raises(Faulty, match="keypoints: is missing"):
        read(tmp_path, data, row)
