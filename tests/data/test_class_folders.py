"""What is found below class folders, what is left out, and what is refused."""

from __future__ import annotations

import os

import pytest

from cnnctl.data.class_folders import has_folders, has_images, scan
from cnnctl.errors import Exit, UserError


def fill(root, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


def test_classes_and_files_are_in_the_order_of_their_names(tmp_path):
    fill(tmp_path, "b/2.png", "b/10.JPG", "a/x/deep.webp", "a/y.png", "Z/1.jpeg")
    found = scan(tmp_path, tmp_path)
    assert found.classes == ["Z", "a", "b"]
    assert found.paths == [b"Z/1.jpeg", b"a/x/deep.webp", b"a/y.png", b"b/10.JPG", b"b/2.png"]
    assert found.labels == [0, 1, 1, 2, 2]
    assert found.sizes == [len(path) for path in found.paths]
    assert not found.ignored


def test_it_agrees_with_torchvisions_image_folder(tmp_path):
    from torchvision.datasets import ImageFolder

    fill(tmp_path, "ü/a.png", "z/b.jpg", "Z/c.bmp", "z/sub/d.png", "a b/e.ppm")
    oracle, ours = ImageFolder(str(tmp_path)), scan(tmp_path, tmp_path)
    assert ours.classes == oracle.classes
    theirs = {(os.path.relpath(path, tmp_path), label) for path, label in oracle.samples}
    assert {(os.fsdecode(p), k) for p, k in zip(ours.paths, ours.labels, strict=True)} == theirs


def test_what_is_left_out_is_counted(tmp_path):
    fill(tmp_path, "a/1.png", "b/2.png", "a/.DS_Store", "a/.hidden.png", "a/notes.txt", "c.png")
    fill(tmp_path, ".ipynb_checkpoints/x.png", "b/.ipynb_checkpoints/y.png", "a/noextension")
    (tmp_path / "a" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "a" / "self.png").symlink_to(tmp_path / "a" / "self.png")
    (tmp_path / "b" / "up").symlink_to(tmp_path)
    (tmp_path / "b" / "same").symlink_to(tmp_path / "b")
    found = scan(tmp_path, tmp_path)
    paths = {path for path in found.paths if b"up/" not in path}
    assert paths == {b"a/1.png", b"b/2.png"}
    assert found.ignored["a link to nothing"] >= 2
    assert found.ignored["a link to a folder above it"] >= 2
    assert found.ignored["not an image by its extension"] >= 2
    assert found.ignored["hidden"] >= 4
    assert found.ignored["not in a class folder"] == 1


def test_links_are_followed(tmp_path):
    fill(tmp_path / "store", "1.png", "2.png")
    fill(tmp_path / "data", "a/3.png")
    (tmp_path / "data" / "b").symlink_to(tmp_path / "store")
    (tmp_path / "data" / "a" / "4.png").symlink_to(tmp_path / "store" / "1.png")
    found = scan(tmp_path / "data", tmp_path / "data")
    assert found.paths == [b"a/3.png", b"a/4.png", b"b/1.png", b"b/2.png"]


def test_names_that_are_not_utf8(tmp_path):
    folder = os.path.join(os.fsencode(tmp_path), b"caf\xe9")
    os.mkdir(folder)
    with open(os.path.join(folder, b"\xff.png"), "wb") as file:
        file.write(b"x")
    fill(tmp_path, "a/1.png")
    found = scan(tmp_path, tmp_path)
    assert found.classes == ["a", r"caf\xe9"]
    assert found.paths[1] == b"caf\xe9/\xff.png"


def test_every_empty_class_is_named(tmp_path):
    fill(tmp_path, "a/1.png", "c/readme.txt")
    (tmp_path / "b").mkdir()
    with pytest.raises(UserError, match="class folder without images: b, c") as caught:
        scan(tmp_path, tmp_path)
    assert caught.value.code == Exit.DATA


def test_no_images_at_all(tmp_path):
    fill(tmp_path, "1.png", "2.png")
    with pytest.raises(UserError, match=r"no images in class folders \(left out: 2 not in a class"):
        scan(tmp_path, tmp_path)
    with pytest.raises(UserError, match="cannot be listed"):
        scan(tmp_path, tmp_path / "absent")


def test_kinds_of_folder(tmp_path):
    fill(tmp_path, "images/1.png", "divided/a/2.png", "other/.git/x", "other/notes.txt")
    assert [has_folders(tmp_path / n) for n in ("images", "divided", "other")] == [
        False,
        True,
        False,
    ]
    assert [has_images(tmp_path / n) for n in ("images", "divided", "other")] == [True, True, False]
