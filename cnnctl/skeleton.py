"""What the keypoints of a data set are: their names, and how they hang together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

Pairs = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Skeleton:
    """The J points of a figure, by their position.

    Args:
        names: of the points.
        sticks: pairs of points to draw a line between; PCP's limbs.
        swap: pairs of points, left and right, that a mirror image exchanges.
        sigmas: (J,) how far annotators put a point from where it is, as a share of the root of the
            figure's area (COCO's sigmas): the scale of OKS.
        reference: two points whose distance PCK's threshold is a share of; for people the torso.

    Raises:
        ValueError: there is no such point, or one has two partners in a mirror.
    """

    names: tuple[str, ...]
    sticks: Pairs
    swap: Pairs
    sigmas: tuple[float, ...]
    reference: tuple[int, int]

    def __post_init__(self) -> None:
        count = len(self.names)
        if not count or len(set(self.names)) < count:
            raise ValueError(f"points must have different names, one at least, got {self.names}")
        if len(self.sigmas) != count or not all(sigma > 0 for sigma in self.sigmas):
            raise ValueError(f"each of {count} points needs a sigma above 0, got {self.sigmas}")
        swapped = [point for pair in self.swap for point in pair]
        if len(set(swapped)) < len(swapped):
            raise ValueError(f"a point is in two pairs of swap: {self.swap}")
        used = {*swapped, *self.reference, *(point for stick in self.sticks for point in stick)}
        if not used <= set(range(count)):
            raise ValueError(f"points are numbered 0 to {count - 1}, got {sorted(used)}")

    def __len__(self) -> int:
        return len(self.names)

    def mirrored(self) -> Tensor:
        """(J,) int64 which point of the image each point of its mirror image is."""
        order = list(range(len(self)))
        for left, right in self.swap:
            order[left], order[right] = right, left
        return torch.tensor(order)

    def plain(self) -> dict[str, Any]:
        """As plain values, for a checkpoint."""
        return asdict(self)

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Skeleton:
        """What ``plain`` said."""

        def pairs(key: str) -> Pairs:
            return tuple((a, b) for a, b in plain[key])

        first, second = plain["reference"]
        return cls(
            tuple(plain["names"]),
            pairs("sticks"),
            pairs("swap"),
            tuple(plain["sigmas"]),
            (first, second),
        )
