"""What is kept in the user's cache folder and can be made again: found, and deleted."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cnnctl.user_cache import user_cache

KINDS = {  # folder in the cache -> what is in it; "data" has what was downloaded
    "proposals": "proposals",
    "features": "features of regions",
    "annotations": "index of annotations",
}


@dataclass(frozen=True)
class Entry:
    """All files of one thing that is kept, whole or half made.

    Args:
        kind: of ``KINDS``.
        paths: files and folders, all of one name up to the first dot.
        size: of them in bytes.
        of: what it was made of, where it says so.
    """

    kind: str
    paths: tuple[Path, ...]
    size: int
    of: str

    @property
    def locks(self) -> list[Path]:
        """Files that a process which makes it holds a lock on."""
        found = [path for path in self.paths if path.suffix == ".lock"]
        return found + [path / "lock" for path in self.paths if (path / "lock").is_file()]


def entries(kinds: Iterable[str]) -> list[Entry]:
    """The largest first."""
    found = []
    for kind in kinds:
        named = defaultdict[str, list[Path]](list)
        with contextlib.suppress(OSError):
            for path in sorted(user_cache(kind).iterdir()):
                named[path.name.lstrip(".").partition(".")[0]].append(path)
        for paths in named.values():
            size = sum(map(_size, paths))
            found.append(Entry(kind, tuple(paths), size, _said(paths)))
    return sorted(found, key=lambda entry: -entry.size)


def forget(entry: Entry) -> bool:
    """Delete it; False: a process is making it just now, and it is left.

    Raises:
        OSError: a file cannot be deleted; the others are.
    """
    with contextlib.ExitStack() as held:
        for path in entry.locks:
            with contextlib.suppress(FileNotFoundError):
                lock = held.enter_context(path.open("a"))
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    return False
                if not is_there(lock.fileno(), path):  # deleted, and perhaps being made anew
                    return False
        for path in sorted(entry.paths, key=lambda path: path.suffix == ".lock"):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
                if path.exists():
                    shutil.rmtree(path)  # says why
            else:
                path.unlink(missing_ok=True)
    return True


def is_there(file: int, path: Path) -> bool:
    """Whether the open ``file`` still is at ``path``; a lock on a deleted one keeps nobody out."""
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False


def _size(path: Path) -> int:
    with contextlib.suppress(OSError):
        if path.is_dir():
            return sum(file.lstat().st_size for file in path.rglob("*") if file.is_file())
        return path.lstat().st_size
    return 0


def _said(paths: Iterable[Path]) -> str:
    for path in paths:
        for name in ("index.json", "of.json"):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                return str(json.loads((path / name).read_text())["name"])
    return ""
