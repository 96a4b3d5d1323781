"""The figures of ``cnnctl bench``: in lines as wide as the terminal, and as plain values."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cnnctl.commands.info import scaled
from cnnctl.engine.operator_times import KINDS
from cnnctl.engine.stopwatch import Times


@dataclass(frozen=True)
class Row:
    """One part of one variant.

    Args:
        images: of a turn; 0 where none are gone through.
        flops: of a turn (convolutions and matrix products; a multiply-add counts 2).
        peak: FLOP/s that were measured in its precision.
        memory: bytes, the weights and what belongs to them included.
        ratio: images/s (or turns/s) over those of the base.
    """

    part: str
    variant: str
    times: Times
    images: int
    flops: int | None
    peak: float | None
    memory: int | None
    ratio: float

    @property
    def rate(self) -> float:
        """Images a second; turns, where none are gone through."""
        return (self.images or 1) / self.times.median

    @property
    def reached(self) -> float | None:
        """FLOP/s."""
        return self.flops / self.times.median if self.flops else None

    def record(self) -> dict[str, Any]:
        reached = self.reached
        return {
            "part": self.part,
            "variant": self.variant,
            "turns": len(self.times.seconds),
            "median_ms": 1000 * self.times.median,
            "quartiles_ms": [1000 * seconds for seconds in self.times.spread],
            "images": self.images,
            "images_per_second": self.rate if self.images else None,
            "flops": self.flops,
            "flops_per_second": reached,
            "of_peak": reached / self.peak if reached and self.peak else None,
            "peak_memory": self.memory,
            "speed": self.ratio,
        }

    def cells(self) -> list[str]:
        low, high = self.times.spread
        off = 100 * (high - low) / 2 / self.times.median
        reached = self.reached
        return [
            _digits(1000 * self.times.median),
            f"±{off:.0f} %",
            _digits(self.rate) if self.images else "",
            scaled(reached) if reached else "",
            f"{100 * reached / self.peak:.0f} %" if reached and self.peak else "",
            f"{scaled(self.memory)}B" if self.memory is not None else "",
            f"{self.ratio:.2f}x",
        ]


_COLUMNS = ("ms", "spread", "images/s", "FLOP/s", "of peak", "memory", "speed")
_NUMBER = 10  # columns that a variant's number takes, where its name is too long


def labels(variants: Sequence[str], width: int) -> dict[str, str]:
    """What each variant is called in a table ``width`` wide: itself, or its number."""
    short = {name: name.replace("trainer.", "") for name in variants}
    if len(set(short.values())) < len(short):
        short = {name: name for name in variants}
    if max(map(len, short.values())) <= width:
        return short
    numbers = {name: f"variant {index}" for index, name in enumerate(variants)}
    return {**numbers, variants[0]: variants[0]}


def room(rows: Sequence[Row], width: int) -> int:
    """Columns that are left for the variants' names."""
    return max(_NUMBER, width - sum(length + 2 for length in _widths([_COLUMNS, *_all(rows)])) - 2)


def lines(rows: Sequence[Row], called: Mapping[str, str]) -> list[str]:
    """A heading for each part, and a line for each variant below it; no column that is empty."""
    everything = [_COLUMNS, *_all(rows)]
    filled = [any(column[1:]) for column in zip(*everything, strict=True)]
    table = [list(itertools.compress(cells, filled)) for cells in everything]
    widths = _widths(table)
    first = max(len(called[row.variant]) + 2 for row in rows)
    printed = [_line("", table[0], first, widths)]
    part = None
    for row, cells in zip(rows, table[1:], strict=True):
        if row.part != part:
            part = row.part
            printed.append(part)
        printed.append(_line(f"  {called[row.variant]}", cells, first, widths))
    return printed


def profile_lines(
    profiles: Mapping[str, Mapping[str, float]], called: Mapping[str, str], width: int
) -> list[str]:
    """A line for each kind of operator, a column for each variant; as many as go beside another."""
    first = max(map(len, KINDS)) + 2
    printed: list[str] = []
    left = list(profiles)
    while left:
        taken, used = [left.pop(0)], first + 2 + len(called[next(iter(profiles))])
        while left and used + 2 + len(called[left[0]]) <= width:
            used += 2 + len(called[left[0]])
            taken.append(left.pop(0))
        widths = [max(5, len(called[name])) for name in taken]
        printed.append(_line("", [called[name] for name in taken], first, widths))
        for kind in KINDS:
            shares = [100 * profiles[name].get(kind, 0.0) for name in taken]
            if any(profiles[name].get(kind) for name in profiles):
                cells = [f"{share:.1f} %" if share else "" for share in shares]
                printed.append(_line(f"  {kind}", cells, first, widths))
    return printed


def _all(rows: Sequence[Row]) -> list[list[str]]:
    return [row.cells() for row in rows]


def _widths(table: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(len, column)) for column in zip(*table, strict=True)]


def _line(name: str, cells: Sequence[str], first: int, widths: Sequence[int]) -> str:
    right = (f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
    return "  ".join([f"{name:<{first}}", *right]).rstrip()


def _digits(value: float) -> str:
    """Three digits at least."""
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f}"
