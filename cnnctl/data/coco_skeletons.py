"""Keypoints in COCO's format: the points of a category, and where they are in a record."""

from __future__ import annotations

import math
from typing import Any

from cnnctl.data.coco_json import Wrong
from cnnctl.data.coco_shapes import kind
from cnnctl.skeleton import Pairs, Skeleton

_FAR = 1e6  # pixels: what lies beyond is no place in an image
_SIGMA = 0.07  # of points that COCO does not know: about the mean of its own

# COCO's 17 points of a person and their sigmas, "Keypoint Evaluation" on its site, and pycocotools.
_SIGMAS = {
    **{"nose": 0.026, "eye": 0.025, "ear": 0.035, "shoulder": 0.079, "elbow": 0.072},
    **{"wrist": 0.062, "hip": 0.107, "knee": 0.087, "ankle": 0.089},
}

Points = tuple[tuple[str, ...], Pairs]  # names and sticks
NO_POINTS: Points = ((), ())


def points_of(category: dict[str, Any]) -> Points:
    """The names of a category's points, none where it has none, and the sticks between them.

    Raises:
        Wrong: they are not what they must be.
    """
    names = category.get("keypoints")
    if names is None:
        return NO_POINTS
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise Wrong(f"keypoints: is {kind(names)}, must be a list of names")
    if len(set(names)) < len(names):
        raise Wrong("keypoints: two points have one name")
    sticks = []
    for pair in category.get("skeleton") or []:
        whole = isinstance(pair, list) and len(pair) == 2 and all(type(n) is int for n in pair)
        if not whole or not all(1 <= number <= len(names) for number in pair):
            raise Wrong(f"skeleton: {pair} is no pair of points from 1 to {len(names)}")
        sticks.append((pair[0] - 1, pair[1] - 1))
    return tuple(names), tuple(sticks)


def check_points(row: dict[str, Any], count: int) -> list[float]:
    """x, y and visibility of ``count`` points of an annotation, one after the other.

    Points that have none are zeros.

    Raises:
        ValueError: they are not what they must be.
    """
    points = row.get("keypoints")
    if points is None:
        raise ValueError("keypoints: is missing")
    if not isinstance(points, list) or len(points) != 3 * count:
        found = f"{len(points):,} numbers" if isinstance(points, list) else kind(points)
        raise ValueError(f"keypoints: is {found}, must be x, y and visibility of {count} points")
    for value in points:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"keypoints: holds {kind(value)}, must hold numbers")
        if not math.isfinite(value) or abs(value) > _FAR:
            raise ValueError(f"keypoints: holds {value}, which is no place in an image")
    seen = points[2::3]
    if wrong := set(seen) - {0, 1, 2}:
        raise ValueError(f"keypoints: a visibility is {min(wrong)}, must be 0, 1 or 2")
    told = row.get("num_keypoints")
    labelled = sum(value > 0 for value in seen)
    if told is not None and told != labelled:
        raise ValueError(f"num_keypoints: is {told}, {labelled} points have a visibility")
    return [value if points[i - i % 3 + 2] else 0.0 for i, value in enumerate(points)]


def skeleton_of(points: Points) -> Skeleton:
    """What the points of a category are: a mirror exchanges those that are called left and right.

    COCO's own points have COCO's sigmas, others one for all. The reference is a person's torso, as
    COCO's names have it; else the first and the last point.
    """
    names, sticks = points
    place = {name: number for number, name in enumerate(names)}
    swap = tuple(
        (number, place[other])
        for name, number in place.items()
        if name.startswith("left") and (other := f"right{name[4:]}") in place
    )
    sigmas = tuple(_SIGMAS.get(name.partition("_")[2] or name, _SIGMA) for name in names)
    if any(name.rpartition("_")[2] not in _SIGMAS for name in names):
        sigmas = (_SIGMA,) * len(names)
    torso = (place.get("left_shoulder"), place.get("right_hip"))
    first, second = torso
    reference = (0, len(names) - 1) if first is None or second is None else (first, second)
    return Skeleton(names, sticks, swap, sigmas, reference)
