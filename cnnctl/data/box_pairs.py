"""The images of a part, each with its boxes: by their names, or by those in a JSON file."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

from cnnctl.data.box_layout import ENDS, Form, Part, files_below
from cnnctl.data.class_folders import images_below
from cnnctl.data.faults import Faults
from cnnctl.data.image_file import printable
from cnnctl.data.mask_layout import IMAGES
from cnnctl.errors import Exit, UserError

_NO_LABELS = re.compile(
    r"(classes|labels?|names?|train|val|valid|test|readme.*|notes?|license|requirements).txt", re.I
)

Pair = tuple[Path, Path | None]


def image_folder(root: Path, part: Part, names: Sequence[str]) -> Path:
    """The folder that the file names in a JSON file start from.

    Raises:
        UserError: images are not there (code 3).
    """
    near = [part.truth.parent, part.truth.parent.parent, root]
    places = [part.truth.with_suffix(""), part.images, *near]
    places += [place / name for place in near for name in IMAGES]
    places = [place for place in dict.fromkeys(places) if place.is_relative_to(root)]
    end = os.path.join("", *names[0].split("/"))
    every = chain(places, _folders_of(end, root))
    folder = next((place for place in every if (place / end).is_file()), part.images)
    faults = Faults()
    for name in names:
        if not (folder / name).is_file():
            problem = f"names an image that is not there: {printable(folder / name)}"
            faults.add(printable(part.truth), problem)
    faults.tell("complete the images, or take their records out of the file")
    return folder


def _folders_of(name: str, root: Path) -> Iterator[Path]:
    """Folders below which there is an image of this name."""
    for image in images_below(root):
        if str(image).endswith(os.sep + name):
            yield Path(str(image).removesuffix(name))


def match(part: Part, form: Form, *, alone: bool) -> list[Pair]:
    """(image, its file of boxes or None) of every image, in the order of their names.

    Args:
        alone: no other part's files are in the folder, so one without an image is an error.

    Raises:
        UserError: two images of one name, or a file of boxes without an image (code 3).
    """
    images, truths = _by_name(part.images), files_below(part.truth, ENDS[form])
    if alone and (more := [truths[name] for name in truths if name not in images]):
        if form == "yolo":
            more = [file for file in more if not _NO_LABELS.fullmatch(os.path.basename(file))]
        if more:
            others = f" (and {len(more) - 1:,} more)" if len(more) > 1 else ""
            problem = f"boxes without an image{others} in {printable(part.images)}"
            raise _error(Path(more[0]), problem, "add the image, or move the boxes away")
    return [(path, Path(t) if (t := truths.get(name)) else None) for name, path in images.items()]


def _by_name(folder: Path) -> dict[str, Path]:
    """Path below ``folder`` without extension -> image."""
    found: dict[str, Path] = {}
    start = len(os.path.join(folder, ""))
    for path in images_below(folder):
        name = os.path.splitext(str(path)[start:])[0]
        if name in found:
            raise _error(path, f"has the same name as {found[name].name}", "keep one of the two")
        found[name] = path
    return found


def _error(file: Path, problem: str, advice: str) -> UserError:
    return UserError(problem, file=printable(file), advice=advice, code=Exit.DATA)
