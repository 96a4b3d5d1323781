"""Find the images below a folder that holds one sub-folder a class; nothing is decoded here."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cnnctl.data.image_file import EXTENSIONS, printable
from cnnctl.errors import Exit, UserError


@dataclass
class ClassFolders:
    """What was found below one folder of class folders, by class, then by name."""

    paths: list[bytes] = field(default_factory=list)  # relative to the data set's root
    sizes: list[int] = field(default_factory=list)  # bytes
    classes: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)


def scan(root: Path, folder: Path) -> ClassFolders:
    """Every image below the class folders of ``folder``, which is ``root`` or below it.

    Classes and files are in the order of their names' bytes, which for UTF-8 is also the order of
    torchvision's ``ImageFolder``.

    Raises:
        UserError: there are no images, a class has none, or a folder cannot be listed (code 3).
    """
    files = ClassFolders()
    empty = []
    for label, name in enumerate(sorted(_class_names(folder, files.ignored))):
        found = sorted(_walk(os.path.join(os.fsencode(folder), name), files.ignored))
        files.paths += [os.path.relpath(path, os.fsencode(root)) for path, _ in found]
        files.sizes += [size for _, size in found]
        files.labels += [label] * len(found)
        files.classes.append(printable(os.fsdecode(name)))
        if not found:
            empty.append(files.classes[-1])
    if not files.paths:
        left_out = ", ".join(f"{count} {why}" for why, count in sorted(files.ignored.items()))
        raise UserError(
            "holds no images in class folders" + (f" (left out: {left_out})" if left_out else ""),
            file=printable(folder),
            advice=f"one sub-folder a class, of images ending in {' '.join(EXTENSIONS)}",
            code=Exit.DATA,
        )
    if empty:
        raise UserError(
            f"class folder without images: {', '.join(empty)}",
            file=printable(folder),
            advice="put images in or delete the folder",
            code=Exit.DATA,
        )
    return files


def has_folders(folder: Path) -> bool:
    return folder.is_dir() and any(True for _ in _class_names(folder, Counter()))


def has_images(folder: Path) -> bool:
    return any(True for _ in _walk(os.fsencode(folder), Counter()))


def images_below(folder: Path) -> list[Path]:
    """Every image in ``folder`` and its sub-folders, in the order of their names' bytes."""
    found = sorted(path for path, _ in _walk(os.fsencode(folder), Counter()))
    return [Path(os.fsdecode(path)) for path in found]


def _class_names(folder: Path, ignored: Counter[str]) -> Iterator[bytes]:
    for entry in _listing(os.fsencode(folder)):
        kind = _kind(entry)
        if kind == "folder":
            yield entry.name
        else:
            ignored["not in a class folder" if kind == "image" else kind] += 1


def _walk(folder: bytes, ignored: Counter[str]) -> Iterator[tuple[bytes, int]]:
    """(path, size in bytes) of every image below, links followed, loops cut."""
    pending = [(folder, frozenset[tuple[int, int]]())]
    while pending:
        here, above = pending.pop()
        status = os.stat(here)
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            ignored["a link to a folder above it"] += 1
            continue
        for entry in _listing(here):
            kind = _kind(entry)
            if kind == "image":
                yield entry.path, entry.stat().st_size
            elif kind == "folder":
                pending.append((entry.path, above | {identity}))
            else:
                ignored[kind] += 1


def _listing(folder: bytes) -> list[os.DirEntry[bytes]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        problem = f"cannot be listed: {error.strerror}"
        raise UserError(problem, file=printable(os.fsdecode(folder)), code=Exit.DATA) from None


def _kind(entry: os.DirEntry[bytes]) -> str:
    """``folder``, ``image``, or why it is neither."""
    if entry.name.startswith(b"."):
        return "hidden"
    try:
        if entry.is_dir():
            return "folder"
        extension = os.path.splitext(os.fsdecode(entry.name))[1].lower()
        if extension not in EXTENSIONS:
            return "not an image by its extension"
        return "image" if entry.is_file() else "a link to nothing"
    except OSError:  # a link that leads to itself
        return "a link to nothing"
