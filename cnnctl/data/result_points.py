"""The keypoints of results in COCO's format: x, y and a third number of each point, in one list."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnnctl.data.coco_json import Wrong
from cnnctl.data.coco_shapes import kind

_FAR = 1e6  # pixels: what lies beyond is no place in an image


def points_of(rows: Sequence[Any], count: int) -> NDArray[np.float64] | None:
    """(D, J, 3) of each result, which has ``count`` points; None if some are wrong."""
    try:
        points = [row["keypoints"] for row in rows]
        if set(map(len, points)) - {3 * count} or set(map(type, points)) - {list}:
            return None
        if set(map(type, chain.from_iterable(points))) - {int, float}:
            return None
        found = np.array(points, np.float64).reshape(-1, count, 3)
    except (TypeError, KeyError, OverflowError):
        return None
    return found if (np.abs(found) <= _FAR).all() else None


def boxed(rows: Sequence[Any], points: NDArray[np.float64]) -> list[dict[str, Any]]:
    """The results, each with a box: where it says none, the one around its points."""
    low, high = points[..., :2].min(1), points[..., :2].max(1)
    boxes = np.concatenate([low, high - low], 1).tolist()
    return [
        row if "bbox" in row else {**row, "bbox": box} for row, box in zip(rows, boxes, strict=True)
    ]


def check_result(row: Mapping[str, Any], count: int) -> None:
    """Raise Wrong where a result does not have ``count`` points."""
    if "keypoints" not in row:
        raise Wrong("keypoints: is missing, and the task scores points")
    points = row["keypoints"]
    if not isinstance(points, list) or len(points) != 3 * count:
        found = f"{len(points):,} numbers" if isinstance(points, list) else kind(points)
        raise Wrong(f"keypoints: is {found}, must be x, y and a score of {count} points")
    for value in points:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise Wrong(f"keypoints: holds {kind(value)}, must hold numbers")
        if not abs(value) <= _FAR:
            raise Wrong(f"keypoints: holds {value}, which is no place in an image")
