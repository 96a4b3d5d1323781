"""Read an annotation file in COCO's format, and refuse what is wrong in it before it is used.

Each record is looked at once, here; what comes out are numbers that are known to be in range.
Native code that draws masks must not see others: a run that is too long makes it loop for ever, an
infinite coordinate makes it write where it should not.
"""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cnnctl.data.coco_shapes import check_length, check_polygon, check_runs
from cnnctl.data.image_file import MAX_PIXELS, printable
from cnnctl.errors import Exit, UserError

_LONGEST = 65_535  # side of an image: as JPEG, and short enough for native code


@dataclass
class Records:
    """What an annotation file says, checked: images by id, annotations in the file's order."""

    images: list[tuple[int, int, int, str]] = field(default_factory=list)  # id, h, w, file name
    categories: list[tuple[int, str]] = field(default_factory=list)  # id, name, by id
    annotations: list[Annotation] = field(default_factory=list)


@dataclass(slots=True)
class Annotation:
    id: int
    image: int  # position in ``Records.images``
    category: int  # position in ``Records.categories``
    crowd: bool
    polygons: list[array[float]]  # x, y, x, y, ... in pixels; none where there are runs
    runs: list[int]  # lengths of 0s, 1s, 0s, ... down the columns; none where there are polygons


def read_records(file: Path, raw: bytes) -> Records:
    """The records in an annotation file.

    Raises:
        UserError: it is no such file, or records in it are wrong; the first of them is named.
    """
    content, checked, faults = _parse(file, raw), Records(), _Faults(file)
    images = _images(content, checked, faults)
    categories = _categories(content, checked, faults)
    _annotations(content, checked, faults, images, categories)
    faults.tell()
    if not checked.images:
        raise _error(file, "holds no images")
    if not checked.annotations:
        raise _error(file, "holds no annotations: there is nothing to learn from it")
    return checked


class _Wrong(ValueError):
    """What is wrong with a record: ``field: problem``."""


class _Faults:
    """All faults of a file, of which one is told and the others counted."""

    def __init__(self, file: Path) -> None:
        self.file, self.first, self.count = file, ("", ""), 0

    def add(self, record: str, problem: str) -> None:
        if not self.count:
            self.first = record, problem
        self.count += 1

    def tell(self) -> None:
        if not self.count:
            return
        record, problem = self.first
        more = f" (and {self.count - 1:,} more faults)" if self.count > 1 else ""
        raise UserError(
            problem + more,
            file=printable(self.file),
            record=record,
            advice="correct the file, or take the records out of it",
            code=Exit.DATA,
        )


def _parse(file: Path, raw: bytes) -> dict[str, Any]:
    try:
        content = json.loads(raw, object_pairs_hook=_record, parse_constant=_no_number)
    except RecursionError:
        raise _error(file, "is nested too deeply to be an annotation file") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise _error(file, f"is no whole JSON file: {error.msg} at {where}") from None
    except UnicodeDecodeError:
        raise _error(file, "is no text in UTF-8") from None
    except ValueError as error:  # ours, or of a number with thousands of digits
        raise _error(file, f"is no JSON that can be used: {error}") from None
    if not isinstance(content, dict):
        raise _error(file, f"holds {_kind(content)}, must hold an object with images")
    return content


def _record(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; its polygons as arrays of floats, a quarter of the memory of lists."""
    record = dict(pairs)
    if len(record) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f'an object has the key "{twice}" twice')
    shape = record.get("segmentation")
    if isinstance(shape, list):
        with suppress(TypeError, OverflowError):  # no lists of numbers: told with the record's name
            record["segmentation"] = [array("d", polygon) for polygon in shape]
    return record


def _no_number(word: str) -> None:
    raise ValueError(f"{word} is no number of JSON")


def _list(content: dict[str, Any], key: str, faults: _Faults) -> Iterator[tuple[str, Any]]:
    """(name for messages, record) of each."""
    rows = content.get(key)
    if not isinstance(rows, list):
        found = "is missing" if key not in content else f"is {_kind(rows)}, must be a list"
        raise _error(faults.file, f'"{key}" {found}')
    for position, row in enumerate(rows):
        name = f"{key}[{position}]"
        if isinstance(row, dict):
            number = row.get("id")
            yield (f"{name} (id {number})" if type(number) is int else name), row
        else:
            faults.add(name, f"is {_kind(row)}, must be an object")


def _whole(row: dict[str, Any], key: str) -> int:
    """A whole number; 5.0 is none."""
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, int):
        problem = "is missing" if key not in row else f"is {_kind(value)}, must be a whole number"
        raise _Wrong(f"{key}: {problem}")
    if abs(value) >= 1 << 63:
        raise _Wrong(f"{key}: is beyond 64 bits")
    return value


def _text(row: dict[str, Any], key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value.isprintable() or not value:
        raise _Wrong(f"{key}: {'is missing' if key not in row else 'must be text'}")
    return value


def _images(content: dict[str, Any], checked: Records, faults: _Faults) -> dict[int, int]:
    """Image id -> position in ``checked.images``, which are in the order of their ids."""
    found: dict[int, tuple[int, int, int, str]] = {}
    files: dict[str, str] = {}  # the record that names each: one in two splits would leak
    for name, row in _list(content, "images", faults):
        try:
            number, height, width = (_whole(row, key) for key in ("id", "height", "width"))
            if number in found:
                raise _Wrong("id: another image has it too")
            short, long = sorted((height, width))
            if short < 1 or long > _LONGEST or height * width > MAX_PIXELS:
                raise _Wrong(f"width and height: {width} x {height} is no size of an image")
            file = _text(row, "file_name")
            if (other := files.setdefault(os.path.normpath(file), name)) != name:
                raise _Wrong(f"file_name: {file} is the file of {other} too")
            found[number] = number, height, width, file
        except _Wrong as wrong:
            faults.add(name, str(wrong))
    checked.images = [found[number] for number in sorted(found)]
    return {row[0]: position for position, row in enumerate(checked.images)}


def _categories(content: dict[str, Any], checked: Records, faults: _Faults) -> dict[int, int]:
    """Category id -> position in ``checked.categories``, which are in the order of their ids."""
    found: dict[int, str] = {}
    titles: set[str] = set()
    for name, row in _list(content, "categories", faults):
        try:
            number, title = _whole(row, "id"), _text(row, "name")
            if number in found or title in titles:
                raise _Wrong("another category has this id or name too")
            found[number] = title
            titles.add(title)
        except _Wrong as wrong:
            faults.add(name, str(wrong))
    checked.categories = sorted(found.items())
    return {number: position for position, (number, _) in enumerate(checked.categories)}


def _annotations(
    content: dict[str, Any],
    checked: Records,
    faults: _Faults,
    images: dict[int, int],
    categories: dict[int, int],
) -> None:
    seen: set[int] = set()
    for name, row in _list(content, "annotations", faults):
        try:
            number = _whole(row, "id")
            if number in seen:
                raise _Wrong("id: another annotation has it too")
            seen.add(number)
            image = _position(row, "image_id", images, "images")
            category = _position(row, "category_id", categories, "categories")
            crowd = row.get("iscrowd", 0)
            if crowd not in (0, 1):
                raise _Wrong("iscrowd: must be 0 or 1")
            shape = _shape(row, *checked.images[image][1:3])
            checked.annotations.append(Annotation(number, image, category, bool(crowd), *shape))
        except _Wrong as wrong:
            faults.add(name, str(wrong))


def _position(row: dict[str, Any], key: str, known: dict[int, int], where: str) -> int:
    value = row.get(key)
    if isinstance(value, str) and value.isdecimal() and int(value) in known:
        raise _Wrong(f'{key}: is the text "{value}", where {where} has the number')
    value = _whole(row, key)
    if value not in known:
        raise _Wrong(f"{key}: {value} is not in {where}")
    return known[value]


def _shape(row: dict[str, Any], height: int, width: int) -> tuple[list[array[float]], list[int]]:
    """Polygons or runs, one of them empty."""
    shape = row.get("segmentation")
    try:
        if isinstance(shape, dict):
            return [], check_runs(shape, height, width)
        if isinstance(shape, list) and shape:
            for polygon in shape:
                check_polygon(polygon, height, width)
            check_length(shape, height, width)
            return shape, []
    except ValueError as error:
        raise _Wrong(f"segmentation: {error}") from None
    if "segmentation" not in row:
        problem = "is missing, so it has no mask"
    elif isinstance(shape, list):
        problem = "is an empty list, so it has no mask"
    else:
        problem = f"is {_kind(shape)}, must be a list of polygons or run lengths"
    raise _Wrong(f"segmentation: {problem}")


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "text", bool: "true or false"}
    kinds |= {type(None): "null", float: f"the number {value}", int: f"the number {value}"}
    return kinds.get(type(value), type(value).__name__)


def _error(file: Path, problem: str) -> UserError:
    advice = "it must be COCO's instances format: images, categories, annotations"
    return UserError(problem, file=printable(file), advice=advice, code=Exit.DATA)
