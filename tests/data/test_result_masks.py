"""Masks in results of any program: what they become, and each way in which they can be wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faster_coco_eval.core import mask as native

from cnnctl.data import result_masks
from cnnctl.data.base import Dataset
from cnnctl.data.coco_json import Wrong
from cnnctl.data.coco_results import Results, read_results, sizes_of
from cnnctl.data.result_masks import check_mask, counts_of
from cnnctl.errors import Exit, UserError
from cnnctl.ops.run_lengths import decode, encode

SIZES = ((4, 6), (5, 3), (4, 6))


class Three(Dataset):
    """Images 7, 5 and 9."""

    classes = ("toothbrush", "cat")
    category_ids = (90, 3)
    image_ids = np.array([7, 5, 9])

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return torch.zeros(3, *SIZES[index], dtype=torch.uint8), {}

    def fingerprint(self):
        return ""


class Told(Three):
    def __getitem__(self, index):
        raise NotImplementedError

    def image_size(self, index: int) -> tuple[int, int]:
        return SIZES[index]


def rectangle(x: int, y: int, w: int, h: int, size: tuple[int, int] = (4, 6)) -> dict[str, Any]:
    counts = encode(torch.ones(h, w, dtype=torch.bool), x, y, size)
    return {"size": list(size), "counts": counts.decode()}


def result(image: int, mask: Any, score: float = 0.5, **more: Any) -> dict[str, Any]:
    said = {"image_id": image, "category_id": 3, "segmentation": mask, "score": score}
    return {**said, **more}


def read(folder: Path, said: Any, data: Dataset | None = None) -> Results:
    file = folder / "results.json"
    file.write_text(json.dumps(said))
    return read_results(file, data or Told(), masks=True)


NOTHING = {"size": [5, 3], "counts": [15]}
GOOD = [
    result(9, rectangle(1, 2, 3, 1), 0.25),
    result(7, rectangle(0, 0, 6, 4), 0.5, bbox=[1, 1, 2, 2]),
    result(9, {"size": [4, 6], "counts": [5, 2, 17]}, 0.75),
    result(5, NOTHING),
]


@pytest.mark.parametrize("data", [Told(), Three()])
def test_masks_go_with_their_detections(tmp_path, data):
    found = read(tmp_path, GOOD, data)
    assert found.image.tolist() == [0, 1, 2, 2]
    assert found.boxes.tolist() == [[1, 1, 3, 3], [0, 0, 0, 0], [1, 1, 2, 3], [1, 2, 4, 3]]
    assert found.counts is not None
    said = found.predictions(0, 3)
    assert said.sizes == list(SIZES)
    assert said.masks is not None
    assert [len(masks) for masks in said.masks] == [1, 1, 2]
    dense = [[decode(m, s).int() for m in ms] for ms, s in zip(said.masks, SIZES, strict=True)]
    assert dense[0][0].equal(torch.ones(4, 6).int())
    assert not dense[1][0].any()
    assert dense[2][0][:, 1].tolist() == [0, 1, 1, 0]
    assert dense[2][1].nonzero().tolist() == [[2, 1], [2, 2], [2, 3]]
    part = found.predictions(1, 3)
    assert part.sizes == list(SIZES[1:])
    assert part.masks == said.masks[1:]


def test_nothing_found(tmp_path):
    said = read(tmp_path, []).predictions(0, 3)
    assert said.masks == [[], [], []]
    assert said.sizes == list(SIZES)


def test_boxes_alone_have_no_masks(tmp_path):
    file = tmp_path / "results.json"
    file.write_text(json.dumps([result(7, 5, bbox=[0, 0, 1, 1])]))
    said = read_results(file, Told()).predictions(0, 3)
    assert said.masks is None
    assert said.sizes is None


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        ([[0, 0, 2, 0, 2, 2]], "is polygons, must be run lengths"),
        (None, "is null, must be run lengths"),
        ({"counts": "0"}, "its size is None, its image's [height, width] is [4, 6]"),
        ({"size": [6, 4], "counts": [24]}, "its size is [6, 4], its image's"),
        ({"size": [4, 6]}, "counts must be a list of run lengths or text"),
        ({"size": [4, 6], "counts": [20, 5]}, "its runs are 25 pixels long, its image has 24"),
        ({"size": [4, 6], "counts": [20, -4, 8]}, "a run length is no whole number from 0 up"),
        ({"size": [4, 6], "counts": "h"}, "its counts are cut off"),
        ({"size": [4, 6], "counts": ""}, "its runs are 0 pixels long"),
        ({"size": [4, 6], "counts": "é"}, "its counts are no run lengths of COCO"),
        ({"size": [4, 6], "counts": "\ud800"}, "its counts are no run lengths of COCO"),
    ],
)
def test_masks_that_are_wrong(tmp_path, mask, words):
    with pytest.raises(UserError) as caught:
        read(tmp_path, [*GOOD, result(9, mask), result(9, mask)])
    assert caught.value.problem.startswith(f"segmentation: {words}")
    assert caught.value.problem.endswith("(and 1 more fault)")
    assert (caught.value.record, caught.value.code) == ("results[4]", Exit.DATA)


def test_other_faults_are_told_too(tmp_path):
    for change, words in (
        ({"image_id": 6}, "image_id: 6 is no id"),
        ({"bbox": [1, 2, 3]}, "bbox: has 3 numbers"),
        ({"score": None}, "score: is null"),
        ({"category_id": 4}, "category_id: 4 is no id"),
    ):
        with pytest.raises(UserError, match=words):
            read(tmp_path, [{**GOOD[0], **change}])
    bare = {name: value for name, value in GOOD[0].items() if name != "segmentation"}
    with pytest.raises(UserError, match="segmentation: is missing, and the task scores masks"):
        read(tmp_path, [bare])
    with pytest.raises(UserError, match="must be an object"):
        read(tmp_path, [7])


def test_many_counts_are_checked_as_one_is(monkeypatch):
    """Texts of real masks, each with one character changed, taken out or put in."""
    monkeypatch.setattr(result_masks, "_AT_ONCE", 64)  # in several parts
    rng = np.random.default_rng(0)
    size = (40, 50)
    refused = 0
    for _ in range(300):
        mask = np.zeros(size, np.uint8)
        for y, x in rng.integers(0, 35, (3, 2)).tolist():
            mask[y : y + 12, x : x + 9] = 1
        text = native.encode(np.asfortranarray(mask))["counts"].decode()
        place, kind = int(rng.integers(len(text))), rng.integers(4)
        other = chr(int(rng.integers(46, 114)))
        text = text[:place] + (other if kind < 2 else "") + text[place + (kind != 1) :]
        row = result(7, {"size": list(size), "counts": text})
        try:
            check_mask(row, {7: list(size)})
            right = True
        except Wrong:
            right = False
        good = result(7, {"size": list(size), "counts": [2000]})
        found = counts_of([good, row, good], {7: list(size)})
        assert (found is not None) == right, text
        refused += not right
    assert 100 < refused < 300


def test_sizes_of_equal_images_are_not_read():
    data = Told()
    data.size = (8, 9)
    assert sizes_of(data).tolist() == [[8, 9]] * 3
