"""``cnnctl data export data=... format=coco output=...``: boxes, masks and images for others."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from cnnctl.data.base import Dataset
from cnnctl.data.image_file import printable
from cnnctl.data.write_boxes import Tick, write_coco, write_voc
from cnnctl.engine.console import Console
from cnnctl.errors import Exit, UserError

FIELDS = (("boxes",), ("boxes", "masks"))  # of the targets that are written


def run(options: DictConfig, read: Callable[[], Mapping[str, Dataset]]) -> None:
    """Write every split and say where.

    Args:
        options: ``format`` and ``output``, as conf/export.yaml has them.
        read: gives every split of the data.

    Raises:
        UserError: there is no such format, or the folder holds something or cannot be written.
    """
    if options.format not in ("coco", "voc"):
        problem = f'there is no format "{options.format}"'
        raise UserError(problem, field="format", advice="coco or voc")
    folder, console = Path(options.output).expanduser().absolute(), Console()
    _refuse_used(folder)
    splits = read()
    with console.progress():
        for split, data in splits.items():
            bar = console.bar(split, len(data))
            if options.format == "coco":
                write_with_images(data, folder / f"{split}.json", bar.advance)
            else:
                start = f"{split}_" if _share_names(list(splits.values())) else ""
                write_voc(data, folder, split, bar.advance, start)
            bar.close()
    counts = ", ".join(f"{len(data):,} {split}" for split, data in splits.items())
    console.say(f"written: {counts}, to {folder}")
    masks = any("masks" in data.fields for data in splits.values())
    if masks and options.format == "voc":
        console.say("boxes alone: format=coco has the masks too")
        masks = False
    name = "instances" if masks else "boxes"
    console.say(f"read again by: data={name} data.root={folder}")


def _share_names(splits: Sequence[Any]) -> bool:
    """Whether a file of one split is called as one of another is."""
    names = [
        {os.path.splitext(os.path.basename(data.path(index)))[0] for index in range(len(data))}
        for data in splits
        if hasattr(data, "path")
    ]
    return len(set().union(*names)) < sum(map(len, names))


def write_with_images(data: Dataset, file: Path, tick: Tick) -> None:
    """``write_coco``, and all images in the folder beside ``file`` that has its name."""
    origin, images = write_coco(data, file, tick), file.with_suffix("")
    if origin != images:
        _copy(data, origin, images)


def _copy(data: Any, origin: Path, images: Path) -> None:
    """The files of all samples, below ``images`` as they are below ``origin``."""
    for index in range(len(data)):
        path = os.path.abspath(data.path(index))
        place = images / os.path.relpath(path, origin)
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)
        except OSError as error:
            raise UserError(
                f"cannot be written: {error.strerror}",
                file=printable(place),
                field="output",
                advice="name another folder",
                code=Exit.MACHINE,
            ) from None


def _refuse_used(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if folder.exists():
        raise UserError(
            "holds something already, and is not overwritten",
            file=printable(folder),
            field="output",
            advice="name a new folder",
        )
