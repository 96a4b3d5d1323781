"""The run directory: claimed by one live process, and named so that no two runs share it."""

from __future__ import annotations

import errno
import fcntl
import itertools
import json
import os
import socket
import sys
from pathlib import Path
from typing import IO

from cnnctl.engine.checkpoint import disk_error
from cnnctl.errors import Exit, UserError


class RunDirectory:
    """A directory and the lock on it; the lock goes with the process, however that ends."""

    def __init__(self, path: Path, lock: IO[str] | None = None) -> None:
        """Without a lock it is another process's directory."""
        self.path = path
        self._lock = lock

    @classmethod
    def claim(cls, wanted: Path) -> RunDirectory:
        """Make ``wanted``, or ``wanted-2``, ``wanted-3``, ... where others were quicker.

        Raises:
            UserError: it cannot be made (code 5).
        """
        try:
            wanted.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise disk_error(error, wanted.parent) from None
        for count in itertools.count(1):
            path = wanted if count == 1 else wanted.with_name(f"{wanted.name}-{count}")
            try:
                path.mkdir()
            except FileExistsError:
                if not path.is_dir():
                    raise UserError("is a file, not a directory", file=path) from None
                continue
            except OSError as error:
                raise disk_error(error, path) from None
            return cls(path, _lock(path))
        raise AssertionError("unreachable")

    @classmethod
    def reopen(cls, path: Path) -> RunDirectory:
        """Lock an existing run to continue it.

        Raises:
            UserError: it belongs to a live run (code 7) or cannot be written (code 5).
        """
        return cls(path, _lock(path))

    def release(self) -> None:
        if self._lock is not None:
            self._lock.close()


def _lock(path: Path) -> IO[str]:
    file = path / "lock"
    try:
        lock = file.open("a+")
    except OSError as error:
        raise disk_error(error, file) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            print(f"warning: {file} cannot be locked: {error.strerror}", file=sys.stderr)
            return lock
        lock.seek(0)
        raise UserError(
            f"another run is writing here ({_owner(lock.read())})",
            file=path,
            advice="wait for it, or stop it first",
            code=Exit.BUSY,
        ) from None
    lock.seek(0)
    lock.truncate()
    json.dump({"pid": os.getpid(), "host": socket.gethostname()}, lock)
    lock.flush()
    return lock


def _owner(text: str) -> str:
    try:
        owner = json.loads(text)
        return f"process {owner['pid']} on {owner['host']}"
    except (ValueError, KeyError, TypeError):
        return "owner unknown"


def newest(outputs: Path) -> Path:
    """The run under ``outputs`` whose checkpoint was written last.

    Raises:
        UserError: there is none (code 4).
    """
    found = [*outputs.glob("**/last.pt"), *outputs.glob("**/best.pt")]
    if not found:
        raise UserError(
            "there is no run here",
            file=outputs.absolute(),
            advice="train one first (cnnctl train), or name it: checkpoint=<run or file>",
            code=Exit.CHECKPOINT,
        )
    return max(found, key=_written).parent


def _written(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # between two renames of a live run
        return 0.0
