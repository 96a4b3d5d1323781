"""A user's own instances: layouts, what numbers mean, COCO JSON, and how each can be wrong."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cnnctl.data import index_maps
from cnnctl.data.base import NoSplit
from cnnctl.data.index_maps import find_objects
from cnnctl.data.instances import Instances
from cnnctl.errors import Exit, UserError
from cnnctl.ops.masks import whole_mask

ALL: dict[str, Any] = {"validation": 0.0, "test": 0.0}

MAP = np.zeros((4, 10), np.uint16)
MAP[0, :9] = 1
MAP[1:3, 2] = 2
MAP[3, 0] = MAP[3, 9] = 5  # in two parts


def save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def fill(images: Path, masks: Path, count: int = 10, end: str = "", start: int = 0) -> None:
    """10 x 4 images of grey level n with the masks MAP."""
    for n in range(start, start + count):
        save(images / f"{n:02d}.png", np.full((4, 10, 3), n, np.uint8))
        save(masks / f"{n:02d}{end}.png", MAP.astype(np.uint8))


def names(data: Instances) -> list[str]:
    return [os.path.relpath(data.path(i), data.root) for i in range(len(data))]


@pytest.fixture
def root(tmp_path):
    fill(tmp_path / "images", tmp_path / "masks")
    return tmp_path


def wholes(target: dict[str, torch.Tensor], size: tuple[int, int]) -> list[np.ndarray]:
    rows = range(len(target["labels"]))
    bits, crops, frames = (target[name] for name in ("bits", "crops", "frames"))
    return [whole_mask(bits, crops[row], frames[row], size).numpy() for row in rows]


def test_a_sample(root):
    data = Instances("train", str(root), **ALL)
    assert data.classes == ("object",)
    image, target = data[7]
    assert torch.equal(image, torch.full((3, 4, 10), 7, dtype=torch.uint8))
    assert target["boxes"].tolist() == [[0, 0, 9, 1], [2, 1, 3, 3], [0, 3, 10, 4]]
    assert target["frames"].tolist() == target["boxes"].tolist()
    assert target["area"].tolist() == [9, 2, 2]
    assert target["labels"].tolist() == [0, 0, 0]
    assert not (target["crowd"] | target["difficult"]).any()
    assert target["crops"].tolist() == [[0, 1, 9], [2, 2, 1], [4, 1, 10]]
    assert target["bits"].tolist() == [255, 128, 128, 128, 128, 64]
    assert "void_frame" not in target
    for found, number in zip(wholes(target, (4, 10)), (1, 2, 5), strict=True):
        assert (found == (number == MAP)).all()
    assert data.sample_name(7) == str(root / "images/07.png")
    assert data.class_counts() == [10]
    assert data.remarks() == ["10 of 10 masks leave numbers out (1, 2, 5), which does not matter"]
    grey = Instances("train", str(root), channels=1, mirror=False, mean=(0.5,), std=(0.1,))
    assert (grey[0][0].shape[0], grey.mirror, grey.mean) == (1, False, (0.5,))
    copy = pickle.loads(pickle.dumps(data))
    assert torch.equal(copy[3][1]["bits"], target["bits"])


def test_undivided_folders_are_split_always_alike(root):
    parts: dict[Any, Any] = {
        s: Instances(s, str(root), validation=0.2, test=0.1) for s in ("train", "val", "test")
    }
    assert {split: len(data) for split, data in parts.items()} == {"train": 7, "val": 2, "test": 1}
    every = sorted(name for data in parts.values() for name in names(data))
    assert every == [f"images/{n:02d}.png" for n in range(10)]
    assert len({data.fingerprint() for data in parts.values()}) == 3
    again = Instances("val", str(root), validation=0.2, test=0.1)
    assert again.fingerprint() == parts["val"].fingerprint()
    other = Instances("val", str(root), validation=0.2, test=0.1, void=5)
    assert other.fingerprint() != again.fingerprint()


@pytest.mark.parametrize(
    ("images", "masks", "end"),
    [
        ("PNGImages", "PedMasks", "_mask"),
        ("images", "masks", ""),
        ("imgs", "labels", "_instances"),
        ("train/images", "train/masks", "-id"),
    ],
)
def test_names_of_folders_and_of_masks(tmp_path, images, masks, end):
    fill(tmp_path / images, tmp_path / masks, end=end)
    save(tmp_path / images / "01_b.png", np.zeros((4, 10, 3), np.uint8))  # begins as 01 does
    save(tmp_path / masks / f"01_b{end}.png", MAP.astype(np.uint8))
    data = Instances("train", str(tmp_path), **ALL)
    assert len(data) == 11
    assert names(data)[2] == f"{images}/01_b.png"
    assert data.own.maps[2].endswith(f"{masks}/01_b{end}.png")  # pyright: ignore[reportAttributeAccessIssue]


def test_folders_of_its_own_for_every_split(tmp_path):
    for part, count in (("train", 4), ("val", 3)):
        fill(tmp_path / f"images/{part}", tmp_path / f"masks/{part}", count)
    assert [len(Instances(s, str(tmp_path))) for s in ("train", "val")] == [4, 3]
    with pytest.raises(NoSplit, match="has no folder test/"):
        Instances("test", str(tmp_path))


def test_sixteen_bits_and_a_tiff_of_more(tmp_path):
    values = MAP.copy()
    values[0, :9] = 300
    for kind, name in ((np.uint16, "00.png"), (np.int32, "01.tif")):
        save(tmp_path / f"images/{name[:2]}.png", np.zeros((4, 10, 3), np.uint8))
        save(tmp_path / f"masks/{name}", values.astype(kind) * (9000 if kind is np.int32 else 1))
    data = Instances("train", str(tmp_path), **ALL)
    expected = [[2, 1, 3, 3], [0, 3, 10, 4], [0, 0, 9, 1]]  # by the numbers
    assert [data.truth(n)["boxes"].tolist() for n in (0, 1)] == [expected, expected]


def test_a_number_that_is_a_class_and_an_instance(tmp_path):
    values = np.zeros((3, 8), np.uint16)
    values[0, :4], values[0, 4:], values[1, :2] = 1001, 2000, 1002
    values[1, 2:4], values[1, 4:], values[2, :3] = 2, 7, 1000  # a crowd of the second; stuff
    save(tmp_path / "images/a.png", np.zeros((3, 8, 3), np.uint8))
    save(tmp_path / "masks/a.png", values)
    (tmp_path / "classes.txt").write_text("person\ncar\n")
    data = Instances("train", str(tmp_path), per_class=1000, **ALL)
    assert data.classes == ("person", "car")
    target = data.truth(0)
    assert target["labels"].tolist() == [1, 0, 0, 0, 1]
    assert target["crowd"].tolist() == [True, False, False, False, False]
    assert target["boxes"][:, :2].tolist() == [[2, 1], [0, 2], [0, 0], [0, 1], [4, 0]]
    assert data.class_counts() == [1, 1]
    assert data.remarks() == []
    swapped = Instances("train", str(tmp_path), classes=("car", "person"), per_class=1000,
                        values=(2, 1), **ALL)  # fmt: skip
    assert swapped.truth(0)["labels"].tolist() == [0, 1, 1, 1, 0]
    one = Instances("train", str(tmp_path), classes=("person",), per_class=1000, **ALL)
    with pytest.raises(UserError, match=r"number 2000 at row 0, column 4 .4 pixels. is of class "
                       "2000 // 1000 = 2, which is none: the 1 are 1") as caught:  # fmt: skip
        one.truth(0)
    assert caught.value.file == str(tmp_path / "masks/a.png")
    (tmp_path / "classes.txt").unlink()
    with pytest.raises(UserError, match="the classes have no names"):
        Instances("train", str(tmp_path), per_class=1000)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"classes": ("a", "b")}, "nothing says which one a number is of: per_class=1000"),
        ({"values": (1,)}, "values goes with per_class"),
        ({"classes": ("a", "b"), "per_class": 1}, "per_class must be at least 2"),
        ({"classes": ("a", "b"), "per_class": 9, "values": (1,)}, "each of the 2 classes, got 1"),
        ({"classes": ("a", "b"), "per_class": 9, "values": (1, 1)}, "must be different and above"),
        ({"void": -1}, "void must be a number in a mask, or 0"),
        ({"classes": ("a", "a")}, "classes must be different names"),
    ],
)
def test_settings_that_do_not_go_together(root, settings, words):
    with pytest.raises(ValueError, match=words):
        Instances("train", str(root), **settings)


def test_void_is_said_or_refused_as_doubtful(tmp_path):
    values = MAP.astype(np.uint8)
    values[1, 5:8] = 255
    save(tmp_path / "images/a.png", np.zeros((4, 10, 3), np.uint8))
    save(tmp_path / "masks/a.png", values)
    with pytest.raises(UserError, match="holds the number 255 and not 254") as caught:
        Instances("train", str(tmp_path), **ALL)[0]
    assert caught.value.file == str(tmp_path / "masks/a.png")
    assert "data.void=255" in (caught.value.advice or "")
    target = Instances("train", str(tmp_path), void=255, **ALL).truth(0)
    assert (len(target["labels"]), target["void_frame"].tolist()) == (3, [5, 1, 8, 2])
    assert target["void_crop"].tolist() == [6, 1, 3]
    assert target["bits"][6:].tolist() == [224]
    target = Instances("train", str(tmp_path), void=0, **ALL).truth(0)
    assert target["boxes"][3].tolist() == [5, 1, 8, 2]
    assert "void_frame" not in target


def test_eight_bits_that_are_full(tmp_path):
    full = np.arange(256, dtype=np.uint16).reshape(16, 16)
    save(tmp_path / "images/a.png", np.zeros((16, 16, 3), np.uint8))
    save(tmp_path / "masks/a.png", full.astype(np.uint8))
    with pytest.raises(UserError, match="uses all 255 numbers that 8 bits have") as caught:
        Instances("train", str(tmp_path), **ALL)[0]
    assert "a 16-bit PNG has 65,535" in caught.value.problem
    with pytest.raises(UserError, match="uses all 254 numbers"):
        Instances("train", str(tmp_path), void=255, **ALL)[0]
    save(tmp_path / "masks/a.png", full)
    assert len(Instances("train", str(tmp_path), **ALL).truth(0)["labels"]) == 255
    save(tmp_path / "masks/a.png", np.where(full == 255, 0, full).astype(np.uint8))
    assert len(Instances("train", str(tmp_path), **ALL).truth(0)["labels"]) == 254


def test_a_mask_without_an_instance_is_kept(root):
    save(root / "masks/03.png", np.zeros((4, 10), np.uint8))
    data = Instances("train", str(root), **ALL)
    _, target = data[3]
    shapes = {name: tuple(column.shape) for name, column in target.items()}
    assert shapes == {"boxes": (0, 4), "labels": (0,), "crowd": (0,), "difficult": (0,),
                      "area": (0,), "frames": (0, 4), "crops": (0, 3), "bits": (0,)}  # fmt: skip
    assert data.class_counts() == [9]
    assert data.remarks()[0] == "1 of 10 masks have no instance"
    for n in range(10):
        save(root / f"masks/{n:02d}.png", np.zeros((4, 10), np.uint8))
    with pytest.raises(UserError, match="train has 10 images, and no mask of them has an inst"):
        Instances("train", str(root), **ALL)


def test_files_that_are_wrong(root):
    data = Instances("train", str(root), **ALL)
    save(root / "masks/02.png", np.zeros((5, 10), np.uint8))
    with pytest.raises(UserError, match=r"the image is 10 x 4, its mask .*02.png is 10 x 5") as e:
        data[2]
    assert e.value.file == str(root / "images/02.png")
    for values, words in (
        (np.zeros((4, 10, 3), np.uint8), "is of colours where numbers of instances"),
        (np.zeros((4, 10, 4), np.uint8), "has an alpha channel"),
    ):
        save(root / "masks/02.png", values)
        with pytest.raises(UserError, match=words) as e:
            data[2]
        assert (e.value.file, e.value.code) == (str(root / "masks/02.png"), Exit.DATA)
    (root / "masks/02.png").unlink()
    with pytest.raises(UserError, match=r"image without a mask: .*masks/02.png is not there") as e:
        Instances("train", str(root))
    assert e.value.file == str(root / "images/02.png")
    for dtype, words in ((np.float32, "holds floating-point numbers"),
                         (np.int32, "holds the number -1: an instance's is above 0")):  # fmt: skip
        save(root / "masks/02.tif", np.full((4, 10), -1, dtype))
        with pytest.raises(UserError, match=words) as e:
            Instances("train", str(root), **ALL)[2]
        assert e.value.file == str(root / "masks/02.tif")
    (root / "images/02.png").unlink()
    with pytest.raises(UserError, match="mask without an image in ") as e:
        Instances("train", str(root))
    assert e.value.file == str(root / "masks/02.tif")


def test_folders_that_tell_nothing(tmp_path):
    with pytest.raises(UserError, match="has no folder of images with a folder of masks") as e:
        Instances("train", str(tmp_path))
    assert "COCO: a .json" in (e.value.advice or "")
    fill(tmp_path / "images", tmp_path / "elsewhere")
    with pytest.raises(UserError, match="has images/ but no folder of masks beside it"):
        Instances("train", str(tmp_path))
    (tmp_path / "masks").mkdir()
    with pytest.raises(UserError, match="holds no masks") as e:
        Instances("train", str(tmp_path))
    assert e.value.file == str(tmp_path / "masks")
    with pytest.raises(UserError, match="data=instances needs the folder that holds images and"):
        Instances("train")


def coco(file: Path, count: int = 4, start: int = 0, categories: tuple[str, ...] = ("a", "b")):
    """Images of 10 x 4 with a rectangle of each category, one as a polygon, one as runs."""
    records, number = [], 0
    for n in range(start, start + count):
        number += 2
        rectangle = [1, 1, 4, 1, 4, 3, 1, 3]
        runs = [4 * 5, 4, 4 * 4]  # the column of x = 5
        records += [
            {"id": number - 1, "image_id": n, "category_id": 7, "bbox": [1, 1, 3.5, 2],
             "area": 6, "iscrowd": 0, "segmentation": [rectangle]},
            {"id": number, "image_id": n, "category_id": 9, "bbox": [5, 0, 1, 4],
             "area": 4, "iscrowd": n % 2, "segmentation": {"size": [4, 10], "counts": runs}},
        ]  # fmt: skip
    images = [{"id": n, "width": 10, "height": 4, "file_name": f"{n:02d}.png"} for n in
              range(start, start + count)]  # fmt: skip
    kinds = [{"id": 7, "name": categories[0]}, {"id": 9, "name": categories[1]}]
    content = {"images": images, "annotations": records, "categories": kinds}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


def test_coco_json_is_read_as_coco_is(tmp_path):
    fill(tmp_path / "images", tmp_path / "elsewhere", 4)
    coco(tmp_path / "annotations/instances.json")
    data = Instances("train", str(tmp_path), **ALL)
    assert (data.classes, data.category_ids) == (("a", "b"), (7, 9))
    assert data.image_ids.tolist() == [0, 1, 2, 3]
    _, target = data[1]
    assert target["boxes"].tolist() == [[1, 1, 4.5, 3], [5, 0, 6, 4]]
    assert target["frames"].tolist() == [[1, 1, 4, 3], [5, 0, 6, 4]]
    assert target["crowd"].tolist() == [False, True]
    assert [int(mask.sum()) for mask in wholes(target, (4, 10))] == [6, 4]
    every = data.all_truth()
    assert every is not None
    assert every["image"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    only = Instances("train", str(tmp_path), classes=("b",), channels=1, **ALL)
    assert only[0][0].shape == (1, 4, 10)
    assert only[0][1]["labels"].tolist() == [0]
    sizes = [len(Instances(s, str(tmp_path), validation=0.25, test=0.25)) for s in
             ("train", "val", "test")]  # fmt: skip
    assert sizes == [2, 1, 1]
    with pytest.raises(UserError, match="is of index masks, and the instances are in") as caught:
        Instances("train", str(tmp_path), void=255)
    assert caught.value.field == "data.void"


def test_coco_json_of_each_part(tmp_path):
    fill(tmp_path / "images", tmp_path / "elsewhere", 6)
    coco(tmp_path / "train.json")
    with pytest.raises(NoSplit, match="there is no test split"):
        Instances("test", str(tmp_path))
    assert [len(Instances(s, str(tmp_path), validation=0.25)) for s in ("train", "val")] == [3, 1]
    coco(tmp_path / "val.json", 2, start=4)
    parts = {s: Instances(s, str(tmp_path)) for s in ("train", "val")}
    assert [names(data)[0] for data in parts.values()] == ["images/00.png", "images/04.png"]
    assert [len(data) for data in parts.values()] == [4, 2]
    coco(tmp_path / "val.json", 2, start=4, categories=("a", "c"))
    with pytest.raises(UserError, match=r"has other categories than .*train.json"):
        Instances("val", str(tmp_path))


def test_both_formats_are_refused_and_one_can_be_named(root):
    coco(root / "instances.json")
    with pytest.raises(UserError, match=r"holds index masks .*masks. and COCO JSON .*inst") as e:
        Instances("train", str(root))
    assert e.value.advice == "data.format=masks or data.format=coco"
    assert len(Instances("train", str(root), format="coco", **ALL)) == 4
    assert len(Instances("train", str(root), format="masks", **ALL)) == 10


def test_a_damaged_json_is_named(tmp_path):
    fill(tmp_path / "images", tmp_path / "elsewhere", 2)
    (tmp_path / "instances.json").write_text('{"images": [], "annotations": [')
    with pytest.raises(UserError) as caught:
        Instances("train", str(tmp_path))
    assert caught.value.file == str(tmp_path / "instances.json")


def test_objects_of_any_numbers_are_numpys():
    generator = np.random.default_rng(0)
    for most in (3, 255, 70_000, 1 << 22):
        numbers = generator.integers(0, most, (7, 9)) * generator.integers(0, 2, (7, 9))
        found = find_objects(torch.from_numpy(numbers.astype(np.int32)), nobody={0, 2})
        expected = [number for number in np.unique(numbers) if number not in (0, 2)]
        assert found.numbers.tolist() == expected
        for row, number in enumerate(expected):
            own = numbers == number
            y, x = own.nonzero()
            assert found.boxes[row].tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]
            assert found.areas[row] == own.sum()
            assert (own[found.within(row)] == found.crops[row]).all()


def test_small_maps_beside_large_numbers(tmp_path):
    """8 bits hold no 256, 1000 or 65535: below per_class is a crowd or nothing, and void is not."""
    for name in "ab":
        save(tmp_path / f"images/{name}.png", np.zeros((2, 3, 3), np.uint8))
    save(tmp_path / "masks/a.png", np.array([[0, 10, 255], [0, 0, 255]], np.uint8))
    save(tmp_path / "masks/b.png", np.array([[0, 10001, 255], [0, 0, 255]], np.uint16))
    classes = {"classes": ("a", "b"), "per_class": 1000, "values": (10, 11)}
    data = Instances("train", str(tmp_path), **classes, **ALL)
    assert [data[n][1]["crowd"].tolist() for n in (0, 1)] == [[True], [False]]
    plain = Instances("train", str(tmp_path), void=65535, **ALL)[0][1]
    assert plain["boxes"].tolist() == [[1, 0, 2, 1], [2, 0, 3, 2]]
    assert plain["void_crop"].tolist()[1:] == [0, 0]


def test_a_depth_map_is_no_map_of_instances(monkeypatch):
    monkeypatch.setattr(index_maps, "_MOST", 30)
    assert len(find_objects(torch.from_numpy(MAP.astype(np.int32))).numbers) == 3
    with pytest.raises(ValueError, match="has 3 numbers all over the image"):
        find_objects(torch.from_numpy(np.repeat(MAP, 2, 1).astype(np.int32)))
