"""What proposals find, drawn: pure functions from numbers to (H, W, 3) uint8."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from cnnctl.drawing import pictures
from cnnctl.metrics.proposal_recall import Recall

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PANEL = (5.6, 4.6)  # inches
_COLOURS = 10  # of matplotlib's default cycle
_STYLES: dict[int, Any] = {
    1000: "--",
    100: ":",
    10: "-.",
}  # of the first so many proposals; all: a solid line


def recall_curves(methods: Mapping[str, Recall], iou: float = 0.5) -> Tensor:
    """Recall over the number of proposals, and over IoU; a colour for each method.

    Hosang et al., arXiv:1502.05082, figures 4 and 5. Left: at one IoU, the numbers on a logarithmic
    axis. Right: of all proposals and of the first 1,000, 100 and 10, where a method has more.

    Args:
        methods: by name, in the order of the legend.
        iou: of the left panel, one of the thresholds of each.
    """
    from matplotlib.figure import Figure

    width, height = _PANEL
    figure = Figure(figsize=(2 * width + 0.6, height), dpi=100, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for place, (name, recall) in enumerate(methods.items()):
        colour, label = f"C{place % _COLOURS}", pictures._short(name)
        percent = [100 * share for share in recall.at(iou)]
        numbers = [max(1, count) for count in recall.counts]  # of none too, on this axis
        left.plot(numbers, percent, "o-", color=colour, label=label, linewidth=2)
        _over_iou(right, recall, colour)
    left.set_xscale("log")
    left.xaxis.set_major_formatter("{x:,.0f}")
    left.set_xlabel("proposals of an image", fontsize=12)
    left.set_ylabel("objects found (%)", fontsize=12)
    left.set_ylim(0, 101)
    left.set_title(f"at an IoU of {iou:g}", fontsize=14)
    right.set_xlabel("IoU of the best proposal", fontsize=12)
    right.set_title("of the first so many proposals", fontsize=14)
    for axes in (left, right):
        axes.grid(True, color="#e6e6e6", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    if methods:
        left.legend(fontsize=10, frameon=False, loc="upper left")
        _explain_styles(right)
    return pictures._drawn(left)


def _over_iou(axes: Axes, recall: Recall, colour: str) -> None:
    percent = 100 * recall.recall
    axes.plot(recall.ious, percent[-1].tolist(), color=colour, linewidth=2)
    for place, count in enumerate(recall.counts[:-1]):
        if count in _STYLES:
            axes.plot(recall.ious, percent[place].tolist(), _STYLES[count], color=colour)


def _explain_styles(axes: Axes) -> None:
    from matplotlib.lines import Line2D

    names: dict[str, Any] = {
        "all": "-",
        **{f"first {count:,}": style for count, style in _STYLES.items()},
    }
    lines = [Line2D([], [], color="black", linestyle=style) for style in names.values()]
    axes.legend(lines, list(names), fontsize=10, frameon=False, bbox_to_anchor=(1.01, 1), loc=2)
