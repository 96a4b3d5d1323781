"""What every network promises that says the keypoints of each figure."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cnnctl.models.detection import DetectionModel, in_order
from cnnctl.ops.boxes import Detections
from cnnctl.skeleton import Skeleton
from cnnctl.structures import Images, Predictions


@dataclass
class Poses(Detections):
    """Detections with points each.

    Args:
        keypoints: (N, D, J, 3) x and y in input pixels, and a score of 0..1.
    """

    keypoints: Tensor


class PoseModel(DetectionModel):
    """A detector that says the J points of each box too, learnt from ``Truth.keypoints``."""

    needs = ("keypoints",)

    @abstractmethod
    def detect(self, features: Any, images: Images) -> Poses: ...

    def in_original_pixels(
        self, found: Sequence[tuple[Tensor | slice, Detections]], images: Images
    ) -> Predictions:
        said = super().in_original_pixels(found, images)
        parts = [(rows, part.keypoints) for rows, part in found if isinstance(part, Poses)]
        ratios = [
            (w / w_in, h / h_in, 1.0)
            for (h, w), (h_in, w_in) in zip(images.originals, images.sizes, strict=True)
        ]
        factors = torch.tensor(ratios, device=images.pixels.device)[:, None, None]
        said.keypoints = in_order(parts, len(images)) * factors
        return said


def count_points(skeleton: Skeleton | None) -> int:
    """J.

    Raises:
        ValueError: the data has no points.
    """
    if skeleton is None:
        raise ValueError("the data has no keypoints, which this model says: take task=pose")
    return len(skeleton)
