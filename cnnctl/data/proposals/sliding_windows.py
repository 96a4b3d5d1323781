"""Windows of several sizes and shapes at every place of a grid: proposals that do not look.

Differs from a detector that slides one window over a pyramid of the image: the window takes the
sizes, the image stays as it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor

from cnnctl.data.proposals.base import ProposalMethod, chosen

_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True, kw_only=True)
class SlidingWindows(ProposalMethod):
    """Every scale with every ratio, the area kept, from edge to edge of the image.

    Without a score no window is likelier than another. The windows are visited with a stride of
    about 0.618 of their number, so that the first n of them are spread evenly over sizes, shapes
    and places for every n; where there are more than ``count``, the first ``count`` are taken.

    Args:
        scales: sides of the square of a window's area: up to 1 shares of the image's shorter side,
            above 1 pixels.
        ratios: height / width.
        strides: from one window to the next: below 1 shares of the window's own width and height,
            from 1 on pixels. One for all scales, or one for each. The last window of a row and of
            a column ends at the image's edge; those between are spread evenly.

    Raises:
        ValueError: a number is out of range.
    """

    scales: tuple[float, ...] = (0.25, 0.35, 0.5, 0.7, 1.0)
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    strides: tuple[float, ...] = (0.25,)
    count: int = 2000
    looks: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("scales", "ratios", "strides"):
            values = getattr(self, name)
            if not values or not all(0 < value < math.inf for value in values):
                raise ValueError(f"{name} must be numbers above 0, got {list(values)}")
        if len(self.strides) not in (1, len(self.scales)):
            raise ValueError(
                f"strides must be one number or {len(self.scales)}, one for each scale, got "
                f"{list(self.strides)}"
            )

    def propose(self, image: Tensor) -> Tensor:
        h, w = image.shape[-2:]
        windows = np.unique(np.concatenate(self._windows(h, w)), axis=0)  # ordered by their place
        return chosen(windows[evenly(len(windows))], (h, w), self.count)

    def _windows(self, h: int, w: int) -> list[np.ndarray]:
        """A (M, 4) grid of windows in whole pixels for each scale and ratio."""
        strides = self.strides * (len(self.scales) if len(self.strides) == 1 else 1)
        grids = []
        for scale, stride in zip(self.scales, strides, strict=True):
            side = scale * min(h, w) if scale <= 1 else scale
            for ratio in self.ratios:
                x1, x2 = _places(w, side / math.sqrt(ratio), stride)
                y1, y2 = _places(h, side * math.sqrt(ratio), stride)
                grid = np.stack([*np.meshgrid(x1, y1), *np.meshgrid(x2, y2)], -1)
                grids.append(grid.reshape(-1, 4))
        return grids


def _places(length: int, side: float, stride: float) -> tuple[np.ndarray, np.ndarray]:
    """Where windows of ``side`` begin and end along ``length`` pixels, from edge to edge."""
    side = min(max(1, round(side)), length)
    step = max(stride * side if stride < 1 else stride, 1)
    starts = np.linspace(0, length - side, math.ceil((length - side) / step) + 1).round()
    return starts, starts + side


def evenly(total: int) -> np.ndarray:
    """An order of ``total`` things in a row whose every beginning is spread over the whole row.

    Steps of the golden section of ``total``, round and round (Weyl's sequence).
    """
    step = max(1, round(total * _GOLDEN))
    while math.gcd(step, total) != 1:
        step += 1
    return np.arange(total) * step % total
