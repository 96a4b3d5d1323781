"""Boxes in YOLO's text format: a file for each image, ``class x y width height`` a line.

The four are shares of the image's sides, from 0 to 1, x and y of the centre; classes are numbers
from 0. A line of a class and three points or more, as for segmentation, gives the box around them.
"""

from __future__ import annotations

import math
import os
from array import array
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cnnctl.data.box_files import BoxTable, ends
from cnnctl.data.faults import Faults
from cnnctl.data.image_file import file_bytes, printable
from cnnctl.data.mask_pairs import listed
from cnnctl.errors import Exit, UserError

NAME_FILES = ("data.yaml", "data.yml", "dataset.yaml", "classes.txt", "obj.names")
MAX_BYTES = 4 << 20  # of a file: no image has that many boxes
_SLACK = 1e-3  # of a side: half a pixel of 500, which tools lose by rounding
_LEAST = 1e-6  # of a side that is within the image; in float32 pixels no less could be told
_CHUNK = 64  # files that a thread reads at once
_COLUMNS = 5
_WIDEST = 60  # characters of a fault's own text that are shown


@dataclass
class Rows:
    """The lines of one file, or of several one behind the other; wrong ones are left out."""

    values: array[float] = field(default_factory=lambda: array("d"))  # class, x, y, w, h, and
    #  the least and the largest number of the line, of a row
    lines: array[int] = field(default_factory=lambda: array("q"))  # in the file, from 1
    outlines: int = 0
    faults: list[tuple[int | None, str]] = field(default_factory=list)  # (line, problem)


_WIDTH = _COLUMNS + 2


def parse_yolo_text(raw: bytes | bytearray) -> Rows:
    """The lines of a file as numbers; whether they are in range is looked at for all files."""
    rows = Rows()
    for number, line in enumerate(bytes(raw).removeprefix(b"\xef\xbb\xbf").splitlines(), 1):
        words = line.split()
        if not words:
            continue
        try:
            found = [float(word) for word in words]
        except ValueError:
            text = line[:_WIDEST].decode("ascii", "backslashreplace").strip()
            rows.faults.append((number, f'"{text}" is no row of numbers'))
            continue
        if not math.isfinite(sum(found)):
            odd = next((word for word in found if not math.isfinite(word)), math.inf)
            rows.faults.append((number, f"holds {odd:g}, which is no number"))
        elif len(found) == _COLUMNS:
            rows.values.extend((*found, min(found[1:]), max(found[1:])))
            rows.lines.append(number)
        elif len(found) > _COLUMNS + 1 and len(found) % 2:
            rows.values.extend((found[0], *_around(found[1:]), min(found[1:]), max(found[1:])))
            rows.lines.append(number)
            rows.outlines += 1
        else:
            rows.faults.append((number, _columns(len(found))))
    return rows


def _around(points: Sequence[float]) -> tuple[float, float, float, float]:
    """Centre and sides of the box around x, y, x, y, ..."""
    (left, right), (top, bottom) = ((min(v), max(v)) for v in (points[::2], points[1::2]))
    return (left + right) / 2, (top + bottom) / 2, right - left, bottom - top


def _columns(count: int) -> str:
    problem = f"has {count} column{'s' * (count > 1)}, must be class, x, y, width, height"
    return problem + (": with a score it is a prediction" if count == _COLUMNS + 1 else "")


def read_yolo_files(
    files: Sequence[str | None], classes: tuple[str, ...]
) -> tuple[BoxTable, list[str]]:
    """The boxes of many files, and sentences on what was made of them.

    Args:
        files: one for each image, None where it has none: it shows nothing that is looked for.

    Raises:
        UserError: lines are wrong. All are read; the first is named, the others are counted (code
            3).
    """
    faults, every = Faults(), Rows()
    counts: list[int] = []
    parts = [files[start : start + _CHUNK] for start in range(0, len(files), _CHUNK)]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        parsed = (rows for part in pool.map(_read_several, parts) for rows in part)
        for path, rows in zip(files, parsed, strict=True):
            for line, problem in rows.faults:
                place = None if line is None else f"line {line}"
                faults.add(printable(path or ""), problem, place)
            counts.append(len(rows.lines))
            every.values.extend(rows.values)
            every.lines.extend(rows.lines)
            every.outlines += rows.outlines
    values = np.frombuffer(every.values, np.float64).reshape(-1, _WIDTH)
    file_of = np.repeat(np.arange(len(files)), counts)
    for row, problem in _problems(values, classes):
        faults.add(printable(files[file_of[row]] or ""), problem, f"line {every.lines[row]}")
    faults.tell("correct the file, or take the image out of the data")
    made = f"{every.outlines:,} outlines: the boxes around them are taken"
    return _table(values, ends(counts)), [made] if every.outlines else []


def _read_several(files: Sequence[str | None]) -> list[Rows]:
    return [Rows() if path is None else _read(path) for path in files]


def _read(path: str) -> Rows:
    try:
        size = os.path.getsize(path) if os.path.isfile(path) else 0
        if size > MAX_BYTES:
            problem = f"has {size:,} bytes: no image has that many boxes"
            return Rows(faults=[(None, problem)])
        return parse_yolo_text(file_bytes(path))
    except UserError as error:
        return Rows(faults=[(None, error.problem)])


def _problems(values: np.ndarray, classes: tuple[str, ...]) -> list[tuple[int, str]]:
    """(row, what is wrong with it) of rows that are finite, in their order."""
    number, least, most = values[:, 0], values[:, -2], values[:, -1]
    within = _corners(values).clip(0, 1)
    sides = (within[:, 2:] - within[:, :2]).min(1, initial=math.inf)
    last = len(classes) - 1
    beyond = (number < 0) | (number > last)
    one_based = beyond.any() and number.min() == 1 and number.max() == last + 1
    hint = "; no line has class 0: the numbers seem to begin at 1, YOLO's begin at 0"
    kinds = (
        (
            number % 1 != 0,
            lambda row: f"class {number[row]:g} is no whole number",
        ),
        (
            beyond,
            lambda row: (
                f"class {number[row]:.0f} is none of the {len(classes)}, 0 to {last}"
                + (hint if one_based else "")
            ),
        ),
        (
            least < -_SLACK,
            lambda row: f"holds {least[row]:g}: shares of the sides are not negative",
        ),
        (
            most > 1 + _SLACK,
            lambda row: (
                f"holds {most[row]:g}, must be shares of the sides, from 0 to 1"
                + (", not pixels" if most[row] > 2 else "")
            ),
        ),
        (sides < _LEAST, lambda row: "the box has no area within the image"),
    )
    found: dict[int, str] = {}
    for wrong, problem in kinds:
        for row in np.flatnonzero(wrong).tolist():
            found.setdefault(row, problem(row))
    return sorted(found.items())


def _corners(values: np.ndarray) -> np.ndarray:
    """(A, 4) xyxy of rows, past the edge of the image too."""
    half = values[:, 3:5] / 2
    return np.concatenate([values[:, 1:3] - half, values[:, 1:3] + half], 1)


def _table(values: np.ndarray, own: np.ndarray) -> BoxTable:
    exact = _corners(values)
    boxes = exact.clip(0, 1)
    none = np.zeros(len(values), bool)
    return BoxTable(
        ends=own,
        sizes=None,
        boxes=boxes,
        labels=values[:, 0].astype(np.int32),
        difficult=none,
        crowd=none,
        truncated=none,
        occluded=none,
        clipped=np.abs(exact - boxes).max(1, initial=0) > _SLACK,
    )


def read_names(folders: Sequence[Path]) -> tuple[str, ...]:
    """The names of the classes, from the files of them in some folders.

    Raises:
        UserError: there are none, they cannot be read, or two files say different things (code 3).
    """
    files = dict.fromkeys(folder / name for folder in folders for name in NAME_FILES)
    found = {file: names for file in files if file.is_file() and (names := _names(file))}
    if not found:
        raise UserError(
            f"the classes have no names: there is none of {listed(NAME_FILES, len(NAME_FILES))}",
            file=printable(folders[0]),
            advice="data.classes=[cat,dog] names them in the order of their numbers",
            code=Exit.DATA,
        )
    (first, names), *others = found.items()
    for file, differing in others:
        if differing != names:
            raise UserError(
                f"names other classes than {printable(first)}: {listed(differing)} there "
                f"{listed(names)}",
                file=printable(file),
                advice="data.classes=[cat,dog] says which are meant",
                code=Exit.DATA,
            )
    return names


def _names(file: Path) -> tuple[str, ...]:
    """Those in a file, in the order of their numbers; none where it does not speak of them."""
    try:
        if file.stat().st_size > MAX_BYTES:
            raise _error(file, "is far too large to name classes")
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise _error(file, f"cannot be read: {error}") from None
    if file.suffix in (".yaml", ".yml"):
        names = _from_yaml(file, text)
    else:
        names = tuple(line.strip() for line in text.rstrip().splitlines())
        if "" in names:
            where = names.index("") + 1
            raise _error(file, f"line {where} is empty: which number has the name below it?")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise _error(file, f'has the class "{twice}" twice')
    return names


def _from_yaml(file: Path, text: str) -> tuple[str, ...]:
    import yaml

    try:
        content: Any = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise _error(file, f"is no YAML that can be read: {reason}") from None
    names = content.get("names") if isinstance(content, dict) else None
    if names is None:
        return ()
    if isinstance(names, dict):
        if sorted(names, key=str) != sorted(range(len(names)), key=str):
            raise _error(file, "names: the numbers of the classes must be 0, 1, 2 and so on")
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list) or not all(isinstance(n, str | int | float) for n in names):
        raise _error(file, "names: must be a list of names, or numbers with names")
    if (said := content.get("nc")) not in (None, len(names)):
        raise _error(file, f"nc is {said}, and there are {len(names)} names")
    return tuple(map(str, names))


def _error(file: Path, problem: str) -> UserError:
    advice = "data.classes=[cat,dog] names them in the order of their numbers"
    return UserError(problem, file=printable(file), advice=advice, code=Exit.DATA)
