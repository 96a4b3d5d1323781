"""Write the boxes of a data set in COCO's or in VOC's format, for other programs and for this one.

What is read back is what was written: boxes, classes, crowds and difficult ones, in COCO's format
masks too. VOC's format has no crowd: it is written as difficult, which is what others make of it,
and marked by an element of its own. A side of less than a pixel cannot be said in VOC's format, and
becomes the pixels that it touches.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO
from xml.sax.saxutils import escape

import numpy as np

from cnnctl.data.base import Dataset
from cnnctl.data.coco_results import ids_of
from cnnctl.data.image_file import printable
from cnnctl.data.voc_xml import Box, to_voc
from cnnctl.data.write_masks import Mask, masks_of, run_lengths
from cnnctl.errors import Exit, UserError

Tick = Callable[[int], object]  # with the number of images that are done
_CHUNK = 256  # images whose sizes are looked up at once


@dataclass(frozen=True, slots=True)
class _Row:
    """A box and what is true of it."""

    box: Box  # xyxy in pixels, exclusive
    label: int
    crowd: bool
    area: float
    marks: tuple[str, ...]  # difficult, truncated, occluded: those that it is
    mask: Mask | None = None  # where the data has masks


def write_coco(data: Dataset, file: Path, tick: Tick = lambda _: None) -> Path:
    """Write an annotation file in COCO's format; ids are the data's own, else from 1 up.

    Difficult, truncated and occluded boxes have a key of that name, which other programs do not
    look at. Masks are written as compressed run lengths, which lose no pixel; pixels that belong to
    nobody (VOC's borders) have no place in the format.

    Args:
        data: a data set of boxes, or of boxes and masks.
        file: is not there yet.

    Returns:
        The folder that the file names in it start from. Images that are in no file are written as
        PNG, into a folder beside ``file`` that has its name.

    Raises:
        UserError: ``file`` is there, cannot be written, or a name cannot be in it.
    """
    _refuse_names(data.classes)
    _refuse_existing(file)
    folder, names = _file_names(data, file.with_suffix(""))
    _refuse_names(names)
    image_ids, category_ids = (ids.tolist() for ids in ids_of(data))
    named = zip(category_ids, data.classes, strict=True)
    categories = [{"id": number, "name": name} for number, name in named]
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    with _written(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        _write_pictures(data, folder, names)
        try:
            with open(temporary, "x", encoding="utf-8") as out:
                out.write(f'{{"categories": {json.dumps(categories)},\n"images": [')
                sizes: list[tuple[int, int]] = []
                _write_list(out, _image_records(data, image_ids, names, sizes, tick))
                out.write('],\n"annotations": [')
                _write_list(out, _annotation_records(data, image_ids, category_ids, sizes))
                out.write("]}\n")
            os.replace(temporary, file)
        finally:
            temporary.unlink(missing_ok=True)
    return folder


def _image_records(
    data: Dataset, ids: list[int], names: list[str], sizes: list[tuple[int, int]], tick: Tick
) -> Iterator[dict[str, Any]]:
    """A record of each image, whose (h, w) is added to ``sizes``."""
    for index, (h, w) in enumerate(_sizes(data)):
        sizes.append((h, w))
        yield {"id": ids[index], "width": w, "height": h, "file_name": names[index]}
        tick(index + 1)


def _annotation_records(
    data: Dataset, image_ids: list[int], category_ids: list[int], sizes: list[tuple[int, int]]
) -> Iterator[dict[str, Any]]:
    number = 0
    for image_id, size, rows in zip(image_ids, sizes, _truth(data), strict=True):
        for row in rows:
            number += 1  # not from 0: evaluation programs take that for no match
            left, top, right, bottom = row.box
            yield {
                "id": number,
                "image_id": image_id,
                "category_id": category_ids[row.label],
                "iscrowd": int(row.crowd),
                "bbox": [left, top, right - left, bottom - top],
                "area": row.area,
                **({} if row.mask is None else {"segmentation": run_lengths(row.mask, size)}),
                **dict.fromkeys(row.marks, 1),
            }


def _write_list(out: TextIO, records: Iterable[dict[str, Any]]) -> None:
    """A line each, so that no list of all is made."""
    for number, record in enumerate(records):
        out.write((",\n" if number else "\n") + json.dumps(record))


def write_voc(
    data: Dataset,
    folder: Path,
    split: str = "train",
    tick: Tick = lambda _: None,
    start: str = "",
) -> None:
    """Write Annotations/, JPEGImages/ (copies) and the list ImageSets/Main/<split>.txt.

    Several splits can go into one folder. The images keep their format, whatever the name of their
    folder says; images that are in no file become PNG.

    Args:
        data: a data set of boxes.
        folder: has no such list and none of these images yet.
        start: what the names of copies begin with, where splits have images of one name.

    Raises:
        UserError: files are there, cannot be written, or a name cannot be in them.
    """
    _refuse_names(data.classes)
    listing = folder / f"ImageSets/Main/{split}.txt"
    _refuse_existing(listing)
    images, annotations = folder / "JPEGImages", folder / "Annotations"
    origin, names = _file_names(data, images, f"{split}_")
    copied = origin != images
    flat = [f"{start}{name.replace(os.sep, '_')}" for name in names] if copied else names
    stems = [os.path.splitext(name)[0] for name in flat]
    _refuse_names(flat)
    if len(set(stems)) < len(stems):
        twice = next(stem for stem in stems if stems.count(stem) > 1)
        raise _error(folder, f"two images would be called {twice}", "rename one of them")
    for name, stem in zip(flat, stems, strict=True):
        _refuse_existing(images / name)
        _refuse_existing(annotations / f"{stem}.xml")
    with _written(folder):
        for place in (images, annotations, listing.parent):
            place.mkdir(parents=True, exist_ok=True)
        _write_pictures(data, origin, names)
        for index, ((h, w), rows) in enumerate(zip(_sizes(data), _truth(data), strict=True)):
            if copied:
                shutil.copyfile(origin / names[index], images / flat[index])
            text = _annotation(flat[index], (h, w, data.channels), rows, data.classes)
            (annotations / f"{stems[index]}.xml").write_text(text, encoding="utf-8")
            tick(index + 1)
        listing.write_text("".join(f"{stem}\n" for stem in stems), encoding="utf-8")


def _annotation(
    name: str, shape: tuple[int, int, int], rows: Iterable[_Row], classes: tuple[str, ...]
) -> str:
    height, width, depth = shape
    lines = [
        "<annotation>",
        f"\t<filename>{escape(name)}</filename>",
        f"\t<size><width>{width}</width><height>{height}</height><depth>{depth}</depth></size>",
        "\t<segmented>0</segmented>",
    ]
    for row in rows:
        marks = {*row.marks, *(("difficult",) if row.crowd else ())}
        flags = [f"<{m}>{int(m in marks)}</{m}>" for m in ("truncated", "occluded", "difficult")]
        flags += ["<crowd>1</crowd>"] * row.crowd
        left, right = _a_pixel_at_least(row.box[0], row.box[2])
        top, bottom = _a_pixel_at_least(row.box[1], row.box[3])
        sides = zip(("xmin", "ymin", "xmax", "ymax"), to_voc(left, top, right, bottom), strict=True)
        lines += [
            "\t<object>",
            f"\t\t<name>{escape(classes[row.label])}</name>",
            f"\t\t{''.join(flags)}",
            f"\t\t<bndbox>{''.join(f'<{s}>{_number(v)}</{s}>' for s, v in sides)}</bndbox>",
            "\t</object>",
        ]
    return "\n".join([*lines, "</annotation>", ""])


def _a_pixel_at_least(low: float, high: float) -> tuple[float, float]:
    return (low, high) if high - low >= 1 else (math.floor(low), math.ceil(high))


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(float(value))


def _truth(data: Any) -> Iterator[list[_Row]]:
    """The boxes of each sample, from the arrays of a data set that has them, and its masks."""
    masked = "masks" in data.fields
    whole = data.all_truth() if hasattr(data, "all_truth") else None
    ends = None if whole is None else np.searchsorted(whole["image"], np.arange(len(data) + 1))
    for index in range(len(data)):
        target: dict[str, Any] = {}
        if whole is None or masked:
            target = data.truth(index) if hasattr(data, "truth") else data[index][1]
        if whole is None or ends is None:
            columns = {name: target[name].numpy() for name in (*_COLUMNS, "difficult")}
        else:
            own = slice(int(ends[index]), int(ends[index + 1]))
            columns = {name: whole[name][own] for name in (*_COLUMNS, "difficult")}
        marks = {"difficult": columns["difficult"]}
        if hasattr(data, "attributes"):
            marks |= data.attributes(index)
        lists = zip(*(columns[name].tolist() for name in _COLUMNS), strict=True)
        masks = masks_of(target) if masked else [None] * len(columns["labels"])
        yield [
            _Row(tuple(box), label, crowd, area, tuple(m for m in marks if marks[m][row]), mask)
            for row, ((box, label, crowd, area), mask) in enumerate(zip(lists, masks, strict=True))
        ]


_COLUMNS = ("boxes", "labels", "crowd", "area")


def _sizes(data: Any) -> Iterator[tuple[int, int]]:
    """(h, w) of each image, as its boxes mean it."""
    if data.size is not None:
        yield from [data.size] * len(data)
        return

    def size(index: int) -> tuple[int, int]:
        if hasattr(data, "image_size"):
            return data.image_size(index)
        h, w = data[index][0].shape[1:]
        return h, w

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(data), _CHUNK):
            yield from pool.map(size, range(start, min(start + _CHUNK, len(data))))


def _file_names(data: Any, own: Path, start: str = "") -> tuple[Path, list[str]]:
    """The folder that holds all images, and their names in it.

    Args:
        own, start: folder and start of the names of images that are in no file.
    """
    if not hasattr(data, "path"):
        digits = max(6, len(str(len(data))))
        return own, [f"{start}{index + 1:0{digits}}.png" for index in range(len(data))]
    paths = [os.path.abspath(data.path(index)) for index in range(len(data))]
    folder = os.path.commonpath([os.path.dirname(path) for path in paths])
    return Path(folder), [os.path.relpath(path, folder) for path in paths]


def _write_pictures(data: Any, folder: Path, names: list[str]) -> None:
    """Images that are in no file, each into one."""
    if hasattr(data, "path"):
        return
    from torchvision.io import write_png

    _refuse_existing(folder / names[0])
    folder.mkdir(parents=True, exist_ok=True)
    for index, name in enumerate(names):
        write_png(data[index][0].contiguous(), str(folder / name))


def _refuse_names(names: Iterable[str]) -> None:
    for name in names:
        if not name.isprintable() or " ".join(name.split()) != name:
            raise UserError(
                "has control characters, bytes that are no text, or spaces at an end",
                record=repr(printable(name)),
                advice="rename it",
                code=Exit.DATA,
            )


def _refuse_existing(file: Path) -> None:
    if file.exists():
        raise _error(file, "is there already, and is not overwritten", "name another place")


@contextmanager
def _written(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        problem = f"cannot be written: {error.strerror}"
        file = place if error.filename is None else Path(os.fsdecode(error.filename))
        raise UserError(
            problem, file=printable(file), advice="name another place", code=Exit.MACHINE
        ) from None


def _error(file: Path, problem: str, advice: str) -> UserError:
    return UserError(problem, file=printable(file), advice=advice, code=Exit.DATA)
