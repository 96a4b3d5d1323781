"""CIFAR-10's two archives: read alike, opened only when vouched for, refused with a reason."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision import datasets

from cnnctl.data.base import NoSplit
from cnnctl.data.cifar10 import CIFAR10
from cnnctl.errors import Exit, UserError

RNG = np.random.default_rng(0)
COUNT = 20  # images in each file here, 10,000 in the official ones
NAMES = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
IMAGES = {name: RNG.integers(0, 256, (COUNT, 3072), dtype=np.uint8) for name in NAMES}
LABELS = np.arange(COUNT, dtype=np.uint8) % 10


@pytest.fixture(autouse=True)
def small_files(monkeypatch):
    monkeypatch.setattr(CIFAR10, "images_in_file", {"train": COUNT, "test": COUNT})


def test_the_names_are_in_the_official_order():
    """batches.meta.txt of the binary archive."""
    official = "airplane automobile bird cat deer dog frog horse ship truck"
    assert " ".join(CIFAR10.classes) == official


def records(name: str) -> bytes:
    return np.hstack([LABELS[:, None], IMAGES[name]]).tobytes()


def write_binary(root: Path) -> Path:
    folder = root / "cifar-10-batches-bin"
    folder.mkdir()
    for name in NAMES:
        (folder / name).write_bytes(records(name))
    return folder


def write_archive(root: Path, monkeypatch, names=NAMES) -> Path:
    path = root / "cifar-10-binary.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name in reversed(names):  # the official archive's order is not that of the numbers
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(records(name))
            tar.addfile(member, io.BytesIO(records(name)))
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    monkeypatch.setattr(CIFAR10, "archive_md5", md5)
    return path


def write_python(root: Path, monkeypatch=None) -> Path:
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    lists: dict[str, list[list[str]]] = {"train_list": [], "test_list": []}
    for name in NAMES:
        raw = pickle.dumps({"labels": LABELS.tolist(), "data": IMAGES[name]})
        (folder / name.removesuffix(".bin")).write_bytes(raw)
        part = "test_list" if name.startswith("test") else "train_list"
        lists[part].append([name.removesuffix(".bin"), hashlib.md5(raw).hexdigest()])
    if monkeypatch:
        for name, value in lists.items():
            monkeypatch.setattr(datasets.CIFAR10, name, value)
    return folder


def expect(data: CIFAR10, names: list[str]) -> None:
    images = np.concatenate([IMAGES[name] for name in names]).reshape(-1, 3, 32, 32)
    assert torch.equal(data.pixels, torch.from_numpy(images))
    assert data.labels.tolist() == np.tile(LABELS, len(names)).tolist()


def test_the_three_forms_read_alike(tmp_path, monkeypatch):
    roots = [tmp_path / kind for kind in ("binary", "archive", "python")]
    for root in roots:
        root.mkdir()
    write_binary(roots[0])
    write_archive(roots[1], monkeypatch)
    write_python(roots[2], monkeypatch)
    for root, verify in zip(roots, (False, True, True), strict=True):
        expect(CIFAR10("train", str(root), validation=0, verify=verify), NAMES[:5])
        expect(CIFAR10("test", str(root), verify=verify), NAMES[5:])
    expect(CIFAR10("test", str(roots[1]), verify=False), NAMES[5:])
    expect(CIFAR10("test", str(roots[2]), verify=False), NAMES[5:])


def test_validation_is_held_out_of_train(tmp_path):
    write_binary(tmp_path)
    train, val = (CIFAR10(s, str(tmp_path), validation=20, verify=False) for s in ("train", "val"))
    assert (len(train), len(val)) == (80, 20)
    assert val.class_counts() == [2] * 10
    rows = torch.cat([train.pixels, val.pixels]).flatten(1)
    assert len(rows.unique(dim=0)) == 100
    with pytest.raises(NoSplit):
        CIFAR10("val", str(tmp_path), validation=0, verify=False)
    with pytest.raises(ValueError, match="validation must be from 0 to 99"):
        CIFAR10("train", str(tmp_path), validation=100, verify=False)


def test_extracted_files_alone_cannot_be_verified(tmp_path):
    write_binary(tmp_path)
    with pytest.raises(UserError, match="cannot be verified") as caught:
        CIFAR10("train", str(tmp_path))
    assert "data.verify=false" in str(caught.value.advice)
    assert caught.value.code == Exit.DATA


def test_verified_pixels_come_from_the_archive_and_not_from_the_files_beside_it(
    tmp_path, monkeypatch
):
    folder = write_binary(tmp_path)
    write_archive(tmp_path, monkeypatch)
    (folder / "test_batch.bin").write_bytes(bytes(COUNT * 3073))
    expect(CIFAR10("test", str(tmp_path)), NAMES[5:])
    assert CIFAR10("test", str(tmp_path), verify=False).pixels.sum() == 0


def test_an_archive_with_another_md5(tmp_path, monkeypatch):
    path = write_archive(tmp_path, monkeypatch)
    monkeypatch.undo()
    monkeypatch.setattr(CIFAR10, "images_in_file", {"train": COUNT, "test": COUNT})
    with pytest.raises(UserError, match="must be c32a1d4ab5d03f1284b67883e8d87530") as caught:
        CIFAR10("train", str(tmp_path))
    assert caught.value.file == path


@pytest.mark.parametrize("verify", [True, False])
def test_pickle_is_never_opened_without_torchvisions_md5(tmp_path, verify):
    class Bomb:
        def __reduce__(self):
            return (tmp_path / "exploded").touch, ()

    folder = write_python(tmp_path)
    for path in folder.iterdir():
        path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UserError, match="c99cafc152244af753f735de768cd75f: it is not opened"):
        CIFAR10("train", str(tmp_path), verify=verify)
    assert not (tmp_path / "exploded").exists()


def test_one_bad_python_file_is_an_error_though_the_archive_is_there(tmp_path, monkeypatch):
    folder = write_python(tmp_path, monkeypatch)
    write_archive(tmp_path, monkeypatch)
    with (folder / "data_batch_3").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(UserError, match="is not opened") as caught:
        CIFAR10("train", str(tmp_path))
    assert caught.value.file == folder / "data_batch_3"


@pytest.mark.parametrize(("cut", "word"), [(-1, "truncated"), (-3073, "truncated")])
def test_truncated_files_are_named(tmp_path, cut, word):
    path = write_binary(tmp_path) / "data_batch_4.bin"
    path.write_bytes(path.read_bytes()[:cut])
    words = f"is {word}: {61460 + cut:,} bytes, must be 61,460 for 20 images"
    with pytest.raises(UserError, match=words) as caught:
        CIFAR10("train", str(tmp_path), verify=False)
    assert caught.value.file == path


def test_files_that_are_too_long(tmp_path):
    path = write_binary(tmp_path) / "test_batch.bin"
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(UserError, match="too long"):
        CIFAR10("test", str(tmp_path), verify=False)


def test_labels_out_of_range_are_named(tmp_path):
    path = write_binary(tmp_path) / "data_batch_2.bin"
    raw = bytearray(path.read_bytes())
    raw[3073 * 7] = 10
    path.write_bytes(raw)
    with pytest.raises(UserError, match=r"data_batch_2.bin: label 7 is 10, must be 0 to 9"):
        CIFAR10("train", str(tmp_path), verify=False)


def test_an_archive_that_lacks_a_file_or_is_cut_off(tmp_path, monkeypatch):
    path = write_archive(tmp_path, monkeypatch, NAMES[1:])
    with pytest.raises(UserError, match=r"does not hold cifar-10-batches-bin/data_batch_1.bin"):
        CIFAR10("train", str(tmp_path))
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(UserError, match=r"no whole tar.gz"):
        CIFAR10("test", str(tmp_path), verify=False)


def test_absent_data(tmp_path):
    with pytest.raises(UserError) as caught:
        CIFAR10("train", str(tmp_path / "nowhere"))
    said = str(caught.value)
    assert "which does not exist" in said
    assert "cifar-10-batches-py/data_batch_1" in said
    assert "cifar-10-binary.tar.gz" in said
    assert "cnnctl data fetch data=cifar10" in str(caught.value.advice)


def test_a_begun_form_is_completed_and_a_deep_root_is_answered(tmp_path):
    folder = write_binary(tmp_path)
    with pytest.raises(UserError) as caught:
        CIFAR10("train", str(folder))
    assert str(caught.value.advice).endswith(f"data.root={tmp_path}")
    (folder / "data_batch_5.bin").unlink()
    assert CIFAR10.missing(str(tmp_path)) == ["cifar-10-batches-bin/data_batch_5.bin"]


def test_fetch_unpacks_an_archive_that_is_there(tmp_path, monkeypatch):
    folder = write_python(tmp_path, monkeypatch)
    raw = pickle.dumps({"label_names": list(CIFAR10.classes)})
    (folder / "batches.meta").write_bytes(raw)
    meta = {**datasets.CIFAR10.meta, "md5": hashlib.md5(raw).hexdigest()}
    archive = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, folder.name)
    for path in folder.iterdir():
        path.unlink()
    monkeypatch.setattr(datasets.CIFAR10, "meta", meta)
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    assert CIFAR10.fetch(str(tmp_path)) == f"data=cifar10 is in {folder}"
    expect(CIFAR10("test", str(tmp_path)), NAMES[5:])


@pytest.mark.data
def test_real_files_in_the_official_layout(monkeypatch):
    monkeypatch.undo()
    root = os.environ.get("CNNCTL_DATA")
    if not root or not (Path(root) / CIFAR10.binary).is_dir():
        pytest.skip("$CNNCTL_DATA does not hold CIFAR-10's binary files")
    train = CIFAR10("train", root, verify=False)
    assert train.class_counts() == [4500] * 10
    assert CIFAR10("val", root, verify=False).class_counts() == [500] * 10
    test = CIFAR10("test", root, verify=False)
    assert test.labels[:10].tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]  # the official order
    mean = train.pixels.float().mean((0, 2, 3)) / 255  # of whatever JPEG left of them
    assert torch.allclose(mean, torch.tensor(CIFAR10.mean), atol=2e-3)
