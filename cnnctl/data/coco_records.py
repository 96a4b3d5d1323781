"""The records of an annotation file in COCO's format, refused where they are wrong.

Each record is looked at once, here; what comes out are numbers that are known to be in range.
Native code that draws masks must not see others: a run that is too long makes it loop for ever, an
infinite coordinate makes it write where it should not.
"""

from __future__ import annotations

import os
from array import array
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from cnnctl.data.coco_json import (
    Faults,
    Wrong,
    parse,
    records,
    text,
    whole,
    without_collection,
)
from cnnctl.data.coco_shapes import (
    Flat,
    check_area,
    check_box,
    check_length,
    check_polygon,
    check_runs,
    kind,
)
from cnnctl.data.coco_skeletons import Points, check_points, points_of
from cnnctl.data.image_file import MAX_PIXELS, printable
from cnnctl.errors import Exit, UserError

_ADVICE = "it must be COCO's instances format: images, categories, annotations"
_LONGEST = 65_535  # side of an image: as JPEG, and short enough for native code

# What can be wrong with an annotation and yet not matter: a mask needs no box, a box no outline.
Use = Literal["segmentation", "bbox", "flat", "keypoints"]


@dataclass
class Records:
    """What an annotation file says, checked: images by id, annotations in the file's order."""

    images: list[tuple[int, int, int, str]] = field(default_factory=list)  # id, h, w, file name
    categories: list[tuple[int, str]] = field(default_factory=list)  # id, name, by id
    points: list[Points] = field(default_factory=list)  # of each category
    annotations: list[Annotation] = field(default_factory=list)
    faults: Faults = field(default_factory=Faults)  # that matter whatever it is used for
    unfit: dict[Use, Faults] = field(default_factory=lambda: {u: Faults() for u in get_args(Use)})


@dataclass(slots=True)
class Annotation:
    id: int
    image: int  # position in ``Records.images``
    category: int  # position in ``Records.categories``
    crowd: bool
    box: tuple[float, float, float, float]  # x1, y1, x2, y2 as the file says; zeros where unfit
    area: float  # of the file, else of the box; pixels
    polygons: list[array[float]]  # x, y, x, y, ... in pixels; none where there are runs
    runs: list[int]  # lengths of 0s, 1s, 0s, ... down the columns; none where there are polygons
    points: list[float]  # x, y, visibility, ... ; none where its category has none, or unfit


def read_records(file: Path, raw: bytes) -> Records:
    """The records in an annotation file; those with faults are left out and counted.

    Raises:
        UserError: it is no such file.
    """
    with without_collection():
        content, checked = parse(file, raw, _ADVICE), Records()
        if not isinstance(content, dict):
            raise _error(file, f"holds {kind(content)}, must hold an object with images")
        lists = [_list(file, content, key) for key in ("images", "categories", "annotations")]
        images = _images(lists[0], checked)
        categories = _categories(lists[1], checked)
        _annotations(lists[2], checked, images, categories)
    for name, rows in (("images", checked.images), ("annotations", checked.annotations)):
        if not checked.faults.count and not rows:
            raise _error(file, f"holds no {name}: there is nothing to learn from it")
    return checked


def _list(file: Path, content: dict[str, Any], key: str) -> list[Any]:
    rows = content.get(key)
    if not isinstance(rows, list):
        found = "is missing" if key not in content else f"is {kind(rows)}, must be a list"
        raise _error(file, f'"{key}" {found}')
    return rows


def _error(file: Path, problem: str) -> UserError:
    return UserError(problem, file=printable(file), advice=_ADVICE, code=Exit.DATA)


def _images(rows: list[Any], checked: Records) -> dict[int, int]:
    """Image id -> position in ``checked.images``, which are in the order of their ids."""
    found: dict[int, tuple[int, int, int, str]] = {}
    files: dict[str, str] = {}  # the record that names each: one in two splits would leak
    for name, row in records(rows, "images", checked.faults):
        try:
            number, height, width = (whole(row, key) for key in ("id", "height", "width"))
            if number in found:
                raise Wrong("id: another image has it too")
            short, long = sorted((height, width))
            if short < 1 or long > _LONGEST or height * width > MAX_PIXELS:
                raise Wrong(f"width and height: {width} x {height} is no size of an image")
            title = text(row, "file_name")
            if (other := files.setdefault(os.path.normpath(title), name)) != name:
                raise Wrong(f"file_name: {title} is the file of {other} too")
            found[number] = number, height, width, title
        except Wrong as wrong:
            checked.faults.add(name, str(wrong))
    checked.images = [found[number] for number in sorted(found)]
    return {row[0]: position for position, row in enumerate(checked.images)}


def _categories(rows: list[Any], checked: Records) -> dict[int, int]:
    """Category id -> position in ``checked.categories``, which are in the order of their ids."""
    found: dict[int, tuple[str, Points]] = {}
    titles: set[str] = set()
    for name, row in records(rows, "categories", checked.faults):
        try:
            number, title = whole(row, "id"), text(row, "name")
            if number in found or title in titles:
                raise Wrong("another category has this id or name too")
            found[number] = title, points_of(row)
            titles.add(title)
        except Wrong as wrong:
            checked.faults.add(name, str(wrong))
    known = sorted(found.items())
    checked.categories = [(number, title) for number, (title, _) in known]
    checked.points = [points for _, (_, points) in known]
    return {number: position for position, (number, _) in enumerate(checked.categories)}


def _annotations(
    rows: list[Any],
    checked: Records,
    images: dict[int, int],
    categories: dict[int, int],
) -> None:
    seen: set[int] = set()
    misread = _Misread()
    for name, row in records(rows, "annotations", checked.faults):
        try:
            number = whole(row, "id")
            if number in seen:
                raise Wrong("id: another annotation has it too")
            seen.add(number)
            image = _position(row, "image_id", images, "images")
            category = _position(row, "category_id", categories, "categories")
            crowd = row.get("iscrowd", 0)
            if crowd not in (0, 1):
                raise Wrong("iscrowd: must be 0 or 1")
        except Wrong as wrong:
            checked.faults.add(name, str(wrong))
            continue
        size = checked.images[image][1:3]
        misread.look(row.get("bbox"), *size)
        box, area = _box(name, row, *size, checked.unfit)
        shape = _shape(name, row, *size, checked.unfit["segmentation"])
        points = _points(name, row, len(checked.points[category][0]), checked.unfit["keypoints"])
        checked.annotations.append(
            Annotation(number, image, category, bool(crowd), box, area, *shape, points)
        )
    if problem := misread.problem():
        checked.unfit["bbox"] = Faults([(None, problem)], 1)


class _Misread:
    """Do the boxes of a file look like something else than [x, y, width, height] in pixels?"""

    def __init__(self) -> None:
        self.boxes = self.past = self.corners = self.shares = 0

    def look(self, box: Any, height: int, width: int) -> None:
        if not isinstance(box, list) or len(box) != 4:
            return
        with suppress(TypeError):
            x, y, w, h = box
            past, corners = x + w > width + 1 or y + h > height + 1, x < w and y < h
            self.boxes += 1
            self.past += past
            self.corners += corners and x >= 0 and y >= 0 and w <= width + 1 and h <= height + 1
            self.shares += max(box) <= 1 < min(width, height)

    def problem(self) -> str:
        """Empty where they do not.

        All could be corners, and too many reach past the edge: of many boxes a tenth, of a few the
        most. (Every second box of a real file is wider than it is far from the left.)
        """
        if self.boxes and self.shares == self.boxes:
            return (
                "bbox: no box has a number above 1; they look like shares of the image, must be "
                "[x, y, width, height] in pixels"
            )
        enough = 0.1 if self.boxes >= 10 else 0.5
        if self.past <= enough * self.boxes or self.corners < 0.99 * self.boxes:
            return ""
        return (
            f"bbox: {self.past:,} of {self.boxes:,} boxes reach past the edge of their image; they "
            "look like [x1, y1, x2, y2], must be [x, y, width, height]"
        )


def _position(row: dict[str, Any], key: str, known: dict[int, int], where: str) -> int:
    value = row.get(key)
    if isinstance(value, str) and value.isdecimal() and len(value) < 20 and int(value) in known:
        raise Wrong(f'{key}: is the text "{value}", where {where} has the number')
    value = whole(row, key)
    if value not in known:
        raise Wrong(f"{key}: {value} is not in {where}")
    return known[value]


def _box(
    name: str, row: dict[str, Any], height: int, width: int, unfit: dict[Use, Faults]
) -> tuple[tuple[float, float, float, float], float]:
    """The box and the area of the object; of zeros where they are unfit."""
    box, area = row.get("bbox"), row.get("area")
    if box is None:
        problem = "is null, must be [x, y, width, height]" if "bbox" in row else "is missing"
        unfit["bbox"].add(name, f"bbox: {problem}")
        return _NO_BOX, 0.0
    try:
        found = check_box(box, height, width)
        return found, box[2] * box[3] if area is None else check_area(area, height, width)
    except Flat as flat:
        unfit["flat"].add(name, str(flat))
    except ValueError as error:
        unfit["bbox"].add(name, str(error))
    return _NO_BOX, 0.0


_NO_BOX = (0.0, 0.0, 0.0, 0.0)


def _points(name: str, row: dict[str, Any], count: int, unfit: Faults) -> list[float]:
    """Of a category with ``count`` points; none where they are unfit."""
    if not count:
        return []
    try:
        return check_points(row, count)
    except ValueError as error:
        unfit.add(name, str(error))
        return [0.0] * (3 * count)


def _shape(
    name: str, row: dict[str, Any], height: int, width: int, unfit: Faults
) -> tuple[list[array[float]], list[int]]:
    """Polygons or runs, one of them empty, or both where they are unfit."""
    shape = row.get("segmentation")
    try:
        if isinstance(shape, dict):
            return [], check_runs(shape, height, width)
        if isinstance(shape, list) and shape:
            for polygon in shape:
                check_polygon(polygon, height, width)
            check_length(shape, height, width)
            return shape, []
        if "segmentation" not in row:
            problem = "is missing, so it has no mask"
        elif isinstance(shape, list):
            problem = "is an empty list, so it has no mask"
        else:
            problem = f"is {kind(shape)}, must be a list of polygons or run lengths"
    except ValueError as error:
        problem = str(error)
    unfit.add(name, f"segmentation: {problem}")
    return [], []
