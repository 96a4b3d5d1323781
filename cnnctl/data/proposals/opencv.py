"""opencv's contributed modules, asked for when they are needed: the rest runs without them."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from torch import Tensor

from cnnctl.errors import UserError


@functools.cache
def opencv() -> Any:
    """The module cv2, with ximgproc, one thread a process: images are what runs in parallel.

    Raises:
        UserError: it is not installed, or without the contributed modules.
    """
    try:
        import cv2
    except ImportError:
        raise _absent("these proposals need opencv-contrib, which is not installed") from None
    if not hasattr(getattr(cv2, "ximgproc", None), "createEdgeBoxes"):
        raise _absent("the opencv that is installed is one without its contributed modules")
    cv2.setNumThreads(1)
    return cv2


def _absent(problem: str) -> UserError:
    return UserError(
        problem,
        field="proposals",
        advice="pip install 'cnnctl[proposals]' (after pip uninstall opencv-python "
        "opencv-python-headless, where one of these is installed), or take "
        "proposals=sliding_windows",
    )


def rgb(image: Tensor, side: int) -> np.ndarray:
    """(C, h, w) uint8 -> (h, w, 3) uint8 with a longer side of ``side`` pixels."""
    cv2 = opencv()
    pixels = image.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()
    h, w = pixels.shape[:2]
    share = side / max(h, w)
    if share == 1:
        return pixels
    size = max(1, round(w * share)), max(1, round(h * share))
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if share < 1 else cv2.INTER_LINEAR)


def corners(rectangles: Any) -> np.ndarray:
    """opencv's x y width height -> (M, 4) float32 x1 y1 x2 y2."""
    boxes = np.asarray(rectangles, np.float32).reshape(-1, 4)
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
