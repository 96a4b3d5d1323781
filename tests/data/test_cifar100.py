"""CIFAR-100: two labels a record, of which the fine one counts."""

from __future__ import annotations

import hashlib
import pickle

import numpy as np
import pytest
import torch
from torchvision import datasets

from cnnctl.data.cifar100 import CIFAR100
from cnnctl.errors import UserError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (200, 3072), dtype=np.uint8)
COARSE = (RNG.permutation(200) % 20).astype(np.uint8)
FINE = (np.arange(200) % 100).astype(np.uint8)


@pytest.fixture(autouse=True)
def small_files(monkeypatch):
    monkeypatch.setattr(CIFAR100, "images_in_file", {"train": 200, "test": 200})


def write(root):
    folder = root / "cifar-100-binary"
    folder.mkdir()
    for name in ("train.bin", "test.bin"):
        (folder / name).write_bytes(np.column_stack([COARSE, FINE, IMAGES]).tobytes())
    return folder


def test_the_names_are_in_the_official_order():
    """fine_label_names of the Python archive's meta file: alphabetical, with these at the tens."""
    assert CIFAR100.classes == tuple(sorted(CIFAR100.classes))
    assert len(set(CIFAR100.classes)) == 100
    assert CIFAR100.classes[::20] == ("apple", "chair", "lamp", "plain", "squirrel")
    assert CIFAR100.classes[10::20] == ("bowl", "dolphin", "mouse", "rose", "train")
    digest = hashlib.sha256(" ".join(CIFAR100.classes).encode()).hexdigest()
    assert digest == "77827c4c023a75b4a96911073f98319342db3ba589d39f75bec28def799cfea8"


def test_the_fine_label_is_the_class(tmp_path):
    write(tmp_path)
    data = CIFAR100("train", str(tmp_path), validation=0, verify=False)
    assert data.labels.tolist() == FINE.tolist()
    assert torch.equal(data.pixels, torch.from_numpy(IMAGES.reshape(-1, 3, 32, 32)))
    val = CIFAR100("val", str(tmp_path), validation=100, verify=False)
    assert val.class_counts() == [1] * 100


def test_the_python_archive_reads_alike(tmp_path, monkeypatch):
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    batch = {"data": IMAGES, "fine_labels": FINE.tolist(), "coarse_labels": COARSE.tolist()}
    raw = pickle.dumps(batch)
    for name, entry in (("train", "train_list"), ("test", "test_list")):
        (folder / name).write_bytes(raw)
        monkeypatch.setattr(datasets.CIFAR100, entry, [[name, hashlib.md5(raw).hexdigest()]])
    write(tmp_path)
    python = CIFAR100("test", str(tmp_path))
    assert python.fingerprint() == CIFAR100("test", str(tmp_path), verify=False).fingerprint()


def test_fine_labels_are_checked(tmp_path):
    folder = write(tmp_path)
    raw = bytearray((folder / "test.bin").read_bytes())
    raw[3074 * 3 + 1] = 100
    (folder / "test.bin").write_bytes(raw)
    with pytest.raises(UserError, match=r"test.bin: label 3 is 100, must be 0 to 99"):
        CIFAR100("test", str(tmp_path), verify=False)


def test_class_names():
    assert len(set(CIFAR100.classes)) == 100
    assert list(CIFAR100.classes) == sorted(CIFAR100.classes)  # as in the archive's own list


def test_extracted_files_alone_cannot_be_verified(tmp_path):
    write(tmp_path)
    with pytest.raises(UserError, match=r"cifar-100-binary.tar.gz is not beside them"):
        CIFAR100("train", str(tmp_path))
