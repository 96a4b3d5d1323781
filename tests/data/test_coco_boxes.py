"""COCO's boxes: what is true of a sample, and each way in which a box can be wrong."""

from __future__ import annotations

import inspect
import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cnnctl.data import coco_index
from cnnctl.data.coco import COCO
from cnnctl.data.coco_boxes import COCOBoxes
from cnnctl.data.faults import Faulty
from cnnctl.errors import Exit, UserError

H, W = 40, 60
NAMES = {3: "cat", 18: "dog", 90: "toothbrush"}  # ids with gaps, as COCO's
OUTLINE = [[1, 1, 9, 1, 9, 9]]


def thing(number: int, image: int, category: int, bbox: Any, **more: Any) -> dict[str, Any]:
    return {"id": number, "image_id": image, "category_id": category, "bbox": bbox, **more}


def content(count: int, *things: dict[str, Any]) -> dict[str, Any]:
    images = [
        {"id": 70 - n, "height": H, "width": W, "file_name": f"{70 - n}.png"} for n in range(count)
    ]
    categories = [{"id": number, "name": name} for number, name in reversed(NAMES.items())]
    return {"images": images, "annotations": list(things), "categories": categories}


def write(root: Path, part: str, said: dict[str, Any]) -> Path:
    """An official pair of file and folder."""
    file = root / f"coco/annotations/instances_{part}.json"
    (root / "coco" / part).mkdir(parents=True, exist_ok=True)
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(said))
    for row in said["images"]:
        picture = root / "coco" / part / row["file_name"]
        if not picture.exists():
            Image.new("RGB", (W, H), (row["id"], 0, 0)).save(picture)
    return file


def own(root: Path, said: dict[str, Any], **more: Any) -> COCOBoxes:
    """All of a file of one's own."""
    file = write(root, "mine", said)
    shares: Any = {"validation": 0.0, "test": 0.0, **more}
    return COCOBoxes("train", annotations=str(file), images=str(root / "coco/mine"), **shares)


def refused(root: Path, said: dict[str, Any], **more: Any) -> UserError:
    with pytest.raises(UserError) as caught:
        own(root, said, **more)
    assert caught.value.code == Exit.DATA
    assert caught.value.advice
    return caught.value


def test_the_truth_of_a_sample(tmp_path):
    data = own(
        tmp_path,
        content(
            3,
            thing(0, 70, 90, [10, 5, 20, 8], area=77.5, segmentation=OUTLINE),
            thing(7, 68, 3, [0.5, 0.25, 1.5, 2]),
            thing(5, 70, 18, [0, 0, 60, 40], iscrowd=1, area=900, segmentation=[]),
            thing(6, 70, 3, [59, 39, 1, 1], iscrowd=0, area=None),
        ),
    )
    assert data.classes == ("cat", "dog", "toothbrush")
    assert data.category_ids == (3, 18, 90)
    assert data.image_ids.tolist() == [68, 69, 70]
    assert len(data) == 3, "an image without boxes is kept"
    image, target = data[2]
    assert image.shape == (3, H, W)
    assert image[0].unique().tolist() == [70]
    assert {name: column.dtype for name, column in target.items()} == {
        "boxes": torch.float32,
        "labels": torch.int64,
        "crowd": torch.bool,
        "difficult": torch.bool,
        "area": torch.float32,
    }
    assert target["boxes"].tolist() == [[10, 5, 30, 13], [0, 0, 60, 40], [59, 39, 60, 40]]
    assert target["labels"].tolist() == [2, 1, 0], "in the order of the file"
    assert target["crowd"].tolist() == [False, True, False]
    assert target["difficult"].tolist() == [False] * 3
    assert target["area"].tolist() == [77.5, 900, 1], "of the box where the file says none"
    assert data.truth(0)["boxes"].tolist() == [[0.5, 0.25, 2, 2.25]]
    none = data.truth(1)
    assert none["boxes"].shape == (0, 4)
    assert [len(none[name]) for name in ("labels", "crowd", "difficult", "area")] == [0] * 4
    every = data.all_truth()
    assert every["image"].tolist() == [0, 2, 2, 2]
    assert every["boxes"].tolist() == [[0.5, 0.25, 2, 2.25], *target["boxes"].tolist()]
    assert every["area"].tolist() == [3, 77.5, 900, 1]
    assert data.class_counts() == [2, 0, 1], "a crowd alone shows no dog"
    assert data.sample_name(0).endswith("68.png")
    assert data.remarks() == [
        "3 annotation(s) without an outline that can be drawn, which boxes do not need: "
        "annotations[1] (id 7): segmentation: is missing, so it has no mask"
    ]


def test_the_task_decides_between_masks_and_boxes():
    assert COCO.serving(("boxes",)) is COCOBoxes
    assert COCO.serving(("mask",)) is COCO
    assert COCOBoxes.serving(("boxes",)) is COCOBoxes
    assert COCOBoxes.serving(("mask",)) is COCO
    assert COCO.option() == COCOBoxes.option() == "coco"
    with pytest.raises(UserError, match="data=coco has no label"):
        COCOBoxes.serving(("label",))
    accepted = [inspect.signature(cls).parameters for cls in (COCO, COCOBoxes)]
    assert accepted[0].keys() == accepted[1].keys(), "both are set by conf/data/coco.yaml"


def test_splits_of_the_official_files_are_those_of_masks(tmp_path):
    every = [thing(n, n, 3, [1, 1, 5, 5], segmentation=OUTLINE) for n in range(61, 71)]
    write(tmp_path, "train2017", content(10, *every))
    write(tmp_path, "val2017", content(2, thing(1, 70, 18, [0, 0, 9, 9], segmentation=OUTLINE)))
    found = {}
    for split in ("train", "val", "test"):
        both = [cls(split, str(tmp_path), validation=0.2) for cls in (COCO, COCOBoxes)]
        assert [both[0].path(i) for i in range(len(both[0]))] == [
            both[1].path(i) for i in range(len(both[1]))
        ]
        found[split] = both[1]
        assert both[0].fingerprint() != both[1].fingerprint()
    assert [len(data) for data in found.values()] == [8, 2, 2]
    assert sorted({*found["train"].image_ids, *found["val"].image_ids}) == list(range(61, 71))
    assert found["test"].class_counts() == [0, 1, 0]
    for data in found.values():
        every, rows = data.all_truth(), [data.truth(index) for index in range(len(data))]
        assert every["image"].tolist() == [n for n, row in enumerate(rows) for _ in row["labels"]]
        for name in rows[0]:
            assert every[name].tolist() == torch.cat([row[name] for row in rows]).tolist()
    assert found["train"].remarks() == []
    assert len({data.fingerprint() for data in found.values()}) == 3


def test_train_and_val_have_the_same_category_ids(tmp_path):
    said = content(2, thing(1, 70, 3, [1, 1, 5, 5]))
    write(tmp_path, "train2017", said)
    said["categories"][0]["id"] = 91
    write(tmp_path, "val2017", said)
    words = r'number 3 is "toothbrush" \(id 91\), not "toothbrush" \(id 90\)'
    with pytest.raises(UserError, match=words):
        COCOBoxes("test", str(tmp_path))


def test_some_categories(tmp_path):
    said = content(2, thing(1, 70, 3, [1, 1, 5, 5]), thing(2, 70, 90, [2, 2, 5, 5]))
    data = own(tmp_path, said, classes=("toothbrush", "dog"))
    assert (data.classes, data.category_ids) == (("toothbrush", "dog"), (90, 18))
    assert data.truth(1)["labels"].tolist() == [0]
    assert data.truth(1)["boxes"].tolist() == [[2, 2, 7, 7]]
    assert len(data) == 2, "images of other categories are kept as images of none"
    assert data.fingerprint() != own(tmp_path, said).fingerprint()
    with pytest.raises(UserError, match='no category "dgo"'):
        own(tmp_path, said, classes=("dgo",))
    with pytest.raises(ValueError, match="others=void is for masks"):
        own(tmp_path, said, others="void")
    error = refused(tmp_path, said, classes=("dog",))
    assert error.problem.startswith("holds no box of the classes")
    said["annotations"][1]["iscrowd"] = 1
    refused(tmp_path, said, classes=("toothbrush",))


def test_a_background_that_some_tools_list(tmp_path):
    said = content(1, thing(1, 70, 3, [1, 1, 5, 5]))
    said["categories"].insert(0, {"id": 0, "name": "background"})
    assert own(tmp_path, said).classes == ("cat", "dog", "toothbrush")
    said["annotations"].append(thing(2, 70, 0, [1, 1, 5, 5]))
    assert own(tmp_path, said).category_ids == (0, 3, 18, 90), "one with boxes is a class"


# Boxes that are wrong.

FAR = "reaches far outside the image of 60 x 40"
OUTSIDE = "is wholly outside the image of 60 x 40"


@pytest.mark.parametrize(
    ("bbox", "words"),
    [
        (None, "bbox: is null, must be [x, y, width, height]"),
        ("1 2 3 4", "bbox: is text, must be [x, y, width, height]"),
        ({"x": 1}, "bbox: is an object, must be [x, y, width, height]"),
        ([], "bbox: has 0 numbers, must have 4: [x, y, width, height]"),
        ([1, 2, 3], "bbox: has 3 numbers, must have 4: [x, y, width, height]"),
        ([1, 2, 3, 4, 5], "bbox: has 5 numbers, must have 4: [x, y, width, height]"),
        ([1, 2, "3", 4], "bbox[2]: is text, must be a number"),
        ([None, 2, 3, 4], "bbox[0]: is null, must be a number"),
        ([1, True, 3, 4], "bbox[1]: is true or false, must be a number"),
        ([1, 2, 3, float("nan")], "bbox[3]: is not finite"),
        ([1, -float("inf"), 3, 4], "bbox[1]: is not finite"),
        ([1, 2, 3, 10**400], "bbox[3]: is not finite"),
        ([9, 9, -3.0, 4], "bbox[2]: the width is -3.0, must be > 0"),
        ([9, 9, 3, -0.5], "bbox[3]: the height is -0.5, must be > 0"),
        ([9, 9, 0, 4], "bbox[2]: the width is 0, must be > 0"),
        ([9, 9, 3, 0.0], "bbox[3]: the height is 0.0, must be > 0"),
        ([50, 9, 1e-5, 4], "bbox[2]: the width is 1e-05, must be > 0"),
        ([0, 9, 4, 1e-5], "bbox[3]: the height is 1e-05, must be > 0"),  # float32 could tell it
        ([1, 2, 1e20, 4], f"bbox: [1, 2, 1e+20, 4] {FAR}"),
        ([1e20, 2, 3, 4], f"bbox: [1e+20, 2, 3, 4] {FAR}"),
        ([1, -41, 3, 45], f"bbox: [1, -41, 3, 45] {FAR}"),
        ([60, 2, 3, 4], f"bbox: [60, 2, 3, 4] {OUTSIDE}"),
        ([-3, 2, 3, 4], f"bbox: [-3, 2, 3, 4] {OUTSIDE}"),
        ([1, 41.5, 3, 4], f"bbox: [1, 41.5, 3, 4] {OUTSIDE}"),
        ([1, -5, 3, 4], f"bbox: [1, -5, 3, 4] {OUTSIDE}"),
        ([59.999, 2, 3, 4], f"bbox: [59.999, 2, 3, 4] {OUTSIDE}"),
    ],
)
def test_boxes_that_are_wrong(tmp_path, bbox, words):
    said = content(2, thing(88, 70, 3, bbox), thing(89, 70, 3, [30, 30, 5, 5]))
    error = refused(tmp_path, said)
    assert error.record == "annotations[0] (id 88)"
    assert error.problem == words
    assert error.file == str(tmp_path / "coco/annotations/instances_mine.json")


@pytest.mark.parametrize(
    ("area", "words"),
    [
        (-1, "area: is -1, which no object in an image of 60 x 40 has"),
        (float("nan"), "area: is nan, which no object in an image of 60 x 40 has"),
        (1e20, "area: is 1e+20, which no object in an image of 60 x 40 has"),
        ("12", "area: is text, must be a number of pixels"),
    ],
)
def test_areas_that_are_wrong(tmp_path, area, words):
    assert refused(tmp_path, content(1, thing(88, 70, 3, [1, 1, 5, 5], area=area))).problem == words


def test_a_box_that_is_missing(tmp_path):
    said = content(1, thing(88, 70, 3, [1, 1, 5, 5]))
    del said["annotations"][0]["bbox"]
    assert refused(tmp_path, said).problem == "bbox: is missing"


def test_all_faults_are_counted_whatever_they_are_of(tmp_path):
    good = thing(1, 70, 3, [30, 30, 5, 5])
    said = content(2, good, thing(2, 70, 3, [9, 9, 0, 4]), thing(3, 70, 3, [1, 2, 3]))
    assert refused(tmp_path, said).problem.endswith("must have 4: [x, y, width, height] (and 1 "
                                                    "more fault)")  # fmt: skip
    said["annotations"] += [thing(1, 70, 3, [1, 2, 3, 4]), thing(4, 5, 3, None)]
    error = refused(tmp_path, said)
    assert error.record == "annotations[3] (id 1)"
    assert error.problem == "id: another annotation has it too (and 3 more faults)"
    assert isinstance(error, Faulty)
    file = tmp_path / "coco/annotations/instances_mine.json"
    assert error.count == 4
    assert error.faults == (
        f"{file}: annotations[3] (id 1): id: another annotation has it too",
        f"{file}: annotations[4] (id 4): image_id: 5 is not in images",
        f"{file}: annotations[2] (id 3): bbox: has 3 numbers, must have 4: [x, y, width, height]",
        f"{file}: annotations[1] (id 2): bbox[2]: the width is 0, must be > 0",
    )


def test_a_box_past_the_edge_is_cut_off_and_counted(tmp_path):
    data = own(
        tmp_path,
        content(
            2,
            thing(1, 70, 3, [-4, 10, 10, 5]),
            thing(2, 70, 3, [30, 30, 5, 5]),
            thing(3, 69, 3, [50, 35, 20, 10]),
            thing(4, 69, 3, [20, 10, 0.02, 0.02]),  # tiny, and yet a box
        ),
    )
    assert data.truth(1)["boxes"].tolist() == [[0, 10, 6, 15], [30, 30, 35, 35]]
    assert data.truth(1)["area"].tolist() == [50, 25], "of the whole box"
    assert data.truth(0)["boxes"][0].tolist() == [50, 35, 60, 40]
    x1, y1, x2, y2 = data.truth(0)["boxes"][1].tolist()
    assert x2 > x1 == 20
    assert y2 > y1 == 10
    assert data.remarks() == ["2 box(es) cut off at the edge of the image: annotation 3"]


def test_areas_that_cannot_be_are_remarked(tmp_path):
    boxes = [thing(n, 70, 3, [5, 5, 10, 10], area=area) for n, area in enumerate((100, 130, 0))]
    data = own(tmp_path, content(1, *boxes))
    assert data.truth(0)["area"].tolist() == [100, 130, 0]
    assert data.remarks() == [
        "2 box(es) with an area larger than the box, or 0 (COCO's small, medium and large): "
        "annotation 1"
    ]


def test_the_flat_boxes_of_the_official_file_are_left_out(tmp_path):
    said = content(
        1,
        thing(918, 70, 18, [9.65, 8.33, 1.03, 0.0], area=0.0, segmentation=OUTLINE),
        thing(2, 70, 3, [5, 5, 10, 10], area=100, segmentation=OUTLINE),
    )
    write(tmp_path, "train2017", said)
    data = COCOBoxes("train", str(tmp_path), validation=0.0)
    assert data.truth(0)["boxes"].tolist() == [[5, 5, 15, 15]]
    assert data.class_counts() == [1, 0, 0]
    assert data.remarks() == ["1 box(es) left out: no height or no width: annotation 918"]
    assert refused(tmp_path, said).problem == "bbox[3]: the height is 0.0, must be > 0"


@pytest.mark.parametrize("count", [2, 40])
def test_boxes_of_two_corners_are_recognised(tmp_path, count):
    generator = np.random.default_rng(0)
    first = generator.uniform((0, 0), (W - 10, H - 10), (count, 2))
    last = first + generator.uniform(5, 10, (count, 2))
    last[-1] = W, H
    if count == 2:
        first[0], last[0] = (35, 20), (50, 40)
    corners = [[*a, *b] for a, b in zip(first.tolist(), last.tolist(), strict=True)]
    said = content(1, *(thing(n, 70, 3, box) for n, box in enumerate(corners)))
    error = refused(tmp_path, said)
    assert error.record is None
    assert error.problem.endswith("look like [x1, y1, x2, y2], must be [x, y, width, height]")
    sides = [[*a, *(b - a)] for a, b in zip(first, last, strict=True)]
    said = content(1, *(thing(n, 70, 3, box) for n, box in enumerate(np.array(sides).tolist())))
    found = own(tmp_path, said).truth(0)["boxes"].numpy()
    np.testing.assert_allclose(found, corners, rtol=1e-6)


def test_boxes_of_shares_of_the_image_are_recognised(tmp_path):
    said = content(1, thing(1, 70, 3, [0.5, 0.5, 0.25, 0.5]), thing(2, 70, 3, [0, 0, 1, 1]))
    assert "look like shares of the image" in refused(tmp_path, said).problem
    said["annotations"][1]["bbox"] = [0, 0, 2, 1]
    assert len(own(tmp_path, said).truth(0)["boxes"]) == 2


def test_an_image_of_another_size_than_the_file_says(tmp_path):
    said = content(3, thing(1, 70, 3, [1, 1, 5, 5]))
    write(tmp_path, "mine", said)
    picture = tmp_path / "coco/mine/70.png"
    Image.new("RGB", (H, W)).save(picture)
    with pytest.raises(UserError, match=r"the image is 40 x 60, .* says 60 x 40") as caught:
        own(tmp_path, said)[2]
    assert caught.value.file == str(picture)
    picture.unlink()
    with pytest.raises(UserError, match="names an image that is not there"):
        COCOBoxes(
            "train",
            annotations=str(tmp_path / "coco/annotations/instances_mine.json"),
            images=str(tmp_path / "coco/mine"),
            validation=0.0,
        )


def test_masks_need_no_box_and_boxes_no_outline(tmp_path):
    outlined = thing(1, 70, 3, None, segmentation=[[0, 0, 2, 0, 2, 2, 0, 2]])
    file = write(tmp_path, "mine", content(1, outlined))
    place: Any = {"annotations": str(file), "images": str(tmp_path / "coco/mine")}
    masks = COCO("train", **place, validation=0.0, test=0.0)
    assert masks.mask(0).sum() == 4
    boxed = [thing(n, 70, 3, [1, 1, 5, 5]) for n in range(3)]
    boxed[1]["segmentation"] = {"size": [W, H], "counts": "oooo"}  # never seen by native code
    boxed[2]["segmentation"] = OUTLINE
    data = own(tmp_path, content(1, *boxed))
    assert len(data.truth(0)["boxes"]) == 3
    assert data.remarks()[0].startswith("2 annotation(s) without an outline")
    with pytest.raises(UserError, match="segmentation: is missing") as caught:
        COCO("train", **place, validation=0.0, test=0.0)
    assert caught.value.problem.endswith("(and 1 more fault)")
    assert own(tmp_path, content(1, boxed[0])).remarks() == [], "a file of boxes alone is none"


def test_what_is_unfit_is_kept_with_the_cache(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(coco_index, "_LARGE", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    said = content(1, thing(1, 70, 3, [5, 5, 0, 5], segmentation=OUTLINE))
    said["annotations"].append(thing(2, 70, 18, [5, 5, 3, 3], segmentation=[]))
    file = write(tmp_path, "train2017", said)
    first = COCOBoxes("train", str(tmp_path), validation=0.0)
    assert f"reading {file} (0 MB), once" in capsys.readouterr().err
    monkeypatch.setattr(coco_index, "_build", None)
    again = COCOBoxes("train", str(tmp_path), validation=0.0)
    assert capsys.readouterr().err == ""
    assert isinstance(again.index.boxes, np.memmap)
    assert again.truth(0)["boxes"].tolist() == first.truth(0)["boxes"].tolist() == [[5, 5, 8, 8]]
    assert again.remarks() == first.remarks()
    with pytest.raises(UserError, match="segmentation: is an empty list"):
        COCO("train", str(tmp_path), validation=0.0)
    place: Any = {"annotations": str(file), "images": str(tmp_path / "coco/train2017")}
    with pytest.raises(UserError, match="the width is 0, must be > 0"):
        COCOBoxes("train", **place, validation=0.0, test=0.0)


def test_processes_that_start_together_read_the_file_once(tmp_path, monkeypatch):
    monkeypatch.setattr(coco_index, "_LARGE", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = write(tmp_path, "train2017", content(1, thing(1, 70, 3, [5, 5, 5, 5])))
    start, reads, read_records = threading.Barrier(2), [], coco_index.read_records

    def wait_for_the_other(place: Path) -> Any:
        if len(loads) < 2:  # both find nothing before one of them builds
            loads.append(place)
            start.wait(10)
        return load(place)

    loads, load = [], coco_index._load
    monkeypatch.setattr(coco_index, "_load", wait_for_the_other)
    monkeypatch.setattr(
        coco_index, "read_records", lambda *said: reads.append(said) or read_records(*said)
    )
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(coco_index.read_index, [file, file]))
    assert len(reads) == 1
    assert [index.boxes.tolist() for index in found] == [[[5, 5, 10, 10]]] * 2


def real() -> str:
    root = os.environ.get("CNNCTL_DATA")
    if root is None or not (Path(root) / "coco/annotations").is_dir():
        pytest.skip("$CNNCTL_DATA does not hold coco")
    return root


@pytest.mark.data
@pytest.mark.filterwarnings("ignore::DeprecationWarning:pycocotools.*")
def test_every_real_box_is_what_pycocotools_reads():
    api = pytest.importorskip("pycocotools.coco")
    boxes = crowds = 0
    for data in (COCOBoxes("train", real(), validation=0.0), COCOBoxes("test", real())):
        truth = api.COCO(str(data.file))
        assert len(data.classes) == 80
        assert list(data.category_ids) == sorted(truth.getCatIds())
        assert [row["name"] for row in truth.loadCats(data.category_ids)] == list(data.classes)
        assert data.image_ids.tolist() == sorted(truth.getImgIds())
        assert data.remarks() == []
        for index, image in enumerate(data.image_ids.tolist()):
            rows, found = truth.loadAnns(truth.getAnnIds(image)), data.truth(index)
            assert [data.category_ids[k] for k in found["labels"]] == [
                row["category_id"] for row in rows
            ]
            said = np.array([row["bbox"] for row in rows]).reshape(-1, 4)
            said[:, 2:] += said[:, :2]
            np.testing.assert_allclose(found["boxes"].numpy(), said, atol=1e-4)
            assert found["crowd"].tolist() == [bool(row["iscrowd"]) for row in rows]
            areas = np.array([row["area"] for row in rows], np.float32)
            np.testing.assert_array_equal(found["area"].numpy(), areas)
            boxes, crowds = boxes + len(rows), crowds + int(found["crowd"].sum())
    assert (boxes, crowds) == (2084 + 1181, 19 + 14)


def test_faults_are_the_same_from_the_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(coco_index, "_LARGE", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    things = [thing(n, 70, 3, [1, 1, 5, 5], segmentation=[]) for n in range(2)]
    things.append(thing(2, 70, 3, [1, 1, 5, 5], segmentation=OUTLINE))
    file = write(tmp_path, "mine", content(1, *things))
    place: Any = {"annotations": str(file), "images": str(tmp_path / "coco/mine")}
    shares: Any = {"validation": 0.0, "test": 0.0}
    fresh = COCOBoxes("train", **place, **shares)
    cached = COCOBoxes("train", **place, **shares)
    assert isinstance(cached.index.boxes, np.memmap)
    assert cached.remarks() == fresh.remarks() != []
    with pytest.raises(Faulty) as caught:
        COCO("train", **place, **shares)
    assert caught.value.faults == tuple(
        f"{file}: annotations[{n}] (id {n}): segmentation: is an empty list, so it has no mask"
        for n in range(2)
    )
