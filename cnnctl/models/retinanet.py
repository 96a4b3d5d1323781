"""RetinaNet: Lin, Goyal, Girshick, He, Dollár, "Focal loss for dense object detection",
arXiv:1708.02002, sections 3 to 5 (table 1e: 35.7 AP with ResNet-50, images of 800 pixels); the head
is torchvision's, whose names of weights are kept so that the published ones load.

Differs from the paper: P6 is made of P5 and not of C5; L1 and not smooth L1; the anchor that
overlaps a box most belongs to it however little that is; sides of anchors are whole pixels. So has
torchvision. Losses are divided by the positive anchors of their own image, so that it does not
matter which images are together in a batch. For images below 256 pixels P6 and P7 are left out,
pyramid and head have 128 channels, and the head has group normalisation, without which it does not
learn from scratch in a few thousand steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from cnnctl.backbones.base import Backbone
from cnnctl.models.base import Losses
from cnnctl.models.detection import DetectionModel, Truth
from cnnctl.models.one_stage import (
    GROUPS,
    SMALL,
    pyramid_of,
    require_counts,
    require_shares,
    width_for,
)
from cnnctl.models.published_detectors import Published, load_published
from cnnctl.ops.anchors import shapes
from cnnctl.ops.boxes import Detections, decode, encode
from cnnctl.ops.clock import POST_PROCESSING, timed
from cnnctl.ops.levels import TiledLevels, best_of_levels, filled_up, focal_sums
from cnnctl.ops.matching import IGNORED, match, taken
from cnnctl.structures import Images

OCTAVE = (1, 2 ** (1 / 3), 2 ** (2 / 3))  # scales at every position
RATIOS = (0.5, 1.0, 2.0)  # height / width
PUBLISHED = Published(
    "retinanet_resnet50_fpn",
    by_class=r"head\.classification_head\.cls_logits",
    fits="backbone=resnet50, maps [c3, c4, c5], width 256 and group_norm false",
    norm_eps=0.0,
)


@dataclass
class Said:
    """Of every anchor of N images; A anchors of all levels, the finest first."""

    logits: Tensor  # (N, A, K)
    deltas: Tensor  # (N, A, 4)
    anchors: Tensor  # (A, 4) in input pixels
    counts: list[int]  # anchors of each level


class RetinaNet(DetectionModel):
    """Nine anchors at every position of a pyramid, each with K sigmoids and a box.

    Images are filled up with zeros below and on the right to a multiple of the last map's stride.

    Args:
        backbone: any with ``maps``.
        num_classes: K.
        size: (h, w) of the training input.
        maps: of the backbone, that the pyramid stands on.
        coarse: two more levels beyond the last map (P6, P7); None: where ``size`` is 256 or more.
        width: channels of pyramid and head; None is the paper's 256, or 128 where ``size`` is
            below 256.
        group_norm: in the four convolutions of both parts of the head; None: where ``size`` is
            below 256.
        anchor_scale: side of a level's smallest anchors, in its strides.
        alpha, gamma: of the focal loss.
        high, low: an anchor is an object's from IoU ``high`` on, and background below ``low``.
        score: below it nothing is detected.
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
        group_norm: bool | None = None,
        anchor_scale: float = 4.0,
        alpha: float = 0.25,
        gamma: float = 2.0,
        high: float = 0.5,
        low: float = 0.4,
        score: float = 0.05,
        overlap: float = 0.5,
        detections: int = 100,
        frozen_norm: bool = False,
        weights: str | None = None,
        classes: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        if width is None:
            width = width_for(size)
        require_counts(width=width, detections=detections)
        require_shares(alpha=alpha, high=high, low=low, score=score, overlap=overlap)
        if not (anchor_scale > 0 and gamma >= 0 and low <= high):
            raise ValueError(
                "anchor_scale must be above 0, gamma at least 0 and low at most high,"
                f" got {anchor_scale:g}, {gamma:g}, {low:g} and {high:g}"
            )
        from torchvision.models.detection.retinanet import RetinaNetHead

        self.backbone = pyramid_of(backbone, maps, coarse, width, size, frozen_norm)
        normed = min(size) < SMALL if group_norm is None else group_norm
        if normed and width % GROUPS:
            raise ValueError(
                f"group_norm needs a width that is a multiple of {GROUPS}, got {width}"
            )
        norm = partial(nn.GroupNorm, GROUPS) if normed else None
        self.head = RetinaNetHead(width, len(OCTAVE) * len(RATIOS), num_classes, norm)
        self._multiple = backbone.strides[maps[-1]]
        sides = [
            [float(int(stride * anchor_scale * octave)) for octave in OCTAVE]
            for stride in self.backbone.strides.values()
        ]
        self.anchors = TiledLevels([shapes(level, RATIOS).round() for level in sides])
        self.alpha, self.gamma, self.high, self.low = alpha, gamma, high, low
        self.score, self.overlap, self.most = score, overlap, detections
        if weights is not None:
            self.rebuilt = load_published(self, PUBLISHED, weights, num_classes, classes)

    def features(self, pixels: Tensor) -> Said:
        pixels = filled_up(pixels, self._multiple)
        levels = list(self.backbone(pixels).values())
        said = self.head(levels)
        anchors, counts = self.anchors(levels, (pixels.shape[2], pixels.shape[3]))
        return Said(said["cls_logits"], said["bbox_regression"], anchors, counts)

    def anchors_and_matches(
        self, features: Said, images: Images, truth: Truth
    ) -> tuple[Tensor, Tensor]:
        labels, anchors = truth.labels, features.anchors
        return anchors, match(truth.boxes, labels, anchors, self.high, self.low, best=True)

    def losses(self, features: Said, images: Images, truth: Truth) -> Losses:
        anchors, matched = self.anchors_and_matches(features, images, truth)
        positive = matched >= 0
        count = positive.sum(1).clamp(min=1)
        labels = torch.where(positive, taken(truth.labels, matched), -1)
        named = focal_sums(features.logits, labels, matched != IGNORED, self.alpha, self.gamma)
        wanted = encode(taken(truth.boxes, matched), anchors)
        apart = (features.deltas.float() - wanted).abs().sum(2)
        place = torch.where(positive, apart, 0.0).sum(1)
        return {"class": (named / count).mean(), "box": (place / count).mean()}

    @timed(POST_PROCESSING)
    def detect(self, features: Said, images: Images) -> Detections:
        def boxes(rows: Tensor) -> Tensor:
            return decode(taken(features.deltas, rows), features.anchors[rows])

        return best_of_levels(
            features.logits,
            features.counts,
            boxes,
            images.sizes,
            score=self.score,
            overlap=self.overlap,
            most=self.most,
        )
