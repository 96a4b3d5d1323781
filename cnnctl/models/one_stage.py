"""What RetinaNet and FCOS have in common besides their operators (cnnctl/ops/levels.py)."""

from __future__ import annotations

from collections.abc import Sequence

from cnnctl.backbones.base import Backbone
from cnnctl.backbones.pyramid import Pyramid

SMALL = 256  # pixels of the shorter side below which the papers' numbers are too much
GROUPS = 32  # of group normalisation


def width_for(size: tuple[int, int]) -> int:
    """Channels of pyramid and head where none are asked for, for a training input of (h, w)."""
    return 256 if min(size) >= SMALL else 128


def pyramid_of(
    backbone: Backbone,
    maps: Sequence[str],
    coarse: bool | None,
    width: int,
    size: tuple[int, int],
    frozen_norm: bool,
) -> Pyramid:
    """Levels of ``maps``, and P6 and P7 where they are wanted; None: if ``size`` is large enough.

    Raises:
        ValueError: the backbone lacks a map, or there is no level.
    """
    if not maps:
        raise ValueError("maps must name at least one map of the backbone, got none")
    if coarse is None:
        coarse = min(size) >= SMALL
    pyramid = Pyramid(backbone, maps, width, "p6p7_of_p5" if coarse else "pool", frozen_norm)
    if not coarse:
        pyramid.fpn.extra_blocks = None
        pyramid.strides.popitem()
    return pyramid


def require_counts(**values: int) -> None:
    """Raise ValueError where one is below 1, by its name."""
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


def require_shares(**values: float) -> None:
    """Raise ValueError where one is not from 0 to 1, by its name."""
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must be from 0 to 1, got {value:g}")
