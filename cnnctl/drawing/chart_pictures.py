"""Charts of detectors: pure functions from numbers to (H, W, 3) uint8, drawn by matplotlib."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from cnnctl.data.palette import Colour
from cnnctl.drawing import pictures

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_CURVES = 20  # classes up to which each curve has its colour and its name
_NAMED = 6  # of more classes: the best and the worst that have
_GREY, _GREEN, _RED, _BLUE = "#b8b8b8", "#1a8c50", "#cc2920", "#4a7fb5"
_DARKEST = 0.5  # of a line on white: colours meant for photographs are made this dark

Curve = tuple[Sequence[float], Sequence[float]]  # recall, precision


@dataclass(frozen=True)
class Detector:
    """A point of ``speed_accuracy``.

    Args:
        name: beside its point.
        milliseconds: of an image.
        ap: average precision, 0 to 1.
        params: numbers in the network.
    """

    name: str
    milliseconds: float
    ap: float
    params: float


def precision_recall(
    curves: Mapping[str, Curve],
    ap: Mapping[str, float],
    colours: Mapping[str, Colour],
    title: str = "precision and recall of each class",
) -> Tensor:
    """A line for each class; of many classes the best (solid) and the worst (dashed) have a name.

    Args:
        curves: recall and precision of each class, by falling score.
        ap: what a class's area under its curve is.
    """
    ranked = sorted(curves, key=lambda name: -_known(ap.get(name, 0.0)))
    many = len(ranked) > _CURVES
    named = [*ranked[:_NAMED], *ranked[-_NAMED:]] if many else ranked
    longest = max((len(pictures._short(name)) for name in named), default=0)
    axes = pictures._axes(6, 5, left=0.4, right=0.8 + 0.11 * (longest + 6), bottom=0.1)
    for name in [name for name in ranked if name not in named]:
        axes.plot(*_stepped(curves[name]), color=_GREY, linewidth=0.8)
    for place, name in enumerate(named):
        label = pictures._short(name)
        if name in ap and not math.isnan(ap[name]):
            label += f"  {ap[name]:.1%}"
        dashed = place >= _NAMED if many else place % 2
        style = "--" if dashed else "-"
        colour = f"C{place % _NAMED}" if many else _dark(colours.get(name, (120, 120, 120)))
        axes.plot(
            *_stepped(curves[name]), color=colour, label=label, linewidth=2.2, linestyle=style
        )
    if named:
        axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1.02), fontsize=11, frameon=False)
    _unit(axes.set_xlim, axes.set_xticks)
    _unit(axes.set_ylim, axes.set_yticks)
    axes.set_xlabel("recall: objects that are found", fontsize=12)
    axes.set_ylabel("precision: detections that are right", fontsize=12)
    _plain(axes, title)
    return pictures._drawn(axes)


def _stepped(curve: Curve) -> tuple[list[float], list[float]]:
    """From recall 0 on, and down to precision 0 where the last object found is not the last."""
    recall, precision = ([float(v) for v in values] for values in curve)
    if not recall:
        return [0.0], [0.0]
    return [0.0, *recall, recall[-1]], [precision[0], *precision, 0.0]


def _unit(limits: Any, ticks: Any) -> None:
    limits(0, 1.02)
    ticks([0, 0.25, 0.5, 0.75, 1], ["0", "25%", "50%", "75%", "100%"])


def errors(counts: Mapping[str, float], right: float | None = None) -> Tensor:
    """A bar for each kind of error, in the order given, with its count and share.

    Args:
        counts: by the name of the kind.
        right: how many detections are right, for the title.
    """
    total = sum(counts.values())
    names = list(counts)
    axes = pictures._axes(
        6, 0.5 * max(len(names), 1), left=pictures._inches(names, 13), right=1.2, bottom=0.1
    )
    most = max([1.0, *counts.values()])
    axes.barh(range(len(names)), [counts[name] for name in names], color=_RED, height=0.7)
    axes.set_yticks(range(len(names)), names, fontsize=13)
    for place, name in enumerate(names):
        text = f"{counts[name]:,.0f} ({counts[name] / max(total, 1):.0%})"
        axes.text(counts[name] + most * 0.015, place, text, va="center", fontsize=12)
    axes.set_xlim(0, most * 1.02)
    axes.set_ylim(len(names) - 0.4, -0.6)  # the first on top
    title = f"{total:,.0f} errors by kind"
    _plain(axes, title if right is None else f"{title}, {right:,.0f} detections right")
    return pictures._drawn(axes)


def histogram(
    groups: Mapping[str, Sequence[float]],
    edges: Sequence[float],
    title: str,
    label: str,
    log: bool = False,
) -> Tensor:
    """How often values lie in each part, for up to three groups: green, red and blue.

    Args:
        groups: (B,) counts of each part, by the name of the group.
        edges: (B + 1,) of the parts, which are drawn equally wide.
        label: of the horizontal axis.
        log: counts by their order of magnitude.
    """
    axes = pictures._axes(6, 3.6, left=0.3, right=0.1, bottom=0.1)
    parts = len(edges) - 1
    width = 0.86 / max(len(groups), 1)
    for place, (name, counts) in enumerate(groups.items()):
        x = [part + 0.07 + (place + 0.5) * width for part in range(parts)]
        colour = (_GREEN, _RED, _BLUE)[place]
        axes.bar(x, list(counts), width, color=colour, label=f"{name} ({sum(counts):,.0f})")
    if log and any(map(any, groups.values())):
        axes.set_yscale("log")
        axes.set_ylim(bottom=0.5)
        axes.yaxis.set_major_formatter("{x:,.0f}")
    step = 1 if parts <= 12 else max(1, parts // 10)
    ticks = range(0, parts + 1, step)
    axes.set_xticks(list(ticks), [f"{edges[tick]:g}" for tick in ticks])
    axes.set_xlim(0, parts)
    axes.set_xlabel(label, fontsize=12)
    if groups:
        axes.legend(fontsize=11, frameon=False)
    _plain(axes, title)
    return pictures._drawn(axes)


def speed_accuracy(detectors: Sequence[Detector], metric: str = "AP") -> Tensor:
    """Accuracy over time of each detector, its area its parameters; the front is a dashed line.

    Huang et al., "Speed/accuracy trade-offs for modern convolutional object detectors",
    arXiv:1611.10012, figure 2. On the front no other detector is both faster and better.

    Args:
        metric: what the accuracy is called.
    """
    known = [one for one in detectors if one.milliseconds > 0 and math.isfinite(one.ap)]
    axes = pictures._axes(8, 5.2, left=0.3, right=0.4, bottom=0.15)
    axes.set_xscale("log")
    largest = max((one.params for one in known), default=1) or 1
    areas = [80 + 900 * one.params / largest for one in known]  # square points
    x, y = [one.milliseconds for one in known], [100 * one.ap for one in known]
    best = front(known)
    line = [(one.milliseconds, 100 * one.ap) for one in best]
    axes.plot([p for p, _ in line], [p for _, p in line], "--", color="#555555", zorder=1)
    colours = [_GREEN if one in best else _BLUE for one in known]
    axes.scatter(x, y, s=areas, c=colours, alpha=0.75, edgecolors="black", zorder=2)
    _spread(axes, x, y)
    _names(axes, known, areas)
    axes.set_xlabel("milliseconds for an image", fontsize=13)
    axes.set_ylabel(f"{metric} (%)", fontsize=13)
    axes.grid(True, which="both", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    _plain(axes, "speed and accuracy (area: parameters; green: none is faster and better)")
    return pictures._drawn(axes)


def front(detectors: Sequence[Detector]) -> list[Detector]:
    """Those to which no other is preferred in both time and accuracy, the fastest first."""
    kept: list[Detector] = []
    for one in sorted(detectors, key=lambda one: (one.milliseconds, -one.ap)):
        if not kept or one.ap > kept[-1].ap:
            kept.append(one)
    return kept


def _spread(axes: Axes, x: Sequence[float], y: Sequence[float]) -> None:
    """Limits with room for names round the outermost points, and ticks that are read as numbers."""
    from matplotlib.ticker import NullFormatter

    low, high = (min(x), max(x)) if x else (1.0, 10.0)
    low, high = low / max(1.3, (high / low) ** 0.12), high * max(1.6, (high / low) ** 0.2)
    axes.set_xlim(low, high)
    ticks = [m * 10**e for e in range(-3, 7) for m in (1, 2, 5) if low <= m * 10**e <= high]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.xaxis.set_minor_formatter(NullFormatter())
    bottom, top = (min(y), max(y)) if y else (0.0, 100.0)
    room = max(2.0, 0.15 * (top - bottom))
    axes.set_ylim(bottom - room, top + room)


def _names(axes: Axes, detectors: Sequence[Detector], areas: Sequence[float]) -> None:
    """A name and the millions of parameters beside each point, where no other one stands."""
    from matplotlib.patheffects import withStroke

    clear = [withStroke(linewidth=3, foreground="white")]  # of the lines behind it
    place = axes.transData.transform
    taken: list[tuple[float, float, float, float]] = []
    points = [place((one.milliseconds, 100 * one.ap)).tolist() for one in detectors]
    radii = [math.sqrt(area / math.pi) * 100 / 72 for area in areas]  # pixels
    for (px, py), radius in zip(points, radii, strict=True):
        taken.append((px - radius, py - radius, px + radius, py + radius))
    for one, (px, py), radius in zip(detectors, points, radii, strict=True):
        text = f"{pictures._short(one.name, 28)} ({one.params / 1e6:.1f} M)"
        width, height, gap = 8.4 * len(text), 16.0, radius + 5
        sides = [
            ("left", px + gap, py),
            ("center", px, py + gap + height / 2),
            ("center", px, py - gap - height / 2),
            ("right", px - gap, py),
            ("center", px, py + gap + 1.5 * height),
            ("center", px, py - gap - 1.5 * height),
        ]
        boxes = []
        for how, x, y in sides:
            left = {"left": x, "center": x - width / 2, "right": x - width}[how]
            boxes.append((left, y - height / 2, left + width, y + height / 2))
        inside = axes.bbox
        costs = [
            sum(_common(box, other) for other in taken)
            + 4 * height * (max(inside.x0 - box[0], 0) + max(box[2] - inside.x1, 0))
            for box in boxes
        ]
        chosen = costs.index(min(costs))
        taken.append(boxes[chosen])
        how, x, y = sides[chosen]
        x, y = axes.transData.inverted().transform((x, y))
        axes.text(x, y, text, ha=how, va="center", fontsize=11, zorder=3, path_effects=clear)


def _common(
    one: tuple[float, float, float, float], other: tuple[float, float, float, float]
) -> float:
    across = min(one[2], other[2]) - max(one[0], other[0])
    return max(across, 0.0) * max(min(one[3], other[3]) - max(one[1], other[1]), 0.0)


def _plain(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=14)
    axes.spines[["top", "right"]].set_visible(False)


def _dark(colour: Colour) -> tuple[float, float, float]:
    """A colour as matplotlib has it, as dark as a line on white must be to be seen."""
    red, green, blue = (level / 255 for level in colour)
    light = 0.299 * red + 0.587 * green + 0.114 * blue
    factor = min(1.0, _DARKEST / light) if light else 1.0
    return red * factor, green * factor, blue * factor


def _known(value: float) -> float:
    return value if math.isfinite(value) else -1.0
