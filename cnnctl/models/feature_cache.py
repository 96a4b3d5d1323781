"""Features of the regions of many images, in files: what SVMs and regressors are solved on.

A store is a folder under ``$XDG_CACHE_HOME/cnnctl/features``. Its rows are appended image by image,
and its journal says after each batch how far they are whole; what follows the last line of the
journal is not there. So a kill leaves the images that were done, and the next run of the same
network over the same data, told by their digests, goes on from them.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import math
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from cnnctl.errors import Exit, UserError
from cnnctl.structures import Images, Targets
from cnnctl.user_cache import user_cache

Columns = Mapping[str, tuple[tuple[int, ...], str]]  # shape of a row and numpy's name of the type
JOURNAL, LOCK = "journal.txt", "lock"
ROWS = "rows"
SPARE = 1 << 28  # bytes of the disk that are left free
LARGEST = torch.finfo(torch.float16).max


def features_folder() -> Path:
    """Where all stores are; each is a folder in it."""
    return user_cache("features")


class FeatureStore:
    """Rows (M, D) as float16, and columns of (M, ...) beside them.

    Opened, it knows the images that an earlier run has put there, in their order.

    Args:
        folder: its own, which no other process may use meanwhile; made where it is not there.
        width: D.
        columns: by name.

    Raises:
        UserError: the folder cannot be written (code 5).
    """

    def __init__(self, folder: Path, width: int, columns: Columns) -> None:
        self.folder, self.width = folder, width
        self.kinds = {ROWS: ((width,), "float16"), **columns}
        self.files: dict[str, IO[bytes]] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.files = {name: _opened(folder / name) for name in (*self.kinds, JOURNAL)}
        except OSError as error:
            raise _disk_error(error, folder) from None
        self.images = _read_journal(folder / JOURNAL)  # (digest, rows up to its end)
        self.seen = 0  # of these, in this run
        self.widths = {name: _bytes(kind) for name, kind in self.kinds.items()}
        self.row_bytes = row_bytes(width, columns)
        sizes = {name: os.fstat(self.files[name].fileno()).st_size for name in self.kinds}
        whole = min(sizes[name] // self.widths[name] for name in self.kinds)
        while self.images and self.images[-1][1] > whole:  # the disk was damaged, not a kill
            self.images.pop()
        self._forget()

    @property
    def count(self) -> int:
        """M, of the images seen in this run."""
        return self.images[self.seen - 1][1] if self.seen else 0

    def knows(self, digest: str) -> bool:
        """Whether the next image is there already; if it is another one, all that follow go."""
        if self.seen < len(self.images) and self.images[self.seen][0] == digest:
            self.seen += 1
            return True
        if self.seen < len(self.images):
            del self.images[self.seen :]
            self._forget()
        return False

    def add(
        self, digests: list[str], counts: list[int], rows: Tensor, columns: Mapping[str, Tensor]
    ) -> None:
        """Append the regions of some images, those of one after those of another.

        Args:
            digests: of the images; counts: regions of each.
            rows: (B, D); columns: (B, ...) each, by name.

        Raises:
            UserError: the disk is full (code 5).
        """
        half = rows.detach().float().clamp(-LARGEST, LARGEST).half()
        whole = {ROWS: half, **columns}
        lines, end = [], self.count
        for digest, count in zip(digests, counts, strict=True):
            end += count
            lines.append((digest, end))
        try:
            for name, column in whole.items():
                kind = np.dtype(self.kinds[name][1])
                self.files[name].write(column.cpu().numpy().astype(kind, copy=False).tobytes())
                _sync(self.files[name])
            self.files[JOURNAL].write("".join(_line(*line) for line in lines).encode())
            _sync(self.files[JOURNAL])
        except OSError as error:
            raise _disk_error(error, self.folder) from None
        self.images += lines
        self.seen += len(lines)

    def column(self, name: str = ROWS) -> Any:
        """(M, ...) of one name, mapped from its file; the rows where none is named."""
        shape, kind = self.kinds[name]
        if not self.count:
            return np.empty((0, *shape), kind)
        return np.memmap(self.folder / name, kind, "r", shape=(self.count, *shape))

    def close(self) -> None:
        for file in self.files.values():
            file.close()

    def _forget(self) -> None:
        """Cut the files after the images that are known, the journal first."""
        end = self.images[-1][1] if self.images else 0
        length = sum(len(_line(*image)) for image in self.images)
        for name, to in ((JOURNAL, length), *((n, end * self.widths[n]) for n in self.kinds)):
            self.files[name].truncate(to)
            self.files[name].seek(to)


def row_bytes(width: int, columns: Columns) -> int:
    """That a row takes in a store."""
    return sum(map(_bytes, (((width,), "float16"), *columns.values())))


def _bytes(kind: tuple[tuple[int, ...], str]) -> int:
    return math.prod(kind[0]) * np.dtype(kind[1]).itemsize


class FeatureFolder:
    """The stores of one network: a folder of its own, named after its weights, while it is used.

    Of several processes that train together each has its own, with all of the rows.

    Args:
        weights: of the network, and all else that decides what the features are.
        settings: plain values that decide too.
    """

    def __init__(self, weights: Iterable[Tensor], settings: str) -> None:
        name = weights_digest(weights, settings)
        if torch.distributed.is_initialized():
            name = f"{name}-of-{torch.distributed.get_rank()}"
        self.path, self.lock = _locked(features_folder(), name)
        self.found_again = self.path.name == name

    def store(self, name: str, width: int, columns: Columns) -> FeatureStore:
        return FeatureStore(self.path / name, width, columns)

    def drop(self, name: str) -> None:
        """Remove a store that is needed no more."""
        shutil.rmtree(self.path / name, ignore_errors=True)

    def close(self, remove: bool) -> None:
        """Let another process use it, or remove it: it is needed no more, or nobody would find it,
        as it is named after this process."""
        if remove or not self.found_again:
            shutil.rmtree(self.path, ignore_errors=True)
        self.lock.close()


def require_space(folder: Path, needed: int) -> None:
    """Raise UserError (code 5) where the disk has not ``needed`` bytes beside what is there."""
    there = sum(file.stat().st_size for file in folder.iterdir())
    free = shutil.disk_usage(folder).free - SPARE
    if needed - there > free:
        raise UserError(
            f"the features of the regions take {needed / 1e9:.1f} GB, and this disk has"
            f" {max(0, free) / 1e9:.1f} GB left for them",
            file=features_folder(),
            field="model.cache_gb",
            advice=f"take model.cache_gb={max(0.1, free / 2e9):.1f}, free some space, or set"
            " XDG_CACHE_HOME to a folder on another disk; then resume",
            code=Exit.MACHINE,
        )


def weights_digest(weights: Iterable[Tensor], settings: str) -> str:
    digest = hashlib.sha256(settings.encode())
    for tensor in weights:
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]


def image_digests(images: Images, targets: Targets) -> list[str]:
    """Of all that the features and the truth of each image are made of."""
    columns = [images.pixels, images.proposals, targets.boxes, targets.labels]
    columns += [targets.crowd, targets.difficult]
    arrays = [column.cpu().numpy() for column in columns if column is not None]
    digests = []
    for row in range(len(images)):
        digest = hashlib.sha256(f"{images.sizes[row]} {images.originals[row]}".encode())
        for array in arrays:
            # What fills a batch up to its largest image is no part of an image.
            own = array[row]
            if own.ndim == 3:
                h, w = images.sizes[row]
                own = own[:, :h, :w]
            elif own.ndim == 2:
                own = own[own.any(1)]
            else:
                own = np.trim_zeros(own + (own.dtype.kind == "i"), "b")
            digest.update(np.ascontiguousarray(own).tobytes())
        digests.append(digest.hexdigest()[:32])
    return digests


def _locked(folder: Path, name: str) -> tuple[Path, IO[str]]:
    """A folder that this process alone uses: of this name, or one more where another has it."""
    try:
        for own in (name, f"{name}-{os.getpid()}"):
            path = folder / own
            while (lock := _lock(path)) is not None:
                # Whoever had it may have removed it meanwhile.
                if (path / LOCK).exists() and os.path.samestat(
                    os.fstat(lock.fileno()), (path / LOCK).stat()
                ):
                    return path, lock
                lock.close()
    except OSError as error:
        raise _disk_error(error, folder) from None
    raise AssertionError("no other process has this one's number")


def _lock(path: Path) -> IO[str] | None:
    """Of a folder, made where it is not there; None where another process has it."""
    path.mkdir(parents=True, exist_ok=True)
    lock = (path / LOCK).open("a+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return None
        raise
    return lock


def _opened(path: Path) -> IO[bytes]:
    path.touch()
    return path.open("r+b")


def _sync(file: IO[Any]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _line(digest: str, end: int) -> str:
    return f"{digest} {end}\n"


def _read_journal(path: Path) -> list[tuple[str, int]]:
    """The lines that are whole."""
    images: list[tuple[str, int]] = []
    for line in path.read_text(errors="replace").splitlines(keepends=True):
        digest, _, end = line.partition(" ")
        if not end.endswith("\n") or not end.strip().isdigit():
            break
        images.append((digest, int(end)))
    return images


def _disk_error(error: OSError, path: Path) -> UserError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return UserError(
        "the disk is full" if full else f"cannot be written: {error.strerror}",
        file=path,
        field="model.cache_gb",
        advice="free some space (cnnctl data clean) or lower model.cache_gb, then resume"
        if full
        else "set XDG_CACHE_HOME to a folder that can be written, then resume",
        code=Exit.MACHINE,
    )
