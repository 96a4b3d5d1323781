"""The user's own images, for prediction: found, and read by threads ahead of the network."""

from __future__ import annotations

import glob
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from cnnctl.data.augmentations.base import resize
from cnnctl.data.class_folders import images_below
from cnnctl.data.image_file import EXTENSIONS, read_image
from cnnctl.errors import Exit, UserError

_KEPT = 640  # pixels of the longer side of an original that is kept


@dataclass
class Item:
    """An image on its way: ``problem`` where it could not be read, else ``pixels``."""

    path: Path
    pixels: Tensor | None = None  # uint8, as prepared for the network
    size: tuple[int, int] = (0, 0)  # (h, w) of the file's image
    original: Tensor | None = None  # (C, h, w) uint8, shrunk where it is large; where wanted
    proposals: Tensor | None = None  # (P, 4) in pixels of the file's image; where wanted
    problem: str | None = None


def find_images(wanted: Any, output: Path) -> list[Path]:
    """The images that ``input`` means, in the order of their names.

    Args:
        wanted: a file (of any name), a folder (its images and those of its sub-folders), a glob, or
            a list of these. Only files named like images are taken from folders and globs.
        output: a folder that is left out: it holds pictures of an earlier call.

    Raises:
        UserError: there are none (code 3).
    """
    listed = isinstance(wanted, Sequence) and not isinstance(wanted, str)
    found: list[Path] = []
    for one in wanted if listed else [wanted]:
        try:
            found += _find(str(one), output)
        except OSError as error:
            problem = f"cannot be read: {error.strerror}"
            raise UserError(problem, file=str(one), field="input", code=Exit.DATA) from None
    if not found:
        raise UserError(
            "no images found",
            file=", ".join(str(one) for one in wanted) if listed else str(wanted),
            field="input",
            advice=f"names of images end in {' '.join(EXTENSIONS)}",
            code=Exit.DATA,
        )
    return list(dict.fromkeys(found))


def _find(text: str, output: Path) -> list[Path]:
    text = os.path.expanduser(text)
    path = Path(text).absolute()
    if path.is_dir():
        found = images_below(path)
    elif path.exists():
        return [path]
    elif glob.has_magic(text):
        matches = sorted(Path(match).absolute() for match in glob.iglob(text, recursive=True))
        found = [file for file in matches if file.suffix.lower() in EXTENSIONS and file.is_file()]
    else:
        raise UserError("there is no such file or folder", file=path, field="input", code=Exit.DATA)
    return [file for file in found if not file.is_relative_to(output)]


def read_ahead(
    files: Sequence[Path],
    channels: int,
    prepare: Callable[[Tensor], Tensor],
    *,
    threads: int,
    ahead: int,
    originals: int,
    propose: Callable[[Tensor], Tensor] | None = None,
) -> Iterator[Item]:
    """The files in order, each read and prepared before it is asked for.

    Args:
        prepare: (C, h, w) uint8 -> what the network sees.
        ahead: how many wait in memory at most.
        originals: how many, from the first, keep their own pixels too.
        propose: (C, h, w) uint8 -> (P, 4) where things may be in it.
    """

    def read(path: Path, keep: bool) -> Item:
        try:
            image = read_image(path, channels)
        except UserError as error:
            return Item(path, problem=str(error))
        size = (image.shape[-2], image.shape[-1])
        boxes = propose(image) if propose is not None else None
        return Item(path, prepare(image), size, _shrunk(image) if keep else None, boxes)

    pool = ThreadPoolExecutor(threads, thread_name_prefix="read")
    pending: deque[Future[Item]] = deque()
    try:
        for index, path in enumerate(files):
            pending.append(pool.submit(read, path, index < originals))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _shrunk(image: Tensor) -> Tensor:
    """(C, h, w) uint8 with its longer side at most ``_KEPT``: many wait in memory at once."""
    h, w = image.shape[-2:]
    factor = _KEPT / max(h, w)
    if factor >= 1:
        return image
    return resize(image[None], (max(1, round(h * factor)), max(1, round(w * factor))))[0]
