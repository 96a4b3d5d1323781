"""Bars for the layers of a network: a pure function from figures to (H, W, 3) uint8."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from cnnctl.drawing import pictures

_MOST = 60  # layers that are drawn; of a deeper network every second, third, ... one
_PANELS = (  # kind of ``Watch``'s figures, title, colour, whether on a scale of powers of ten
    ("gradient", "norm of the gradient", "#4a7fb5", True),
    ("std", "deviation of the output", "#b5862a", True),
    ("zeros", "zeros after ReLU", "#cc2920", False),
)


def draw_layers(figures: Mapping[str, float]) -> Tensor:
    """Three panels with a bar for each layer, the first layer on top: gradients that vanish, and
    outputs and units that die, show as bars that shrink (or grow) from layer to layer.

    Args:
        figures: ``gradient/<layer>`` and so on, as of ``Watch.figures``.
    """
    names = list(dict.fromkeys(key.partition("/")[2] for key in figures))
    names = names[:: -(-len(names) // _MOST) or 1]
    height = max(1.2, 0.24 * len(names))
    axes = pictures._axes(9, height, left=pictures._inches(names, 10), right=0.2, bottom=0.2)
    axes.set_axis_off()
    for place, (kind, title, colour, powers) in enumerate(_PANELS):
        panel = axes.inset_axes((place / 3 + 0.01, 0, 0.31, 1))
        values = [figures.get(f"{kind}/{name}", math.nan) for name in names]
        rows = range(len(names))
        if powers:
            drawn = [value for value in values if math.isfinite(value) and value > 0]
            least, most = min(drawn, default=1e-3) / 3, max(drawn, default=1.0) * 3
            panel.set_xscale("log")
            panel.set_xlim(least, most)
            low, high = math.ceil(math.log10(least)), math.floor(math.log10(most))
            ticks = range(low, high + 1, max(1, (high - low) // 3))
            panel.set_xticks([10.0**power for power in ticks], [f"1e{power}" for power in ticks])
            panel.minorticks_off()
        else:
            panel.set_xlim(0, 1)
            panel.set_xticks([0, 0.5, 1], ["0", "50%", "100%"])
        panel.barh(rows, values, color=colour, height=0.75)
        panel.set_yticks(rows, names if place == 0 else [""] * len(names), fontsize=10)
        panel.set_ylim(len(names) - 0.4, -0.6)
        panel.set_title(title, fontsize=12)
        panel.spines[["top", "right"]].set_visible(False)
    return pictures._drawn(axes)
