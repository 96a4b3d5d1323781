"""VOC's instances, hand-made: whose each pixel is, what is difficult, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from cnnctl.data.base import NoSplit
from cnnctl.data.mask_file import write_mask
from cnnctl.data.voc import VOC
from cnnctl.data.voc_boxes import VOCBoxes
from cnnctl.data.voc_instances import VOCInstances
from cnnctl.errors import Exit, UserError
from cnnctl.ops.masks import whole_mask

TRAIN = [f"2008_{n:06d}" for n in range(8)]
VAL = [f"2009_{n:06d}" for n in range(3)]
DOG, PERSON = 12, 15  # in SegmentationClass
V = 255

# Two dogs and a person (12 wide, so that rows of bits have a second byte), and their borders.
OBJECTS = [
    [1, 1, V, 2, 2, 2, 2, 2, 2, 2, 2, 2],
    [1, 1, V, 2, 2, 2, 2, 2, 2, 2, 2, 2],
    [V, V, V, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    [0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0],
]
KINDS = {0: 0, 1: DOG, 2: DOG, 5: PERSON, V: V}


def write_maps(voc: Path, name: str, objects: list[list[int]], kinds: dict[int, int]) -> None:
    numbers = torch.tensor(objects, dtype=torch.uint8)
    table = torch.zeros(256, dtype=torch.uint8)
    table[list(kinds)] = torch.tensor(list(kinds.values()), dtype=torch.uint8)
    write_mask(voc / f"SegmentationObject/{name}.png", numbers)
    write_mask(voc / f"SegmentationClass/{name}.png", table[numbers.int()])


def annotate(voc: Path, name: str, *things: tuple[str, tuple[int, ...], int]) -> None:
    """(class, VOC's first and last pixels, difficult) of each object."""
    lines = []
    for kind, box, difficult in things:
        sides = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
        bndbox = "".join(f"<{side}>{value}</{side}>" for side, value in sides)
        flag = f"<difficult>{difficult}</difficult>"
        lines.append(f"<object><name>{kind}</name>{flag}<bndbox>{bndbox}</bndbox></object>")
    size = "<size><width>12</width><height>4</height><depth>3</depth></size>"
    (voc / "Annotations").mkdir(exist_ok=True)
    text = f"<annotation>{size}{''.join(lines)}</annotation>"
    (voc / f"Annotations/{name}.xml").write_text(text)


@pytest.fixture
def voc(tmp_path):
    voc = tmp_path / "VOCdevkit/VOC2012"
    for name in ("JPEGImages", "SegmentationClass", "SegmentationObject", "ImageSets/Segmentation"):
        (voc / name).mkdir(parents=True)
    for part, images in (("train", TRAIN), ("val", VAL)):
        (voc / f"ImageSets/Segmentation/{part}.txt").write_text("\n".join(images) + "\n")
        for name in images:
            Image.new("RGB", (12, 4)).save(voc / f"JPEGImages/{name}.jpg")
            write_maps(voc, name, OBJECTS, KINDS)
    return voc


def test_it_is_what_voc_is_for_instances(voc, tmp_path):
    assert VOC.serving(("boxes", "masks")) is VOCInstances
    assert VOC.serving(("boxes",)) is VOCBoxes
    assert VOC.serving(("mask",)) is VOC
    assert VOCInstances.option() == "voc"
    assert VOCInstances.classes == VOCBoxes.classes
    parts = {s: VOCInstances(s, str(tmp_path), validation=0.25) for s in ("train", "val", "test")}
    assert {split: len(data) for split, data in parts.items()} == {"train": 6, "val": 2, "test": 3}
    masks = VOC("val", str(tmp_path), validation=0.25)  # the same images as for segmentation
    assert [parts["val"].path(i) for i in range(2)] == [masks.images[i] for i in range(2)]
    with pytest.raises(NoSplit):
        VOCInstances("test", str(tmp_path), test_list=None)


def test_a_sample(voc, tmp_path):
    data = VOCInstances("test", str(tmp_path))
    image, target = data[1]
    assert image.shape == (3, 4, 12)
    assert target["boxes"].tolist() == [[0, 0, 2, 2], [3, 0, 12, 2], [3, 3, 4, 4]]
    assert target["frames"].tolist() == target["boxes"].tolist()
    assert [data.classes[k] for k in target["labels"]] == ["dog", "dog", "person"]
    assert target["area"].tolist() == [4, 18, 1]
    assert target["crowd"].tolist() == target["difficult"].tolist() == [False] * 3
    # 2 rows of a byte, 2 rows of 9 pixels in two bytes, a pixel; then the border's 3 rows.
    assert target["crops"].tolist() == [[0, 2, 2], [2, 2, 9], [6, 1, 1]]
    assert target["bits"].tolist() == [192, 192, 255, 128, 255, 128, 128, 32, 32, 224]
    assert target["void_crop"].tolist() == [7, 3, 3]
    assert target["void_frame"].tolist() == [0, 0, 3, 3]
    dtypes = {name: column.dtype for name, column in target.items()}
    assert dtypes == {
        "boxes": torch.float32, "labels": torch.int64, "crowd": torch.bool,
        "difficult": torch.bool, "area": torch.float32, "frames": torch.float32,
        "crops": torch.int64, "bits": torch.uint8, "void_frame": torch.float32,
        "void_crop": torch.int64,
    }  # fmt: skip
    assert torch.equal(target["bits"], data.truth(1)["bits"])
    assert data.image_size(1) == (4, 12)


def test_the_masks_are_the_map_again(voc, tmp_path):
    target = VOCInstances("test", str(tmp_path)).truth(0)
    expected = np.array(OBJECTS)
    for row, number in enumerate((1, 2, 5)):
        whole = whole_mask(target["bits"], target["crops"][row], target["frames"][row], (4, 12))
        assert (whole.numpy() == (expected == number)).all()
    void = whole_mask(target["bits"], target["void_crop"], target["void_frame"], (4, 12))
    assert (void.numpy() == (expected == V)).all()


def test_an_object_is_difficult_where_the_annotation_of_its_box_is(voc, tmp_path):
    annotate(
        voc,
        VAL[0],
        ("dog", (4, 1, 12, 2), 1),  # the second's very box, though it is the first in the file
        ("dog", (1, 1, 3, 3), 0),  # 9 pixels around 4: less than half
        ("person", (4, 4, 5, 4), 1),  # 2 pixels around 1: exactly half
    )
    annotate(voc, VAL[1], ("cat", (4, 1, 12, 2), 1), ("dog", (1, 1, 2, 3), 1))
    data = VOCInstances("test", str(tmp_path))
    assert data.truth(0)["difficult"].tolist() == [False, True, True]
    assert data.truth(1)["difficult"].tolist() == [True, False, False]
    annotate(voc, VAL[1])
    assert data.truth(1)["difficult"].tolist() == [False, False, False]
    annotate(voc, VAL[1], ("dog", (3, 1, 2, 3), 1))
    with pytest.raises(UserError, match=re.escape("object 1 (dog): <xmin> is 3, larger")) as caught:
        data.truth(1)
    assert caught.value.file == str(voc / f"Annotations/{VAL[1]}.xml")


def test_a_map_of_nothing_but_background_and_void(voc, tmp_path):
    write_maps(voc, VAL[1], [[0] * 12] * 4, KINDS)
    data = VOCInstances("test", str(tmp_path))
    shapes = {name: tuple(column.shape) for name, column in data[1][1].items()}
    assert shapes == {
        "boxes": (0, 4), "labels": (0,), "crowd": (0,), "difficult": (0,), "area": (0,),
        "frames": (0, 4), "crops": (0, 3), "bits": (0,), "void_frame": (4,), "void_crop": (3,),
    }  # fmt: skip
    assert data[1][1]["void_crop"].tolist() == [0, 0, 0]
    counts = dict(zip(data.classes, data.class_counts(), strict=True))
    assert {name: n for name, n in counts.items() if n} == {"dog": 2, "person": 2}


@pytest.mark.parametrize(
    ("kinds", "words"),
    [
        ({1: DOG, 2: 0, 5: PERSON}, "object 2 is background in "),
        ({1: DOG, 2: DOG, 5: V}, "object 5 is void in "),
        ({1: 21, 2: DOG, 5: PERSON}, "object 1 is 21, which is no class in "),
    ],
)
def test_maps_that_do_not_agree(voc, tmp_path, kinds, words):
    write_maps(voc, VAL[0], OBJECTS, kinds)
    with pytest.raises(UserError, match=words) as caught:
        VOCInstances("test", str(tmp_path))[0]
    assert caught.value.file == str(voc / f"SegmentationObject/{VAL[0]}.png")
    assert str(voc / f"SegmentationClass/{VAL[0]}.png") in caught.value.problem
    assert caught.value.code == Exit.DATA


def test_the_class_is_that_of_most_pixels(voc, tmp_path):
    classes = torch.tensor([[KINDS[n] for n in row] for row in OBJECTS], dtype=torch.uint8)
    classes[0, 3:11] = PERSON  # 8 of the second dog's 18 pixels
    write_mask(voc / f"SegmentationClass/{VAL[0]}.png", classes)
    data = VOCInstances("test", str(tmp_path))
    assert [data.classes[k] for k in data.truth(0)["labels"]] == ["dog", "dog", "person"]
    classes[0, 11] = PERSON  # 9 of them
    write_mask(voc / f"SegmentationClass/{VAL[0]}.png", classes)
    with pytest.raises(UserError, match="object 2 is of several classes, dog the first of them"):
        data.truth(0)


def test_sizes_that_differ_name_both_files(voc, tmp_path):
    write_mask(voc / f"SegmentationClass/{VAL[0]}.png", torch.zeros(4, 11, dtype=torch.uint8))
    Image.new("RGB", (12, 5)).save(voc / f"JPEGImages/{VAL[1]}.jpg")
    data = VOCInstances("test", str(tmp_path))
    names = [voc / f"{kind}/{VAL[0]}.png" for kind in ("SegmentationObject", "SegmentationClass")]
    with pytest.raises(UserError, match=re.escape(f"12 x 4, its mask {names[1]} is 11 x 4")) as e:
        data[0]
    assert e.value.file == str(names[0])
    map_file = voc / f"SegmentationObject/{VAL[1]}.png"
    with pytest.raises(UserError, match=re.escape(f"12 x 5, its mask {map_file} is 12 x 4")) as e:
        data[1]
    assert e.value.file == str(voc / f"JPEGImages/{VAL[1]}.jpg")


def test_what_is_absent(voc, tmp_path):
    (voc / f"SegmentationObject/{VAL[0]}.png").unlink()
    with pytest.raises(UserError, match=f"not there: SegmentationObject/{VAL[0]}.png"):
        VOCInstances("test", str(tmp_path))
    (voc / "SegmentationObject").rename(voc / "elsewhere")
    with pytest.raises(UserError, match="needs VOCdevkit/VOC2012/SegmentationObject") as caught:
        VOCInstances("train", str(tmp_path))
    assert "cnnctl data fetch data=voc" in (caught.value.advice or "")


def test_sbds_own_files_add_training_images(voc, tmp_path):
    place = tmp_path / "benchmark_RELEASE/dataset/inst"
    place.mkdir(parents=True)
    numbers = np.array([[0, 1, 1], [2, 2, 0]], np.uint8)
    more = "2010_000001"
    for name in (more, VAL[0], TRAIN[0]):  # the last two are known, and stay as they are
        savemat(
            place / f"{name}.mat",
            {"GTinst": {"Segmentation": numbers, "Categories": np.array([[PERSON], [DOG]])}},
        )
    Image.new("RGB", (3, 2)).save(voc / f"JPEGImages/{more}.jpg")
    sbd = str(tmp_path / "benchmark_RELEASE")
    lists: dict[str, Any] = {"sbd": sbd, "validation": 0.0}
    data = VOCInstances("train", str(tmp_path), **lists)
    assert [Path(data.path(n)).stem for n in range(len(data))] == [*TRAIN, more]
    image, target = data[8]
    assert image.shape == (3, 2, 3)
    assert data.image_size(8) == (2, 3)
    assert [data.classes[k] for k in target["labels"]] == ["person", "dog"]
    assert target["boxes"].tolist() == [[1, 0, 3, 1], [0, 1, 2, 2]]
    assert target["void_crop"].tolist()[1:] == [0, 0]
    record = {"Segmentation": numbers, "Categories": np.array([[PERSON]])}
    savemat(place / f"{more}.mat", {"GTinst": record})
    with pytest.raises(UserError, match="has objects 1 to 2, and classes of 1") as caught:
        data[8]
    assert caught.value.file == str(place / f"{more}.mat")
    savemat(place / f"{more}.mat", {"GTinst": record | {"Categories": np.array([[15], [0]])}})
    with pytest.raises(UserError, match="object 2 is background in the file"):
        data[8]
    (place / f"{more}.mat").write_bytes(b"MATLAB")
    with pytest.raises(UserError, match="is no map of instances of SBD"):
        data[8]
    with pytest.raises(UserError, match=re.escape("holds no instances (inst/*.mat)")):
        VOCInstances("train", str(tmp_path), sbd="SegmentationClass")
