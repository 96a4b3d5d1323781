"""The proposals of a data set, made once by all cores and kept in the user's cache folder.

They are found by what they are of: the fingerprint of the data, the pixels of some images spread
over it (a fingerprint may be of the annotations alone) and all settings of the method, so that
those of other data or settings are not taken. While they are made, parts of up to ``PART`` images
are on the disk; a process that was stopped leaves them, and the next one goes on from there. Whole,
they are one array that is mapped, so that the processes of a run share one copy in memory.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import hashlib
import json
import multiprocessing
import os
import shutil
import sys
import time
import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from cnnctl.data.base import Dataset
from cnnctl.data.image_file import printable
from cnnctl.data.kept import is_there
from cnnctl.data.loaders import start_worker
from cnnctl.data.proposals.base import ProposalMethod
from cnnctl.errors import Exit, UserError
from cnnctl.user_cache import user_cache

PART = 64  # images whose proposals are one file while they are made
_EVERY = 30.0  # seconds after which what there is of a part is written
_LOOKED_AT = 8  # images whose pixels are compared
_FORM = 2  # of what is kept; another number, another place
_CHUNK = 1 << 24  # bytes that are summed up at a time
_AHEAD = 8  # images that a process may be ahead by
_FEW = 4  # images for which no further process is worth its start

Watch = Callable[[int, int], None]  # of how many images, of how many; it may raise to stop


@dataclass(frozen=True)
class Kept:
    """Proposals of M images, (P, 4) of all of them one behind the other.

    Args:
        boxes: (P, 4) float32, mapped.
        ends: (M,) int64, where an image's boxes end; they begin where the last one's did.
        seconds: for an image, on average: of one core, or where the method does not fork by the
            clock on the wall.
    """

    place: Path
    boxes: np.ndarray
    ends: np.ndarray
    seconds: float

    def __len__(self) -> int:
        return len(self.ends)

    def counts(self) -> np.ndarray:
        """(M,) boxes of each image."""
        return np.diff(self.ends, prepend=0)

    @property
    def most(self) -> int:
        return int(self.counts().max(initial=0))

    def of(self, index: int, image: Tensor | None = None) -> Tensor:
        """(P, 4) float32 of one image, a copy."""
        start = int(self.ends[index - 1]) if index else 0
        return torch.from_numpy(np.array(self.boxes[start : int(self.ends[index])]))

    def __reduce__(self):  # another process maps the file anew instead of being sent its content
        return _opened, (self.place, self.seconds)


def keep(
    data: Dataset,
    method: ProposalMethod,
    watch: Watch,
    *,
    workers: int,
    first: bool = True,
    name: str = "",
) -> Kept:
    """The proposals of a data set: those that are kept, or made now and kept.

    Args:
        watch: called after every image and while another process makes the same.
        workers: processes that look for them; 0 is this one.
        first: False waits until the first of a run's processes has made them.
        name: what to call the data where it is listed.

    Raises:
        UserError: an image cannot be read (code 3); the disk is full or cannot be written, or a
            process was killed (code 5). What is made by then is kept.
    """
    said = _header(data, method, name)
    place = _place(said)
    kept = _load(place, said)
    while kept is None and not first:
        watch(0, len(data))
        time.sleep(_PAUSE)
        kept = _load(place, said)
    if kept is not None:
        return kept
    with _writing(place):
        place.parent.mkdir(parents=True, exist_ok=True)
    with _alone(place, lambda: watch(0, len(data))) as lock:
        if (kept := _load(place, said)) is not None:
            return kept
        if place.exists():
            print(f"damaged, made again: {printable(place)}", file=sys.stderr)
        for left in place.parent.glob(f".{place.name}.*.tmp"):  # by a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        parts = _beside(place, "parts")
        with _writing(place):
            parts.mkdir(exist_ok=True)
            _write(parts / "of.json", lambda file: file.write(json.dumps(said).encode()))
        _make(data, method, parts, watch, workers, lock)
        _join(parts, place, said)
    kept = _load(place, said)
    assert kept is not None, f"what was written to {place} a moment ago is not there"
    return kept


_PAUSE = 0.2  # seconds between two looks at what another process is doing


def _beside(place: Path, what: str) -> Path:
    return place.with_name(f"{place.name}.{what}")


def _header(data: Dataset, method: ProposalMethod, name: str) -> dict[str, Any]:
    """What makes these proposals these, as JSON gives it back."""
    settings = json.loads(json.dumps(method.settings(), sort_keys=True))
    key = {
        **{"form": _FORM, "data": data.fingerprint(), "settings": settings, "images": len(data)},
        "pixels": _pixels(data),
    }
    return {"key": key, "name": name}


def _pixels(data: Dataset) -> str:
    """A digest of some images, spread over all."""
    digest = hashlib.sha256()
    some = min(_LOOKED_AT, len(data))
    for number in range(some):
        image = data[number * len(data) // some][0]
        digest.update(repr(tuple(image.shape)).encode())
        digest.update(image.contiguous().numpy().data)
    return digest.hexdigest()


def _place(said: dict[str, Any]) -> Path:
    key = json.dumps(said["key"], sort_keys=True)
    return user_cache("proposals") / hashlib.sha256(key.encode()).hexdigest()[:32]


def _load(place: Path, said: dict[str, Any]) -> Kept | None:
    """What is kept there, mapped; None where it is not whole, or not this."""
    try:
        found = json.loads((place / "index.json").read_text())
        kept = _opened(place, float(found["seconds"]))
        shapes = [list(kept.boxes.shape), list(kept.ends.shape)]
        whole = shapes == [[found["boxes"], 4], [said["key"]["images"]]]
        if found["key"] != said["key"] or not whole or _sum(kept) != found["sum"]:
            return None
    except (OSError, EOFError, ValueError, KeyError, TypeError):
        return None
    return kept


def _opened(place: Path, seconds: float) -> Kept:
    boxes, ends = (np.load(place / f"{n}.npy", mmap_mode="r") for n in ("boxes", "ends"))
    return Kept(place, boxes, ends, seconds)


def _sum(kept: Kept) -> int:
    """A checksum of all of it."""
    total = zlib.crc32(np.ascontiguousarray(kept.ends).data)
    rows = _CHUNK // 16
    for start in range(0, len(kept.boxes), rows):
        total = zlib.crc32(np.ascontiguousarray(kept.boxes[start : start + rows]).data, total)
    return total


@contextlib.contextmanager
def _alone(place: Path, waiting: Callable[[], None]) -> Iterator[int | None]:
    """No other process makes the same meanwhile; the lock's descriptor.

    On a file system that has no locks both do, and what the later one writes is what is there.
    """
    lock, path, told = None, _beside(place, "lock"), False
    try:
        with contextlib.suppress(OSError):
            while True:
                if lock is None:
                    lock = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    if not told:
                        print("waiting: another process makes these proposals", file=sys.stderr)
                    told = True
                    waiting()
                    time.sleep(_PAUSE)
                    continue
                if is_there(lock, path):
                    break
                os.close(lock)  # it was deleted meanwhile: one who comes now would open another
                lock = None
        yield lock
    finally:
        if lock is not None:
            os.close(lock)


class _Proposing(TorchDataset):
    """Index of an image -> its boxes and the seconds they took; a user's fault is returned."""

    def __init__(self, data: Dataset, method: ProposalMethod) -> None:
        self.data, self.method = data, method

    def __getitem__(self, index: int) -> tuple[np.ndarray, float] | UserError:
        try:
            image = self.data[index][0]
            clock = clock_of(self.method)
            started = clock()
            boxes = self.method.propose(image)
        except UserError as error:
            return error
        return boxes.cpu().numpy(), clock() - started


def clock_of(method: ProposalMethod) -> Callable[[], float]:
    """Seconds of one core, however busy the machine is; of a network, which works elsewhere or on
    many cores, those on the wall."""
    return time.process_time if method.forks else time.perf_counter


def _make(
    data: Dataset,
    method: ProposalMethod,
    parts: Path,
    watch: Watch,
    workers: int,
    lock: int | None,
) -> None:
    """Write all parts that are not there, or not to their end; stopped, what there is of the last
    one."""
    wanted: list[int] = []
    for start in range(0, len(data), PART):
        part = _read(parts, start, len(data))
        there = 0 if part is None else len(part[1])
        wanted += range(start + there, min(start + PART, len(data)))
    done, unfinished = len(data) - len(wanted), _Unfinished(parts, len(data))
    with contextlib.closing(_found(data, method, wanted, workers, lock)) as rows:
        try:
            for index, (found, seconds) in zip(wanted, rows, strict=True):
                unfinished.add(index, found, seconds)
                done += 1
                watch(done, len(data))
        finally:
            unfinished.write()


class _Unfinished:
    """The part that is being made.

    Args:
        images: of the data set.
    """

    def __init__(self, parts: Path, images: int) -> None:
        self.parts, self.images = parts, images
        self.start, self.seconds = -1, 0.0
        self.boxes: list[np.ndarray] = []
        self.new, self.written = 0, time.monotonic()

    def add(self, index: int, boxes: np.ndarray, seconds: float) -> None:
        """The images come in their order."""
        start = index // PART * PART
        if start != self.start:
            self.start, self.boxes, self.seconds = start, [], 0.0
            if (part := _read(self.parts, start, self.images)) is not None:
                self.boxes, self.seconds = np.split(part[0], part[1].cumsum()[:-1]), part[2]
        self.boxes.append(boxes)
        self.seconds += seconds
        self.new += 1
        whole = len(self.boxes) == min(PART, self.images - start)
        if whole or time.monotonic() - self.written >= _EVERY:
            self.write()

    def write(self) -> None:
        if self.new:
            self.new = 0  # also where it fails: there is no second attempt on the way out
            _write_part(self.parts / _name(self.start), self.boxes, self.seconds)
        self.written = time.monotonic()


def _found(
    data: Dataset,
    method: ProposalMethod,
    wanted: Sequence[int],
    workers: int,
    lock: int | None,
) -> Generator[tuple[np.ndarray, float]]:
    """Of each wanted image in order."""
    workers = min(workers, len(wanted) // _FEW) if method.forks else 0
    forked = multiprocessing.get_start_method() == "fork"  # and has the lock open too
    loader = DataLoader(
        _Proposing(data, method),
        sampler=wanted,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=_AHEAD if workers else None,  # a large image takes as long as many small
        collate_fn=_as_it_is,
        worker_init_fn=functools.partial(_start, lock if forked else None),
    )
    try:
        for item in loader:
            if isinstance(item, UserError):
                raise item
            yield item
    except RuntimeError as error:
        if "DataLoader worker (pid" not in str(error):
            raise
        raise UserError(
            f"a process that makes proposals died: {str(error).splitlines()[0]}",
            field="trainer.workers",
            advice="lower trainer.workers (each takes memory); the same command goes on",
            code=Exit.MACHINE,
        ) from error


def _start(lock: int | None, worker: int) -> None:
    """The lock is the first process's alone: it is free at once where that one is killed."""
    start_worker(worker)
    if lock is not None:
        os.close(lock)


def _as_it_is(item: Any) -> Any:
    return item


def _name(start: int) -> str:
    return f"{start:09d}.npz"


def _write_part(path: Path, boxes: Sequence[np.ndarray], seconds: float) -> None:
    counts = np.array([len(rows) for rows in boxes], np.int64)
    rows = np.concatenate(boxes).astype(np.float32).reshape(-1, 4)
    with _writing(path):
        _write(path, lambda file: np.savez(file, boxes=rows, counts=counts, seconds=seconds))


def _read(parts: Path, start: int, images: int) -> tuple[np.ndarray, np.ndarray, float] | None:
    """(boxes, counts, seconds) of the first images of the part that begins with that image; None:
    there are none, or they are damaged."""
    try:
        with np.load(parts / _name(start)) as part:  # the archive has a checksum of each array
            boxes, counts, seconds = part["boxes"], part["counts"], float(part["seconds"])
    except Exception:  # a damaged archive has many ways to say so
        return None
    most = min(PART, images - start)
    fits = counts.ndim == 1 and 0 < len(counts) <= most and boxes.shape == (counts.sum(), 4)
    return (boxes, counts, seconds) if fits else None


def _join(parts: Path, place: Path, said: dict[str, Any]) -> None:
    """One array of all parts; they are deleted once it is whole."""
    images = said["key"]["images"]
    counts, seconds = [], 0.0
    temporary = place.with_name(f".{place.name}.{os.getpid()}.tmp")
    with _writing(place):
        try:
            temporary.mkdir()
            for start in range(0, images, PART):
                part = _read(parts, start, images)
                assert part is not None, "it was written a moment ago"
                counts.append(part[1])
                seconds += part[2]
            ends = np.cumsum(np.concatenate(counts) if counts else np.empty(0, np.int64))
            _write(temporary / "ends.npy", lambda file: np.save(file, ends))
            total = int(ends[-1]) if len(ends) else 0
            _write(temporary / "boxes.npy", lambda file: _copy(file, parts, images, total))
            kept = _opened(temporary, 0.0)
            found = {"boxes": total, "sum": _sum(kept), "seconds": seconds / max(1, images)}
            text = json.dumps({**said, **found}).encode()
            _write(temporary / "index.json", lambda file: file.write(text))
            shutil.rmtree(place, ignore_errors=True)  # one that could not be used
            os.rename(temporary, place)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    shutil.rmtree(parts, ignore_errors=True)


def _copy(file: IO[bytes], parts: Path, images: int, total: int) -> None:
    """The boxes of all parts as one .npy; written and not mapped, so that a full disk is said."""
    header = {"descr": "<f4", "fortran_order": False, "shape": (total, 4)}
    np.lib.format.write_array_header_1_0(file, header)
    for start in range(0, images, PART):
        part = _read(parts, start, images)
        assert part is not None, "it was read a moment ago"
        file.write(np.ascontiguousarray(part[0], "<f4").data)


def _write(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """A file that is there whole, or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        free = "free some space (cnnctl data clean shows what is kept), or " if full else ""
        raise UserError(
            "the disk is full" if full else f"cannot be written: {error.strerror or error}",
            file=printable(path.parent),
            advice=f"{free}set XDG_CACHE_HOME to another folder; the same command goes on from"
            " what is made",
            code=Exit.MACHINE,
        ) from None
