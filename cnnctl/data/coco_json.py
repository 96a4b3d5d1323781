"""Read a JSON file of many records, and say what is wrong with it and with them."""

from __future__ import annotations

import gc
import json
from array import array
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cnnctl.data.coco_shapes import kind
from cnnctl.data.faults import KEPT, faulty
from cnnctl.data.image_file import printable
from cnnctl.errors import Exit, UserError


@dataclass
class Faults:
    """What is wrong with some records of a file, and how many there are."""

    rows: list[tuple[str | None, str]] = field(default_factory=list)  # record, problem; the first
    count: int = 0

    def add(self, record: str | None, problem: str) -> None:
        if len(self.rows) < KEPT:
            self.rows.append((record, problem))
        self.count += 1

    def tell(self, file: Path) -> None:
        """Raise all of them, the first as the message.

        Raises:
            Faulty: there is one at least (code 3).
        """
        if not self.count:
            return
        name = printable(file)
        rows = [(name, record, problem, None) for record, problem in self.rows]
        raise faulty(rows, self.count, "correct the file, or take the records out of it")


def together(*several: Faults) -> Faults:
    """Those of all kinds, one kind behind the other."""
    rows = [row for faults in several for row in faults.rows]
    return Faults(rows, sum(faults.count for faults in several))


class Wrong(ValueError):
    """What is wrong with a record: ``field: problem``."""


def parse(file: Path, raw: bytes, advice: str) -> Any:
    """What a JSON file holds; NaN and Infinity, which are no JSON, are numbers to be refused later.

    Raises:
        UserError: it cannot be read as JSON; ``advice`` says what it must be.
    """
    try:
        return json.loads(raw, object_pairs_hook=_record)
    except RecursionError:
        problem = "is nested too deeply to be an annotation file"
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        problem = f"is no whole JSON file: {error.msg} at {where}"
    except UnicodeDecodeError:
        problem = "is no text in UTF-8"
    except ValueError as error:  # ours, or of a number with thousands of digits
        problem = f"is no JSON that can be used: {error}"
    raise UserError(problem, file=printable(file), advice=advice, code=Exit.DATA)


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


@contextmanager
def without_collection() -> Iterator[None]:
    """Millions of objects are made and none is garbage: looking for it takes half of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def records(rows: list[Any], name: str, faults: Faults) -> Iterator[tuple[str, dict[str, Any]]]:
    """(what to call it, record) of each that is an object; ``name`` is of the list."""
    for position, row in enumerate(rows):
        place = f"{name}[{position}]"
        if isinstance(row, dict):
            number = row.get("id")
            yield (f"{place} (id {number})" if type(number) is int else place), row
        else:
            faults.add(place, f"is {kind(row)}, must be an object")


def whole(row: dict[str, Any], key: str) -> int:
    """A whole number; 5.0 is none."""
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, int):
        problem = "is missing" if key not in row else f"is {kind(value)}, must be a whole number"
        raise Wrong(f"{key}: {problem}")
    if abs(value) >= 1 << 63:
        raise Wrong(f"{key}: is beyond 64 bits")
    return value


def text(row: dict[str, Any], key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value.isprintable() or not value:
        raise Wrong(f"{key}: {'is missing' if key not in row else 'must be text'}")
    return value
