"""COCO's masks: what the COCO API draws, and what is said of an outline that is odd or wrong."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cnnctl.data import coco_index
from cnnctl.data.coco import COCO
from cnnctl.data.coco_boxes import COCOBoxes
from cnnctl.data.coco_masks import COCOMasks, COCOMaskTruth
from cnnctl.data.coco_outlines import bits_of, extent
from cnnctl.data.inspection import check
from cnnctl.errors import Exit, UserError
from cnnctl.ops.masks import cropped, pack, unpack, whole_mask
from cnnctl.ops.run_lengths import encode

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:pycocotools.*")

H, W = 40, 60
SQUARE = [[10, 5, 30, 5, 30, 13, 10, 13]]
SQUARE_BOX = [10, 5, 20, 8]


def thing(
    number: int, outline: Any, bbox: Any = SQUARE_BOX, category: int = 3, **more: Any
) -> dict[str, Any]:
    one = {"id": number, "image_id": 70, "category_id": category, "bbox": bbox}
    return {**one, "segmentation": outline, **more}


def write(root: Path, part: str, *things: dict[str, Any]) -> Path:
    """A pair of file and folder as the official ones, of images 69 and 70."""
    images = [{"id": n, "height": H, "width": W, "file_name": f"{n}.png"} for n in (69, 70)]
    categories = [{"id": 3, "name": "cat"}, {"id": 18, "name": "dog"}]
    file = root / f"coco/annotations/instances_{part}.json"
    for folder in (root / "coco" / part, file.parent):
        folder.mkdir(parents=True, exist_ok=True)
    said = {"images": images, "annotations": list(things), "categories": categories}
    file.write_text(json.dumps(said))
    for row in images:
        Image.new("RGB", (W, H), (row["id"], 0, 0)).save(root / "coco" / part / row["file_name"])
    return file


def own(root: Path, *things: dict[str, Any], **more: Any) -> COCOMasks:
    """All of a file of one's own."""
    shares: Any = {"validation": 0.0, "test": 0.0, **more}
    place: Any = {
        "annotations": str(write(root, "mine", *things)),
        "images": str(root / "coco/mine"),
    }
    return COCOMasks("train", **place, **shares)


def official(root: Path, *things: dict[str, Any]) -> COCOMasks:
    write(root, "train2017", *things)
    return COCOMasks("train", str(root), validation=0.0)


def masks_of(data: COCOMasks, index: int = 1) -> list[torch.Tensor]:
    truth = data.truth(index)
    pairs = zip(truth["crops"], truth["frames"], strict=True)
    return [whole_mask(truth["bits"], crop, frame, (H, W)) for crop, frame in pairs]


def runs_of_mask(mask: np.ndarray) -> dict[str, Any]:
    """COCO's uncompressed run lengths of (h, w) bool."""
    flat = mask.T.ravel()
    places = np.flatnonzero(np.diff(flat, prepend=False)).tolist()
    return {"size": list(mask.shape), "counts": np.diff([0, *places, flat.size]).tolist()}


def api_mask(thing: dict[str, Any]) -> np.ndarray:
    """(H, W) bool, as pycocotools' annToMask."""
    native: Any = pytest.importorskip("pycocotools.mask")
    shape = thing["segmentation"]
    runs = native.frPyObjects(shape, H, W)
    return native.decode(native.merge(runs) if isinstance(shape, list) else runs).astype(bool)


def test_the_truth_of_a_sample(tmp_path):
    mask = np.zeros((H, W), bool)
    mask[2:4, 3:20] = mask[30, 50] = True
    data = own(
        tmp_path,
        thing(5, SQUARE, category=18, area=155),
        thing(4, runs_of_mask(mask), [3, 2, 48, 29], iscrowd=1),
        thing(6, [[40, 20, 44, 20, 44, 22, 40, 22], [50, 20, 51, 20, 51, 23, 50, 23]],
              [39.5, 20, 12, 3]),
    )  # fmt: skip
    image, truth = data[1]
    assert image[0].unique().tolist() == [70]
    assert truth["boxes"].tolist() == [[10, 5, 30, 13], [3, 2, 51, 31], [39.5, 20, 51.5, 23]]
    assert truth["labels"].tolist() == [1, 0, 0]
    assert truth["crowd"].tolist() == [False, True, False]
    assert truth["area"].tolist() == [155, 48 * 29, 36]
    assert truth["frames"].tolist() == [[10, 5, 30, 13], [3, 2, 51, 31], [40, 20, 51, 23]]
    assert truth["frames"].dtype == torch.float32
    # Bytes of a crop: rows of whole bytes each.
    assert truth["crops"].tolist() == [[0, 8, 20], [24, 29, 48], [24 + 29 * 6, 3, 11]]
    assert truth["bits"][:3].tolist() == [255, 255, 0xF0]
    assert truth["bits"][-6:].tolist() == [0xF0, 0x20, 0xF0, 0x20, 0, 0x20]
    assert len(truth["bits"]) == 24 + 29 * 6 + 6
    square, crowd, two = masks_of(data)
    assert square.nonzero().tolist() == [[y, x] for y in range(5, 13) for x in range(10, 30)]
    assert np.array_equal(crowd.numpy(), mask)
    assert int(two.sum()) == 4 * 2 + 3
    none = data.truth(0)
    assert [tuple(none[name].shape) for name in ("frames", "crops", "bits")] == [
        (0, 4),
        (0, 3),
        (0,),
    ]
    assert data.class_counts() == [1, 1]
    assert data.remarks() == data.doubts() == []


def test_the_columns_to_score_by_are_those_of_the_boxes(tmp_path):
    data = own(tmp_path, thing(1, SQUARE, [10.1, 5, 20, 8], area=77.7), thing(2, SQUARE, area=3))
    every = data.all_truth()
    assert {name: column.dtype for name, column in every.items()} == {
        "image": np.int64,
        "boxes": np.float64,
        "labels": np.int64,
        "crowd": np.bool_,
        "difficult": np.bool_,
        "area": np.float64,
    }
    assert every["boxes"][0].tolist() == [10.1, 5, 30.1, 13]
    assert every["area"].tolist() == [77.7, 3]


def test_the_task_decides_what_is_served():
    assert COCO.serving(("boxes", "masks")) is COCOMasks
    assert COCOBoxes.serving(("boxes", "masks")) is COCOMasks
    assert COCOMasks.serving(("boxes", "masks")) is COCOMasks
    assert COCOMasks.serving(("boxes",)) is COCOBoxes
    assert COCOMasks.serving(("mask",)) is COCO
    assert COCOMasks.truth_alone() is COCOMaskTruth
    assert COCOMasks.option() == "coco"


def test_predictions_are_scored_without_images(tmp_path):
    file = write(tmp_path, "mine", thing(1, SQUARE))
    data = COCOMaskTruth("test", annotations=str(file))
    assert int(masks_of(data)[0].sum()) == 160


# Outlines that are odd, and drawn.

STAR = [[30, 2, 40, 36, 12, 14, 48, 14, 20, 36]]  # crosses itself: its middle is a hole
BEYOND = [[-5.5, -4, 20.5, -4, 20.5, 12.3, -5.5, 12.3]]
TWICE = [[10, 10, 20, 10, 20, 20, 10, 20], [15, 15, 25, 15, 25, 25, 15, 25]]  # overlap


@pytest.mark.parametrize("outline", [STAR, BEYOND, TWICE, [[0, 0, 59.7, 0.4, 60, 40]]])
def test_odd_outlines_are_drawn_as_the_coco_api_does(tmp_path, outline):
    one = thing(1, outline, [0, 0, 60, 40])
    assert np.array_equal(masks_of(own(tmp_path, one))[0].numpy(), api_mask(one))


def test_random_outlines_and_runs_are_what_the_coco_api_draws(tmp_path):
    generator = np.random.default_rng(0)
    things = []
    for number in range(120):
        points = generator.uniform((-6, -6), (W + 6, H + 6), (generator.integers(3, 9), 2))
        shape: Any = [points.ravel().round(2).tolist()]
        if number % 3 == 0:  # with runs that go over several columns, and at the corners
            mask = generator.random((H, W)) < (0.002, 0.5, 0.999)[number % 9 // 3]
            mask[-1, -1] = number % 2
            mask[0, 0] = number % 5 > 2
            shape = runs_of_mask(mask)
        things.append(thing(number, shape, [0, 0, 60, 40]))
    found = masks_of(own(tmp_path, *things))
    expected = [mask for one in things if (mask := api_mask(one)).any()]
    assert len(found) == len(expected) > 100
    for ours, theirs in zip(found, expected, strict=True):
        assert np.array_equal(ours.numpy(), theirs)


@pytest.mark.parametrize("runs", [[0, 3, 0, 2, 5], [4, 0, 0, 0, 3, 2, 1], [10], [9, 1], [0, 10]])
def test_extent_and_bits_of_runs_whatever_their_lengths(runs):
    ones = np.arange(len(runs)) % 2
    mask = np.repeat(ones, runs).reshape(2, 5).T.astype(bool)  # 5 high, 2 wide
    crop, frame = cropped(torch.from_numpy(mask))
    *box, pixels = extent(np.array(runs), 5)
    assert box == frame.tolist()
    assert pixels == mask.sum()
    if pixels:
        x1, y1, x2, y2 = box
        assert bits_of(np.array(runs), 5, (x1, y1, x2, y2)).tolist() == pack([crop])[0].tolist()


def test_an_outline_past_the_edge_is_cut_off_and_counted(tmp_path):
    data = own(
        tmp_path,
        thing(1, SQUARE),
        thing(2, [SQUARE[0], [50, 30, 61, 30, 61, 38]], [10, 5, 50, 33]),
        thing(3, BEYOND, [0, 0, 20.5, 12.3]),
    )
    assert data.remarks() == ["2 outline(s) cut off at the edge of the image: annotation 2"]
    assert data.truth(1)["frames"][1:].tolist() == [[10, 5, 60, 37], [0, 0, 21, 12]]


@pytest.mark.parametrize(
    "outline",
    [
        [[61, 5, 70, 5, 70, 9]],
        [[10.6, 5.6, 10.9, 5.6, 10.9, 5.9]],
        [[5, 5, 20, 20, 5, 5]],
        {"size": [H, W], "counts": [H * W]},
    ],
)
def test_an_instance_without_pixels_is_left_out_and_counted(tmp_path, outline):
    data = own(tmp_path, thing(7, outline, [10, 5, 1, 1], category=18), thing(8, SQUARE))
    truth = data.truth(1)
    assert truth["boxes"].tolist() == data.all_truth()["boxes"].tolist() == [[10, 5, 30, 13]]
    assert len(truth["frames"]) == len(truth["crops"]) == 1
    assert data.class_counts() == [1, 0]
    assert data.remarks()[0] == (
        "1 annotation(s) left out: the outline covers no pixel of the image: annotation 7"
    )


def test_nothing_that_covers_a_pixel_is_an_error(tmp_path):
    with pytest.raises(UserError, match="holds no mask of a pixel or more of the classes"):
        own(tmp_path, thing(1, [[5, 5, 20, 20, 5, 5]]))


def test_a_crowd_of_polygons_is_taken_and_remarked(tmp_path):
    data = own(tmp_path, thing(1, SQUARE, iscrowd=1), thing(2, SQUARE))
    assert data.truth(1)["crowd"].tolist() == [True, False]
    assert int(masks_of(data)[0].sum()) == 160
    assert data.remarks() == ["1 crowd(s) of polygons, where COCO has run lengths: annotation 1"]


def test_a_mask_that_is_not_where_its_box_is(tmp_path):
    data = own(
        tmp_path,
        thing(1, SQUARE, [7, 5, 20, 8]),  # three pixels
        thing(2, SQUARE, [10, 5, 20, 20]),  # overlap of 0.4
        thing(3, SQUARE, [10, 5, 20, 15]),  # of more than a half
        thing(4, SQUARE, [30, 20, 9.5, 3], category=18),
        thing(5, [[50, 30, 52, 30, 52, 31, 50, 31]], [51, 31, 2, 2]),  # tiny
    )
    assert data.remarks() == [
        "2 mask(s) that are not where their box is (cnnctl data check lists them): annotation 2"
    ]
    lines = [
        "70.png: annotation 2: its mask is in (10, 5, 30, 13), its box (10, 5, 30, 25)"
        " (x1, y1, x2, y2)",
        "70.png: annotation 4: its mask is in (10, 5, 30, 13), its box (30, 20, 39.5, 23)"
        " (x1, y1, x2, y2)",
    ]
    assert data.doubts() == lines
    report = check({"train": data}, lambda *_: None)
    assert report.warnings == [f"train: {line}" for line in lines]
    assert report.faults == []
    assert len(data.truth(1)["boxes"]) == 5, "they are used"
    cats = own(tmp_path, thing(1, SQUARE), thing(4, SQUARE, [30, 20, 9, 3], 18), classes=("cat",))
    assert cats.remarks() == cats.doubts() == [], "of another category"


# Outlines that are wrong.


@pytest.mark.parametrize(
    ("outline", "words"),
    [
        ([[1, 1, 9, 9]], "a polygon has 4 numbers, must have 2 for each of 3 points"),
        ([SQUARE[0], [1, 1]], "a polygon has 2 numbers, must have 2 for each of 3 points"),
        ([[1, 1, 9, 9, 4, 4, 5]], "a polygon has 7 numbers, must have 2 for each of 3 points"),
        ([[1, 1, 9, 9, 4, 400]], "a polygon's y is far outside the image of 60 x 40"),
        ([], "is an empty list, so it has no mask"),
        (None, "is null, must be a list of polygons or run lengths"),
        (
            {"size": [W, H], "counts": [H * W]},
            "its size is [60, 40], its image's [height, width] is [40, 60]",
        ),
        (
            {"size": [H, W], "counts": [5, 5]},
            "its runs are 10 pixels long, its image has 2,400",
        ),
        ({"size": [H, W], "counts": [2401, -1]}, "a run length is no whole number from 0 up"),
        ({"size": [H, W], "counts": "zz~"}, "its counts are no run lengths of COCO"),
        ({"size": [H, W], "counts": "o"}, "its counts are cut off"),
    ],
)
def test_outlines_that_are_wrong(tmp_path, outline, words):
    things = (thing(88, outline), thing(89, SQUARE))
    with pytest.raises(UserError) as caught:
        own(tmp_path, *things)
    assert caught.value.code == Exit.DATA
    assert caught.value.record == "annotations[0] (id 88)"
    assert caught.value.problem == f"segmentation: {words}"
    data = official(tmp_path, *things)
    assert len(data.truth(1)["boxes"]) == len(data.all_truth()["boxes"]) == 1
    assert data.remarks() == [
        "1 annotation(s) left out: no outline that can be drawn: annotation 88"
    ]


def test_what_large_outlines_cover_is_drawn_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(coco_index, "_LARGE", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    things = thing(1, SQUARE), thing(2, STAR, [12, 2, 36, 34]), thing(3, [[5, 5, 20, 20, 5, 5]])
    first = official(tmp_path, *things)
    file = tmp_path / "coco/annotations/instances_train2017.json"
    assert f"drawing the outlines of {file} (0 MB), once" in capsys.readouterr().err
    monkeypatch.setattr("cnnctl.data.coco_outlines._extents", None)
    again = COCOMasks("train", str(tmp_path), validation=0.0)
    assert capsys.readouterr().err == ""
    assert isinstance(again.drawn, np.memmap)
    assert np.array_equal(again.drawn, first.drawn)
    assert again.drawn[0].tolist() == [10, 5, 30, 13, 160]
    assert torch.equal(again.truth(1)["bits"], first.truth(1)["bits"])


@pytest.mark.data
def test_every_real_mask_is_what_pycocotools_draws():
    api: Any = pytest.importorskip("pycocotools.coco")
    root = os.environ.get("CNNCTL_DATA")
    if root is None or not (Path(root) / "coco/annotations").is_dir():
        pytest.skip("$CNNCTL_DATA does not hold coco")
    compared = 0
    for data in (COCOMasks("train", root, validation=0.0), COCOMasks("test", root)):
        truth = api.COCO(str(data.file))
        assert data.remarks() == data.doubts() == []
        for index, image in enumerate(data.image_ids.tolist()):
            rows, found = truth.loadAnns(truth.getAnnIds(image)), data.truth(index)
            h, w = data.index.sizes[data.chosen[index]].tolist()
            triples = zip(rows, found["crops"], found["frames"], strict=True)
            for row, crop, frame in triples:
                x, y = (int(corner) for corner in frame[:2])
                ours = encode(unpack(found["bits"], crop), x, y, (h, w))
                assert ours == truth.annToRLE(row)["counts"], row["id"]
                compared += 1
    assert compared == 2084 + 1181
