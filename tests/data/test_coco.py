"""COCO's format: what is painted where, and each way in which a file can be wrong."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cnnctl.data import coco_index
from cnnctl.data.base import NoSplit
from cnnctl.data.coco import COCO
from cnnctl.data.coco_paint import paint, runs_of
from cnnctl.data.coco_shapes import decode_counts
from cnnctl.errors import Exit, UserError

H, W = 4, 6
NAMES = {3: "cat", 18: "dog", 90: "toothbrush"}  # ids with gaps, as COCO's


def box(x: int, y: int, w: int, h: int) -> list[list[float]]:
    """The polygon that covers these pixels and no others."""
    return [[float(v) for v in (x, y, x + w, y, x + w, y + h, x, y + h)]]


def thing(number: int, image: int, category: int, segmentation: Any, **more: Any) -> dict[str, Any]:
    return {"id": number, "image_id": image, "category_id": category,
            "segmentation": segmentation, **more}  # fmt: skip


def content(count: int = 4, *things: dict[str, Any]) -> dict[str, Any]:
    images = [
        {"id": 70 - n, "height": H, "width": W, "file_name": f"{70 - n}.png"} for n in range(count)
    ]
    categories = [{"id": number, "name": name} for number, name in reversed(NAMES.items())]
    return {"images": images, "annotations": list(things), "categories": categories}


def write(root: Path, part: str, said: dict[str, Any]) -> Path:
    """An official pair of file and folder; the images are as large as they are said to be."""
    file = root / f"coco/annotations/instances_{part}.json"
    (root / "coco" / part).mkdir(parents=True)
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(said))
    for row in said["images"]:
        size = (row["width"], row["height"])
        Image.new("RGB", size, (row["id"], 0, 0)).save(root / "coco" / part / row["file_name"])
    return file


@pytest.fixture
def root(tmp_path):
    overlapping = (
        thing(1, 67, 3, box(4, 1, 1, 2)),  # the smallest, though first in the file
        thing(2, 67, 18, box(1, 0, 5, 4), iscrowd=0),
        thing(3, 67, 90, {"size": [H, W], "counts": [0, 5, 19]}, iscrowd=1),
        thing(5, 70, 90, [*box(0, 0, 2, 1), *box(1, 0, 2, 2)]),
    )
    write(tmp_path, "train2017", content(4, *overlapping))
    write(tmp_path, "val2017", content(2, thing(9, 70, 3, box(0, 0, 6, 4))))
    return tmp_path


def test_the_smaller_is_on_top_and_crowds_are_void(root):
    data = COCO("train", str(root), validation=0.0)
    assert data.classes == ("background", "cat", "dog", "toothbrush")
    assert [Path(data.path(i)).name for i in range(4)] == ["67.png", "68.png", "69.png", "70.png"]
    image, target = data[0]
    assert image[0].unique().tolist() == [67]
    assert target.keys() == {"mask"}
    assert target["mask"].dtype == torch.uint8
    assert target["mask"].tolist() == [  # the crowd of 5 pixels is over the dog of 20
        [255, 255, 2, 2, 2, 2],
        [255, 2, 2, 2, 1, 2],
        [255, 2, 2, 2, 1, 2],
        [255, 2, 2, 2, 2, 2],
    ]
    assert data.mask(1).tolist() == [[0] * W] * H, "an image without objects is background"
    assert data.mask(3).tolist() == [[3, 3, 3, 0, 0, 0], [0, 3, 3, 0, 0, 0], [0] * 6, [0] * 6]
    assert data.class_counts() == [4, 1, 1, 1]


def test_the_official_val_is_the_test_and_val_is_held_out(root):
    train, val, test = (
        COCO(split, str(root), validation=0.25) for split in ("train", "val", "test")
    )
    assert [len(data) for data in (train, val, test)] == [3, 1, 2]
    assert sorted(Path(d.path(i)).stem for d in (train, val) for i in range(len(d))) == [
        "67", "68", "69", "70",
    ]  # fmt: skip
    assert "val2017" in test.path(0)
    assert test.mask(1).unique().tolist() == [1]
    with pytest.raises(NoSplit, match="no val split with validation=0"):
        COCO("val", str(root), validation=0.0)
    assert len({data.fingerprint() for data in (train, val, test)}) == 3
    assert COCO("val", str(root), validation=0.25).fingerprint() == val.fingerprint()


def test_some_categories(root):
    chosen = ("dog", "cat")
    data = COCO("train", str(root), classes=chosen, validation=0.0)
    assert data.classes == ("background", "dog", "cat")
    assert data.mask(0)[1].tolist() == [0, 1, 1, 1, 2, 1], "a crowd of others is background too"
    assert data.mask(3).unique().tolist() == [0]
    void = COCO("train", str(root), classes=chosen, others="void", validation=0.0)
    assert void.mask(0)[1].tolist() == [255, 1, 1, 1, 2, 1]
    assert void.mask(3)[1].tolist() == [0, 255, 255, 0, 0, 0]
    assert void.fingerprint() != data.fingerprint()
    with pytest.raises(UserError, match='no category "dgo"') as caught:
        COCO("train", str(root), classes=("dgo",))
    assert caught.value.advice == 'did you mean "dog"?'
    with pytest.raises(ValueError, match="different categories"):
        COCO("train", str(root), classes=("dog", "dog"))


def test_a_file_of_ones_own(root, tmp_path):
    said = content(10, thing(1, 70, 18, box(0, 0, 1, 1)))
    said["categories"].append({"id": 0, "name": "background"})
    write(tmp_path, "mine", said)
    own: Any = {"annotations": "coco/annotations/instances_mine.json", "images": "coco/mine"}
    parts = [COCO(s, str(tmp_path), **own, validation=0.2) for s in ("train", "val", "test")]
    assert [len(data) for data in parts] == [7, 2, 1]
    assert len({data.path(i) for data in parts for i in range(len(data))}) == 10
    assert parts[0].classes == ("background", "cat", "dog", "toothbrush")
    with pytest.raises(NoSplit, match="no test split with test=0"):
        COCO("test", str(tmp_path), **own, test=0.0)
    with pytest.raises(UserError, match="is not there"):
        COCO("train", str(tmp_path), annotations="other.json", images="coco/mine")
    with pytest.raises(ValueError, match="go together"):
        COCO("train", str(tmp_path), images="coco/mine")


def test_an_absent_root_is_named_with_advice(root, tmp_path):
    with pytest.raises(UserError, match="was looked for in this folder, which does not") as caught:
        COCO("train", str(tmp_path / "nothing"))
    assert caught.value.code == Exit.DATA
    assert caught.value.advice
    assert "coco/train2017" in COCO.missing(str(tmp_path / "nothing"))
    assert COCO.missing(str(root)) == []
    assert len(COCO("test", str(root / "coco"))) == 2, "the folder coco itself will do"
    with pytest.raises(UserError, match="instances_train2014"):
        COCO("train", str(root), year=2014)
    with pytest.raises(UserError, match="not downloaded"):
        COCO.fetch(None)


def test_images_that_are_absent_or_of_another_size(root):
    picture = root / "coco/val2017/69.png"
    Image.new("RGB", (W, H + 1)).save(picture)
    with pytest.raises(UserError) as caught:
        COCO("test", str(root))[0]
    file = root / "coco/annotations/instances_val2017.json"
    assert str(caught.value) == f"{picture}: the image is 6 x 5, {file} says 6 x 4"
    picture.unlink()
    with pytest.raises(UserError) as caught:
        COCO("test", str(root))
    assert str(caught.value) == f"{file}: names an image that is not there: {picture}"


def test_images_with_an_exif_orientation(root):
    """The official outlines are of the stored image; whose own are, only sizes can tell."""
    pixels, exif = np.zeros((H, W, 3), np.uint8), Image.Exif()
    pixels[0], exif[0x0112] = 9, 3
    Image.fromarray(pixels).save(root / "coco/train2017/67.png", exif=exif)
    data = COCO("train", str(root), validation=0.0)
    assert np.array_equal(data[0][0][0].numpy(), pixels[..., 0])
    own: Any = {"annotations": str(data.file), "images": str(data.folder)}
    with pytest.raises(UserError, match="has EXIF orientation 3"):
        COCO("train", **own, validation=0.0, test=0.0)[0]


def test_train_and_val_have_the_same_categories(root):
    file = root / "coco/annotations/instances_val2017.json"
    said = json.loads(file.read_text())
    said["categories"][1]["name"] = "fox"
    file.write_text(json.dumps(said))
    with pytest.raises(UserError, match=r'number 2 is "fox" \(id 18\), not "dog"'):
        COCO("test", str(root))


# Files that are wrong.

SQUARE = [0, 0, 2, 0, 2, 2, 0, 2]


@pytest.mark.parametrize(
    ("segmentation", "words"),
    [
        ([], "is an empty list"),
        (None, "is null, must be a list of polygons"),
        ("abc", "is text"),
        (SQUARE, "must be a list of polygons"),
        ([["0", 0, 2, 0, 2, 2]], "must be a list of polygons"),
        ([[0, 0, 2, None, 2, 2]], "must be a list of polygons"),
        ([[10**400, 0, 2, 0, 2, 2]], "must be a list of polygons"),
        ([[]], "a polygon has 0 numbers"),
        ([[0, 0, 2, 2]], "a polygon has 4 numbers, must have 2 for each of 3 points"),
        ([SQUARE, [0, 0, 2, 0, 2, 2, 1]], "a polygon has 7 numbers"),
        ([[0, 0, 1e999, 0, 2, 2]], "is not finite"),
        ([[0, 0, float("nan"), 0, 2, 2]], "is not finite"),
        ([[-6, 0, 12, 0] * 28], "its outlines are 1,008 pixels long, more than 100 times"),
        ([[0, -4, 0, 8] * 21] * 2, "its outlines are 1,008 pixels long"),
        ([[0, 0, 1e20, 0, 2, 2]], "a polygon's x is far outside the image of 6 x 4"),
        ([[0, -5, 2, 0, 2, 2]], "a polygon's y is far outside"),
        ({"counts": [24]}, re.escape("its size is None, its image's [height, width] is [4, 6]")),
        ({"size": [W, H], "counts": [24]}, re.escape("its size is [6, 4]")),
        ({"size": [10**5, 10**5], "counts": [10**10]}, "its size is"),
        ({"size": [H, W]}, "counts must be a list"),
        ({"size": [H, W], "counts": [4, 21]}, "its runs are 25 pixels long, its image has 24"),
        ({"size": [H, W], "counts": [4, 19]}, "its runs are 23 pixels long"),
        ({"size": [H, W], "counts": [-1, 25]}, "no whole number from 0 up"),
        ({"size": [H, W], "counts": [4, 20.0]}, "no whole number from 0 up"),
        ({"size": [H, W], "counts": "\u00ff garbage"}, "no run lengths of COCO"),
        ({"size": [H, W], "counts": "oooooooooooo"}, "no run lengths of COCO"),
        ({"size": [H, W], "counts": "4o"}, "its counts are cut off"),
        ({"size": [H, W], "counts": "45"}, "its runs are 9 pixels long"),
    ],
)
def test_shapes_that_native_code_must_not_see(tmp_path, segmentation, words):
    text = json.dumps(content(1, thing(88, 70, 3, segmentation))).replace("Infinity", "1e999")
    error = refused(tmp_path, text, words)
    assert error.record == "annotations[0] (id 88)"
    assert error.problem.startswith("segmentation: ")


def read(folder: Path, text: str | bytes) -> coco_index.Index:
    file = folder / "a.json"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return coco_index.read_index(file, "segmentation")


def refused(folder: Path, text: str | bytes, words: str) -> UserError:
    with pytest.raises(UserError, match=words) as caught:
        read(folder, text)
    assert caught.value.code == Exit.DATA
    assert caught.value.file == str(folder / "a.json")
    assert caught.value.advice
    return caught.value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is no whole JSON file: Expecting value at line 1, column 1"),
        ('{"images": [', "is no whole JSON file"),
        ('{"images": [],}', "is no whole JSON file"),
        ("[]", "holds a list, must hold an object"),
        ('{"images": NaN}', '"images" is the number nan, must be a list'),
        ('{"images": [], "images": []}', 'has the key "images" twice'),
        ("[" * 100_000, "is nested too deeply"),
        (b"\xff\xff", "is no text in UTF-8"),
        ('{"images": ' + "9" * 5000 + "}", "is no JSON that can be used"),
        ("{}", '"images" is missing'),
        ('{"images": null}', '"images" is null, must be a list'),
        ('{"images": [], "categories": []}', '"annotations" is missing'),
        ('{"images": [], "categories": [], "annotations": []}', "holds no images"),
        ('{"images": [7], "categories": [], "annotations": []}', "is the number 7, must be an obj"),
        (json.dumps(content(2)), "holds no annotations"),
    ],
)
def test_files_that_are_no_annotations(tmp_path, text, words):
    refused(tmp_path, text, words)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("images.1.id", 70, r"images\[1\] \(id 70\): id: another image has it too"),
        ("images.1.id", "7", r"images\[1\]: id: is text, must be a whole number"),
        ("images.1.id", True, "id: is true or false"),
        ("images.1.id", 2**70, "beyond 64 bits"),
        ("images.1.width", 0, "width and height: 0 x 4 is no size"),
        ("images.1.height", 10**6 * 100, "is no size of an image"),
        ("images.1.height", 65_536, "6 x 65536 is no size of an image"),
        (
            "images.1.file_name",
            "a/..//./70.png",
            r"images\[1\] \(id 69\): file_name: a/..//./70.png is the file of images\[0\]",
        ),
        ("images.1.height", 4.5, "height: is the number 4.5"),
        ("images.1.file_name", None, "file_name: must be text"),
        ("images.1.file_name", "a\0.jpg", "file_name: must be text"),
        ("images.1.file_name", "\ud800.jpg", "file_name: must be text"),
        ("categories.1.id", 3, "another category has this id or name too"),
        ("categories.1.name", "cat", "another category has this id or name too"),
        ("annotations.1.id", 1, r"annotations\[1\] \(id 1\): id: another annotation has it too"),
        ("annotations.1.id", None, "id: is null"),
        ("annotations.1.image_id", 5, "image_id: 5 is not in images"),
        ("annotations.1.image_id", "70", 'image_id: is the text "70", where images has the number'),
        ("annotations.1.category_id", 4, "category_id: 4 is not in categories"),
        ("annotations.1.category_id", [3], "category_id: is a list"),
        ("annotations.1.iscrowd", 2, "iscrowd: must be 0 or 1"),
        ("annotations.1.iscrowd", {}, "iscrowd: must be 0 or 1"),
    ],
)
def test_records_that_are_wrong(tmp_path, path, value, words):
    said = content(2, thing(1, 70, 3, [SQUARE]), thing(2, 70, 3, [SQUARE]))
    group, position, key = path.split(".")
    said[group][int(position)][key] = value
    refused(tmp_path, json.dumps(said), words)


def test_all_faults_are_counted(tmp_path):
    wrong = [thing(number, 5, 3, [SQUARE]) for number in range(1200)]
    error = refused(tmp_path, json.dumps(content(2, *wrong)), "is not in images")
    assert str(error).endswith(
        "annotations[0] (id 0): image_id: 5 is not in images (and 1,199 more faults)"
    )


def test_what_is_odd_and_yet_right(tmp_path):
    """A byte order mark, annotation id 0, ids in any order, unknown keys, shapes at the edge."""
    shapes = [
        [SQUARE],
        [[-6, -4, 12, -4, 12, 8], [0, 0, 6, 4] * 79],
        [[1, 1, 1, 1, 1, 1]],
        [[0, 0, 6, 4, 6, 0, 0, 4]],
    ]
    things = [thing(9 - n, 70, 3, shape, bbox="any") for n, shape in enumerate(shapes)]
    said = content(1, *things, thing(0, 70, 18, {"size": [H, W], "counts": "4d0"}))
    index = read(tmp_path, b"\xef\xbb\xbf" + json.dumps(said).encode())
    assert index.annotation_ids.tolist() == [9, 8, 7, 6, 0]
    assert index.category_names == tuple(NAMES.values())
    assert index.runs.tolist() == [4, 20]
    sizes = [sum(runs_of(index, number, H, W)[1::2]) for number in range(5)]
    assert sizes == [4, sizes[1], 0, sizes[3], 20]
    assert paint(index, 0, np.array([1, 2, 3], np.uint8))[3, 1] == 2


# Arrays and their cache.


def test_run_lengths_as_the_coco_api_writes_them():
    native = pytest.importorskip("pycocotools.mask")
    generator = np.random.default_rng(0)
    for share in (0.01, 0.5, 0.99):
        bits = (generator.random((97, 301)) < share).astype(np.uint8)
        bits[:, 100:] = share > 0.5  # long runs: several characters a number
        text = native.encode(np.asfortranarray(bits))["counts"].decode()
        runs = decode_counts(text)
        painted = np.repeat(np.arange(len(runs)) % 2, runs).reshape(301, 97).T
        assert np.array_equal(painted, bits)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:pycocotools.*")
def test_polygons_are_drawn_as_the_coco_api_draws_them(tmp_path):
    """Of any form and number, crossing themselves, and partly or wholly outside."""
    native = pytest.importorskip("pycocotools.mask")
    generator = np.random.default_rng(0)
    shapes = []
    for number in range(100):
        points = [(6 + 2 * generator.integers(0, 12)) for _ in range(1 + number % 3)]
        shapes.append([(generator.random(n) * 18 - 6).round(2).tolist() for n in points])
        for polygon in shapes[-1]:
            polygon[1::2] = [min(max(y, -H), 2 * H) for y in polygon[1::2]]
    things = [thing(n, 70, 3, shape) for n, shape in enumerate(shapes)]
    index = read(tmp_path, json.dumps(content(1, *things)))
    for number, shape in enumerate(shapes):
        runs = runs_of(index, number, H, W)
        drawn = np.repeat(np.arange(len(runs)) % 2, runs).reshape(W, H).T
        assert np.array_equal(drawn, native.decode(native.merge(native.frPyObjects(shape, H, W))))


def test_a_large_file_is_read_once(root, tmp_path, monkeypatch):
    monkeypatch.setattr(coco_index, "_LARGE", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    first = COCO("train", str(root), validation=0.0)
    monkeypatch.setattr(coco_index, "_build", None)
    again = COCO("train", str(root), validation=0.0)
    assert isinstance(again.index.coordinates, np.memmap)
    assert again.fingerprint() == first.fingerprint()
    assert [again.mask(i).tolist() for i in range(4)] == [first.mask(i).tolist() for i in range(4)]
    monkeypatch.undo()
    monkeypatch.setattr(coco_index, "_LARGE", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("runs.npy", "index.json"):
        for kept in (0, 20):  # bytes, as a power cut may leave it
            (file,) = (tmp_path / "cache").rglob(name)
            file.write_bytes(file.read_bytes()[:kept])
            again = COCO("train", str(root), validation=0.0)
            assert again.fingerprint() == first.fingerprint()
            assert not isinstance(again.index.runs, np.memmap)
    file = root / "coco/annotations/instances_train2017.json"
    file.write_text(file.read_text().replace("toothbrush", "hairbrush"))
    assert COCO("train", str(root), validation=0.0).classes[3] == "hairbrush"
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))  # no folder: the cache cannot be written
    assert COCO("train", str(root), validation=0.0).classes[3] == "hairbrush"


def real() -> str:
    root = os.environ.get("CNNCTL_DATA")
    if root is None or not (Path(root) / "coco/annotations").is_dir():
        pytest.skip("$CNNCTL_DATA does not hold coco")
    return root


@pytest.mark.data
def test_the_real_subset():
    train, test = COCO("train", real(), validation=0.0), COCO("test", real())
    assert (len(train), len(test)) == (247, 141)
    assert [len(data.index.annotation_ids) for data in (train, test)] == [2084, 1181]
    assert [int(data.index.crowds.sum()) for data in (train, test)] == [19, 14]
    assert train.classes == test.classes
    assert len(train.classes) == 81
    assert (train.classes[1], train.classes[80]) == ("person", "toothbrush")
    counts = [len(set(data.index.categories.tolist())) for data in (train, test)]
    assert counts == [80, 79]
    image, target = train[0]
    assert image.shape[1:] == target["mask"].shape


@pytest.mark.data
@pytest.mark.filterwarnings("ignore::DeprecationWarning:pycocotools.*")
def test_every_real_map_is_what_pycocotools_paints():
    native = pytest.importorskip("pycocotools.mask")
    for data in (COCO("train", real(), validation=0.0), COCO("test", real())):
        said = json.loads(data.file.read_text())
        by_id = sorted(said["categories"], key=lambda row: row["id"])
        number = {row["id"]: place for place, row in enumerate(by_id, 1)}
        for index in range(len(data)):
            own = int(data.index.image_ids[data.chosen[index]])
            h, w = data.index.sizes[data.chosen[index]]
            expected, found = np.zeros((h, w), np.uint8), []
            for row in said["annotations"]:
                if row["image_id"] == own:
                    shape = native.frPyObjects(row["segmentation"], h, w)
                    bits = native.decode(native.merge(shape) if isinstance(shape, list) else shape)
                    value = 255 if row["iscrowd"] else number[row["category_id"]]
                    found.append((int(bits.sum()), value, bits.astype(bool)))
            for _, value, bits in sorted(found, key=lambda one: -one[0]):
                expected[bits] = value
            assert np.array_equal(data.mask(index).numpy(), expected), data.sample_name(index)
