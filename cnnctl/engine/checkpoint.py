"""Checkpoints that are written whole or not at all, describe themselves, and cannot run code.

A checkpoint is one plain dict of tensors and plain values, read with ``weights_only=True`` and
nothing else. ``last.pt`` is the newest, ``previous.pt`` the one before it, ``best.pt`` the one
with the best headline metric, ``step-N.pt`` those kept for good; ``manifest.json`` holds the step,
metric and SHA-256 of each. The order of a save:

1. write a temporary file, flush, fsync;
2. add its digest to the manifest (itself through a temporary file): a file counts as whole if its
   digest is in the manifest, whatever its name, so the renames below need not be one step;
3. rename last.pt to previous.pt and the temporary file to last.pt, fsync the directory.

A kill at any point leaves a whole last.pt or a whole previous.pt.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch

from cnnctl.errors import Exit, UserError

FORMAT = 1
FRESH = ".fresh.pt"  # a checkpoint that is whole and has no name yet
MOVING = ("last.pt", "previous.pt", "best.pt")  # names that pass from file to file
HOLDS = ("config", "choices", "classes", "mean", "std", "versions", "model", "ema", "progress")
State = dict[str, Any]


def write_whole(path: Path, data: bytes | memoryview) -> None:
    """Replace ``path`` by ``data``, or leave it as it was.

    Raises:
        UserError: the disk is full or cannot be written (code 5).
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_directory(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise disk_error(error, path) from error


def disk_error(error: OSError, path: Path) -> UserError:
    """The sentence for a file that could not be written."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return UserError(
        "the disk is full" if full else f"cannot be written: {error.strerror}",
        file=path,
        advice="free some space, then resume; nothing that was saved before is lost"
        if full
        else "choose another outputs= folder; nothing that was saved before is lost",
        code=Exit.MACHINE,
    )


class Checkpoints:
    """The checkpoints of one run directory."""

    def __init__(self, directory: Path, *, clean: bool = True) -> None:
        """``clean`` removes what a kill left half-written; the caller then holds the lock."""
        self.directory = directory
        self._digests: dict[str, str] = {}  # of the files that are there, by name
        if clean:
            for stale in [*directory.glob(".*.tmp"), directory / FRESH]:
                stale.unlink(missing_ok=True)
            self._digests = {
                name: hashlib.sha256((directory / name).read_bytes()).hexdigest()
                for name in MOVING
                if (directory / name).is_file()
            }

    def save(self, state: State, *, metric: float | None, best: bool, keep: bool) -> None:
        """Make ``state`` the new last.pt; also best.pt, and step-N.pt to keep it for good."""
        buffer = io.BytesIO()
        torch.save(state, buffer)
        data = buffer.getbuffer()
        digest = hashlib.sha256(data).hexdigest()
        step = state["progress"]["total_steps"]
        names = ["last.pt", *["best.pt"] * best, *[f"step-{step}.pt"] * keep]
        fresh = self.directory / FRESH
        last, previous = self.directory / "last.pt", self.directory / "previous.pt"
        try:
            write_whole(fresh, data)
            entry = {"step": step, "metric": metric, "bytes": len(data), "names": names}
            self._add_to_manifest(digest, entry)
            for name in names[1:]:
                _link(fresh, self.directory / name)
                self._digests[name] = digest
            if last.exists():
                os.replace(last, previous)
                self._digests["previous.pt"] = self._digests.pop("last.pt", "")
            os.replace(fresh, last)
            self._digests["last.pt"] = digest
            _sync_directory(self.directory)
        except OSError as error:
            raise disk_error(error, last) from error
        finally:
            with contextlib.suppress(OSError):
                fresh.unlink(missing_ok=True)  # there only after a failure: give the space back

    def load_last(self) -> tuple[State, Path, str | None]:
        """The newest whole checkpoint, its path, and what was wrong with a newer one.

        Raises:
            UserError: there is none (code 4).
        """
        complaints = []
        for name in ("last.pt", "previous.pt"):
            path = self.directory / name
            if not path.exists():
                continue
            try:
                state = read(path)
            except UserError as error:
                complaints.append(str(error))
            else:
                return state, path, complaints[0] if complaints else None
        raise UserError(
            complaints[0] if complaints else "there is no checkpoint in this directory",
            file=None if complaints else self.directory,
            advice="start anew, or name another run",
            code=Exit.CHECKPOINT,
        )

    def _add_to_manifest(self, digest: str, entry: dict[str, Any]) -> None:
        """Add a file that is about to be renamed, and take its names from those that had them.

        What is on the disk stays in, name or no name: a kill between the manifest and the renames
        leaves an older file under a name that the manifest has already given away.
        """
        entries = {}
        last = self._digests.get("last.pt")
        for other, held in read_manifest(self.directory).items():
            names = [name for name in held["names"] if name not in (*MOVING[:2], *entry["names"])]
            names = ["previous.pt"] * (other == last) + names
            if names or other in self._digests.values():
                entries[other] = {**held, "names": names}
        again = entries.get(digest, {"names": []})["names"]  # the very same bytes once more
        entries[digest] = {**entry, "names": [*entry["names"], *again]}
        text = json.dumps({"format": FORMAT, "checkpoints": entries}, indent=1)
        write_whole(self.directory / "manifest.json", text.encode())


def read_manifest(directory: Path) -> dict[str, Any]:
    """SHA-256 -> step, metric, bytes; empty where there is none or it cannot be read."""
    try:
        manifest = json.loads((directory / "manifest.json").read_text())
        return dict(manifest["checkpoints"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def find(where: str | Path) -> Path:
    """A run directory or a checkpoint file -> the checkpoint file (best.pt before last.pt).

    Raises:
        UserError: there is none (code 4).
    """
    path = Path(where).expanduser().absolute()
    if path.is_file():
        return path
    for name in ("best.pt", "last.pt", "previous.pt"):
        if (path / name).is_file():
            return path / name
    problem = "there is no checkpoint in this directory" if path.is_dir() else "does not exist"
    raise UserError(
        problem, file=path, advice="name a run directory or a .pt file", code=Exit.CHECKPOINT
    )


def read(path: Path) -> State:
    """A checkpoint of ours, checked against the manifest beside it, or by its own checksums.

    Raises:
        UserError: absent, damaged, not a checkpoint of ours, or of a newer format (code 4).
    """
    state = read_tensors(path)
    if not isinstance(state, dict) or "format" not in state or "config" not in state:
        raise bad(path, "is not a cnnctl checkpoint", "name a .pt file that cnnctl train wrote")
    if state["format"] != FORMAT:
        raise bad(
            path,
            f"is of format {state['format']}, this version reads format {FORMAT}",
            "use the version of cnnctl that wrote it",
        )
    if missing := [name for name in HOLDS if name not in state]:
        raise bad(path, f"is not a cnnctl checkpoint: it has no {missing[0]}")
    return state


def read_tensors(path: Path, *, legacy: bool = False) -> Any:
    """Any file of ``torch.save`` that holds tensors and plain values only, whole and unharmed.

    Args:
        legacy: files of torch before 1.6 too, which are no archives and have no checksums.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise bad(path, f"cannot be read: {error.strerror}") from None
    known = read_manifest(path.parent)
    if not data or (known and hashlib.sha256(data).hexdigest() not in known and _is_ours(path)):
        raise bad(path, "is damaged: its SHA-256 is not the one in manifest.json")
    try:
        if not legacy or data.startswith(b"PK"):
            _check_archive(data, path)
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).split("\n")[0].split(". ")[0]
        raise bad(path, f"holds more than tensors and is not opened: {reason}") from None
    except UserError:
        raise
    except Exception as error:  # what a harmful or harmed pickle raises has no one type
        reason = str(error).split("\n")[0] or type(error).__name__
        raise bad(path, f"is damaged or not a checkpoint: {reason}") from None


def _check_archive(data: bytes, path: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if sum(item.file_size for item in archive.infolist()) > len(data):
            raise bad(path, "is not a checkpoint: it is compressed")  # torch stores; a bomb?
        damaged = archive.testzip()  # torch itself does not look at these checksums
    if damaged:
        raise bad(path, f"is damaged: {damaged} does not match its checksum")


def bad(path: Path, problem: str, advice: str | None = None) -> UserError:
    return UserError(problem, file=path, advice=advice, code=Exit.CHECKPOINT)


def foreign(path: Path, error: Exception) -> UserError:
    """For a checkpoint whose configuration lacks what this version's has."""
    reason = str(error).splitlines()[0]
    return bad(path, f"its configuration is not one of this version: {reason}")


def _is_ours(path: Path) -> bool:
    return path.name in MOVING or path.name.startswith("step-")


def _link(source: Path, target: Path) -> None:
    """``target`` becomes another name of ``source``, a copy where links are not to be had."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copyfile(source, temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
    os.replace(temporary, target)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
