"""Sides of the maps that a chain of layers makes, without running it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn


def map_side(layers: Iterable[nn.Module], side: int) -> int:
    """Pixels along one axis after all of ``layers``; 0 where a window does not fit.

    A layer with a ``kernel_size`` (convolution, pooling) has a square window of that side; every
    other one keeps the map.
    """
    for layer in layers:
        if side > 0 and hasattr(layer, "kernel_size"):
            side = _windows(layer, side)
    return max(side, 0)


def smallest_side(layers: Iterable[nn.Module]) -> int:
    """The smallest input side that leaves a pixel after all of ``layers``."""
    chain = list(layers)
    side = 1
    while map_side(chain, side) < 1:
        side += 1
    return side


def map_size(layers: Iterable[nn.Module], size: tuple[int, int], name: str) -> tuple[int, int]:
    """(h, w) of the last map of ``layers`` for an input of ``size`` (h, w).

    Raises:
        ValueError: nothing is left of it; the sentence says ``name`` and the size that is needed.
    """
    chain = list(layers)
    height, width = (map_side(chain, side) for side in size)
    if not (height and width):
        needed = smallest_side(chain)
        raise ValueError(
            f"{name} needs images of at least {needed} x {needed}, got {size[0]} x {size[1]}"
        )
    return height, width


def _windows(layer: Any, side: int) -> int:
    """Places where a layer's window fits: torch's own rule for convolutions and poolings."""
    kernel, stride, padding, dilation = (
        value if isinstance(value, int) else value[0]
        for value in (layer.kernel_size, layer.stride, layer.padding, getattr(layer, "dilation", 1))
    )
    room = side + 2 * padding - dilation * (kernel - 1) - 1
    if not getattr(layer, "ceil_mode", False):
        return room // stride + 1
    count = -(-room // stride) + 1
    # The last window has to start inside of the map or of the padding before it.
    return count - 1 if (count - 1) * stride >= side + padding else count
