"""VOC's layout, hand-made: which image is in which split, and each way in which it can be wrong."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from cnnctl.data.base import NoSplit
from cnnctl.data.mask_file import write_mask
from cnnctl.data.voc import VOC
from cnnctl.errors import Exit, UserError

TRAIN = [f"2008_{n:06d}" for n in range(10)]
VAL = [f"2009_{n:06d}" for n in range(4)]


def devkit(root: Path, year: int, **lists: list[str]) -> Path:
    """A VOC year of 6 x 4 images; image n of a list has class n mod 21 in its first pixel."""
    voc = root / f"VOCdevkit/VOC{year}"
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (voc / name).mkdir(parents=True)
    for name, images in lists.items():
        (voc / f"ImageSets/Segmentation/{name}.txt").write_text("\n".join(images) + "\n")
        for number, image in enumerate(images):
            Image.new("RGB", (6, 4), (number, 0, 0)).save(voc / f"JPEGImages/{image}.jpg")
            mask = torch.zeros(4, 6, dtype=torch.uint8)
            mask[0, 0], mask[3] = number % 21, 255
            write_mask(voc / f"SegmentationClass/{image}.png", mask)
    return voc


@pytest.fixture
def voc(tmp_path):
    return devkit(tmp_path, 2012, train=TRAIN, val=VAL, trainval=TRAIN + VAL)


def names(data: VOC) -> list[str]:
    return [Path(data.images[i]).stem for i in range(len(data))]


def splits(root: Path, **settings) -> dict[str, list[str]]:
    parts = ("train", "val", "test")
    return {part: names(VOC(part, str(root), **settings)) for part in parts}


def test_by_default_val_is_held_out_and_the_official_val_is_the_test(voc, tmp_path):
    found = splits(tmp_path, validation=0.2)
    assert found["test"] == VAL
    assert len(found["val"]) == 2
    assert sorted(found["train"] + found["val"]) == TRAIN
    assert splits(tmp_path, validation=0.2) == found


def test_a_sample(voc, tmp_path):
    data = VOC("test", str(tmp_path))
    image, target = data[2]
    assert image.shape == (3, 4, 6)
    assert image.dtype == torch.uint8
    expected = torch.zeros(4, 6, dtype=torch.uint8)
    expected[0, 0], expected[3] = 12, 255  # the 13th image of trainval
    assert target.keys() == {"mask"}
    assert torch.equal(target["mask"], expected)
    assert torch.equal(data.mask(2), expected)
    assert data.sample_name(2) == str(voc / "JPEGImages/2009_000002.jpg")
    assert len(data.classes) == 21
    assert data.classes[12] == "dog"
    assert data.class_counts() == [4, *[0] * 9, 1, 1, 1, 1, *[0] * 7]


def test_an_exif_orientation_is_not_applied_as_the_masks_are_of_the_stored_image(voc, tmp_path):
    image, exif = Image.new("RGB", (6, 4)), Image.Exif()
    image.paste((255, 255, 255), (0, 0, 6, 2))
    exif[0x0112] = 3
    image.save(voc / f"JPEGImages/{VAL[0]}.jpg", exif=exif, quality=100)
    found = VOC("test", str(tmp_path))[0][0].float().mean((0, 2))
    assert (found[0] > 200, found[3] < 50) == (True, True)


def test_lists_of_ones_own(voc, tmp_path):
    lists = voc / "ImageSets/Segmentation"
    (lists / "boxed.txt").write_text(f"\ufeff{TRAIN[3]}  1\n\n{TRAIN[1]} -1\n{TRAIN[3]}\n")
    (lists / "train_rest.txt").write_text("\r\n".join(TRAIN[5:]))
    found = splits(tmp_path, train_list="boxed", val_list="val", test_list="train_rest")
    assert found == {"train": [TRAIN[1], TRAIN[3]], "val": VAL, "test": TRAIN[5:]}


def test_an_image_in_two_lists_is_only_in_the_later_split(voc, tmp_path):
    found = splits(tmp_path, train_list="trainval", val_list=None, validation=0.2)
    assert found["test"] == VAL
    assert sorted(found["train"] + found["val"]) == TRAIN
    data = VOC("train", str(tmp_path), train_list="trainval")
    assert data.remarks() == ["4 left out of train: in test too"]
    with pytest.raises(UserError, match=re.escape("nothing is left of train.txt")):
        VOC("train", str(tmp_path), test_list="trainval")


def test_years_are_united_and_2007s_own_names_are_known(tmp_path):
    devkit(tmp_path, 2012, train=["2007_000032", "2008_000001"], val=["2007_000033"])
    devkit(tmp_path, 2007, train=["000032", "000033", "000099"], val=["000100"])
    data = VOC("train", str(tmp_path), years=(2007, 2012), validation=0.0)
    assert names(data) == ["2007_000032", "000099", "2008_000001"]
    assert "VOC2012" in data.images[0]
    assert data.remarks() == ["1 left out of train: in test too"]


@pytest.mark.parametrize(
    ("split", "settings", "words"),
    [
        ("val", {"validation": 0.0}, "no val split with validation=0"),
        ("test", {"test_list": None}, "no test split with test_list=null"),
    ],
)
def test_splits_that_settings_leave_empty(voc, tmp_path, split, settings, words):
    with pytest.raises(NoSplit, match=words):
        VOC(split, str(tmp_path), **settings)
    assert len(VOC("train", str(tmp_path), **settings)) >= 9


def test_all_of_the_training_list(voc, tmp_path):
    assert names(VOC("train", str(tmp_path), validation=0.0)) == TRAIN
    data = VOC("train", str(tmp_path), train_list="trainval", test_list=None, validation=0.0)
    assert names(data) == TRAIN + VAL


def test_sbd_adds_training_images_but_none_of_a_list(voc, tmp_path):
    folder = voc / "SegmentationClassAug"
    folder.mkdir()
    for name in (TRAIN[0], VAL[1], "2010_000001", "2010_000002"):
        write_mask(folder / f"{name}.png", torch.full((4, 6), 20, dtype=torch.uint8))
    Image.new("RGB", (6, 4)).save(voc / "JPEGImages/2010_000001.jpg")
    for test_list in ("val", None):  # the official val list stays out even where it is not used
        root, sbd = str(tmp_path), "SegmentationClassAug"
        data = VOC("train", root, sbd=sbd, validation=0.0, test_list=test_list)
        assert names(data) == [*TRAIN, "2010_000001"]
        assert data.remarks() == ["1 masks of sbd left out: their images are not there"]
    assert data.mask(0).unique().tolist() == [0, 255], "the official mask is taken"
    assert data.mask(10).unique().tolist() == [20]
    assert splits(tmp_path, sbd="SegmentationClassAug")["val"] == splits(tmp_path)["val"]


def test_sbd_adds_nothing_of_the_val_lists_of_years_not_in_use(voc, tmp_path):
    other = devkit(tmp_path, 2011, val=["2011_000007"])
    (tmp_path / "TrainVal/VOCdevkit").mkdir(parents=True)
    other.rename(tmp_path / "TrainVal/VOCdevkit/VOC2011")
    devkit(tmp_path, 2007, val=["000032"])
    folder = voc / "SegmentationClassAug"
    folder.mkdir()
    for name in ("2011_000007", "2007_000032", "2010_000001"):
        write_mask(folder / f"{name}.png", torch.zeros(4, 6, dtype=torch.uint8))
        Image.new("RGB", (6, 4)).save(voc / f"JPEGImages/{name}.jpg")
    data = VOC("train", str(tmp_path), sbd="SegmentationClassAug", validation=0.0)
    assert names(data) == [*TRAIN, "2010_000001"]


def test_sbds_own_files(voc, tmp_path):
    place = tmp_path / "benchmark_RELEASE/dataset/cls"
    place.mkdir(parents=True)
    mask = np.arange(24, dtype=np.uint8).reshape(4, 6) % 21
    record = {"Boundaries": 0, "Segmentation": mask, "CategoriesPresent": 1}
    savemat(place / "2010_000001.mat", {"GTcls": record})
    Image.new("RGB", (6, 4)).save(voc / "JPEGImages/2010_000001.jpg")
    sbd = str(tmp_path / "benchmark_RELEASE")
    data = VOC("train", str(tmp_path), sbd=sbd, validation=0.0)
    assert torch.equal(data[10][1]["mask"], torch.from_numpy(mask))
    (place / "2010_000001.mat").write_bytes(b"MATLAB 5.0" + bytes(200))
    with pytest.raises(UserError, match="is no mask of SBD"):
        VOC("train", str(tmp_path), sbd=sbd, validation=0.0)[10]
    with pytest.raises(UserError, match="there is no such folder"):
        VOC("train", str(tmp_path), sbd=str(tmp_path / "nowhere"))


def test_the_digest_follows_the_files(voc, tmp_path):
    before = VOC("train", str(tmp_path)).fingerprint()
    assert VOC("train", str(tmp_path)).fingerprint() == before
    assert VOC("val", str(tmp_path)).fingerprint() != before
    mask = torch.arange(24, dtype=torch.uint8).reshape(4, 6) % 21
    write_mask(voc / f"SegmentationClass/{names(VOC('train', str(tmp_path)))[0]}.png", mask)
    assert VOC("train", str(tmp_path)).fingerprint() != before


def test_an_absent_root_is_named_with_advice(tmp_path):
    with pytest.raises(UserError, match="was looked for in this folder, which does not") as caught:
        VOC("train", str(tmp_path / "nothing"))
    assert caught.value.code == Exit.DATA
    assert "cnnctl data fetch data=voc" in (caught.value.advice or "")
    assert "VOCdevkit/VOC2012/ImageSets/Segmentation" in VOC.missing(str(tmp_path))
    with pytest.raises(UserError, match=re.escape("VOC2008/ImageSets/Segmentation/train.txt")):
        VOC("train", str(tmp_path), years=(2008,))


def test_a_list_that_names_a_missing_file(voc, tmp_path):
    for name in TRAIN[2:7]:
        (voc / f"SegmentationClass/{name}.png").unlink()
    with pytest.raises(UserError) as caught:
        VOC("train", str(tmp_path))
    assert str(caught.value) == (
        f"{voc}/ImageSets/Segmentation/train.txt: names files that are not there: "
        "SegmentationClass/2008_000002.png, SegmentationClass/2008_000003.png, "
        "SegmentationClass/2008_000004.png and 2 more"
    )
    assert caught.value.code == Exit.DATA
    (voc / f"JPEGImages/{VAL[0]}.jpg").unlink()
    with pytest.raises(UserError, match=re.escape("JPEGImages/2009_000000.jpg")):
        VOC("test", str(tmp_path), train_list="val")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("\n \n", "is an empty list"),
        ("../../etc/passwd\n", "is no name of an image"),
        (None, "there is no such list"),
        (b"\xff\xfe\x00", "cannot be read"),
    ],
)
def test_lists_that_cannot_be_read(voc, tmp_path, text, words):
    file = voc / "ImageSets/Segmentation/own.txt"
    if text is not None:
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=words) as caught:
        VOC("train", str(tmp_path), train_list="own")
    assert caught.value.file == str(file)


def test_masks_that_are_wrong(voc, tmp_path):
    data = VOC("test", str(tmp_path))
    mask = voc / f"SegmentationClass/{VAL[0]}.png"
    values = torch.zeros(4, 6, dtype=torch.uint8)
    values[1, 2:4] = 37
    write_mask(mask, values)
    with pytest.raises(UserError) as caught:
        data[0]
    assert str(caught.value) == (
        f"{mask}: value 37 at row 1, column 2 (2 pixels are wrong) is no class: "
        "the 21 are 0 to 20, void is 255"
    )
    write_mask(mask, torch.zeros(6, 4, dtype=torch.uint8))
    with pytest.raises(UserError, match=f"the image is 6 x 4, its mask {mask} is 4 x 6"):
        data[0]
    Image.new("RGB", (6, 4)).save(mask)
    with pytest.raises(UserError, match="is RGB where class numbers"):
        data[0]
    mask.write_bytes(mask.read_bytes()[:-20])
    with pytest.raises(UserError, match="is cut off"):
        data[0]


@pytest.mark.parametrize("settings", [{"validation": 1.0}, {"years": ()}])
def test_settings_out_of_range(tmp_path, settings):
    with pytest.raises(ValueError, match="must"):
        VOC("train", str(tmp_path), **settings)


@pytest.mark.data
def test_the_real_subset():
    root = os.environ.get("CNNCTL_DATA")
    if root is None or not (Path(root) / "VOCdevkit/VOC2012").is_dir():
        pytest.skip("$CNNCTL_DATA does not hold VOCdevkit/VOC2012")
    train, test = VOC("train", root, validation=0.0), VOC("test", root)
    assert (len(train), len(test)) == (147, 133)
    assert len(VOC("train", root, train_list="trainval", test_list=None, validation=0.0)) == 280
    seen = set()
    for data in (train, test):
        for index in range(len(data)):
            mask = data.mask(index).numpy()
            assert np.array_equal(mask, np.array(Image.open(data.masks[index])))
            seen |= set(np.unique(mask).tolist())
    assert seen == {*range(21), 255}
    image, target = train[0]
    assert image.shape[1:] == target["mask"].shape
