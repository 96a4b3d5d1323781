"""``cnnctl data export``: what is written is read back as it was, with every image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from cnnctl.data.boxes import Boxes
from cnnctl.data.digit_boxes import DigitBoxes
from cnnctl.data.digit_masks import DigitMasks
from cnnctl.data.instances import Instances
from cnnctl.errors import Exit

FEW = (
    *("data=digit_scenes", "data.size=32", "data.digits=[1,3]", "data.scale=[0.3,0.6]"),
    *("data.train_images=8", "data.val_images=3", "data.test_images=2"),
)
SPLITS = ("train", "val", "test")


def scenes(split: Any) -> DigitBoxes:
    return DigitBoxes(split, None, 32, (1, 3), (0.3, 0.6), 8, 3, 2)


@pytest.mark.parametrize("form", ["coco", "voc"])
def test_scenes_of_digits_become_files(form, command, tmp_path, capsys):
    out = tmp_path / "out"
    assert command("data", "export", *FEW, f"format={form}", f"output={out}") == 0
    said = capsys.readouterr().out
    assert f"written: 8 train, 3 val, 2 test, to {out}" in said
    for split in SPLITS:
        given, found = scenes(split), Boxes(split, str(out), classes=tuple("0123456789"))
        assert found.format == form
        assert len(found) == len(given)
        for index in range(len(given)):
            (image, truth), (pixels, read) = given[index], found[index]
            assert torch.equal(image, pixels)
            for name in ("boxes", "labels", *(("area",) if form == "coco" else ())):
                assert torch.equal(truth[name], read[name])


@pytest.fixture
def own(tmp_path) -> Path:
    """train/ and val/ in YOLO's text, in folders below each other, a name in both."""
    root = tmp_path / "own"
    for number, name in enumerate(("train/a/1", "train/b/2", "train/b/3", "val/1", "test/2")):
        place = root / name
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 10), (10 * number, 0, 0)).save(f"{place}.jpg")
        Path(f"{place}.txt").write_text(f"{number % 2} 0.5 0.5 0.{number + 1} 0.4\n")
    (root / "classes.txt").write_text("cat\ndog\n")
    return root


@pytest.mark.parametrize("form", ["coco", "voc"])
def test_files_are_copied_as_they_are(form, own, command, tmp_path):
    out = tmp_path / "out"
    given = ("data=boxes", f"data.root={own}", f"format={form}", f"output={out}")
    assert command("data", "export", *given) == 0
    for split in SPLITS:
        before, after = Boxes(split, str(own)), Boxes(split, str(out))
        assert after.classes == ("cat", "dog")
        for index in range(len(before)):
            copy = Path(after.path(index))
            assert out in copy.parents
            assert copy.read_bytes() == Path(before.path(index)).read_bytes()
            truth, read = before.truth(index), after.truth(index)
            assert torch.equal(truth["labels"], read["labels"])
            torch.testing.assert_close(truth["boxes"], read["boxes"])
    if form == "voc":
        names = sorted(path.stem for path in (out / "JPEGImages").iterdir())
        assert names == ["test_2", "train_a_1", "train_b_2", "train_b_3", "val_1"]
    else:
        rows = json.loads((out / "train.json").read_text())["images"]
        assert [row["file_name"] for row in rows] == ["a/1.jpg", "b/2.jpg", "b/3.jpg"]


@pytest.mark.parametrize(
    ("overrides", "code", "words"),
    [
        (("format=yolo", "output={}/out"), Exit.CONFIG, 'there is no format "yolo"'),
        (("format=coco",), Exit.CONFIG, "output: has no value"),
        (("output={}/out",), Exit.CONFIG, "format: has no value"),
        (("format=voc", "output={}"), Exit.CONFIG, "holds something already"),
        (("format=voc", "output={}/file"), Exit.CONFIG, "holds something already"),
        (("format=voc", "output={}/file/x"), Exit.MACHINE, "cannot be written"),
        (("format=coco", "output={}/file/x"), Exit.MACHINE, "cannot be written"),
        (("format=coco", "output={}/out", "data=mnist"), Exit.CONFIG, "data=mnist has no boxes"),
        (("fromat=coco", "output={}/out"), Exit.CONFIG, 'did you mean "format"'),
    ],
)
def test_what_is_refused(overrides, code, words, command, tmp_path, capsys):
    (tmp_path / "file").write_text("kept")
    own = FEW if "data=mnist" not in overrides else ()
    assert command("data", "export", *own, *(text.format(tmp_path) for text in overrides)) == code
    assert words in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "kept"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_other_actions_have_no_such_keys(command, capsys):
    assert command("data", "list", "format=coco") == Exit.CONFIG
    assert "format: unknown key" in capsys.readouterr().err


def test_masks_of_digits_become_coco_and_are_read_again(command, tmp_path, capsys):
    out = tmp_path / "out"
    given = ("task=instance", *FEW, "format=coco", f"output={out}")
    assert command("data", "export", *given) == 0
    assert f"read again by: data=instances data.root={out}" in capsys.readouterr().out
    for split, count in zip(SPLITS, (8, 3, 2), strict=True):
        given = DigitMasks(split, None, 32, (1, 3), (0.3, 0.6), 8, 3, 2)
        found = Instances(split, str(out), classes=tuple("0123456789"))
        assert len(found) == count
        for index in range(count):
            (image, truth), (pixels, read) = given[index], found[index]
            assert torch.equal(image, pixels)
            assert truth.keys() == read.keys()
            for name in ("boxes", "labels", "area", "frames", "crops", "bits"):
                assert torch.equal(truth[name], read[name]), name


def test_masks_are_not_in_vocs_format(command, tmp_path, capsys):
    out = tmp_path / "out"
    assert command("data", "export", "task=instance", *FEW, "format=voc", f"output={out}") == 0
    said = capsys.readouterr().out
    assert "boxes alone: format=coco has the masks too" in said
    assert "read again by: data=boxes" in said
