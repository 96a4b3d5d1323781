"""The annotations of a COCO-size set as arrays: read once, then mapped from a cache.

A list of 860,000 Python records would be copied into every worker by being counted; arrays are
not. Reading COCO's own training file takes many seconds and gigabytes, so the arrays of a large
file are kept in the user's cache folder under its path, size and time of change.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from itertools import accumulate, pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np

from cnnctl.data.coco_json import Faults, together
from cnnctl.data.coco_records import Records, Use, read_records
from cnnctl.data.coco_skeletons import Points
from cnnctl.data.image_file import printable
from cnnctl.errors import Exit, UserError
from cnnctl.user_cache import user_cache

_FORM = 6  # of the cached arrays; another number, another place
_LARGE = 16 << 20  # bytes of an annotation file that is worth a cache


@dataclass(frozen=True)
class Index:
    """I images by id, K categories by id, A annotations by image, P polygons.

    ``*_ends`` are where a row's part of the next column ends; it begins where the last one ended.
    """

    digest: str  # SHA-256 of the file
    category_names: tuple[str, ...]
    unfit: dict[Use, Faults]  # annotations that cannot be used as masks, boxes or figures
    points: tuple[Points, ...]  # (K,) names of the points of each category, and its sticks
    category_ids: np.ndarray  # (K,) int64
    image_ids: np.ndarray  # (I,) int64
    sizes: np.ndarray  # (I, 2) int32 (h, w)
    names: np.ndarray  # uint8, of all file names
    name_ends: np.ndarray  # (I,) int64
    annotation_ends: np.ndarray  # (I,) int64
    annotation_ids: np.ndarray  # (A,) int64
    categories: np.ndarray  # (A,) int32 position of its category
    crowds: np.ndarray  # (A,) bool
    boxes: np.ndarray  # (A, 4) float64 xyxy as the file says, past the edge too; zeros where unfit
    areas: np.ndarray  # (A,) float64 pixels of the object by the file, else of its box
    polygon_ends: np.ndarray  # (A,) int64
    coordinate_ends: np.ndarray  # (P,) int64
    coordinates: np.ndarray  # float64, x and y in turn
    run_ends: np.ndarray  # (A,) int64
    runs: np.ndarray  # int32, of 0s and 1s in turn, down the columns
    keypoint_ends: np.ndarray  # (A,) int64
    keypoints: np.ndarray  # float64, x, y and visibility in turn; zeros where unfit

    def __len__(self) -> int:
        return len(self.image_ids)

    def name(self, image: int) -> str:
        return self.names[between(self.name_ends, image)].tobytes().decode()

    def file_names(self) -> list[str]:
        """Of all images, in their order."""
        joined, starts = self.names.tobytes(), [0, *self.name_ends.tolist()]
        return [joined[start:stop].decode() for start, stop in pairwise(starts)]

    def annotations(self, image: int) -> range:
        """Positions of an image's annotations, in the file's order."""
        part = between(self.annotation_ends, image)
        return range(part.start, part.stop)

    def polygons(self, annotation: int) -> list[list[float]]:
        part = between(self.polygon_ends, annotation)
        return [
            self.coordinates[between(self.coordinate_ends, polygon)].tolist()
            for polygon in range(part.start, part.stop)
        ]


def between(ends: np.ndarray, row: int) -> slice:
    return slice(int(ends[row - 1]) if row else 0, int(ends[row]))


def read_index(file: Path, *uses: Use) -> Index:
    """The arrays of an annotation file, from the cache where they are there.

    Args:
        uses: what its annotations must be fit for.

    Raises:
        UserError: the file cannot be read, or records in it are wrong (code 3).
    """
    try:
        status = file.stat()
        place = _cache(file, status) if status.st_size >= _LARGE else None
        index = _load(place)
        if index is None:
            index = _build(file, place, uses)
    except OSError as error:
        problem = f"cannot be read: {error.strerror}"
        raise UserError(problem, file=printable(file), code=Exit.DATA) from None
    together(*(index.unfit[use] for use in uses)).tell(file)
    return index


def _build(file: Path, place: Path | None, uses: tuple[Use, ...]) -> Index:
    """Read the file, and keep its arrays at ``place``; one process does, and others wait for it."""
    with _alone(place) if place else contextlib.nullcontext():
        if (index := _load(place)) is not None:
            return index
        with _told("reading", file) if place else contextlib.nullcontext():
            raw = file.read_bytes()
            records = read_records(file, raw)
            together(records.faults, *(records.unfit[use] for use in uses)).tell(file)
            index = make_index(records, hashlib.sha256(raw).hexdigest())
            if place:
                _save(index, place)
    return index


@contextlib.contextmanager
def _alone(place: Path) -> Iterator[None]:
    """No other process builds the same arrays meanwhile, where the cache can be written at all."""
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError):
            place.parent.mkdir(parents=True, exist_ok=True)
            lock = held.enter_context(open(place.with_name(f"{place.name}.lock"), "w"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _told(doing: str, file: Path) -> Iterator[None]:
    """Say what takes so long; it is done once, before a run has a console."""
    size = f"{file.stat().st_size / 1e6:,.0f} MB"
    print(f"{doing} {printable(file)} ({size}), once ...", file=sys.stderr, flush=True)
    started = time.perf_counter()
    yield
    print(f"done in {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)


def derived(file: Path, name: str, doing: str, make: Callable[[], np.ndarray]) -> np.ndarray:
    """An array that is made of the index of ``file`` and kept beside it where the file is large.

    Args:
        name: of the array; another one where it is made in another way.
        doing: what is done, in a word or some, where that takes long.
        make: one process does, and others wait for it.
    """
    status = file.stat()
    if status.st_size < _LARGE:
        return make()
    place = _cache(file, status)
    place = place.with_name(f"{place.name}.{name}.npy")
    with _alone(place):
        with contextlib.suppress(OSError, EOFError, ValueError):
            return np.load(place, mmap_mode="r")
        with _told(doing, file):
            array = make()
        temporary = place.with_name(f".{place.name}.{os.getpid()}.tmp")
        with contextlib.suppress(OSError):  # a cache that cannot be written is no fault
            try:
                with open(temporary, "xb") as out:
                    np.save(out, array)
                    _sync(out)
                os.replace(temporary, place)
            finally:
                temporary.unlink(missing_ok=True)
        return array


def make_index(records: Records, digest: str) -> Index:
    """The records as columns."""
    rows = sorted(records.annotations, key=lambda row: row.image)  # stable: the file's order
    polygons = [polygon for row in rows for polygon in row.polygons]
    names = [name.encode() for *_, name in records.images]
    count = np.bincount([row.image for row in rows], minlength=len(records.images))
    joined = np.concatenate([np.frombuffer(p, np.float64) for p in polygons] or [np.empty(0)])
    return Index(
        digest=digest,
        category_names=tuple(name for _, name in records.categories),
        unfit=records.unfit,
        points=tuple(records.points),
        category_ids=np.array([number for number, _ in records.categories], np.int64),
        image_ids=np.array([number for number, *_ in records.images], np.int64),
        sizes=np.array([(h, w) for _, h, w, _ in records.images], np.int32),
        names=np.frombuffer(b"".join(names), np.uint8),
        name_ends=_ends(map(len, names)),
        annotation_ends=np.cumsum(count),
        annotation_ids=np.array([row.id for row in rows], np.int64),
        categories=np.array([row.category for row in rows], np.int32),
        crowds=np.array([row.crowd for row in rows], bool),
        boxes=np.array([row.box for row in rows], np.float64),
        areas=np.array([row.area for row in rows], np.float64),
        polygon_ends=_ends(len(row.polygons) for row in rows),
        coordinate_ends=_ends(map(len, polygons)),
        coordinates=joined,
        run_ends=_ends(len(row.runs) for row in rows),
        runs=np.array([run for row in rows for run in row.runs], np.int32),
        keypoint_ends=_ends(len(row.points) for row in rows),
        keypoints=np.array([value for row in rows for value in row.points], np.float64),
    )


def _ends(lengths) -> np.ndarray:
    return np.array(list(accumulate(lengths)), np.int64)


_ARRAYS = [field.name for field in fields(Index) if field.type == "np.ndarray"]


def _cache(file: Path, status: os.stat_result) -> Path:
    key = (_FORM, str(file.resolve()), status.st_size, status.st_mtime_ns)
    name = hashlib.sha256(repr(key).encode()).hexdigest()[:32]
    return user_cache("annotations") / name


def _load(place: Path | None) -> Index | None:
    """The arrays there, mapped; None where there are none that can be used."""
    if place is None:
        return None
    try:
        said = json.loads((place / "index.json").read_text())
        arrays = {n: np.load(place / f"{n}.npy", mmap_mode="r") for n in _ARRAYS}
        if {name: list(array.shape) for name, array in arrays.items()} != said["shapes"]:
            return None
        unfit = {use: Faults(**faults) for use, faults in said["unfit"].items()}
        points = tuple((tuple(n), tuple((a, b) for a, b in s)) for n, s in said["points"])
        return Index(said["digest"], tuple(said["category_names"]), unfit, points, **arrays)
    except (OSError, EOFError, ValueError, KeyError, TypeError):
        return None


def _save(index: Index, place: Path) -> None:
    """Keep the arrays; a cache that cannot be written is no fault."""
    temporary = place.with_name(f".{place.name}.{os.getpid()}.tmp")
    with contextlib.suppress(OSError):
        try:
            temporary.mkdir(parents=True)
            arrays = {name: getattr(index, name) for name in _ARRAYS}
            for name, array in arrays.items():
                with open(temporary / f"{name}.npy", "xb") as file:
                    np.save(file, array)
                    _sync(file)
            shapes = {name: array.shape for name, array in arrays.items()}
            said = {"digest": index.digest, "category_names": index.category_names}
            said["points"] = index.points
            unfit = {use: asdict(faults) for use, faults in index.unfit.items()}
            with open(temporary / "index.json", "x") as file:
                file.write(json.dumps({**said, "unfit": unfit, "shapes": shapes}))
                _sync(file)
            shutil.rmtree(place, ignore_errors=True)  # one that could not be used
            os.rename(temporary, place)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _sync(file: IO[Any]) -> None:
    """On the disk before the folder has its name: a power cut leaves no cache, not an empty one."""
    file.flush()
    os.fsync(file.fileno())
