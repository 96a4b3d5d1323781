"""Proposals on the disk: made once, never taken for others, and gone on with after a kill."""

from __future__ import annotations

import errno
import fcntl
import json
import multiprocessing
import os
import pickle
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from cnnctl.data import kept as everything
from cnnctl.data import proposal_cache
from cnnctl.data.base import Dataset
from cnnctl.data.image_file import read_image
from cnnctl.data.proposal_cache import PART, Kept, keep
from cnnctl.data.proposals.base import ProposalMethod
from cnnctl.errors import Exit, UserError
from cnnctl.user_cache import user_cache

IMAGES = PART + 6


@dataclass(frozen=True)
class Counting(ProposalMethod):
    """As many boxes as an image's number modulo three; writes down which images it was given."""

    count: int = 2
    seen: str = ""
    pause: float = 0.0

    def propose(self, image: Tensor) -> Tensor:
        number = int(image[0, 0, 0])
        with open(self.seen, "a") as file:
            file.write(f"{number}\n")
        time.sleep(self.pause)
        boxes = torch.arange(4.0) + number
        return boxes.expand(min(number % 3, self.count), 4).clone()

    def settings(self):
        return {"method": "Counting", "count": self.count}


class Numbers(Dataset):
    classes, channels, mean, std = ("a",), 1, (0.5,), (0.5,)

    def __init__(self, images: int = IMAGES, broken: int = -1, name: str = "numbers") -> None:
        self.images, self.broken, self.name = images, broken, name

    def __len__(self) -> int:
        return self.images

    def __getitem__(self, index: int):
        if index == self.broken:
            raise UserError("is no image", file=f"{index}.png", code=Exit.DATA)
        return torch.full((1, 2, 2), index, dtype=torch.uint8), {}

    def fingerprint(self) -> str:
        return self.name


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return user_cache("proposals")


@pytest.fixture
def method(tmp_path) -> Counting:
    return Counting(seen=str(tmp_path / "seen"))


def nothing(done: int, total: int) -> None:
    pass


def seen(method: Counting) -> list[int]:
    """Of which images proposals were made since the last look."""
    path = Path(method.seen)
    numbers = sorted(map(int, path.read_text().split())) if path.exists() else []
    path.unlink(missing_ok=True)
    return numbers


def right(kept: Kept, images: int = IMAGES) -> bool:
    assert kept.counts().tolist() == [k % 3 for k in range(images)]
    assert all((kept.of(k) == torch.arange(4.0) + k).all() for k in range(images))
    return True


@pytest.mark.parametrize("workers", [0, 2])
def test_made_once_and_mapped(method, cache, workers):
    told: list[int] = []
    kept = keep(Numbers(), method, lambda done, total: told.append(done), workers=workers)
    assert right(kept)
    assert told == list(range(1, IMAGES + 1))
    assert seen(method) == list(range(IMAGES))
    assert (kept.most, len(kept)) == (2, IMAGES)
    assert isinstance(kept.boxes, np.memmap)
    assert right(keep(Numbers(), method, nothing, workers=workers))
    assert right(keep(Numbers(), method, nothing, workers=0, first=False))
    assert right(pickle.loads(pickle.dumps(kept)))
    assert seen(method) == []
    assert sorted(path.suffix for path in cache.iterdir()) == ["", ".lock"]


def test_of_nothing_there_is_nothing(method):
    assert len(keep(Numbers(0), method, nothing, workers=2)) == 0
    none = keep(Numbers(), Counting(count=1, seen=method.seen), nothing, workers=0)
    assert none.most == 1


def test_never_those_of_other_data_or_settings(method, cache):
    right(keep(Numbers(9), method, nothing, workers=0), 9)
    for data, other in (
        (Numbers(9, name="others"), method),
        (Numbers(8), method),
        (Numbers(9), Counting(count=1, seen=method.seen)),
    ):
        seen(method)
        kept = keep(data, other, nothing, workers=0)
        assert seen(method) == list(range(len(data)))
        assert kept.most == other.count
    assert len([path for path in cache.iterdir() if path.is_dir()]) == 4


class Photos(Dataset):
    """Files under annotations that know their names alone."""

    classes, channels, mean, std = ("a",), 1, (0.5,), (0.5,)

    def __init__(self, folder: Path) -> None:
        self.files = sorted(folder.glob("*.png"))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int):
        return read_image(self.files[index]), {}

    def fingerprint(self) -> str:
        return ",".join(file.name for file in self.files)


@pytest.mark.parametrize("stopped", [False, True])
def test_never_those_of_other_pixels_under_the_same_annotations(method, tmp_path, stopped):
    for name, first in (("mine", 0), ("others", 20)):
        (tmp_path / name).mkdir()
        for k in range(20):
            pixels = np.full((2, 2), first + k, np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{k:02d}.png")
    mine, others = (Photos(tmp_path / name) for name in ("mine", "others"))
    assert mine.fingerprint() == others.fingerprint()
    if stopped:
        with pytest.raises(Enough):
            keep(mine, method, until(9), workers=0)
    else:
        right(keep(mine, method, nothing, workers=0), 20)
    seen(method)
    kept = keep(others, method, nothing, workers=0)
    assert seen(method) == list(range(20, 40))
    assert kept.counts().tolist() == [k % 3 for k in range(20, 40)]


def test_one_that_was_put_in_anothers_place_is_found_out(method, cache):
    mine = keep(Numbers(9), method, nothing, workers=0).place
    other = keep(Numbers(9, name="others"), method, nothing, workers=0).place
    for file in mine.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    seen(method)
    right(keep(Numbers(9, name="others"), method, nothing, workers=0), 9)
    assert len(seen(method)) == 9


def damage_a_byte(place: Path) -> None:
    data = bytearray((place / "boxes.npy").read_bytes())
    data[-3] ^= 1
    (place / "boxes.npy").write_bytes(data)


def cut_short(place: Path) -> None:
    with (place / "boxes.npy").open("r+b") as file:
        file.truncate(140)


def without_ends(place: Path) -> None:
    (place / "ends.npy").unlink()


def no_json(place: Path) -> None:
    (place / "index.json").write_text("{")


def other_form(place: Path) -> None:
    said = json.loads((place / "index.json").read_text())
    said["key"]["form"] += 1
    (place / "index.json").write_text(json.dumps(said))


@pytest.mark.parametrize(
    "damage",
    [damage_a_byte, cut_short, without_ends, no_json, other_form],
    ids=lambda f: f.__name__,
)
def test_a_damaged_one_is_made_again(method, capsys, damage):
    place = keep(Numbers(9), method, nothing, workers=0).place
    damage(place)
    seen(method)
    assert right(keep(Numbers(9), method, nothing, workers=0), 9)
    assert len(seen(method)) == 9
    assert f"damaged, made again: {place}" in capsys.readouterr().err


class Enough(Exception):
    pass


def until(most: int):
    def watch(done: int, total: int) -> None:
        if done == most:
            raise Enough

    return watch


@pytest.mark.parametrize("workers", [0, 2])
def test_one_that_was_stopped_goes_on(method, cache, workers):
    with pytest.raises(Enough):
        keep(Numbers(), method, until(PART + 3), workers=workers)
    assert len(list(cache.glob("*.parts/*.npz"))) == 2
    seen(method)
    with pytest.raises(Enough):  # again, in the same part
        keep(Numbers(), method, until(PART + 5), workers=0)
    told: list[int] = []
    assert right(keep(Numbers(), method, lambda done, _: told.append(done), workers=0))
    assert seen(method) == list(range(PART + 3, IMAGES))
    assert told == [IMAGES]
    assert not list(cache.glob("*.parts"))


def test_what_there_is_of_a_part_is_written_now_and_then(method, cache, monkeypatch):
    """A process that is killed has no time for it."""
    now, lengths = [0.0], []
    monkeypatch.setattr(proposal_cache, "time", SimpleNamespace(**vars(time)))
    monkeypatch.setattr(proposal_cache.time, "monotonic", lambda: now[0])

    def watch(done: int, total: int) -> None:
        now[0] += 12
        files = list(cache.glob("*.parts/*.npz"))
        lengths.append(len(np.load(files[0])["counts"]) if files else 0)

    keep(Numbers(9), method, watch, workers=0)
    assert lengths == [0, 0, 0, 4, 4, 4, 7, 7, 9]  # after 30 seconds, and at the end


def test_a_part_that_is_damaged_is_made_again(method, cache):
    with pytest.raises(Enough):
        keep(Numbers(), method, until(PART), workers=0)
    (part,) = cache.glob("*.parts/*.npz")
    data = bytearray(part.read_bytes())
    data[200] ^= 255
    part.write_bytes(data)
    seen(method)
    assert right(keep(Numbers(), method, nothing, workers=0))
    assert seen(method) == list(range(IMAGES))


def test_an_image_that_cannot_be_read(method):
    for workers in (0, 2):
        with pytest.raises(UserError, match=r"7\.png: is no image") as caught:
            keep(Numbers(broken=7), method, nothing, workers=workers)
        assert caught.value.code == Exit.DATA
    assert seen(method)
    assert right(keep(Numbers(), method, nothing, workers=0))
    assert seen(method) == list(range(7, IMAGES)), "those before it are not made again"


@pytest.mark.parametrize("at", ["part", "join"])
def test_a_full_disk_is_one_sentence_and_nothing_half_written(method, cache, monkeypatch, at):
    real, left = os.fsync, [2 if at == "part" else 4]  # the header and the parts are written first

    def full(number: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(number)

    monkeypatch.setattr(proposal_cache.os, "fsync", full)
    with pytest.raises(UserError, match="the disk is full") as caught:
        keep(Numbers(), method, nothing, workers=0)
    assert caught.value.code == Exit.MACHINE
    assert "cnnctl data clean" in str(caught.value.advice)
    assert str(cache) in str(caught.value.file)
    assert not [path for path in cache.rglob("*") if path.name.endswith(".tmp")]
    assert not [path for path in cache.iterdir() if path.is_dir() and path.suffix != ".parts"]
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache.parent.parent))
    seen(method)
    assert right(keep(Numbers(), method, nothing, workers=0))
    assert seen(method) == (list(range(PART, IMAGES)) if at == "part" else [])


def test_a_cache_that_cannot_be_written(method, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match="cannot be written") as caught:
        keep(Numbers(9), method, nothing, workers=0)
    assert caught.value.code == Exit.MACHINE
    assert "XDG_CACHE_HOME" in str(caught.value.advice)


def beside(method: Counting, workers: int) -> tuple[Any, Any]:
    """Another process that makes the same, slowly, and a pipe that says how many it has."""
    forked = multiprocessing.get_context("fork")
    receive, send = forked.Pipe(duplex=False)
    slow = replace(method, pause=0.01)
    what = (Numbers(), slow, lambda done, total: send.send(done))
    process = forked.Process(target=keep, args=what, kwargs={"workers": workers})
    process.start()
    return process, receive


def test_two_processes_make_it_once(method):
    other, said = beside(method, 0)
    assert said.recv() == 1
    (entry,) = everything.entries(["proposals"])
    assert not everything.forget(entry), "it is being made"
    assert right(keep(Numbers(), method, nothing, workers=0))
    other.join(60)
    assert other.exitcode == 0
    assert seen(method) == list(range(IMAGES))


def test_a_lock_that_is_deleted_keeps_nobody_out(method, cache, monkeypatch):
    """Cleaning comes between the opening of a lock and its locking: it is opened again."""
    real, deleted = fcntl.flock, []

    def flock(lock, how) -> None:
        if not deleted:
            deleted.extend(cache.glob("*.lock"))
            deleted[0].unlink()
        real(lock, how)

    def told(done: int, total: int) -> None:
        if done == 5:
            with (cache / deleted[0].name).open() as other, pytest.raises(BlockingIOError):
                real(other, fcntl.LOCK_EX | fcntl.LOCK_NB)

    monkeypatch.setattr(proposal_cache.fcntl, "flock", flock)
    assert right(keep(Numbers(9), method, told, workers=0), 9)
    (entry,) = everything.entries(["proposals"])
    deleted.clear()
    assert not everything.forget(entry), "somebody else deletes it or makes it anew"


def test_killed_at_once_it_goes_on(method, cache):
    other, said = beside(method, 2)
    while said.recv() < PART + 2:
        pass
    os.kill(other.pid, signal.SIGKILL)
    os.waitpid(other.pid, 0)
    seen(method)
    assert right(keep(Numbers(), method, nothing, workers=0))
    assert set(range(PART + 2, IMAGES)) <= set(seen(method))
    assert [path.suffix for path in sorted(cache.iterdir())] == ["", ".lock"]


def no_right(path, **rest) -> None:
    raise PermissionError(errno.EACCES, "Permission denied", path)


def test_what_is_kept_is_listed_and_forgotten(method, cache, monkeypatch):
    keep(Numbers(9), method, nothing, workers=0, name="counting of numbers")
    with pytest.raises(Enough):
        keep(Numbers(8), method, until(8), workers=0, name="counting of eight")
    (user_cache("data") / "mine").mkdir(parents=True)
    found = everything.entries(everything.KINDS)
    assert {entry.of for entry in found} == {"counting of numbers", "counting of eight"}
    assert all(entry.size > 100 for entry in found)
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", no_right)
        with pytest.raises(PermissionError):
            everything.forget(found[0])
    assert all(map(everything.forget, found))
    assert list(cache.iterdir()) == []
    assert (user_cache("data") / "mine").is_dir()
