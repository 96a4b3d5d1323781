"""MNIST's files: what is read from them, and what is said of each that is not as it should be."""

from __future__ import annotations

import gzip
import hashlib
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from cnnctl.data.base import NoSplit
from cnnctl.data.mnist import MNIST, read_idx
from cnnctl.errors import Exit, UserError

RNG = np.random.default_rng(0)
IMAGES = {"train": RNG.integers(0, 256, (200, 28, 28), dtype=np.uint8)}
IMAGES["t10k"] = RNG.integers(0, 256, (50, 28, 28), dtype=np.uint8)
LABELS = {part: np.arange(len(images), dtype=np.uint8) % 10 for part, images in IMAGES.items()}


def idx(array: np.ndarray) -> bytes:
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return header + array.tobytes()


def write(root: Path, source: str = "MNIST", packed: bool = False) -> Path:
    folder = root / source / "raw"
    folder.mkdir(parents=True)
    for part in IMAGES:
        for name, array in (("images-idx3", IMAGES[part]), ("labels-idx1", LABELS[part])):
            path = folder / f"{part}-{name}-ubyte{'.gz' if packed else ''}"
            path.write_bytes(gzip.compress(idx(array)) if packed else idx(array))
    return folder


def test_the_splits_are_the_official_images_each_once(tmp_path):
    write(tmp_path)
    train = MNIST("train", str(tmp_path), validation=50)
    val = MNIST("val", str(tmp_path), validation=50)
    test = MNIST("test", str(tmp_path), validation=50)
    assert [len(train), len(val), len(test)] == [150, 50, 50]
    assert val.class_counts() == [5] * 10
    assert torch.equal(test.pixels[:, 0], torch.from_numpy(IMAGES["t10k"]))
    assert torch.equal(test.labels, torch.from_numpy(LABELS["t10k"]).long())
    both = torch.cat([train.pixels, val.pixels]).flatten(1)
    official = torch.from_numpy(IMAGES["train"]).flatten(1)
    matches = (both[:, None] == official[None]).all(2)  # (200, 200)
    assert matches.sum(0).tolist() == [1] * 200
    assert torch.equal(
        torch.cat([train.labels, val.labels]),
        torch.from_numpy(LABELS["train"]).long()[matches.int().argmax(1)],
    )


def test_torchvision_reads_the_same(tmp_path):
    from torchvision.datasets import MNIST as Oracle

    write(tmp_path)
    oracle = Oracle(str(tmp_path), train=True)
    ours = MNIST("train", str(tmp_path), validation=0)
    assert torch.equal(ours.pixels[:, 0], oracle.data)
    assert torch.equal(ours.labels, oracle.targets)


def test_the_split_is_fixed(tmp_path):
    write(tmp_path)
    once, again = (MNIST("val", str(tmp_path), validation=20) for _ in range(2))
    assert once.fingerprint() == again.fingerprint()
    other = MNIST("val", str(tmp_path), validation=30)
    assert once.fingerprint() != other.fingerprint()


def test_facts_need_no_data():
    assert (MNIST.channels, MNIST.size, MNIST.mirror, len(MNIST.classes)) == (
        1,
        (28, 28),
        False,
        10,
    )


def test_no_validation(tmp_path):
    write(tmp_path)
    assert len(MNIST("train", str(tmp_path), validation=0)) == 200
    with pytest.raises(NoSplit, match="data=mnist has no val split with validation=0"):
        MNIST("val", str(tmp_path), validation=0)


@pytest.mark.parametrize("validation", [-1, 200, 5000])
def test_validation_out_of_range(tmp_path, validation):
    write(tmp_path)
    with pytest.raises(ValueError, match=f"validation must be from 0 to 199, got {validation}"):
        MNIST("train", str(tmp_path), validation=validation)


def test_absent_data_is_one_sentence_with_every_file(tmp_path):
    with pytest.raises(UserError) as caught:
        MNIST("train", str(tmp_path))
    said = str(caught.value)
    assert said.startswith(f"{tmp_path}: data=mnist was looked for in this folder")
    for part in ("train", "t10k"):
        assert f"MNIST/raw/{part}-images-idx3-ubyte" in said
        assert f"MNIST/raw/{part}-labels-idx1-ubyte" in said
    assert caught.value.code == Exit.DATA
    assert "cnnctl data fetch data=mnist" in str(caught.value.advice)


@pytest.mark.parametrize("below", ["MNIST", "MNIST/raw"])
def test_a_root_that_is_too_deep_is_answered_with_the_right_one(tmp_path, below):
    write(tmp_path)
    with pytest.raises(UserError) as caught:
        MNIST("train", str(tmp_path / below))
    assert str(caught.value.advice).endswith(f"data.root={tmp_path}")


def test_a_gz_file_alone_is_read_and_checked(tmp_path, monkeypatch):
    folder = write(tmp_path, packed=True)
    with pytest.raises(UserError, match=r"has md5 .* must be f68b3c2dcbeaaa9fbdd348bbdeb94873"):
        MNIST("train", str(tmp_path))
    assert len(MNIST("train", str(tmp_path), validation=50, verify=False)) == 150
    own = [(p.name, hashlib.md5(p.read_bytes()).hexdigest()) for p in folder.iterdir()]
    monkeypatch.setattr("torchvision.datasets.MNIST.resources", own)
    assert len(MNIST("train", str(tmp_path), validation=50)) == 150


def damage(raw: bytes, kind: str) -> bytes:
    return {
        "empty": b"",
        "short": raw[:-1],
        "header": raw[:6],
        "long": raw + b"\0",
        "magic": b"<!DOCTYPE html>" + raw,
        "kind": b"\0\0\x09" + raw[3:],
        "none": raw[:4] + bytes(4) + raw[8:],
    }[kind]


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("train-images-idx3-ubyte", "empty", "is empty"),
        ("train-images-idx3-ubyte", "short", "truncated: 156,815 bytes, must be 156,816 for 200"),
        ("train-images-idx3-ubyte", "header", "truncated: 6 bytes"),
        ("train-labels-idx1-ubyte", "long", "too long: 209 bytes, must be 208 for 200 items"),
        ("train-labels-idx1-ubyte", "magic", "no idx file of this kind: it starts with 3c 21 44"),
        ("train-images-idx3-ubyte", "kind", "must be 00 00 08 03"),
        ("train-labels-idx1-ubyte", "none", "too long: 208 bytes, must be 8 for 0 items"),
    ],
)
def test_damaged_files(tmp_path, name, kind, words):
    path = write(tmp_path) / name
    path.write_bytes(damage(path.read_bytes(), kind))
    with pytest.raises(UserError, match=words) as caught:
        MNIST("train", str(tmp_path))
    assert caught.value.file == path
    assert caught.value.code == Exit.DATA


def test_images_of_another_size(tmp_path):
    path = write(tmp_path) / "train-images-idx3-ubyte"
    path.write_bytes(idx(np.zeros((200, 14, 56), np.uint8)))
    with pytest.raises(UserError, match=r"holds items of \[14, 56\] bytes, must be \[28, 28\]"):
        MNIST("train", str(tmp_path))


def test_labels_out_of_range_are_named(tmp_path):
    path = write(tmp_path) / "train-labels-idx1-ubyte"
    labels = LABELS["train"].copy()
    labels[[17, 40]] = 10, 255
    path.write_bytes(idx(labels))
    with pytest.raises(UserError, match=r"label 17 is 10, must be 0 to 9 \(and 1 more\)"):
        MNIST("train", str(tmp_path))


def test_images_without_labels(tmp_path):
    path = write(tmp_path) / "train-labels-idx1-ubyte"
    path.write_bytes(idx(LABELS["train"][:190]))
    with pytest.raises(UserError, match="holds 200 images, but there are 190 labels"):
        MNIST("train", str(tmp_path))


def test_a_gz_file_that_is_cut_off(tmp_path):
    path = write(tmp_path, packed=True) / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="is no whole gzip file"):
        MNIST("train", str(tmp_path), verify=False)
    path.write_bytes(b"not gzip")
    with pytest.raises(UserError, match="is no whole gzip file"):
        MNIST("train", str(tmp_path), verify=False)


@pytest.mark.parametrize("shape", [(), (3, 5)])
def test_idx_round_trip(shape):
    array = RNG.integers(0, 256, (7, *shape), dtype=np.uint8)
    assert np.array_equal(read_idx(idx(array), shape), array)


def test_fetch_without_a_network_says_what_to_get_and_where_to_put_it(tmp_path, monkeypatch):
    import urllib.error

    def unreachable(*args, **kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    with pytest.raises(
        UserError, match=r"data=mnist could not be downloaded: .*no network"
    ) as caught:
        MNIST.fetch(str(tmp_path))
    advice = str(caught.value.advice)
    assert "train-images-idx3-ubyte.gz (md5 f68b3c2dcbeaaa9fbdd348bbdeb94873)" in advice
    assert str(tmp_path / "MNIST" / "raw") in advice


def test_fetch_unpacks_what_is_there_without_a_network(tmp_path, monkeypatch):
    folder = write(tmp_path, packed=True)
    names = [name for name, _ in MNIST._published()]
    own = [(name, hashlib.md5((folder / name).read_bytes()).hexdigest()) for name in names]
    monkeypatch.setattr("torchvision.datasets.MNIST.resources", own)
    assert MNIST.fetch(str(tmp_path)) == f"data=mnist is in {folder}"
    assert (folder / "train-images-idx3-ubyte").read_bytes() == idx(IMAGES["train"])


@pytest.mark.data
def test_the_real_files():
    root = os.environ.get("CNNCTL_DATA")
    if not root or MNIST.missing(root):
        pytest.skip("$CNNCTL_DATA does not hold MNIST")
    train = MNIST("train", root, validation=0)
    assert train.class_counts() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    pixels = train.pixels.double() / 255
    assert pixels.mean().item() == pytest.approx(MNIST.mean[0], abs=5e-5)
    assert pixels.std().item() == pytest.approx(MNIST.std[0], abs=5e-5)
    assert MNIST("test", root).labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert len(MNIST("train", root)) == 55000
