"""Where the time of an image goes: a pure function from numbers to (H, W, 3) uint8."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from cnnctl.drawing import pictures
from cnnctl.ops.clock import OTHER, PARTS, in_order

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = ("#e8a33d", "#4a7fb5", "#cc2920", "#1a8c50", "#8c5fa8", "#6b4c35")  # of parts, in order
_GREY = "#b8b8b8"  # of what has no name
_WIDTH, _ROW, _AROUND = 13.0, 0.8, 2.2  # inches of the figure, of a detector, of title and axes
_LETTER = 9.0  # pixels of a letter of the numbers within a bar


@dataclass(frozen=True)
class TimedDetector:
    """A bar of ``time_parts``.

    Args:
        name: beside it.
        parts: milliseconds of each.
        milliseconds: of an image, all parts together.
        accuracy: 0 to 1.
        remark: behind its bar.
    """

    name: str
    parts: Mapping[str, float]
    milliseconds: float
    accuracy: float
    remark: str = ""


def time_parts(detectors: Sequence[TimedDetector], metric: str) -> Tensor:
    """A bar for each detector, in the order given: test time on the left, accuracy on the right.

    The fastest may take a thousandth of the slowest, so that the length of a bar is the logarithm
    of its time; its colours are the shares of its parts, which have their milliseconds where there
    is room.

    Args:
        metric: what the accuracy is called.
    """
    from matplotlib.figure import Figure

    size = (_WIDTH, _AROUND + _ROW * len(detectors))
    figure = Figure(figsize=size, dpi=100, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(4, 1))
    names = in_order(part for one in detectors for part in one.parts)
    known = zip(in_order((*PARTS, *names)), _COLOURS * len(names), strict=False)
    every = {**dict(known), OTHER: _GREY}
    colours = {name: every[name] for name in names}
    start = _limits(left, [one.milliseconds for one in detectors])
    left.set_yticks(range(len(detectors)), [pictures._short(one.name) for one in detectors])
    left.set_ylim(len(detectors) - 0.4, -0.6)  # the first on top
    left.set_xlabel("milliseconds for an image", fontsize=14)
    left.grid(True, axis="x", color="#e6e6e6", linewidth=0.8)
    figure.canvas.draw()  # where things are, which the numbers need
    for row, one in enumerate(detectors):
        _bar(left, row, one, colours, start)
    for part, colour in colours.items():
        left.barh(0, 0, color=colour, label=part)
    figure.legend(loc="outside lower left", ncols=len(names), fontsize=13, frameon=False)
    _accuracies(right, detectors, metric)
    for axes in (left, right):
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=14)
        axes.spines[["top", "right"]].set_visible(False)
    left.set_title("test time (length: logarithm; colours: shares of its parts, ms)", fontsize=15)
    return pictures._drawn(left)


def _limits(axes: Axes, milliseconds: Sequence[float]) -> float:
    """A logarithmic axis with room behind the longest bar; where the bars begin."""
    from matplotlib.ticker import NullFormatter

    low, high = min(milliseconds), max(milliseconds)
    start = low / max(4.0, (high / low) ** 0.3)
    axes.set_xscale("log")
    axes.set_xlim(start, high * (high / start) ** 0.3)
    between = (1,) if high > 100 * start else (1, 2, 5)
    ticks = [m * 10**e for e in range(-4, 8) for m in between if start <= m * 10**e <= high * 1.01]
    axes.set_xticks(ticks, [f"{tick:,g}" for tick in ticks])
    axes.xaxis.set_minor_formatter(NullFormatter())
    return start


def _bar(
    axes: Axes, row: int, one: TimedDetector, colours: Mapping[str, str], start: float
) -> None:
    total, place = sum(one.parts.values()), start
    growth = one.milliseconds / start
    for part, colour in colours.items():
        taken = one.parts.get(part, 0.0)
        if not taken or not total:
            continue
        end = place * growth ** (taken / total)
        axes.barh(row, end - place, left=place, color=colour, height=0.66)
        text = f"{taken:,.0f}" if taken >= 10 else f"{taken:.1f}"
        if _pixels(axes, place, end) > _LETTER * (len(text) + 1):
            middle = (place * end) ** 0.5
            axes.text(middle, row, text, ha="center", va="center", fontsize=13, color="white")
        place = end
    shown = f"{one.milliseconds:,.0f}" if one.milliseconds >= 10 else f"{one.milliseconds:.2g}"
    text = f" {shown} ms" + (f"\n {one.remark}" if one.remark else "")
    axes.text(one.milliseconds, row, text, va="center", fontsize=13)


def _pixels(axes: Axes, start: float, end: float) -> float:
    place = axes.transData.transform
    return float(place((end, 0))[0] - place((start, 0))[0])


def _accuracies(axes: Axes, detectors: Sequence[TimedDetector], metric: str) -> None:
    percent = [100 * one.accuracy for one in detectors]
    axes.barh(range(len(detectors)), percent, color="#555555", height=0.66)
    for row, value in enumerate(percent):
        if math.isnan(value):
            continue
        inside = value > 50
        axes.text(
            value - 2 if inside else value + 2,
            row,
            f"{value:.1f}",
            ha="right" if inside else "left",
            va="center",
            fontsize=13,
            color="white" if inside else "black",
        )
    axes.set_xlim(0, 100)
    axes.set_xlabel("%", fontsize=14)
    axes.tick_params(labelleft=False)
    axes.set_title(metric, fontsize=15)
