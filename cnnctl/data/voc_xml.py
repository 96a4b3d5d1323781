"""An XML file in Pascal VOC's format -> checked boxes, or what is wrong with it.

VOC counts pixels from 1 and names the first and the last pixel that an object covers. Here sides
are lines between pixels, from 0: ``from_voc`` turns one into the other, ``to_voc`` back, and no
other code knows of it. A document type is refused before anything in it is read, so there are no
entities to expand and nothing is fetched.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from xml.parsers import expat

import numpy as np

from cnnctl.data.box_files import BoxTable, ends
from cnnctl.data.faults import Faults
from cnnctl.data.image_file import MAX_PIXELS, file_bytes, printable
from cnnctl.errors import UserError, nearest

MAX_BYTES = 4 << 20  # the largest of VOC's own files has 20 thousand
_LONGEST = 65_535  # side of an image
_FARTHEST = 1e7  # pixels: no coordinate
_LEAST = 0.01  # pixels of a side within the image
_SIDES = ("xmin", "ymin", "xmax", "ymax")

Box = tuple[float, float, float, float]


def from_voc(xmin: float, ymin: float, xmax: float, ymax: float) -> Box:
    """First and last pixel, counted from 1 -> the sides, the right and lower one exclusive."""
    return xmin - 1, ymin - 1, xmax, ymax


def to_voc(left: float, top: float, right: float, bottom: float) -> Box:
    """The inverse of ``from_voc``."""
    return left + 1, top + 1, right, bottom


@dataclass
class Record:
    """One file: an image's size and its objects, a row in each list; wrong ones are left out."""

    size: tuple[int, int] = (0, 0)  # (h, w)
    numbers: list[int] = field(default_factory=list)  # of the objects in the file, from 1
    names: list[str] = field(default_factory=list)
    boxes: list[Box] = field(default_factory=list)  # xyxy, exclusive, within the image
    flags: list[tuple[bool, bool, bool, bool, bool]] = field(default_factory=list)  # as FLAGS
    faults: list[tuple[str | None, str]] = field(default_factory=list)  # (object, problem)


FLAGS = ("difficult", "crowd", "truncated", "occluded", "clipped")


def parse_voc_xml(raw: bytes | bytearray, first_pixel: int = 1) -> Record:
    """The objects of an annotation; those of their parts (<part>) are not read.

    Args:
        first_pixel: 1 as in VOC's own files; 0 where a tool wrote the sides, counted from 0.

    Raises:
        ValueError: it is no annotation in this format.
    """
    size, objects = _elements(raw)
    record = Record()
    try:
        record.size = _size(size)
    except ValueError as error:
        record.faults.append((None, str(error)))
        return record
    for number, values in enumerate(objects, 1):
        name = " ".join(values.get("name", "").split())
        try:
            if not name:
                raise ValueError("<name> is missing")
            box, clipped = _box(values, record.size, first_pixel)
            crowd = _flag(values, "crowd")
            flags = (
                _flag(values, "difficult") and not crowd,
                crowd,
                _flag(values, "truncated"),
                _flag(values, "occluded"),
                clipped,
            )
        except ValueError as error:
            record.faults.append((f"object {number} ({name or 'no name'})", str(error)))
            continue
        record.numbers.append(number)
        record.names.append(name)
        record.boxes.append(box)
        record.flags.append(flags)
    return record


def _elements(raw: bytes | bytearray) -> tuple[dict[str, str], list[dict[str, str]]]:
    """Texts by element: of <size>, and of each <object> (with those of its <bndbox>)."""
    _check_length(len(raw))
    found = _Elements()
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler, parser.EndElementHandler = found.start, found.end
    parser.CharacterDataHandler = found.text.append
    parser.StartDoctypeDeclHandler = found.refuse
    try:
        parser.Parse(bytes(raw), True)
    except expat.ExpatError as error:
        raise ValueError(f"is malformed XML: {error}") from None
    except (LookupError, UnicodeError) as error:
        raise ValueError(f"has an encoding that cannot be read: {error}") from None
    return found.size, found.objects


def _check_length(count: int) -> None:
    if count > MAX_BYTES:
        raise ValueError(f"has {count:,} bytes: no annotation of an image is that large")


class _Elements:
    """What a parser meets; only texts that are wanted are kept."""

    def __init__(self) -> None:
        self.size: dict[str, str] = {}
        self.objects: list[dict[str, str]] = []
        self.text: list[str] = []
        self._paths = [""]

    def start(self, tag: str, _: object) -> None:
        depth = len(self._paths)
        if depth == 1 and tag != "annotation":
            raise ValueError(f"is no VOC annotation: its first element is <{tag[:40]}>")
        # Nothing deeper is wanted, and the paths of a deep file would fill the memory.
        self._paths.append(f"{self._paths[-1]}/{tag}" if depth <= _DEEPEST else "")
        if self._paths[-1] == "/annotation/object":
            self.objects.append({})
        self.text.clear()

    def end(self, tag: str) -> None:
        into = _WANTED.get(self._paths.pop())
        if into is None:
            return
        record, value = (self.size if into == "size" else self.objects[-1]), self._value()
        if record.setdefault(tag, value) != value:
            record[f"two {tag}"] = tag  # refused by name when the object is read

    def _value(self) -> str:
        return "".join(self.text).strip()

    def refuse(self, *_: object) -> None:
        raise ValueError("has a document type (DOCTYPE), which is refused: it can hold entities")


_DEEPEST = 4  # /annotation/object/bndbox/xmin
_WANTED = {
    **{f"/annotation/size/{name}": "size" for name in ("width", "height")},
    **{
        f"/annotation/object/{name}": "object"
        for name in ("name", "difficult", "crowd", "truncated", "occluded")
    },
    **{f"/annotation/object/bndbox/{name}": "object" for name in _SIDES},
}


def _size(values: Mapping[str, str]) -> tuple[int, int]:
    _refuse_twice(values)
    if lacking := [name for name in ("width", "height") if not values.get(name)]:
        raise ValueError(f"<size> has no <{lacking[0]}>" if values else "<size> is missing")
    try:
        height, width = (float(values[name]) for name in ("height", "width"))
    except ValueError:
        height = width = math.nan
    short, long = sorted((height, width))
    possible = short >= 1 and long <= _LONGEST and short * long <= MAX_PIXELS
    if not (possible and height % 1 == width % 1 == 0):
        raise ValueError(
            f"<size>: {values['width'][:20]} x {values['height'][:20]} is no size of an image"
        )
    return int(height), int(width)


def _box(values: Mapping[str, str], size: tuple[int, int], first: int) -> tuple[Box, bool]:
    """A box within the image, and whether it had to be clipped to be."""
    _refuse_twice(values)
    if lacking := [name for name in _SIDES if not values.get(name)]:
        none = len(lacking) == len(_SIDES)
        raise ValueError("<bndbox> is missing" if none else f"<bndbox> has no <{lacking[0]}>")
    found = []
    for name in _SIDES:
        try:
            number = float(values[name])
        except ValueError:
            number = math.nan
        if not abs(number) < _FARTHEST:
            raise ValueError(f"<{name}> is {values[name][:40]}, must be a number of pixels")
        found.append(number)
    for low, high in ((0, 2), (1, 3)):
        if found[low] > found[high]:
            raise ValueError(
                f"<{_SIDES[low]}> is {found[low]:g}, larger than <{_SIDES[high]}>, {found[high]:g}"
            )
    left, top, right, bottom = from_voc(*found) if first else found
    height, width = size
    if left >= width or top >= height or right <= 0 or bottom <= 0:
        shown = ", ".join(f"{number:g}" for number in found)
        raise ValueError(f"the box {shown} is wholly outside the image of {width} x {height}")
    box = max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height))
    if min(box[2] - box[0], box[3] - box[1]) < _LEAST:
        raise ValueError(
            f"the box has no area within the image: {box[2] - box[0]:g} x {box[3] - box[1]:g}"
        )
    return box, box != (left, top, right, bottom)


def _flag(values: Mapping[str, str], name: str) -> bool:
    """0, 1, or what tools write instead; one that is missing is 0."""
    text = values.get(name, "").lower()
    if text in ("1", "true", "yes"):
        return True
    if text in ("", "0", "false", "no", "unspecified"):
        return False
    raise ValueError(f"<{name}> is {text[:40]}, must be 0 or 1")


def _refuse_twice(values: Mapping[str, str]) -> None:
    if twice := [tag for key, tag in values.items() if key.startswith("two ")]:
        raise ValueError(f"has two different <{twice[0]}>")


def read_xml_files(
    files: Sequence[str], classes: tuple[str, ...] | None, first_pixel: int = 1
) -> tuple[BoxTable, tuple[str, ...]]:
    """The boxes of many files, and the classes: where None are given, those there, by name.

    Raises:
        UserError: files or objects in them are wrong, or a name is no class. All are read; the
            first is named, the others are counted (code 3).
    """

    def read(path: str) -> Record | str:
        try:
            _check_length(os.path.getsize(path) if os.path.isfile(path) else 0)
            return parse_voc_xml(file_bytes(path), first_pixel)
        except ValueError as error:
            return str(error)
        except UserError as error:
            return error.problem

    faults, records = Faults(), []
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for path, found in zip(files, pool.map(read, files), strict=True):
            record = Record(faults=[(None, found)]) if isinstance(found, str) else found
            for which, problem in record.faults:
                faults.add(printable(path), problem, which)
            for number, name in zip(record.numbers, record.names, strict=True):
                if classes is not None and name not in classes:
                    which, problem = f"object {number}", f'"{name[:60]}" is no class'
                    faults.add(printable(path), problem, which, nearest(name, classes))
            records.append(record)
    faults.tell("correct the file, or take the image out of the data")
    if classes is None:
        classes = tuple(sorted({name for record in records for name in record.names}))
    return _table(records, classes), classes


def _table(records: Sequence[Record], classes: tuple[str, ...]) -> BoxTable:
    label = {name: number for number, name in enumerate(classes)}
    boxes = [box for record in records for box in record.boxes]
    flags = [row for record in records for row in record.flags]
    columns = np.array(flags, bool).reshape(-1, len(FLAGS))
    return BoxTable(
        ends=ends(len(record.boxes) for record in records),
        sizes=np.array([record.size for record in records], np.int32).reshape(-1, 2),
        boxes=np.array(boxes, np.float64).reshape(-1, 4),
        labels=np.array([label[n] for record in records for n in record.names], np.int32),
        **{name: columns[:, number].copy() for number, name in enumerate(FLAGS)},
    )
