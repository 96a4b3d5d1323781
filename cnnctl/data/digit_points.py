"""Scenes of handwritten digits (cnnctl/data/digit_scenes.py) with five points on each digit.

The points are the corners and the centre of the tight rectangle around a digit's ink, which is
turned with the digit: nothing marks the corners, they follow from its shape.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from cnnctl.data.digit_boxes import DigitBoxes
from cnnctl.skeleton import Skeleton

# Of each point in halves of the rectangle's width and height from its centre.
_ACROSS = (-1.0, 1.0, 1.0, -1.0, 0.0)
_DOWN = (-1.0, -1.0, 1.0, 1.0, 0.0)

SKELETON = Skeleton(
    names=("top_left", "top_right", "bottom_right", "bottom_left", "centre"),
    sticks=((0, 1), (1, 2), (2, 3), (3, 0)),
    swap=((0, 1), (3, 2)),
    # About COCO's elbows: with all points 5 pixels off, a digit of 40 x 25 has an OKS of 0.53.
    sigmas=(0.07, 0.07, 0.07, 0.07, 0.07),
    reference=(0, 2),
)


class DigitPoints(DigitBoxes):
    """Scenes with the box and the points of each digit of which something is to be seen.

    A point under a digit that was drawn later is hidden (visibility 1); one outside of the scene is
    none (0). A box is that of the turned rectangle, so that its points are in it, and the area that
    of the rectangle. See ``DigitScenes`` for the arguments.
    """

    fields = ("boxes", "keypoints")
    skeleton = SKELETON

    def __init__(
        self,
        split: Literal["train", "val", "test"],
        root: str | None = None,
        size: int = 96,
        digits: tuple[int, int] = (3, 7),
        scale: tuple[float, float] = (0.26, 0.46),
        train_images: int = 3200,
        val_images: int = 200,
        test_images: int = 500,
        seed: int = 0,
    ) -> None:
        super().__init__(
            split, root, size, digits, scale, train_images, val_images, test_images, seed
        )
        points = points_of(self.scenes.placed, self.scenes.instances)
        corners = corners_of(self.scenes.placed)  # some may lie outside
        boxes = torch.cat([corners.amin(2), corners.amax(2)], 2).clamp(0, size)
        area = self.scenes.placed[..., 2:4].prod(2)
        scene, there = torch.arange(len(points))[:, None], self._labels >= 0
        rows = self._numbers - 1  # (M, D), those that are wholly covered last
        self._boxes = boxes[scene, rows] * there[..., None]
        self._visible = area[scene, rows] * there
        self._keypoints = points[scene, rows] * there[..., None, None]
        self._swap = SKELETON.mirrored().expand(len(points), -1)

    def columns(self) -> dict[str, Tensor]:
        """Those of the boxes, and keypoints (M, D, 5, 3) with zeros where there is no digit."""
        return {**super().columns(), "keypoints": self._keypoints, "swap": self._swap}

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        pixels, truth = super().__getitem__(index)
        return pixels, {**truth, "swap": self._swap[index]}


def points_of(placed: Tensor, instances: Tensor) -> Tensor:
    """(M, D, 5, 3) x, y in pixels and visibility of digits (M, D, 5) in scenes (M, S, S)."""
    points = corners_of(placed)
    side = instances.shape[-1]
    inside = ((points >= 0) & (points <= side)).all(3)
    x, y = points.long().clamp(0, side - 1).unbind(3)
    owner = instances.flatten(1).gather(1, (y * side + x).flatten(1)).view_as(x)
    hidden = owner > torch.arange(1, placed.shape[1] + 1)[:, None]
    seen = torch.where(hidden, 1.0, 2.0) * inside
    return torch.cat([points * inside[..., None], seen[..., None]], 3)


def corners_of(placed: Tensor) -> Tensor:
    """(M, D, 5, 2) x, y of the points of turned rectangles (M, D, 5)."""
    centre, half, angle = placed[..., :2], placed[..., 2:4] / 2, placed[..., 4:]
    across = half[..., :1] * torch.tensor(_ACROSS)  # (M, D, 5)
    down = half[..., 1:] * torch.tensor(_DOWN)
    cos, sin = angle.cos(), angle.sin()
    turned = torch.stack([across * cos - down * sin, across * sin + down * cos], 3)
    return centre[:, :, None] + turned
