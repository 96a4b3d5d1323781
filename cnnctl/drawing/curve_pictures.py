"""Curves of several runs in one figure: pure functions from numbers to (H, W, 3) uint8."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from cnnctl.drawing import pictures

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PANEL = (5.6, 4.6)  # inches
_COLOURS = 10  # of matplotlib's default cycle


@dataclass(frozen=True)
class Curves:
    """A run of ``error_curves``: what its training and its held-out images said, by epoch.

    Args:
        name: of its lines; runs of one name have one colour in all panels.
        panel: the title of the part of the figure that it is drawn in.
        epochs: where it was evaluated.
        train, held_out: error, 0 to 1, at each of them.
        test: error on the test images, of the weights that were best; None where not known.
    """

    name: str
    panel: str
    epochs: Sequence[float]
    train: Sequence[float]
    held_out: Sequence[float]
    test: float | None = None


def error_curves(runs: Sequence[Curves], metric: str = "top1") -> Tensor:
    """Error against epochs: training dashed, held-out solid, test a dot at the end.

    He et al., "Deep residual learning for image recognition", arXiv:1512.03385, figure 6: a panel
    for plain networks beside one for residual ones, on the same axes.

    Args:
        metric: of what 1 is no error.
    """
    from matplotlib.figure import Figure

    panels = list(dict.fromkeys(run.panel for run in runs))
    names = list(dict.fromkeys(run.name for run in runs))
    width, height = _PANEL
    figure = Figure(figsize=(width * len(panels) + 0.6, height), dpi=100, layout="constrained")
    parts = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axes, panel in zip(parts, panels, strict=True):
        for run in runs:
            if run.panel == panel:
                _draw(axes, run, f"C{names.index(run.name) % _COLOURS}")
        axes.set_title(panel, fontsize=14)
        axes.set_xlabel("epoch", fontsize=12)
        axes.grid(True, color="#e6e6e6", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=10, frameon=False, title="- - training   — held out   ● test")
    parts[0].set_ylabel(f"error (%), 100 - {metric}", fontsize=12)
    parts[0].set_ylim(0, 100 * highest(runs))
    return pictures._drawn(parts[0])


def _draw(axes: Axes, run: Curves, colour: str) -> None:
    percent = [[100 * value for value in values] for values in (run.train, run.held_out)]
    axes.plot(run.epochs, percent[0], "--", color=colour, linewidth=1.2)
    axes.plot(run.epochs, percent[1], color=colour, linewidth=2, label=pictures._short(run.name))
    if run.test is not None:
        axes.plot(run.epochs[-1], 100 * run.test, "o", color=colour, clip_on=False)


def highest(runs: Sequence[Curves]) -> float:
    """Where the axis ends: what comes after the first third of each run is below it."""
    later = [
        value
        for run in runs
        for values in (run.train, run.held_out)
        for value in values[len(values) // 3 :]
        if math.isfinite(value)
    ]
    return min(1.0, 1.1 * max([0.01, *later, *(run.test or 0.0 for run in runs)]))
