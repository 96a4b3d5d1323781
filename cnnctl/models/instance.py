"""What every network promises that says a mask of each object, and how masks are learnt.

He, Gkioxari, Dollar, Girshick, "Mask R-CNN", arXiv:1703.06870, section 3.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cnnctl.models.detection import DetectionModel, Truth, in_order
from cnnctl.models.regions import Regions, hardest_of_images
from cnnctl.ops.boxes import Detections
from cnnctl.ops.clock import POST_PROCESSING, timed
from cnnctl.ops.masks import Masks, sampled_masks
from cnnctl.ops.run_lengths import paste
from cnnctl.structures import Images, Predictions

_AT_ONCE = 256  # regions whose masks are made together: one has up to 28 x 28 x 256 numbers


@dataclass
class Instances(Detections):
    """Detections with a mask each.

    Args:
        masks: (N, D, m, m) float32 0..1, of the whole of each box.
    """

    masks: Tensor


class InstanceModel(DetectionModel):
    """A detector that says a mask of each box too. It is learnt from ``Truth.masks``; of data
    without masks it learns the boxes, and its loss "mask" is 0."""

    @abstractmethod
    def detect(self, features: Any, images: Images) -> Instances: ...

    @timed(POST_PROCESSING)
    def in_original_pixels(
        self, found: Sequence[tuple[Tensor | slice, Detections]], images: Images
    ) -> Predictions:
        said = super().in_original_pixels(found, images)
        assert said.boxes is not None
        assert said.labels is not None
        parts = [(rows, part.masks) for rows, part in found if isinstance(part, Instances)]
        boxes, there = said.boxes.cpu(), (said.labels >= 0).cpu()
        masks = in_order(parts, len(images)).cpu()
        said.sizes = list(images.originals)
        said.masks = [
            paste(masks[row, own], boxes[row, own], size)
            for row, (own, size) in enumerate(zip(there, said.sizes, strict=True))
        ]
        return said


@torch.no_grad()
def mask_targets(
    regions: Regions, truth: Truth, side: int, most: int | None = None
) -> tuple[Tensor, Tensor]:
    """The regions whose masks are trained on, and what they are to be.

    A bin is the share of it that belongs to the object, which is not rounded to 0 or 1: where the
    answer is cut at a half, the border lies within a bin and not between two.

    Args:
        most: of an image, drawn at random; None: all regions that are objects.

    Returns:
        (B,) rows of ``regions`` that are objects with a mask, and (B, side, side) float: what each
        sees of its object where the object's true box is, which a window may have cut, 0..1; below
        0 in bins of which more than half belongs to nobody (VOC's borders).
    """
    nothing = regions.owner.new_zeros(0)
    if truth.masks is None or not truth.labels.shape[1]:
        return nothing, truth.boxes.new_zeros(0, side, side)
    owner = regions.owner.clamp(min=0)
    drawn = truth.masks.crops[regions.image, owner, 1:].prod(-1) > 0  # it has pixels
    rows = ((regions.owner >= 0) & drawn).nonzero()[:, 0]
    if most is not None:
        order = torch.rand(len(rows), device=rows.device)
        rows = rows[hardest_of_images(order, regions.image[rows], most)]
    image, owner, boxes = regions.image[rows], owner[rows], regions.boxes[rows].float()
    within = truth.boxes[image, owner].float()
    wanted = sampled_masks(truth.masks, image, owner, boxes, side, within=within)
    if (void := _void(truth.masks)) is not None:
        nobody = sampled_masks(void, image, torch.zeros_like(image), boxes, side) > 0.5
        wanted = wanted.masked_fill(nobody, -1.0)
    return rows, wanted


def _void(masks: Masks) -> Masks | None:
    """As the one mask of each image."""
    if masks.void_frame is None or masks.void_crop is None:
        return None
    return Masks(masks.bits, masks.void_frame[:, None], masks.void_crop[:, None])


def mask_loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """Mean binary cross-entropy of (B, side, side), in float32, where ``wanted`` is not below 0; 0
    and not NaN where there is nothing."""
    counted = (wanted >= 0).float()
    lost = F.binary_cross_entropy_with_logits(logits.float(), wanted, counted, reduction="sum")
    return lost / counted.sum().clamp(min=1)


def with_masks(
    found: Detections, side: int, read: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> Instances:
    """
    Args:
        read: boxes (B, 4), whose each is (B,) and its class (B,) -> logits (B, side, side).
    """
    image, row = (found.labels >= 0).nonzero(as_tuple=True)
    shape = (*found.labels.shape, side, side)
    masks = torch.zeros(shape, dtype=torch.float32, device=found.boxes.device)
    for start in range(0, max(1, len(image)), _AT_ONCE):
        own = image[start : start + _AT_ONCE], row[start : start + _AT_ONCE]
        masks[own] = read(found.boxes[own], own[0], found.labels[own]).float().sigmoid()
    return Instances(found.boxes, found.scores, found.labels, masks)
