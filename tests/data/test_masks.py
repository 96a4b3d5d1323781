"""A user's own masks: layouts, what values mean, and each way in which it can be wrong."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cnnctl.data.base import NoSplit
from cnnctl.data.mask_counts import count_masks
from cnnctl.data.mask_file import write_mask
from cnnctl.data.masks import Masks
from cnnctl.errors import Exit, UserError

CLASSES = ("ground", "cat", "dog")


def fill(
    images: Path, masks: Path, count: int = 10, suffix: str = "", values: tuple[int, ...] = (0, 1)
) -> None:
    """5 x 4 images of grey level n; their masks have values[0], but values[1] in the first n."""
    for folder in (images, masks):
        folder.mkdir(parents=True, exist_ok=True)
    for n in range(count):
        Image.new("L", (5, 4), n).save(images / f"{n:02d}.png")
        mask = torch.full((4, 5), values[0], dtype=torch.uint8)
        mask.view(-1)[:n] = values[1]
        write_mask(masks / f"{n:02d}{suffix}.png", mask)


@pytest.fixture
def root(tmp_path):
    fill(tmp_path / "images", tmp_path / "masks")
    (tmp_path / "classes.txt").write_text("# mine\nground\ncat\n\ndog\n")
    return tmp_path


def names(data: Masks) -> list[str]:
    return [os.path.relpath(data.images[i], data.root) for i in range(len(data))]


def test_undivided_folders_are_split_always_alike(root):
    parts = {s: Masks(s, str(root), validation=0.2, test=0.1) for s in ("train", "val", "test")}
    assert {split: len(data) for split, data in parts.items()} == {"train": 7, "val": 2, "test": 1}
    every = sorted(name for data in parts.values() for name in names(data))
    assert every == [f"images/{n:02d}.png" for n in range(10)]
    again = Masks("val", str(root), validation=0.2, test=0.1)
    assert names(again) == names(parts["val"])
    assert again.fingerprint() == parts["val"].fingerprint()


def test_a_sample(root):
    data = Masks("train", str(root), validation=0.0, test=0.0)
    assert data.classes == CLASSES
    assert data.palette is None
    image, target = data[7]
    assert torch.equal(image, torch.full((3, 4, 5), 7, dtype=torch.uint8))
    assert target["mask"].flatten().tolist() == [1] * 7 + [0] * 13
    assert data.sample_name(7) == str(root / "images/07.png")
    grey = Masks("train", str(root), channels=1, mirror=False, mean=(0.5,), std=(0.1,))
    assert (grey[0][0].shape[0], grey.mirror, grey.mean) == (1, False, (0.5,))
    copy = pickle.loads(pickle.dumps(data))
    assert torch.equal(copy[3][1]["mask"], data[3][1]["mask"])


@pytest.mark.parametrize("layout", ["{part}/{kind}", "{kind}/{part}"])
@pytest.mark.parametrize("kinds", [("images", "masks"), ("image", "label"),
                                   ("JPEGImages", "SegmentationClass")])  # fmt: skip
def test_folders_of_its_own_for_every_split(tmp_path, layout, kinds):
    for part, count in (("train", 4), ("valid", 3), ("test", 2)):
        fill(*(tmp_path / layout.format(part=part, kind=kind) for kind in kinds), count=count)
    parts = {s: Masks(s, str(tmp_path), classes=CLASSES) for s in ("train", "val", "test")}
    assert {split: len(data) for split, data in parts.items()} == {"train": 4, "val": 3, "test": 2}
    assert names(parts["val"])[1] == f"{layout.format(part='valid', kind=kinds[0])}/01.png"


def test_train_alone(tmp_path):
    fill(tmp_path / "train/images", tmp_path / "train/masks")
    train, val = (Masks(s, str(tmp_path), classes=CLASSES) for s in ("train", "val"))
    assert (len(train), len(val)) == (9, 1)
    assert not set(names(train)) & set(names(val))
    with pytest.raises(NoSplit, match="no folder test/"):
        Masks("test", str(tmp_path), classes=CLASSES)
    with pytest.raises(NoSplit, match="no val split with validation=0"):
        Masks("val", str(tmp_path), classes=CLASSES, validation=0.0)


@pytest.mark.parametrize(
    ("folders", "file", "words"),
    [
        (["images/val"], "", "has images/val/ but no masks/val/"),
        (["masks/valid"], "", "has masks/valid/ but no images/valid/"),
        (["val/rgb", "val/gt"], "val", "is beside images/, and has no folder of images with"),
    ],
)
def test_a_part_that_lacks_its_images_or_masks_is_not_made_of_train(tmp_path, folders, file, words):
    fill(tmp_path / "images/train", tmp_path / "masks/train", 4)
    for folder in folders:
        fill(tmp_path / folder, tmp_path / "elsewhere", 2)
    for split in ("train", "val"):
        with pytest.raises(UserError, match=words) as caught:
            Masks(split, str(tmp_path), CLASSES)
        assert caught.value.file == str(tmp_path / file)
        assert not isinstance(caught.value, NoSplit)


def test_the_same_in_a_folder_for_each_part(tmp_path):
    fill(tmp_path / "train/images", tmp_path / "train/masks", 4)
    fill(tmp_path / "val/rgb", tmp_path / "val/gt", 2)
    with pytest.raises(UserError, match="has no folder of images with a folder of mas") as caught:
        Masks("train", str(tmp_path), CLASSES)
    assert caught.value.file == str(tmp_path / "val")
    (tmp_path / "val/rgb").rename(tmp_path / "val/images")
    with pytest.raises(UserError, match="has images/ but no folder of masks beside it") as caught:
        Masks("train", str(tmp_path), CLASSES)
    assert caught.value.file == str(tmp_path / "val")
    (tmp_path / "val/gt").rename(tmp_path / "val/masks")
    assert len(Masks("val", str(tmp_path), CLASSES)) == 2
    (tmp_path / "valid").mkdir()
    with pytest.raises(UserError, match="has val/ and valid/: which of them is val"):
        Masks("train", str(tmp_path), CLASSES)


@pytest.mark.parametrize(
    ("layout", "kept", "words"),
    [
        ("{part}/{kind}", "images", "test/ has images/ but no folder of masks beside it, so there"),
        ("{part}/{kind}", "other", "test/ has no folder of images with a folder of masks beside"),
        ("{kind}/{part}", "images", "has images/test/ but no masks/test/, so there is no test"),
        ("{kind}/{part}", "masks", "has masks/test/ but no images/test/, so there is no test"),
    ],
)
def test_a_test_part_without_masks_is_none_and_stops_nothing_else(tmp_path, layout, kept, words):
    for part in ("train", "val"):
        fill(*(tmp_path / layout.format(part=part, kind=k) for k in ("images", "masks")), count=3)
    fill(tmp_path / layout.format(part="test", kind=kept), tmp_path / "elsewhere")
    assert [len(Masks(split, str(tmp_path), CLASSES)) for split in ("train", "val")] == [3, 3]
    with pytest.raises(NoSplit, match=words):
        Masks("test", str(tmp_path), CLASSES)


def test_unlabelled_test_images_beside_images_that_are_not_divided(root):
    fill(root / "test/images", root / "elsewhere", 2)
    assert [len(Masks(split, str(root))) for split in ("train", "val", "test")] == [8, 1, 1]


def test_images_beside_the_parts_are_counted(tmp_path):
    fill(tmp_path / "images/train", tmp_path / "masks/train", 4)
    assert Masks("train", str(tmp_path), CLASSES).remarks() == []
    fill(tmp_path / "images", tmp_path / "masks", 3)
    fill(tmp_path / "images/more", tmp_path / "masks/more", 2)
    data = Masks("train", str(tmp_path), CLASSES)
    assert data.remarks() == ["5 images left out: in images/, but in none of its parts"]
    assert Masks("val", str(tmp_path), CLASSES).remarks() == []
    assert len(data) == 3


def test_sub_folders_and_suffixes(tmp_path):
    for part in ("a", "b"):
        fill(tmp_path / "images" / part, tmp_path / "masks" / part, 2, suffix="_mask")
    data = Masks("train", str(tmp_path), CLASSES, mask_suffix="_mask", validation=0, test=0)
    assert names(data) == [f"images/{n}.png" for n in ("a/00", "a/01", "b/00", "b/01")]
    assert data.masks[2] == str(tmp_path / "masks/b/00_mask.png")
    with pytest.raises(UserError, match="must end in _other"):
        Masks("train", str(tmp_path), CLASSES, mask_suffix="_other")
    with pytest.raises(UserError, match=r"image without a mask \(and 3 more\)"):
        Masks("train", str(tmp_path), CLASSES)


def test_images_with_an_exif_orientation(root):
    data, pixels = Masks("train", str(root), validation=0, test=0), np.zeros((4, 5), np.uint8)
    pixels[0] = 9
    for orientation in (3, 6):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(pixels).save(root / f"images/0{orientation}.png", exif=exif)
    with pytest.raises(UserError, match="has EXIF orientation 3") as caught:
        data[3]
    assert caught.value.file == str(root / "images/03.png")
    assert np.array_equal(data[6][0][0].numpy(), pixels), "the mask is of the image as stored"
    write_mask(root / "masks/06.png", torch.ones(5, 4, dtype=torch.uint8))
    assert np.array_equal(data[6][0][0].numpy(), np.rot90(pixels, -1)), "and now as shown"


def test_black_and_white(tmp_path):
    fill(tmp_path / "image", tmp_path / "label", values=(0, 255))
    two = ("membrane", "cell")
    data = Masks("train", str(tmp_path), two, values=(0, 255), validation=0, test=0)
    assert data[3][1]["mask"].flatten().tolist() == [1] * 3 + [0] * 17
    with pytest.raises(UserError, match="nothing but 0 and 255, and 255 is void") as caught:
        Masks("train", str(tmp_path), two)
    assert "data.values=[0,255]" in (caught.value.advice or "")
    assert "data.values=[0,1]" in (caught.value.advice or "")
    explicit = Masks("train", str(tmp_path), two, values=(0, 1), validation=0, test=0)
    assert explicit[3][1]["mask"].flatten().tolist() == [255] * 3 + [0] * 17


def test_background_and_void_alone_in_one_split_are_no_black_and_white(tmp_path):
    fill(tmp_path / "train/images", tmp_path / "train/masks", 30, values=(0, 255))
    fill(tmp_path / "val/images", tmp_path / "val/masks", 2, values=(0, 255))
    with pytest.raises(UserError, match="nothing but 0 and 255") as caught:
        Masks("val", str(tmp_path), CLASSES)
    assert "data.values=[0,1,2]" in (caught.value.advice or "")
    (tmp_path / "val/masks/00.png").write_bytes(b"damaged")
    with pytest.raises(UserError, match="nothing but 0 and 255"):
        Masks("train", str(tmp_path), CLASSES)
    write_mask(tmp_path / "train/masks/13.png", torch.ones(4, 5, dtype=torch.uint8))
    val = Masks("val", str(tmp_path), CLASSES)
    assert val[1][1]["mask"].unique().tolist() == [0, 255]
    assert len(Masks("train", str(tmp_path), CLASSES)) == 30


def test_colours(tmp_path):
    fill(tmp_path / "images", tmp_path / "masks", 3)
    (tmp_path / "classes.txt").write_text("ground 0 0 0\ntraffic light,128,0,0\nVoid 9 9 9\n")
    data = Masks("train", str(tmp_path), validation=0, test=0)
    assert data.classes == ("ground", "traffic light")
    assert data.palette == ((0, 0, 0), (128, 0, 0))
    assert data[2][1]["mask"].flatten().tolist() == [1, 1] + [0] * 18, "a palette's colours"
    pixels = np.zeros((4, 5, 3), np.uint8)
    pixels[0], pixels[1, 1] = (128, 0, 0), 9
    Image.fromarray(pixels).save(tmp_path / "masks/01.png")
    expected = np.zeros((4, 5), np.uint8)
    expected[0], expected[1, 1] = 1, 255
    assert np.array_equal(data[1][1]["mask"].numpy(), expected)
    pixels[3, 2] = (128, 0, 1)
    Image.fromarray(pixels).save(tmp_path / "masks/01.png")
    with pytest.raises(UserError, match=r"masks/01\.png: colour \[128, 0, 1\] at row 3, column 2"):
        data[1]
    numbers = Masks("train", str(tmp_path), values=(0, 1), validation=0, test=0)
    assert numbers.palette == data.palette
    with pytest.raises(UserError, match="is RGB where class numbers"):
        numbers[1]


def test_counts(root):
    data = Masks("train", str(root), validation=0.0, test=0.0)
    mask = torch.full((4, 5), 255, dtype=torch.uint8)
    mask[0] = 2
    write_mask(root / "masks/00.png", mask)
    counts = count_masks(data)
    ones = sum(range(1, 10))
    assert counts.masks == 10
    assert counts.images.tolist() == data.class_counts() == [9, 9, 1]
    assert counts.pixels.tolist() == [9 * 20 - ones, ones, 5]
    assert counts.around.tolist() == [180, 180, 5]
    assert count_masks(data, at_most=2).pixels.tolist() == [11, 9, 5]


def test_the_digest_follows_files_and_meaning_but_not_the_place(root, tmp_path):
    before = Masks("train", str(root)).fingerprint()
    assert Masks("train", str(root), values=(0, 1, 3)).fingerprint() != before
    assert Masks("train", str(root), classes=("a", "b", "c")).fingerprint() != before
    moved = root.rename(root.with_name("moved"))
    assert Masks("train", str(moved)).fingerprint() == before
    data = Masks("train", str(moved))
    Path(data.masks[0]).write_bytes(b"other")
    assert Masks("train", str(moved)).fingerprint() != before


def test_a_mask_without_an_image_and_the_reverse(root):
    (root / "images/04.png").unlink()
    with pytest.raises(UserError) as caught:
        Masks("train", str(root))
    assert str(caught.value) == f"{root}/masks/04.png: mask without an image in {root}/images"
    (root / "masks/05.png").unlink()
    with pytest.raises(UserError) as caught:
        Masks("train", str(root))
    assert str(caught.value) == (
        f"{root}/images/05.png: image without a mask: {root}/masks/05.png is not there"
    )
    assert caught.value.code == Exit.DATA


def test_two_files_of_one_name(root):
    Image.new("L", (5, 4)).save(root / "images/03.jpg")
    with pytest.raises(UserError, match=r"03\.png: has the same name as 03\.jpg"):
        Masks("train", str(root))


@pytest.mark.parametrize(
    ("folders", "words"),
    [
        ([], "has no folder of images with a folder of masks beside it"),
        (["images"], "has images/ but no folder of masks"),
        (["labels"], "has labels/ but no folder of images"),
        (["images", "img", "masks"], "has images/ and img/: which of them holds the images"),
        (["val/images", "val/masks"], "has val/ but no train/"),
        (["images", "masks"], "holds no images"),
    ],
)
def test_folders_that_are_no_data(tmp_path, folders, words):
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True)
    with pytest.raises(UserError, match=words) as caught:
        Masks("train", str(tmp_path), CLASSES)
    assert caught.value.code == Exit.DATA
    assert caught.value.advice


def test_a_root_must_be_given_and_be_a_folder(root, monkeypatch):
    monkeypatch.setenv("CNNCTL_DATA", str(root))
    with pytest.raises(UserError, match="needs the folder"):
        Masks("train")
    with pytest.raises(UserError, match="there is no such folder"):
        Masks("train", str(root / "absent"))
    with pytest.raises(UserError, match="is no folder"):
        Masks("train", str(root / "classes.txt"))
    assert Masks.missing(str(root)) == []
    assert Masks.missing(None) == ["data.root=<your folder>"]
    assert "your own" in Masks.fetch(None)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "the classes have no names"),
        ("", "names no class"),
        ("a 0 0 0\nb\n", "line 2: has no colour, others have"),
        ("a\nb\na\n", "line 3: a class of this name"),
        (b"\xff\xfe\x00", "cannot be read"),
        ("a 0 0 0\nb 0 0 0\n", "two classes"),
    ],
)
def test_class_lists_that_are_wrong(root, text, words):
    (root / "classes.txt").unlink()
    if text is not None:
        (root / "classes.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises((UserError, ValueError), match=words):
        Masks("train", str(root))


def test_masks_that_are_wrong(root):
    data = Masks("train", str(root), validation=0.0, test=0.0)
    mask = root / "masks/00.png"
    write_mask(mask, torch.full((4, 5), 3, dtype=torch.uint8))
    with pytest.raises(UserError) as caught:
        data[0]
    assert str(caught.value) == (
        f"{mask}: value 3 at row 0, column 0 (20 pixels are wrong) is no class: "
        "the 3 are 0 to 2, void is 255"
    )
    assert "data.values" in (caught.value.advice or "")
    write_mask(mask, torch.zeros(5, 4, dtype=torch.uint8))
    with pytest.raises(UserError) as caught:
        data[0]
    assert str(caught.value) == (
        f"{root}/images/00.png: the image is 5 x 4, its mask {mask} is 4 x 5"
    )
    mask.write_bytes(mask.read_bytes()[:50])
    with pytest.raises(UserError, match=r"masks/00\.png: is cut off"):
        data[0]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"validation": 1.0}, "validation must be a share"),
        ({"validation": 0.5, "test": 0.5}, r"validation \+ test must be less than 1"),
        ({"values": (0, 1)}, "a number for each of the 3 classes, got 2"),
        ({"values": (0, 1, 256)}, "0 to 255, not 256"),
        ({"classes": ("a", "a")}, "different names"),
        ({"void": 1}, "value 1 cannot stand for two"),
        ({"mean": (0.5,)}, "mean must have 3 numbers"),
    ],
)
def test_settings_that_cannot_be(root, settings, words):
    with pytest.raises(ValueError, match=words):
        Masks("train", str(root), **settings)


def test_too_few_images_to_hold_some_out(tmp_path):
    fill(tmp_path / "images", tmp_path / "masks", 2)
    with pytest.raises(UserError, match="2 images are too few"):
        Masks("train", str(tmp_path), CLASSES)


@pytest.mark.data
def test_the_real_membranes():
    root = os.environ.get("CNNCTL_DATA")
    if root is None or not (Path(root) / "membrane/train/label").is_dir():
        pytest.skip("$CNNCTL_DATA does not hold membrane")
    settings = {"classes": ("membrane", "cell"), "values": (0, 255), "channels": 1}
    parts = [
        Masks(split, f"{root}/membrane/train", **settings) for split in ("train", "val", "test")
    ]
    assert [len(data) for data in parts] == [20, 2, 2]
    for data in parts:
        for index in range(len(data)):
            image, target = data[index]
            assert image.shape == (1, 512, 512)
            raw = np.array(Image.open(data.masks[index]))
            assert np.array_equal(target["mask"].numpy() * 255, raw)
    assert len(Masks("train", f"{root}/membrane", validation=0.0, **settings)) == 24
