"""VOC's boxes, hand-made: which images a split has, what is true of them, and what is refused."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from cnnctl.data.base import NoSplit
from cnnctl.data.voc import VOC
from cnnctl.data.voc_boxes import VOCBoxes
from cnnctl.errors import Exit, UserError

TRAIN = [f"2008_{n:06d}" for n in range(8)]
VAL = [f"2009_{n:06d}" for n in range(3)]


def thing(name: str, box: tuple[float, ...], **more: object) -> str:
    sides = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    bndbox = "".join(f"<{side}>{value}</{side}>" for side, value in sides)
    flags = "".join(f"<{flag}>{value}</{flag}>" for flag, value in more.items())
    return f"<object><name>{name}</name>{flags}<bndbox>{bndbox}</bndbox></object>"


def annotation(*things: str, size: tuple[int, int] = (6, 4)) -> str:
    width, height = size
    start = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    return f"<annotation>{start}{''.join(things)}</annotation>"


def devkit(root: Path, year: int, **lists: list[str]) -> Path:
    """A VOC year of 6 x 4 images; image n of a list has one aeroplane of n + 1 pixels' width."""
    voc = root / f"VOCdevkit/VOC{year}"
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (voc / name).mkdir(parents=True)
    for name, images in lists.items():
        (voc / f"ImageSets/Main/{name}.txt").write_text("\n".join(images) + "\n")
        for number, image in enumerate(images):
            Image.new("RGB", (6, 4), (number, 0, 0)).save(voc / f"JPEGImages/{image}.jpg")
            one = thing("aeroplane", (1, 1, number % 6 + 1, 4))
            (voc / f"Annotations/{image}.xml").write_text(annotation(one))
    return voc


@pytest.fixture
def voc(tmp_path):
    return devkit(tmp_path, 2012, train=TRAIN, val=VAL)


def names(data: VOCBoxes) -> list[str]:
    return [Path(data.path(i)).stem for i in range(len(data))]


def test_it_is_what_voc_is_for_boxes(voc, tmp_path):
    assert VOC.serving(("boxes",)) is VOCBoxes
    assert VOC.serving(("mask",)) is VOC
    assert VOCBoxes.option() == "voc"
    with pytest.raises(UserError, match="data=voc has no label"):
        VOC.serving(("label",))
    assert VOCBoxes.classes[0] == "aeroplane"
    assert VOCBoxes.classes[14] == "person"
    assert len(VOCBoxes.classes) == 20


def test_a_sample(voc, tmp_path):
    (voc / f"Annotations/{VAL[1]}.xml").write_text(
        annotation(
            thing("dog", (2, 1, 6, 4), truncated=1, difficult=0),
            thing("person", (1, 2, 1, 2), difficult=1, occluded=1),
        )
    )
    (voc / f"Annotations/{VAL[2]}.xml").write_text(annotation())
    data = VOCBoxes("test", str(tmp_path))
    image, target = data[1]
    assert image.shape == (3, 4, 6)
    assert target["boxes"].tolist() == [[1, 0, 6, 4], [0, 1, 1, 2]]
    assert target["labels"].tolist() == [11, 14]
    assert target["difficult"].tolist() == [False, True]
    assert target["crowd"].tolist() == [False, False]
    assert target["area"].tolist() == [20, 1]
    dtypes = {name: column.dtype for name, column in target.items()}
    assert dtypes == {"boxes": torch.float32, "labels": torch.int64, "crowd": torch.bool,
                      "difficult": torch.bool, "area": torch.float32}  # fmt: skip
    assert all(torch.equal(target[name], column) for name, column in data.truth(1).items())
    found = {name: column.tolist() for name, column in data.attributes(1).items()}
    assert found == {"truncated": [True, False], "occluded": [False, True]}
    empty = data[2][1]
    shapes = {name: tuple(column.shape) for name, column in empty.items()}
    assert shapes == {"boxes": (0, 4), "labels": (0,), "crowd": (0,), "difficult": (0,),
                      "area": (0,)}  # fmt: skip
    assert {name: column.dtype for name, column in empty.items()} == dtypes
    counts = dict(zip(data.classes, data.class_counts(), strict=True))
    assert {name: count for name, count in counts.items() if count} == {
        "aeroplane": 1, "dog": 1, "person": 1,
    }  # fmt: skip
    assert data.remarks() == ["1 of 3 images have no box"]


def test_val_is_held_out_and_the_official_val_is_the_test(voc, tmp_path):
    parts = {s: VOCBoxes(s, str(tmp_path), validation=0.25) for s in ("train", "val", "test")}
    found = {split: names(data) for split, data in parts.items()}
    assert found["test"] == VAL
    assert len(found["val"]) == 2
    assert sorted(found["train"] + found["val"]) == TRAIN
    assert names(VOCBoxes("val", str(tmp_path), validation=0.25)) == found["val"]
    assert len({data.fingerprint() for data in parts.values()}) == 3
    with pytest.raises(NoSplit):
        VOCBoxes("val", str(tmp_path), validation=0.0)
    with pytest.raises(NoSplit):
        VOCBoxes("test", str(tmp_path), test_list=None)


def test_2007_and_2012_with_the_public_test_of_2007(voc, tmp_path):
    devkit(tmp_path, 2007, trainval=["000005", "000007"], test=["000001", "000002"])
    (voc / "ImageSets/Main/trainval.txt").write_text("\n".join([*TRAIN, *VAL, "2007_000001"]))
    Image.new("RGB", (6, 4)).save(voc / "JPEGImages/2007_000001.jpg")
    (voc / "Annotations/2007_000001.xml").write_text(annotation())
    lists: dict[str, Any] = {"train_list": "trainval", "test_list": "test", "validation": 0.0}
    train = VOCBoxes("train", str(tmp_path), years=(2007, 2012), **lists)
    assert names(train) == ["000005", "000007", *TRAIN, *VAL]
    left_out = [
        "test is without VOC2012: its test.txt is not public",
        "1 left out of train: in test too",
    ]
    assert train.remarks()[:2] == left_out
    test = VOCBoxes("test", str(tmp_path), years=(2007, 2012), **lists)
    assert names(test) == ["000001", "000002"]
    (voc / "ImageSets/Main/test.txt").write_text("2012_000001\n")  # as the test archive has it
    assert names(VOCBoxes("test", str(tmp_path), years=(2007, 2012), **lists)) == names(test)
    with pytest.raises(UserError, match="names files that are not there") as caught:
        VOCBoxes("test", str(tmp_path), years=(2012,), **lists)
    Image.new("RGB", (6, 4)).save(voc / "JPEGImages/2012_000001.jpg")
    with pytest.raises(UserError, match=re.escape("Annotations/2012_000001.xml")) as caught:
        VOCBoxes("test", str(tmp_path), years=(2012,), **lists)
    assert "not public after 2007" in (caught.value.advice or "")


def test_all_faults_are_found_in_one_pass(voc, tmp_path):
    (voc / f"Annotations/{VAL[0]}.xml").write_text(
        annotation(thing("dog", (1, 1, 2, 2)), thing("hors", (1, 1, 2, 2)))
    )
    (voc / f"Annotations/{VAL[1]}.xml").write_text(
        annotation(thing("dog", (3, 1, 2, 2)), thing("cat", (1, 1, 2, 9)))
    )
    (voc / f"Annotations/{VAL[2]}.xml").write_text("<annotation>")
    with pytest.raises(UserError) as caught:
        VOCBoxes("test", str(tmp_path))
    assert str(caught.value) == (
        f'{voc}/Annotations/{VAL[0]}.xml: object 2: "hors" is no class '
        "(and 2 more faults in 3 files)"
    )
    assert caught.value.code == Exit.DATA
    first, second, third = caught.value.faults  # pyright: ignore[reportAttributeAccessIssue]
    assert first.endswith('"hors" is no class')
    assert second.endswith("object 1 (dog): <xmin> is 3, larger than <xmax>, 2")
    assert "is malformed XML: no element found" in third


def test_an_unknown_class_is_named_with_the_nearest(voc, tmp_path):
    (voc / f"Annotations/{VAL[0]}.xml").write_text(annotation(thing("hors", (1, 1, 2, 2))))
    with pytest.raises(UserError, match='object 1: "hors" is no class') as caught:
        VOCBoxes("test", str(tmp_path))
    assert caught.value.advice == 'did you mean "horse"?'


def test_what_reaches_beyond_the_image_is_clipped_and_counted(voc, tmp_path):
    (voc / f"Annotations/{VAL[0]}.xml").write_text(
        annotation(thing("dog", (0, 1, 7, 4)), thing("dog", (1, 1, 6, 4)))
    )
    data = VOCBoxes("test", str(tmp_path))
    assert data.truth(0)["boxes"].tolist() == [[0, 0, 6, 4], [0, 0, 6, 4]]
    assert data.remarks() == ["1 boxes reached beyond their image: clipped"]


def test_an_image_of_another_size_than_its_annotation_says(voc, tmp_path):
    Image.new("RGB", (4, 6)).save(voc / f"JPEGImages/{VAL[0]}.jpg")
    data = VOCBoxes("test", str(tmp_path))
    with pytest.raises(UserError, match=re.escape(f"is 4 x 6, {VAL[0]}.xml says 6 x 4")) as caught:
        data[0]
    assert caught.value.file == str(voc / f"JPEGImages/{VAL[0]}.jpg")
    assert len(data[1][1]["boxes"]) == 1


def test_a_split_without_a_box_is_refused(voc, tmp_path):
    for name in VAL:
        (voc / f"Annotations/{name}.xml").write_text(annotation())
    with pytest.raises(UserError, match="test has 3 images, and not one of them has a box") as e:
        VOCBoxes("test", str(tmp_path))
    assert e.value.file == str(voc / "ImageSets/Main/val.txt")


def test_an_absent_root_and_lists_that_are_wrong(voc, tmp_path):
    with pytest.raises(UserError, match="was looked for in this folder") as caught:
        VOCBoxes("train", str(tmp_path / "nothing"))
    assert "cnnctl data fetch data=voc" in (caught.value.advice or "")
    missing = VOCBoxes.missing(str(tmp_path / "nothing"))
    assert missing[0] == "VOCdevkit/VOC2012/ImageSets/Main"
    assert VOCBoxes.missing(str(tmp_path)) == []
    (voc / f"Annotations/{TRAIN[2]}.xml").unlink()
    with pytest.raises(UserError, match=re.escape(f"Annotations/{TRAIN[2]}.xml")):
        VOCBoxes("train", str(tmp_path))
    (voc / "ImageSets/Main/train.txt").write_text("\n \n")
    with pytest.raises(UserError, match="is an empty list"):
        VOCBoxes("train", str(tmp_path))
    with pytest.raises(UserError, match="sbd adds masks"):
        VOCBoxes("train", str(tmp_path), sbd="SegmentationClassAug")
    with pytest.raises(ValueError, match="years must"):
        VOCBoxes("train", str(tmp_path), years=())


def test_the_digest_follows_the_boxes(voc, tmp_path):
    before = VOCBoxes("test", str(tmp_path)).fingerprint()
    assert VOCBoxes("test", str(tmp_path)).fingerprint() == before
    (voc / f"Annotations/{VAL[0]}.xml").write_text(annotation(thing("aeroplane", (1, 1, 1, 3))))
    assert VOCBoxes("test", str(tmp_path)).fingerprint() != before


@pytest.mark.data
def test_the_real_subset():
    root = os.environ.get("CNNCTL_DATA")
    if root is None or not (Path(root) / "VOCdevkit/VOC2012").is_dir():
        pytest.skip("$CNNCTL_DATA does not hold VOCdevkit/VOC2012")
    train, test = VOCBoxes("train", root, validation=0.0), VOCBoxes("test", root)
    assert (len(train), len(test)) == (43, 42)
    assert len(train.table.boxes) + len(test.table.boxes) == 240
    whole = VOCBoxes("train", root, train_list="trainval", test_list=None, validation=0.0)
    assert len(whole) == 85
    assert whole.remarks() == []
    for data in (train, test):
        for index in range(len(data)):
            image, target = data[index]
            h, w = image.shape[1:]
            assert (target["boxes"][:, 2:] <= torch.tensor([w, h])).all()
            assert (target["area"] > 0).all()
    # 2007_000027.xml: person 174 101 349 351
    assert train.truth(0)["boxes"].tolist() == [[173, 100, 349, 351]]
