"""A user's own folder: layouts, fixed splits, and each way in which it can be wrong."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cnnctl.data.base import NoSplit
from cnnctl.data.folder import Folder
from cnnctl.errors import Exit, UserError


def picture(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (5, 4), (value, 255 - value, 7)).save(path)


def fill(root: Path, **classes: int) -> Path:
    for k, (name, count) in enumerate(classes.items()):
        for i in range(count):
            picture(root / name / f"{i:03d}.png", 40 * k + i)
    return root


def names(data: Folder) -> list[str]:
    return [os.path.relpath(data.path(i), data.root) for i in range(len(data))]


def test_one_level_is_split_in_proportion_and_always_alike(tmp_path):
    fill(tmp_path, cat=30, dog=20)
    parts = {
        s: Folder(s, str(tmp_path), validation=0.2, test=0.1) for s in ("train", "val", "test")
    }
    assert {split: data.class_counts() for split, data in parts.items()} == {
        "train": [21, 14],
        "val": [6, 4],
        "test": [3, 2],
    }
    every = sorted(name for data in parts.values() for name in names(data))
    assert every == sorted(os.path.relpath(p, tmp_path) for p in tmp_path.rglob("*.png"))
    again = Folder("val", str(tmp_path), validation=0.2, test=0.1)
    assert names(again) == names(parts["val"])
    assert again.fingerprint() == parts["val"].fingerprint()


def test_samples_are_the_files_pixels_and_class(tmp_path):
    fill(tmp_path / "train", b=2, a=3)
    data = Folder("train", str(tmp_path), validation=0)
    assert data.classes == ("a", "b")
    assert names(data) == [f"train/{n}.png" for n in ("a/000", "a/001", "a/002", "b/000", "b/001")]
    image, target = data[4]
    assert target == {"label": 1}
    expected = torch.tensor([1, 254, 7], dtype=torch.uint8)  # b was written first
    assert torch.equal(image, expected[:, None, None].expand(3, 4, 5))
    assert torch.equal(data[-1][0], image)
    with pytest.raises(IndexError):
        data.path(5)


def test_folders_of_its_own_for_every_split(tmp_path):
    fill(tmp_path / "train", a=4, b=4)
    fill(tmp_path / "valid", a=1, b=2)
    fill(tmp_path / "test", b=3)
    counts = {s: Folder(s, str(tmp_path)).class_counts() for s in ("train", "val", "test")}
    assert counts == {"train": [4, 4], "val": [1, 2], "test": [0, 3]}
    assert Folder("test", str(tmp_path)).classes == ("a", "b")


def test_val_is_held_out_of_train_where_it_has_no_folder(tmp_path):
    fill(tmp_path / "train", a=10, b=10)
    train, val = (Folder(s, str(tmp_path), validation=0.2) for s in ("train", "val"))
    assert train.class_counts() == [8, 8]
    assert val.class_counts() == [2, 2]
    assert not set(names(train)) & set(names(val))
    with pytest.raises(NoSplit, match="no folder test/"):
        Folder("test", str(tmp_path))
    with pytest.raises(NoSplit, match="no val split with validation=0"):
        Folder("val", str(tmp_path), validation=0.0)


def test_shares_of_zero(tmp_path):
    fill(tmp_path, a=5, b=5)
    assert len(Folder("train", str(tmp_path), validation=0.0, test=0.0)) == 10
    with pytest.raises(NoSplit, match="no test split with test=0"):
        Folder("test", str(tmp_path), validation=0.2, test=0.0)


def test_a_class_that_is_called_train(tmp_path):
    fill(tmp_path, bus=10, train=10)
    data = Folder("train", str(tmp_path))
    assert data.classes == ("bus", "train")


def test_folders_beside_train_are_remarked_on(tmp_path):
    fill(tmp_path / "train", a=5, b=5)
    fill(tmp_path, unlabelled=1)
    assert any("unlabelled" in line for line in Folder("train", str(tmp_path)).remarks())


@pytest.mark.parametrize(
    ("layout", "words"),
    [
        ({"train/a": 5}, "there is only one class, a"),
        ({"a": 5}, "there is only one class, a"),
        (
            {"train/a": 5, "train/b": 5, "val/c": 2, "val/b": 1},
            "class c is in val/ but not in train",
        ),
        ({"val/a": 2, "val/b": 2}, "has val/ with class folders in it, but no train/"),
        ({}, "no images in class folders"),
        ({"a": 1, "b": 1}, "too few"),
    ],
)
def test_folders_that_cannot_be_trained_on(tmp_path, layout, words):
    fill(tmp_path, **layout)
    split = "val" if "val/c" in layout else "train"
    with pytest.raises(UserError, match=words) as caught:
        Folder(split, str(tmp_path))
    assert caught.value.code == Exit.DATA
    assert not isinstance(caught.value, NoSplit)


def test_a_class_that_would_not_be_trained_on(tmp_path):
    fill(tmp_path, a=10, b=1)
    assert Folder("train", str(tmp_path)).class_counts() == [8, 1]  # one image goes to train
    with pytest.raises(UserError, match="class b has too few images"):
        Folder("train", str(tmp_path), validation=0.6)


def test_an_empty_class_is_named(tmp_path):
    fill(tmp_path / "train", a=3, b=3)
    (tmp_path / "train" / "empty").mkdir()
    with pytest.raises(UserError, match="class folder without images: empty"):
        Folder("train", str(tmp_path))


def test_a_root_must_be_given_and_be_a_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("CNNCTL_DATA", str(fill(tmp_path, a=3, b=3)))
    with pytest.raises(UserError, match="needs the folder") as caught:
        Folder("train")
    assert caught.value.field == "data.root"
    with pytest.raises(UserError, match="there is no such folder"):
        Folder("train", str(tmp_path / "absent"))
    with pytest.raises(UserError, match="is no folder"):
        Folder("train", str(tmp_path / "a" / "000.png"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"validation": -0.1}, "validation must be a share"),
        ({"test": 1.0}, "test must be a share"),
        ({"validation": 0.5, "test": 0.5}, "must be less than 1"),
        ({"mean": (0.5,)}, "mean must have 3 numbers"),
        ({"std": (0.5, 0.0, 0.5)}, "std is of pixels scaled"),
        ({"mean": (123.0, 116.0, 103.0)}, "mean is of pixels scaled"),
    ],
)
def test_numbers_are_checked(tmp_path, arguments, words):
    with pytest.raises(ValueError, match=words):
        Folder("train", str(tmp_path), **arguments)


def test_facts(tmp_path):
    fill(tmp_path, a=5, b=5)
    data = Folder("train", str(tmp_path))
    assert data.size is None
    assert data.mean == (0.485, 0.456, 0.406)
    grey = Folder("train", str(tmp_path), channels=1, mirror=False, std=(0.3,))
    assert (grey.channels, len(grey.mean), grey.std, grey.mirror) == (1, 1, (0.3,), False)
    assert grey[0][0].shape == (1, 4, 5)


def test_the_fingerprint_sees_names_and_sizes_but_not_times(tmp_path):
    fill(tmp_path, a=5, b=5)

    def fingerprint() -> str:
        return Folder("train", str(tmp_path), validation=0.0, test=0.0).fingerprint()

    before = fingerprint()
    os.utime(tmp_path / "a" / "000.png", (1, 1))
    assert fingerprint() == before
    (tmp_path / "a" / "000.png").rename(tmp_path / "a" / "zzz.png")
    renamed = fingerprint()
    assert renamed != before
    with (tmp_path / "a" / "zzz.png").open("ab") as file:
        file.write(b"\0")
    assert fingerprint() not in (before, renamed)


def test_a_broken_file_is_an_error_that_names_it_also_from_a_worker(tmp_path):
    fill(tmp_path / "train", a=3, b=3)
    broken = tmp_path / "train" / "a" / "001.png"
    broken.write_bytes(broken.read_bytes()[:50])
    data = pickle.loads(pickle.dumps(Folder("train", str(tmp_path), validation=0)))
    with pytest.raises(UserError) as caught:
        data[1]
    error = pickle.loads(pickle.dumps(caught.value))
    assert (error.file, error.code) == (str(broken), Exit.DATA)


def test_skip_broken_fixes_the_index_at_once(tmp_path):
    fill(tmp_path, a=20, b=20)
    whole = Folder("train", str(tmp_path))
    bad = [whole.path(3), whole.path(17)]
    for path in bad:
        Path(path).write_bytes(b"")
    data = Folder("train", str(tmp_path), skip_broken=True)
    assert data.skipped == 2
    kept = [name for i, name in enumerate(names(whole)) if i not in (3, 17)]
    assert names(data) == kept
    assert [data[i][1]["label"] for i in range(len(data))] == [int(n[0] == "b") for n in kept]
    assert sum(data.class_counts()) == len(data) == len(whole) - 2
    assert [str(error.file) for error in data.broken] == bad
    assert sum("is empty" in line for line in data.remarks()) == 2
    assert data.fingerprint() == Folder("train", str(tmp_path), skip_broken=True).fingerprint()
    assert data.fingerprint() != Folder("train", str(tmp_path)).fingerprint()
    # The division into splits does not depend on which files are broken.
    assert names(Folder("val", str(tmp_path), skip_broken=True)) == names(
        Folder("val", str(tmp_path))
    )


def test_too_many_broken_files_are_not_skipped(tmp_path):
    fill(tmp_path / "train", a=20, b=20)
    for path in sorted((tmp_path / "train" / "a").iterdir())[:11]:
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"11 of 40 images are broken, first .*000.png: is empty"):
        Folder("train", str(tmp_path), validation=0, skip_broken=True)


def test_a_class_of_broken_files_is_not_skipped(tmp_path):
    fill(tmp_path / "train", a=20, b=3)
    for path in (tmp_path / "train" / "b").iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError, match="no image of class b is whole"):
        Folder("train", str(tmp_path), validation=0, skip_broken=True)


@pytest.mark.data
def test_real_images(tmp_path):
    root = os.environ.get("CNNCTL_DATA")
    if not root or not (Path(root) / "cifar10-jpg" / "train").is_dir():
        pytest.skip("$CNNCTL_DATA does not hold cifar10-jpg")
    data = Folder("test", f"{root}/cifar10-jpg")
    assert data.class_counts() == [1000] * 10
    image, target = data[3456]
    theirs = np.array(Image.open(data.path(3456)).convert("RGB"))
    assert torch.equal(image, torch.from_numpy(theirs).permute(2, 0, 1))
    assert target == {"label": 3}
