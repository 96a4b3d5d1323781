"""A user's own boxes: what a folder is taken for, and each way in which it can be wrong."""

from __future__ import annotations

import json
import os
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from cnnctl.data.base import NoSplit
from cnnctl.data.boxes import Boxes
from cnnctl.data.faults import Faulty
from cnnctl.errors import Exit, UserError

W, H = 20, 10

# Image n has n boxes of class n mod 2 ("cat", "dog"), each of 4 x 2 pixels, from x = 2 k.
NAMES = ("cat", "dog")


def boxes(number: int) -> list[list[int]]:
    return [[2 * k, 1, 2 * k + 4, 3] for k in range(number)]


def pictures(folder: Path, numbers: range) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    for n in numbers:
        Image.new("RGB", (W, H), (n, 0, 0)).save(folder / f"{n:02d}.png")
    return [f"{n:02d}" for n in numbers]


def voc(file: Path, number: int, size: tuple[int, int] = (W, H)) -> None:
    objects = "".join(
        f"<object><name>{NAMES[number % 2]}</name><bndbox><xmin>{x1 + 1}</xmin><ymin>{y1 + 1}"
        f"</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
        for x1, y1, x2, y2 in boxes(number)
    )
    width, height = size
    size_text = f"<size><width>{width}</width><height>{height}</height></size>"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"<annotation>{size_text}{objects}</annotation>")


def yolo(file: Path, number: int) -> None:
    rows = [
        f"{number % 2} {(x1 + x2) / 2 / W} {(y1 + y2) / 2 / H} {(x2 - x1) / W} {(y2 - y1) / H}"
        for x1, y1, x2, y2 in boxes(number)
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(rows))


def coco(file: Path, numbers: range, start: str = "") -> None:
    """Ids with gaps: images from 100, categories 3 and 7."""
    images = [
        {"id": 100 + n, "width": W, "height": H, "file_name": f"{start}{n:02d}.png"}
        for n in numbers
    ]
    things = [
        {"image_id": 100 + n, "category_id": (3, 7)[n % 2], "iscrowd": 0,
         "bbox": [x1, y1, x2 - x1, y2 - y1]}
        for n in numbers for x1, y1, x2, y2 in boxes(n)
    ]  # fmt: skip
    for number, thing in enumerate(things, 1):
        thing["id"] = number
    categories = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]
    file.parent.mkdir(parents=True, exist_ok=True)
    content = {"images": images, "annotations": things, "categories": categories}
    file.write_text(json.dumps(content))


def truths(root: Path, where: str, form: str, numbers: range, names: bool = True) -> None:
    """Files for each image at ``where``, or in COCO's format one file of that name."""
    if form == "coco":
        coco(root / where, numbers)
        return
    for n in numbers:
        if form == "voc":
            voc(root / where / f"{n:02d}.xml", n)
        else:
            yolo(root / where / f"{n:02d}.txt", n)
    if form == "yolo" and names:
        (root / "data.yaml").write_text("names: [cat, dog]\nnc: 2\n")


UNDIVIDED = [
    ("images", "images", "voc"),
    ("JPEGImages", "Annotations", "voc"),
    (".", ".", "voc"),
    ("pictures/all", "pictures/all", "voc"),
    ("images", "labels", "yolo"),
    ("images", "images", "yolo"),
    (".", ".", "yolo"),
    ("images", "my boxes", "voc"),
    ("images", "annotations.json", "coco"),
    ("images", "annotations/instances.json", "coco"),
    (".", "_annotations.coco.json", "coco"),
    ("images", "images/result.json", "coco"),
]


@pytest.mark.parametrize(("images", "where", "form"), UNDIVIDED)
def test_an_undivided_folder_is_told_and_split_always_alike(tmp_path, images, where, form):
    pictures(tmp_path / images, range(10))
    truths(tmp_path, where, form, range(10))
    root = str(tmp_path)
    parts = {s: Boxes(s, root, validation=0.2, test=0.1) for s in ("train", "val", "test")}
    assert {data.format for data in parts.values()} == {form}
    assert [len(data) for data in parts.values()] == [7, 2, 1]
    seen = []
    for data in parts.values():
        assert data.classes == NAMES
        every = data.all_truth()
        for index in range(len(data)):
            number = int(Path(data.path(index)).stem)
            image, target = data[index]
            assert image[0].unique().tolist() == [number]
            assert torch.allclose(target["boxes"], torch.tensor(boxes(number)).view(-1, 4).float())
            assert target["labels"].tolist() == [number % 2] * number
            assert target["area"].tolist() == pytest.approx([8] * number)
            assert not (target["crowd"] | target["difficult"]).any()
            for name, column in target.items():
                whole = torch.from_numpy(every[name][every["image"] == index])
                assert torch.equal(whole.to(column.dtype), column)
            seen.append(number)
    assert sorted(seen) == list(range(10))
    again = Boxes("val", root, validation=0.2, test=0.1)
    assert again.fingerprint() == parts["val"].fingerprint()
    copy = pickle.loads(pickle.dumps(again))
    assert torch.equal(copy[1][1]["boxes"], again[1][1]["boxes"])


DIVIDED = [
    ("{part}/images", "{part}/labels", "yolo"),
    ("images/{part}", "labels/{part}", "yolo"),
    ("images/{part}2017", "labels/{part}2017", "yolo"),
    ("{part}", "{part}", "yolo"),
    ("images/{part}", "labels", "yolo"),
    ("{part}", "{part}", "voc"),
    ("{part}/images", "{part}/annotations", "voc"),
    ("{part}/JPEGImages", "Annotations", "voc"),
    ("{part}", "{part}/_annotations.coco.json", "coco"),
    ("{part}/images", "{part}/annotations.json", "coco"),
    ("{part}2017", "annotations/instances_{part}2017.json", "coco"),
    ("images/{part}", "annotations/{part}.json", "coco"),
    ("images", "{part}.json", "coco"),
]


@pytest.mark.parametrize(("images", "where", "form"), DIVIDED)
def test_folders_of_its_own_for_every_split(tmp_path, images, where, form):
    numbers: Any = {"train": range(1, 5), "val": range(5, 8), "test": range(8, 10)}
    for part, own in numbers.items():
        pictures(tmp_path / images.format(part=part), own)
        truths(tmp_path, where.format(part=part), form, own)
    for part, own in numbers.items():
        data = Boxes(part, str(tmp_path))
        assert data.format == form
        assert [int(Path(data.path(i)).stem) for i in range(len(data))] == list(own)
        assert [len(data.truth(i)["boxes"]) for i in range(len(data))] == list(own)
        assert data.classes == NAMES


def test_val_is_held_out_of_train_where_it_has_no_folder(tmp_path):
    pictures(tmp_path / "train/images", range(1, 9))
    truths(tmp_path, "train/labels", "yolo", range(1, 9))
    pictures(tmp_path / "test/images", range(9, 10))
    root = str(tmp_path)
    parts = [Boxes(split, root, validation=0.25) for split in ("train", "val")]
    assert [len(data) for data in parts] == [6, 2]
    with pytest.raises(NoSplit, match="test/images/ holds images and no YOLO text of them, so"):
        Boxes("test", root)
    with pytest.raises(NoSplit, match="no val split with validation=0"):
        Boxes("val", root, validation=0.0)
    pictures(tmp_path / "valid/images", range(10, 11))
    with pytest.raises(UserError, match="valid/images: holds images and no YOLO text of them"):
        Boxes("train", root)


def test_lists_of_voc_divide_a_folder(tmp_path):
    pictures(tmp_path / "JPEGImages", range(1, 9))  # two are in no list, and have no boxes
    truths(tmp_path, "Annotations", "voc", range(1, 7))
    lists = tmp_path / "ImageSets/Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("05\n01\n02\n")
    (lists / "val.txt").write_text("03\n")
    train, val = (Boxes(split, str(tmp_path)) for split in ("train", "val"))
    assert [Path(train.path(i)).stem for i in range(3)] == ["05", "01", "02"]
    assert [Path(val.path(i)).stem for i in range(len(val))] == ["03"]
    with pytest.raises(NoSplit, match=re.escape("ImageSets/Main has no test.txt, so")):
        Boxes("test", str(tmp_path))
    (lists / "val.txt").write_text("03\n05\n")
    with pytest.raises(UserError, match=re.escape("images that are in train.txt too: 05")):
        Boxes("val", str(tmp_path))
    (lists / "val.txt").write_text("33\n")
    with pytest.raises(UserError, match="names images that are not there: 33"):
        Boxes("val", str(tmp_path))
    (lists / "val.txt").write_text("03\n")
    pictures(tmp_path / "JPEGImages/more", range(3, 4))
    with pytest.raises(UserError, match="names images that are in several folders: 03"):
        Boxes("val", str(tmp_path))


def test_several_formats_in_one_folder_are_asked_about(tmp_path):
    pictures(tmp_path / "images", range(1, 5))
    truths(tmp_path, "labels", "yolo", range(1, 5))
    truths(tmp_path, "Annotations", "voc", range(1, 5))
    with pytest.raises(UserError, match="holds boxes in several formats: VOC XML") as caught:
        Boxes("train", str(tmp_path))
    assert caught.value.advice == "data.format=voc or data.format=yolo"
    assert caught.value.code == Exit.DATA
    for form in ("voc", "yolo"):
        assert Boxes("train", str(tmp_path), format=form).format == form
    with pytest.raises(UserError, match="has no COCO JSON of them that can be recognised"):
        Boxes("train", str(tmp_path), format="coco")


def test_a_folder_that_is_not_told(tmp_path):
    root = str(tmp_path)
    with pytest.raises(UserError, match="needs the folder that holds images and their boxes"):
        Boxes("train")
    with pytest.raises(UserError, match="holds no images: it is empty"):
        Boxes("train", root)
    pictures(tmp_path / "images", range(3))
    (tmp_path / "boxes.csv").write_text("00.png,1,2,3,4,cat\n")
    (tmp_path / "package.json").write_text("{}")
    with pytest.raises(UserError) as caught:
        Boxes("train", root)
    assert str(caught.value) == (
        f"{root}: has no boxes that can be recognised: it holds 3 images, 1 .json, 1 .csv"
    )
    assert (caught.value.advice or "").startswith("COCO: a .json of images, annotations")


@pytest.mark.parametrize("form", ["coco", None])
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty (0 bytes)"),
        ("[]", "holds a list, must hold an object with images"),
        ('{"images": [], "categories": []}', 'has no "annotations"'),
        ('{"images": [{"annotations": []}', "is no whole JSON file: Expecting"),
    ],
)
def test_a_json_file_that_is_not_cocos_is_named(tmp_path, form, text, words):
    pictures(tmp_path / "images", range(1, 5))
    file = tmp_path / "instances.json"
    file.write_text(text)
    if form is not None:
        (tmp_path / "package.json").write_text("{}")  # an other one is no reason to be silent
    with pytest.raises(UserError) as caught:
        Boxes("train", str(tmp_path), format=form)
    assert str(caught.value).startswith(f"{file}: {words}")
    assert caught.value.code == Exit.DATA
    assert caught.value.advice


def test_every_image_that_a_json_file_names_in_vain_is_told(tmp_path):
    pictures(tmp_path / "images", range(1, 3))
    coco(tmp_path / "a.json", range(1, 5))
    with pytest.raises(Faulty) as caught:
        Boxes("train", str(tmp_path))
    assert caught.value.problem.endswith("03.png (and 1 more fault)")
    assert caught.value.faults == tuple(
        f"{tmp_path}/a.json: names an image that is not there: {tmp_path}/images/{n}.png"
        for n in ("03", "04")
    )


def test_an_image_without_a_file_of_boxes(tmp_path):
    pictures(tmp_path / "images", range(1, 5))
    truths(tmp_path, "labels", "yolo", range(1, 4))
    data = Boxes("train", str(tmp_path), validation=0.0, test=0.0)
    assert [len(data.truth(i)["boxes"]) for i in range(4)] == [1, 2, 3, 0]
    assert data.remarks() == ["1 of 4 images have no box"]
    other = tmp_path / "other"
    pictures(other, range(1, 5))
    truths(other, ".", "voc", range(1, 3))
    with pytest.raises(
        UserError, match=r"03.png: image without an .xml \(and 1 more fault in 2 files\)"
    ):
        Boxes("train", str(other))


def test_a_file_of_boxes_without_an_image(tmp_path):
    pictures(tmp_path / "images", range(1, 5))
    truths(tmp_path, "labels", "yolo", range(1, 7))
    (tmp_path / "labels/classes.txt").write_text("cat\ndog\n")
    with pytest.raises(UserError, match=r"05.txt: boxes without an image \(and 1 more\) in"):
        Boxes("train", str(tmp_path))
    (tmp_path / "labels/05.txt").unlink()
    (tmp_path / "labels/06.txt").unlink()
    assert Boxes("train", str(tmp_path)).classes == NAMES
    Image.new("RGB", (W, H)).save(tmp_path / "images/01.bmp")
    with pytest.raises(UserError, match=re.escape("has the same name as 01.bmp")):
        Boxes("train", str(tmp_path))


def test_classes_given_by_the_user(tmp_path):
    pictures(tmp_path / "images", range(1, 5))
    truths(tmp_path, "labels", "yolo", range(1, 5), names=False)
    root = str(tmp_path)
    with pytest.raises(UserError, match="the classes have no names: there is none of"):
        Boxes("train", root)
    data = Boxes("train", root, classes=("a", "b", "c"), validation=0.0, test=0.0)
    assert data.classes == ("a", "b", "c")
    assert data.class_counts() == [2, 2, 0]
    assert data.remarks() == ["no box of c"]
    assert data.palette is not None
    assert data.palette[:2] == ((128, 0, 0), (0, 128, 0))
    assert not hasattr(data, "image_ids"), "results are then of images from 1 up"
    with pytest.raises(UserError, match="class 1 is none of the 1, 0 to 0"):
        Boxes("train", root, classes=("a",))
    with pytest.raises(ValueError, match="classes must be different names"):
        Boxes("train", root, classes=("a", "a"))


def test_categories_of_coco(tmp_path):
    pictures(tmp_path / "images", range(1, 5))
    truths(tmp_path, "all.json", "coco", range(1, 5))
    root = str(tmp_path)
    data = Boxes("train", root, validation=0.0, test=0.0)
    assert data.image_ids.tolist() == [101, 102, 103, 104]
    assert data.category_ids == (3, 7)
    dogs = Boxes("train", root, classes=("dog",), validation=0.0, test=0.0)
    assert dogs.category_ids == (7,)
    assert [len(dogs.truth(i)["boxes"]) for i in range(4)] == [1, 0, 3, 0]
    with pytest.raises(UserError, match='no category "dgo"') as caught:
        Boxes("train", root, classes=("dgo",))
    assert caught.value.advice == 'did you mean "dog"?'
    (tmp_path / "images/02.png").unlink()
    with pytest.raises(UserError, match="names an image that is not there:"):
        Boxes("train", root)


def test_files_of_coco_are_found_wherever_they_are(tmp_path):
    for folder in ("batch [1]/x", "batch 2"):
        pictures(tmp_path / "all" / folder, range(1, 4))
    Image.new("RGB", (W, H)).save(tmp_path / "all/batch [1]/x/01.jpg")  # one name, two endings
    coco(tmp_path / "a.json", range(1, 4), "batch [1]/x/")
    data = Boxes("train", str(tmp_path), validation=0.0, test=0.0)
    assert data.path(0) == str(tmp_path / "all/batch [1]/x/01.png")
    assert [len(data[i][1]["boxes"]) for i in range(3)] == [1, 2, 3]


def test_crowds_and_areas_of_coco(tmp_path):
    pictures(tmp_path, range(1, 3))
    coco(tmp_path / "a.json", range(1, 3))
    content = json.loads((tmp_path / "a.json").read_text())
    content["annotations"][0] |= {"area": 5.5, "bbox": [16, 1, 6, 2]}
    content["annotations"][1]["iscrowd"] = 1
    (tmp_path / "a.json").write_text(json.dumps(content))
    data = Boxes("train", str(tmp_path), validation=0.0, test=0.0)
    assert data.truth(0)["boxes"].tolist() == [[16, 1, 20, 3]]
    assert data.truth(0)["area"].tolist() == [5.5]
    assert data.truth(1)["crowd"].tolist() == [True, False]
    assert data.remarks() == ["1 boxes reached beyond their image: clipped"]
    content["annotations"][0]["area"] = 6.5
    (tmp_path / "a.json").write_text(json.dumps(content))
    other = Boxes("train", str(tmp_path), validation=0.0, test=0.0)
    assert other.fingerprint() != data.fingerprint(), "COCO's sizes are decided by the areas"


def test_parts_of_other_categories_are_refused(tmp_path):
    for part in ("train", "val"):
        pictures(tmp_path / part, range(1, 3))
        coco(tmp_path / part / "a.json", range(1, 3))
    file = tmp_path / "val/a.json"
    file.write_text(file.read_text().replace('"cat"', '"cow"'))
    with pytest.raises(UserError, match=r"has other categories than .*: cow, dog there cat, dog"):
        Boxes("val", str(tmp_path))
    (tmp_path / "train/b.json").write_text(file.read_text())
    with pytest.raises(UserError, match=re.escape("has a.json and b.json: which of them")):
        Boxes("train", str(tmp_path))


def test_names_of_voc_are_those_of_all_parts(tmp_path):
    for part, n in (("train", 1), ("val", 2)):
        pictures(tmp_path / part, range(n, n + 1))
        truths(tmp_path, part, "voc", range(n, n + 1))
    train, val = (Boxes(split, str(tmp_path)) for split in ("train", "val"))
    assert (train.classes, val.classes) == (NAMES, NAMES)
    assert train.truth(0)["labels"].tolist() == [1]
    with pytest.raises(UserError, match='"dog" is no class'):
        Boxes("train", str(tmp_path), classes=("cat", "dogs"))


def test_voc_counted_from_0(tmp_path):
    pictures(tmp_path, range(1, 2))
    voc(tmp_path / "01.xml", 1)
    text = (tmp_path / "01.xml").read_text()
    (tmp_path / "01.xml").write_text(text.replace("<xmin>1<", "<xmin>0<"))
    none: dict[str, Any] = {"validation": 0.0, "test": 0.0}
    data = Boxes("train", str(tmp_path), **none)
    assert data.truth(0)["boxes"].tolist() == [[0, 1, 4, 3]]
    assert data.remarks()[0].endswith("which VOC counts as 1: data.first_pixel=0?")
    data = Boxes("train", str(tmp_path), first_pixel=0, **none)
    assert data.truth(0)["boxes"].tolist() == [[0, 2, 4, 3]]
    assert data.remarks() == []


def test_an_image_of_another_size_than_its_annotation_says(tmp_path):
    pictures(tmp_path, range(1, 2))
    voc(tmp_path / "01.xml", 1, size=(W, H + 1))
    data = Boxes("train", str(tmp_path), validation=0.0, test=0.0)
    with pytest.raises(UserError, match=re.escape("the image is 20 x 10, ")) as caught:
        data[0]
    assert f"{tmp_path}/01.xml says 20 x 11" in str(caught.value)


@pytest.mark.parametrize("form", ["yolo", "voc"])
def test_a_turned_image_is_read_as_it_is_shown(tmp_path, form):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (H, W)).save(tmp_path / "01.jpg", exif=exif)  # shown as W x H
    truths(tmp_path, ".", form, range(1, 2))
    data = Boxes("train", str(tmp_path), validation=0.0, test=0.0)
    image, target = data[0]
    assert image.shape == (3, H, W)
    assert torch.allclose(target["boxes"], torch.tensor([[0.0, 1, 4, 3]]))
    assert data.image_size(0) == (H, W)


def test_a_split_without_a_box_is_refused(tmp_path):
    pictures(tmp_path / "images", range(0, 1))
    truths(tmp_path, "labels", "yolo", range(0, 1))
    with pytest.raises(UserError, match="train has 1 images, and it has no box"):
        Boxes("train", str(tmp_path), validation=0.0, test=0.0)


def test_names_and_links_that_are_odd(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("RGB", (W, H)).save(folder / "a.b c.png")
    Image.new("L", (W, H)).save(os.fsencode(folder) + b"/\xff.png")
    yolo(tmp_path / "labels/a.b c.txt", 1)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    data = Boxes("train", str(tmp_path), validation=0.0, test=0.0)
    assert [len(data.truth(i)["boxes"]) for i in range(2)] == [1, 0]
    assert data.sample_name(1).endswith("\\xff.png")
    assert data[1][0].shape == (3, H, W)
