"""Faster R-CNN on one map at stride 16: Ren, He, Girshick, Sun, "Faster R-CNN: towards real-time
object detection with region proposal networks", arXiv:1506.01497, sections 3.1 to 3.3 (table 3:
69.9 mAP on VOC 2007 with VGG-16, trained on its train and val, shared features); with ResNet, He et
al., arXiv:1512.03385, appendix A.

Differs from the paper: all layers of a backbone are trained, not from conv3_1 on; the images of a
batch share the sums of the losses, the paper has one image; the third step goes on from the
proposal layers of the first. The anchors' sides are shares of the training image, which are the
paper's where its shorter side is 600 pixels. From the published code and not in the paper: smooth
L1 of the proposals bends at 1/9; 12000 anchors are compared in training and 6000 in testing; boxes
of a class that overlap by more than 0.3 are one. Below 256 pixels the map is at stride 8, where an
object of the same share of the image has as many positions, with two dense layers above it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from cnnctl.backbones.base import Backbone
from cnnctl.backbones.pyramid import freeze_norm
from cnnctl.models.base import GradientStage, Losses, Stage
from cnnctl.models.detection import DetectionModel, Truth, truth_of
from cnnctl.models.one_stage import SMALL, require_counts, require_shares
from cnnctl.models.region_head import FEW_UNITS, Map, RegionHead, parameters_of, parts_of
from cnnctl.models.region_proposals import (
    Proposals,
    ProposalSettings,
    RegionProposals,
    sides_for,
)
from cnnctl.models.regions import FEW_REGIONS, in_a_row, named_regions, region_losses, sampled
from cnnctl.ops import clock
from cnnctl.ops.boxes import Detections
from cnnctl.ops.levels import filled_up
from cnnctl.ops.regions import roi_pool
from cnnctl.structures import Images, Targets

HIDDEN = 512  # channels of the proposal network's 3x3 convolution
COMPARED = (12000, 6000)  # anchors whose overlap is looked at, in training and in testing
REGIONS = 128  # of an image that are trained on
BEND = 1.0  # of smooth L1 of regions: Fast R-CNN (arXiv:1504.08083), equation 3


@dataclass
class Features:
    map: Tensor  # (N, C, h, w)
    size: tuple[int, int]  # (h, w) of the pixels that it was made of, filled up


class FasterRCNNC4(DetectionModel):
    """Proposals from a map at stride 16, and their classes from the same map.

    With VGG the map is conv5_3, and regions of 7x7 go through fc6 and fc7; with ResNet it is c4,
    and regions of 14x14 (of training images below 256 pixels 7x7) through what makes c5 of it, and
    their mean is taken; or through dense layers of the model's own. Images are filled up with zeros
    to a multiple of the stride.

    Args:
        num_classes: K.
        size: (h, w) of the training input.
        backbone: a VGG, AlexNet or a ResNet.
        map: "c4" at stride 16, or "c3" at stride 8, with all layers above it for each region; None
            is "c4", or "c3" where ``size`` is below 256.
        dense: units of layers above the map in place of the backbone's own; [] is these, None too,
            or two of 256 units where ``size`` is below 256.
        anchor_scales: sides of the anchors in pixels; None is the paper's 128, 256 and 512 for an
            image of 600, and the same shares of the shorter side of ``size`` for every other.
        ratios: height / width of the anchors.
        regions: proposals of an image that are trained on, a quarter of them objects at most; None
            is the paper's 128, or 32 where ``size`` is below 256.
        proposals_train, proposals_test: kept of an image.
        alternating: train in the paper's four steps (section 3.2): the proposal network; with its
            proposals the detector, from a backbone of its own; on the detector's backbone, which
            is fixed from here on, the proposal network's own layers; the detector's own layers.
            False trains all at once.
        frozen_norm: keep the backbone's batch normalisation as it was published.
        score, overlap, detections: see ``best_of_classes``.

    Raises:
        ValueError: a number is out of range, or the backbone is of another kind.
    """

    eval_pixels = 1 << 18  # a region has a large map
    published_seconds = (0.010, 0.188)  # table 5: VGG-16, a K40

    def __init__(
        self,
        num_classes: int,
        backbone: Backbone,
        size: tuple[int, int],
        map: Map | None = None,
        dense: tuple[int, ...] | None = None,
        anchor_scales: tuple[float, ...] | None = None,
        ratios: tuple[float, ...] = (0.5, 1.0, 2.0),
        regions: int | None = None,
        proposals_train: int = 2000,
        proposals_test: int = 300,
        alternating: bool = False,
        frozen_norm: bool = False,
        score: float = 0.05,
        overlap: float = 0.3,
        detections: int = 100,
    ) -> None:
        super().__init__()
        large = min(size) >= SMALL
        if regions is None:
            regions = REGIONS if large else FEW_REGIONS
        if map is None:
            map = "c4" if large else "c3"
        if dense is None:
            dense = () if large else FEW_UNITS
        require_counts(
            regions=regions,
            dense=min(dense, default=1),
            proposals_train=proposals_train,
            proposals_test=proposals_test,
            detections=detections,
        )
        require_shares(score=score, overlap=overlap)
        scales = sides_for(size) if anchor_scales is None else anchor_scales
        require_anchors(scales, ratios, size)
        self.num_classes, self.regions = num_classes, regions
        self.score, self.overlap, self.most = score, overlap, detections
        if frozen_norm:
            freeze_norm(backbone)
        parts = parts_of(backbone, size, "faster_rcnn_c4", map, dense)
        self.trunk, self.stride, self.bins = parts.trunk, parts.stride, parts.bins
        # Of the first step only: what its proposals were learnt with, beside the detector's own.
        self.alone = copy.deepcopy(self.trunk) if alternating else None
        self.rpn = RegionProposals(
            parts.channels,
            [scales],
            ratios,
            ProposalSettings(inside=True, before=COMPARED, after=(proposals_train, proposals_test)),
            HIDDEN,
        )
        self.head = RegionHead(parts.top, parts.width, num_classes)

    def features(self, pixels: Tensor) -> Features:
        pixels = filled_up(pixels, self.stride)
        return Features(self.trunk(pixels), (pixels.shape[2], pixels.shape[3]))

    def losses(self, features: Features, images: Images, truth: Truth) -> Losses:
        said = self.rpn([features.map], features.size)
        found = self.rpn.propose(said, images)
        return {
            **self.rpn.losses(said, images, truth),
            **self._region_losses(features.map, found, truth),
        }

    def detect(self, features: Features, images: Images) -> Detections:
        found = self.rpn.propose(self.rpn([features.map], features.size), images)
        logits, deltas = self._read(features.map, *in_a_row(found.boxes))
        return named_regions(
            logits,
            deltas,
            found.boxes,
            found.there,
            images,
            score=self.score,
            overlap=self.overlap,
            most=self.most,
        )

    def anchors_and_matches(
        self, features: Features, images: Images, truth: Truth
    ) -> tuple[Tensor, Tensor]:
        anchors = self.rpn([features.map], features.size).anchors
        return anchors, self.rpn.matched(anchors, images, truth)

    def proposals(self, features: Features, images: Images) -> tuple[Tensor, Tensor]:
        found = self.rpn.propose(self.rpn([features.map], features.size), images)
        return found.boxes, found.scores

    def stages(self) -> Sequence[Stage]:
        if self.alone is None:
            return super().stages()
        own, shared = self._proposal_step, self._region_step
        return [
            # What is predicted needs one backbone for both, so there is no evaluation before.
            GradientStage(
                "proposals", own, partial(parameters_of, self.alone, self.rpn), evaluate=False
            ),
            GradientStage(
                "regions", shared, partial(parameters_of, self.trunk, self.head), evaluate=False
            ),
            GradientStage("proposals_shared", partial(own, fixed=True), self.rpn.parameters),
            GradientStage("regions_shared", partial(shared, fixed=True), self.head.parameters),
        ]

    def _proposal_step(self, images: Images, targets: Targets, fixed: bool = False) -> Losses:
        """The first step, or with ``fixed`` convolutions, those of the detector, the third."""
        pixels = filled_up(images.pixels, self.stride)
        assert self.alone is not None
        maps = _fixed(self.trunk, pixels) if fixed else self.alone(pixels)
        said = self.rpn([maps], (pixels.shape[2], pixels.shape[3]))
        return self.rpn.losses(said, images, truth_of(images, targets))

    def _region_step(self, images: Images, targets: Targets, fixed: bool = False) -> Losses:
        """The second step, or with ``fixed`` convolutions the fourth."""
        pixels = filled_up(images.pixels, self.stride)
        assert self.alone is not None
        maps = _fixed(self.trunk, pixels) if fixed else self.trunk(pixels)
        with torch.no_grad():
            seen = maps if fixed else _fixed(self.alone, pixels)
            said = self.rpn([seen], (pixels.shape[2], pixels.shape[3]))
        found = self.rpn.propose(said, images)
        return self._region_losses(maps, found, truth_of(images, targets))

    def _region_losses(self, maps: Tensor, found: Proposals, truth: Truth) -> Losses:
        regions = sampled(found.boxes, found.there, truth, self.num_classes, self.regions)
        logits, deltas = self._read(maps, regions.boxes, regions.image)
        return region_losses(logits, deltas, regions, bend=BEND)

    @clock.timed(clock.REGIONS)
    def _read(self, maps: Tensor, boxes: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """(B, K + 1) logits, background last, and (B, K, 4) deltas."""
        return self.head(self.pooled(maps, boxes, image))

    def pooled(self, maps: Tensor, boxes: Tensor, image: Tensor) -> Tensor:
        """(B, C, bins, bins) of boxes (B, 4)."""
        return roi_pool(maps, boxes, image, (self.bins, self.bins), 1 / self.stride)


def require_anchors(
    scales: Sequence[float], ratios: Sequence[float], size: tuple[int, int]
) -> None:
    """Raise ValueError where no anchor lies in an image of (h, w): none could be trained."""
    if not (scales and ratios and min(scales) > 0 and min(ratios) > 0):
        raise ValueError(
            f"anchor_scales and ratios must be above 0, got {list(scales)} and {list(ratios)}"
        )
    h, w = size
    sides = [(side * ratio**0.5, side / ratio**0.5) for side in scales for ratio in ratios]
    if not any(tall <= h and wide <= w for tall, wide in sides):
        raise ValueError(f"no anchor of anchor_scales {list(scales)} lies in an image of {h} x {w}")


def _fixed(module: nn.Module, pixels: Tensor) -> Tensor:
    """Without a gradient, and with batch normalisation as it is in testing."""
    training = module.training
    module.eval()
    with torch.no_grad():
        maps = module(pixels)
    module.train(training)
    return maps
