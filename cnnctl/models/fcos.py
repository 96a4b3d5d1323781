"""FCOS: Tian, Shen, Chen, He, "FCOS: fully convolutional one-stage object detection",
arXiv:1904.01355, section 3 and table 3 (with its improvements: 38.6 AP with ResNet-50); the head is
torchvision's, whose names of weights are kept so that the published ones load.

Differs from the paper: a position is the upper left corner of its cell, not the middle; distances
are ReLU's and not exponentials with a scale of each level; the score is the root of class times
centre-ness, and detections are above 0.2 of it, not above 0.05 of the class. So has torchvision.
Losses are divided by the positive positions of their own image, so that it does not matter which
images are together in a batch. For images below 256 pixels P6 and P7 are left out, and pyramid and
head have 128 channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cnnctl.backbones.base import Backbone
from cnnctl.models.base import Losses
from cnnctl.models.detection import DetectionModel, Truth
from cnnctl.models.one_stage import (
    GROUPS,
    pyramid_of,
    require_counts,
    require_shares,
    width_for,
)
from cnnctl.models.published_detectors import Published, load_published
from cnnctl.ops.boxes import Detections, area, centred
from cnnctl.ops.clock import POST_PROCESSING, timed
from cnnctl.ops.levels import TiledLevels, best_of_levels, filled_up, focal_sums
from cnnctl.ops.matching import NEGATIVE, taken
from cnnctl.structures import Images

PUBLISHED = Published(
    "fcos_resnet50_fpn",
    by_class=r"head\.classification_head\.cls_logits",
    fits="backbone=resnet50, maps [c3, c4, c5] and width 256",
)


@dataclass
class Said:
    """Of every position of N images; A positions of all levels, the finest first."""

    logits: Tensor  # (N, A, K)
    sides: Tensor  # (N, A, 4) distances to left, upper, right, lower side, in strides
    quality: Tensor  # (N, A) logits of centre-ness
    cells: Tensor  # (A, 4) squares of one stride around each position, in input pixels
    counts: list[int]  # positions of each level


class FCOS(DetectionModel):
    """At every position of a pyramid K sigmoids, the box that it lies in, and how central it is.

    Images are filled up with zeros below and on the right to a multiple of the last map's stride.

    Args:
        backbone: any with ``maps``.
        num_classes: K.
        size: (h, w) of the training input.
        maps: of the backbone, that the pyramid stands on.
        coarse: two more levels beyond the last map (P6, P7); None: where ``size`` is 256 or more.
        width: channels of pyramid and head, a multiple of 32; None is the paper's 256, or 128
            where ``size`` is below 256.
        reach: a level finds boxes whose farthest side is ``reach / 2`` to ``reach`` strides off;
            the finest takes all smaller ones too, the coarsest all larger ones.
        radius: of centre sampling: positions so many strides around a box's centre are its own.
        alpha, gamma: of the focal loss.
        score: below it nothing is detected; the root of class times centre-ness.
        overlap: IoU above which the less likely of two boxes of a class goes.
        detections: the most of an image.
        frozen_norm: the backbone's batch normalisation stays as published.
        weights: "COCO_V1", torchvision's of the whole network with ResNet-50.
        classes: their names, by which rows of a published head are taken.

    Attributes:
        rebuilt: the layers that start at random in spite of ``weights``, by name.

    Raises:
        ValueError: a number is out of range, the backbone lacks a map, or weights do not fit.
        UserError: the weights are not on this machine and cannot be downloaded.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        size: tuple[int, int],
        maps: tuple[str, ...] = ("c3", "c4", "c5"),
        coarse: bool | None = None,
        width: int | None = None,
        reach: float = 8.0,
        radius: float = 1.5,
        alpha: float = 0.25,
        gamma: float = 2.0,
        score: float = 0.2,
        overlap: float = 0.6,
        detections: int = 100,
        frozen_norm: bool = False,
        weights: str | None = None,
        classes: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        if width is None:
            width = width_for(size)
        require_counts(width=width, detections=detections)
        require_shares(alpha=alpha, score=score, overlap=overlap)
        if not (reach > 0 and radius > 0 and gamma >= 0):
            raise ValueError(
                "reach and radius must be above 0 and gamma at least 0,"
                f" got {reach:g}, {radius:g} and {gamma:g}"
            )
        if width % GROUPS:
            raise ValueError(f"width must be a multiple of {GROUPS}, got {width}")
        from torchvision.models.detection.fcos import FCOSHead

        self.backbone = pyramid_of(backbone, maps, coarse, width, size, frozen_norm)
        self.head = FCOSHead(width, 1, num_classes)
        self._multiple = backbone.strides[maps[-1]]
        halves = [stride / 2 for stride in self.backbone.strides.values()]
        self.cells = TiledLevels([torch.tensor([[-half, -half, half, half]]) for half in halves])
        self.reach, self.radius, self.alpha, self.gamma = reach, radius, alpha, gamma
        self.score, self.overlap, self.most = score, overlap, detections
        if weights is not None:
            self.rebuilt = load_published(self, PUBLISHED, weights, num_classes, classes)

    def features(self, pixels: Tensor) -> Said:
        pixels = filled_up(pixels, self._multiple)
        levels = list(self.backbone(pixels).values())
        said = self.head(levels)
        cells, counts = self.cells(levels, (pixels.shape[2], pixels.shape[3]))
        quality = said["bbox_ctrness"][:, :, 0]
        return Said(said["cls_logits"], said["bbox_regression"], quality, cells, counts)

    def losses(self, features: Said, images: Images, truth: Truth) -> Losses:
        matched = self._match(features, truth)  # (N, A)
        positive = matched >= 0
        count = positive.sum(1).clamp(min=1)
        labels = torch.where(positive, taken(truth.labels, matched), -1)
        everywhere = torch.ones_like(positive)
        named = focal_sums(features.logits, labels, everywhere, self.alpha, self.gamma)
        wanted = taken(truth.boxes, matched)  # (N, A, 4)
        apart = giou_loss(_boxes(features.sides, features.cells), wanted)
        place = torch.where(positive, apart, 0.0).sum(1)
        central = F.binary_cross_entropy_with_logits(
            features.quality.float(), centreness(features.cells, wanted), reduction="none"
        )
        central = torch.where(positive, central, 0.0).sum(1)
        losses = {"class": named, "box": place, "centreness": central}
        return {name: (loss / count).mean() for name, loss in losses.items()}

    def _match(self, features: Said, truth: Truth) -> Tensor:
        """(N, A) int64: the row of the box that a position is trained on, or -1; section 3.2.

        It lies in the box, near its centre, and the box is of its level's size; of several such
        boxes it is the smallest.
        """
        boxes, cells = truth.boxes, features.cells
        if not boxes.shape[1]:
            return truth.labels.new_full((len(boxes), len(cells)), NEGATIVE)
        sides = _sides(cells, boxes[:, :, None])  # (N, R, A, 4)
        stride = cells[:, 2] - cells[:, 0]  # (A,)
        farthest = sides.amax(-1)
        first, last = features.counts[0], features.counts[-1]
        least, most = stride * self.reach / 2, stride * self.reach
        least[:first], most[len(most) - last :] = 0, torch.inf
        away = centred(cells)[:, :2] - centred(boxes)[:, :, None, :2]  # (N, R, A, 2)
        own = (sides.amin(-1) > 0) & (away.abs().amax(-1) < self.radius * stride)
        own &= (farthest > least) & (farthest < most) & (truth.labels >= 0)[:, :, None]
        size = area(boxes)[:, :, None].expand_as(farthest).masked_fill(~own, torch.inf)
        least_size, row = size.min(1)
        return torch.where(least_size.isfinite(), row, NEGATIVE)

    @timed(POST_PROCESSING)
    def detect(self, features: Said, images: Images) -> Detections:
        def boxes(rows: Tensor) -> Tensor:
            return _boxes(taken(features.sides, rows), features.cells[rows])

        return best_of_levels(
            features.logits,
            features.counts,
            boxes,
            images.sizes,
            score=self.score,
            overlap=self.overlap,
            most=self.most,
            quality=features.quality,
        )


def _sides(cells: Tensor, boxes: Tensor) -> Tensor:
    """(..., 4): how far left, upper, right, lower side are from the centres of cells, pixels."""
    place = centred(cells)[..., :2]
    return torch.cat([place - boxes[..., :2], boxes[..., 2:] - place], -1)


def _boxes(sides: Tensor, cells: Tensor) -> Tensor:
    """The inverse, of sides in strides."""
    place, stride = centred(cells).split(2, -1)
    low, high = sides.float().split(2, -1)
    return torch.cat([place - low * stride, place + high * stride], -1)


def centreness(cells: Tensor, boxes: Tensor) -> Tensor:
    """(..., 4) each -> (...): 1 in the middle of a box, 0 at its sides; equation 3."""
    left, upper, right, lower = _sides(cells, boxes).clamp(min=0).unbind(-1)
    across = torch.minimum(left, right) / torch.maximum(left, right).clamp(min=1e-6)
    down = torch.minimum(upper, lower) / torch.maximum(upper, lower).clamp(min=1e-6)
    return (across * down).sqrt()


def giou_loss(a: Tensor, b: Tensor) -> Tensor:
    """(..., 4) each -> (...): 1 - generalised IoU; Rezatofighi et al., arXiv:1902.09630."""
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    either = area(a) + area(b) - shared
    hull = torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])
    hull = hull.clamp(min=0).prod(-1).clamp(min=1e-7)
    return 1 - shared / either.clamp(min=1e-7) + (hull - either) / hull
