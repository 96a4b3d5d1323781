"""What is written in COCO's and VOC's format is read back as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as api

from cnnctl.data.base import Dataset
from cnnctl.data.boxes import Boxes
from cnnctl.data.coco_boxes import COCOBoxes
from cnnctl.data.digit_boxes import DigitBoxes
from cnnctl.data.instances import Instances
from cnnctl.data.mask_file import write_mask
from cnnctl.data.voc_boxes import VOCBoxes
from cnnctl.data.write_boxes import write_coco, write_voc
from cnnctl.errors import Exit, UserError
from cnnctl.ops.masks import cropped, pack

W, H = 20, 10
ALL: dict[str, Any] = {"validation": 0.0, "test": 0.0}


class Own(Dataset):
    """Images in files with boxes of every kind."""

    fields = ("boxes",)
    classes = ("a & b", "cat", "<dog>")
    channels = 3

    def __init__(self, root: Path) -> None:
        self.root = root
        for index in range(len(self)):
            file = Path(self.path(index))
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (W, H), (index, 0, 0)).save(file)

    def __len__(self) -> int:
        return 4

    def path(self, index: int) -> str:
        return str(self.root / f"pictures/{index % 2}/n{index}.png")

    def __getitem__(self, index: int) -> tuple[torch.Tensor, dict[str, Any]]:
        generator = torch.Generator().manual_seed(index)
        low = torch.rand(index, 2, generator=generator) * 5
        high = low + 1 + torch.rand(index, 2, generator=generator) * 4
        return torch.full((3, H, W), 0, dtype=torch.uint8), {
            "boxes": torch.cat([low, high], 1),
            "labels": torch.arange(index) % 3,
            "crowd": torch.arange(index) == 1,
            "difficult": torch.arange(index) == 2,
            "area": (high - low).prod(1) / 2,
        }

    def attributes(self, index: int) -> dict[str, np.ndarray]:
        return {"truncated": np.arange(index) == 0, "occluded": np.arange(index) == 1}

    def fingerprint(self) -> str:
        return ""


def same(found: Dataset, given: Dataset, columns: tuple[str, ...]) -> None:
    assert len(found) == len(given)
    for index in range(len(given)):
        (image, read), (_, written) = found[index], given[index]
        own = [found.classes[label] for label in read["labels"].tolist()]
        assert own == [given.classes[label] for label in written["labels"].tolist()]
        for name in columns:
            assert torch.equal(read[name], written[name]), (index, name)
        assert image.shape[1:] == given[index][0].shape[1:]


def test_coco_comes_back(tmp_path):
    data = Own(tmp_path)
    assert write_coco(data, tmp_path / "out/all.json") == tmp_path / "pictures"
    content = json.loads((tmp_path / "out/all.json").read_text())
    assert [row["file_name"] for row in content["images"]] == [
        "0/n0.png", "1/n1.png", "0/n2.png", "1/n3.png",
    ]  # fmt: skip
    assert [row["id"] for row in content["annotations"]] == [1, 2, 3, 4, 5, 6]
    marked = [
        sorted(row.keys() & {"difficult", "truncated", "occluded"})
        for row in content["annotations"]
    ]
    assert marked == [["truncated"]] + [["truncated"], ["occluded"]] * 2 + [["difficult"]]
    columns = ("boxes", "crowd", "area")
    settings = {"annotations": str(tmp_path / "out/all.json"), "images": str(tmp_path / "pictures")}
    same(COCOBoxes("train", str(tmp_path), **settings, **ALL), data, columns)
    ids = [row["image_id"] for row in content["annotations"]]
    assert ids == [2, 3, 3, 4, 4, 4]


def test_ids_of_its_own_are_kept(tmp_path):
    data: Any = Own(tmp_path)
    data.image_ids, data.category_ids = np.array([70, 5, 9, 33]), (3, 18, 90)
    write_coco(data, tmp_path / "all.json")
    content = json.loads((tmp_path / "all.json").read_text())
    assert [row["id"] for row in content["images"]] == [70, 5, 9, 33]
    assert {row["id"]: row["name"] for row in content["categories"]} == {
        3: "a & b", 18: "cat", 90: "<dog>",
    }  # fmt: skip
    assert [row["image_id"] for row in content["annotations"]] == [5, 9, 9, 33, 33, 33]
    assert [row["category_id"] for row in content["annotations"]] == [3, 3, 18, 3, 18, 90]
    (tmp_path / "all.json").rename(tmp_path / "pictures/all.json")
    found = Boxes("train", str(tmp_path / "pictures"), **ALL)
    assert found.image_ids.tolist() == [5, 9, 33, 70]
    assert found.category_ids == (3, 18, 90)
    assert torch.equal(found.truth(2)["boxes"], data[3][1]["boxes"])
    done: list[int] = []
    again = tmp_path / "again.json"
    write_coco(found, again, done.append)
    assert done == [1, 2, 3, 4]
    assert json.loads(again.read_text())["annotations"] == [
        {name: row[name] for name in row if name not in ("difficult", "truncated", "occluded")}
        for row in content["annotations"]
    ]


def test_voc_comes_back(tmp_path):
    data, out = Own(tmp_path), tmp_path / "out"
    write_voc(data, out)
    assert (out / "ImageSets/Main/train.txt").read_text().split() == [
        "0_n0", "1_n1", "0_n2", "1_n3",
    ]  # fmt: skip
    assert (out / "JPEGImages/1_n3.png").read_bytes() == Path(data.path(3)).read_bytes()
    found = Boxes("train", str(out), classes=data.classes, validation=0.0)
    same(found, data, ("boxes", "crowd", "difficult"))
    assert [found.attributes(3)[name].tolist() for name in ("truncated", "occluded")] == [
        [True, False, False], [False, True, False],
    ]  # fmt: skip
    xml = (out / "Annotations/0_n2.xml").read_text()
    assert xml.count("<difficult>1</difficult>") == 1, "a crowd is that for others"
    assert "<name>a &amp; b</name>" in xml


def test_voc_itself_comes_back_with_its_whole_numbers(tmp_path):
    voc = tmp_path / "VOCdevkit/VOC2012"
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (voc / name).mkdir(parents=True)
    (voc / "ImageSets/Main/train.txt").write_text("2008_000001\n")
    Image.new("RGB", (W, H)).save(voc / "JPEGImages/2008_000001.jpg")
    (voc / "Annotations/2008_000001.xml").write_text(
        f"<annotation><size><width>{W}</width><height>{H}</height></size><object><name>dog</name>"
        "<truncated>1</truncated><bndbox><xmin>3</xmin><ymin>1</ymin><xmax>3</xmax><ymax>10</ymax>"
        "</bndbox></object></annotation>"
    )
    lists: dict[str, Any] = {"validation": 0.0, "test_list": None}
    data = VOCBoxes("train", str(tmp_path), **lists)
    out = tmp_path / "out/VOC2012"
    write_voc(data, out)
    assert (
        "<bndbox><xmin>3</xmin><ymin>1</ymin><xmax>3</xmax><ymax>10</ymax></bndbox>"
        in (out / "Annotations/2008_000001.xml").read_text()
    )
    again = VOCBoxes("train", str(tmp_path / "out"), **lists)
    same(again, data, ("boxes", "crowd", "difficult", "area"))
    assert again.attributes(0)["truncated"].tolist() == [True]


def test_less_than_a_pixel_becomes_the_pixels_touched(tmp_path, monkeypatch):
    data = Own(tmp_path)
    truth = data[1][1] | {"boxes": torch.tensor([[10.25, 2, 10.5, 6.5]])}
    pixels = torch.zeros(3, H, W, dtype=torch.uint8)
    monkeypatch.setattr(Own, "__len__", lambda _: 2)
    monkeypatch.setattr(Own, "__getitem__", lambda *_: (pixels, truth))
    monkeypatch.setattr(Own, "attributes", lambda *_: {})
    write_voc(data, tmp_path / "out")
    found = Boxes("train", str(tmp_path / "out"), classes=data.classes, **ALL)
    assert found.truth(0)["boxes"].tolist() == [[10, 2, 11, 6.5]]


def test_images_in_no_file_are_written(tmp_path):
    data = DigitBoxes("train", size=32, train_images=3, digits=(1, 2))
    folder = write_coco(data, tmp_path / "digits.json")
    assert folder == tmp_path / "digits"
    found = Boxes("train", str(tmp_path), **ALL)
    same(found, data, ("boxes", "crowd", "difficult", "area"))
    assert all(torch.equal(found[i][0], data[i][0]) for i in range(3))
    write_voc(data, tmp_path / "voc", "train")
    val = DigitBoxes("val", size=32, val_images=1, digits=(2, 2))
    write_voc(val, tmp_path / "voc", "val")
    root = str(tmp_path / "voc")
    same(Boxes("train", root, classes=data.classes), data, ("boxes",))
    same(Boxes("val", root, classes=data.classes), val, ("boxes",))


def test_nothing_is_overwritten(tmp_path):
    data = Own(tmp_path)
    write_coco(data, tmp_path / "all.json")
    with pytest.raises(UserError, match="is there already, and is not overwritten"):
        write_coco(data, tmp_path / "all.json")
    write_voc(data, tmp_path / "out")
    with pytest.raises(UserError, match=r"train.txt: is there already"):
        write_voc(data, tmp_path / "out")
    with pytest.raises(UserError, match=r"0_n0.png: is there already"):
        write_voc(data, tmp_path / "out", "val")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written") as caught:
        write_coco(data, tmp_path / "file/all.json")
    assert caught.value.code == Exit.MACHINE
    data.classes = ("a\nb", "c", "d")
    with pytest.raises(UserError, match="has control characters"):
        write_coco(data, tmp_path / "other.json")
    assert not (tmp_path / "other.json").exists()


class Outlined(Own):
    """Masks of every kind: overlapping, in two parts, a crowd; boxes that are not tight."""

    fields = ("boxes", "masks")

    def __getitem__(self, index: int) -> tuple[torch.Tensor, dict[str, Any]]:
        image, target = super().__getitem__(index)
        generator = torch.Generator().manual_seed(index)
        drawn = torch.rand(index, H, W, generator=generator) < 0.02
        drawn[:, 5, 9] = True  # one pixel at least
        parts = [cropped(mask) for mask in drawn]
        bits, crops = pack([crop for crop, _ in parts])
        frames = torch.stack([frame for _, frame in parts]) if parts else torch.zeros(0, 4)
        self.drawn = drawn
        return image, {**target, "frames": frames, "crops": crops, "bits": bits}


def test_masks_come_back(tmp_path):
    data = Outlined(tmp_path)
    write_coco(data, tmp_path / "pictures/all.json")
    found = Instances("train", str(tmp_path / "pictures"), **ALL)
    same(found, data, ("boxes", "crowd", "area", "frames", "crops", "bits"))
    rows = json.loads((tmp_path / "pictures/all.json").read_text())["annotations"]
    _ = data[3]
    for row, expected in zip(rows[3:], data.drawn.numpy(), strict=True):  # as others read it
        assert (api.decode(row["segmentation"]).astype(bool) == expected).all()


def test_index_masks_become_run_lengths_and_come_back(tmp_path):
    numbers = torch.randint(0, 4, (H, W), generator=torch.Generator().manual_seed(0)).byte()
    for name, mask in (("a", numbers), ("b", numbers * 0), ("c", numbers.flip(0))):
        for folder in ("images", "masks"):
            (tmp_path / folder).mkdir(exist_ok=True)
        Image.new("RGB", (W, H)).save(tmp_path / f"images/{name}.png")
        write_mask(tmp_path / f"masks/{name}.png", mask)
    data = Instances("train", str(tmp_path), **ALL)
    write_coco(data, tmp_path / "images/all.json")
    found = Instances("train", str(tmp_path), format="coco", **ALL)
    same(found, data, ("boxes", "crowd", "difficult", "area", "frames", "crops", "bits"))
    write_coco(found, tmp_path / "again.json")
    first, again = ((tmp_path / name).read_text() for name in ("images/all.json", "again.json"))
    assert first == again
