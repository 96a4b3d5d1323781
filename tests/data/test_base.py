"""The split, the data root, the sentence on absent data, and what downloading may answer."""

from __future__ import annotations

import errno
import socket
from pathlib import Path

import pytest
import torch

from cnnctl.data.base import (
    NoSplit,
    absent,
    data_root,
    download,
    part_of_train,
    stratified_split,
)
from cnnctl.errors import Exit, UserError


@pytest.mark.parametrize("counts", [(1000,), (900, 100), (700, 200, 100), (1000, 0), (999, 1)])
def test_a_stratified_split_is_a_partition_in_proportion(counts):
    labels = torch.randint(7, (1000,), generator=torch.Generator().manual_seed(0)) ** 2 % 5
    parts = stratified_split(labels, counts)
    assert [len(part) for part in parts] == list(counts)
    assert torch.cat(parts).sort().values.tolist() == list(range(1000))
    whole = torch.bincount(labels, minlength=5)
    for part, count in zip(parts, counts, strict=True):
        assert part.tolist() == sorted(part.tolist())
        expected = whole * count / 1000
        assert (torch.bincount(labels[part], minlength=5) - expected).abs().max() <= 2


def test_a_stratified_split_is_fixed_by_its_arguments():
    labels = torch.arange(100) % 4
    first, again = (stratified_split(labels, (80, 20))[1].tolist() for _ in range(2))
    assert first == again
    assert first != stratified_split(labels, (80, 20), seed=1)[1].tolist()
    with pytest.raises(ValueError, match="do not add up to 100"):
        stratified_split(labels, (80, 21))


def test_part_of_train():
    labels = torch.arange(50) % 5
    train = part_of_train(labels, "train", 10, data="x")
    val = part_of_train(labels, "val", 10, data="x")
    assert torch.cat([train, val]).sort().values.tolist() == list(range(50))
    assert part_of_train(labels, "train", 0, data="x").tolist() == list(range(50))
    with pytest.raises(NoSplit, match="data=x has no val split"):
        part_of_train(labels, "val", 0, data="x")
    for wrong in (-1, 50):
        with pytest.raises(ValueError, match="validation must be from 0 to 49"):
            part_of_train(labels, "train", wrong, data="x")


def test_data_root(tmp_path, monkeypatch):
    monkeypatch.setenv("CNNCTL_DATA", str(tmp_path / "a"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    monkeypatch.chdir(tmp_path)
    assert data_root("/c") == Path("/c")
    assert data_root("c") == tmp_path / "c"
    assert data_root(None) == tmp_path / "a"
    monkeypatch.delenv("CNNCTL_DATA")
    assert data_root(None) == tmp_path / "b" / "cnnctl" / "data"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data_root(None) == tmp_path / ".cache" / "cnnctl" / "data"
    assert data_root("~/d") == tmp_path / "d"


def test_absent_names_what_would_do_as_well(tmp_path):
    error = absent(tmp_path / "no", ["x/a"], data="d", instead="a.tar")
    assert "this folder, which does not exist; it needs x/a (or a.tar)" in str(error)
    assert str(error.advice).startswith("type: cnnctl data fetch data=d; or point data.root")


def failing(error: Exception):
    def act() -> None:
        raise error

    return act


@pytest.mark.parametrize(
    "error",
    [RuntimeError("File not found or corrupted."), TimeoutError("timed out"), OSError(110, "x")],
)
def test_a_failed_download_is_one_sentence(tmp_path, error):
    before = socket.getdefaulttimeout()
    with pytest.raises(UserError, match="data=d could not be downloaded") as caught:
        download(
            failing(error), data="d", folder=tmp_path, address="http://x/", files=[("a.gz", "f00")]
        )
    assert caught.value.code == Exit.DATA
    assert "a.gz (md5 f00)" in str(caught.value.advice)
    assert str(tmp_path) in str(caught.value.advice)
    assert socket.getdefaulttimeout() == before


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_a_disk_that_cannot_be_written_is_the_machines_fault(tmp_path, number):
    act = failing(OSError(number, "what it is"))
    with pytest.raises(UserError, match="what it is") as caught:
        download(act, data="d", folder=tmp_path, address="http://x/", files=[])
    assert caught.value.code == Exit.MACHINE


def test_a_download_that_stalls_is_given_up(tmp_path):
    seen = []
    download(
        lambda: seen.append(socket.getdefaulttimeout()),
        data="d", folder=tmp_path / "new", address="http://x/", files=[],
    )  # fmt: skip
    assert seen == [30.0]
    assert (tmp_path / "new").is_dir()
