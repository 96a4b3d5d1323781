"""Faster R-CNN on a feature pyramid: Ren, He, Girshick, Sun, arXiv:1506.01497, with Lin et al.,
"Feature pyramid networks for object detection", arXiv:1612.03144, sections 4.1 and 4.2 (table 4:
36.2 AP with ResNet-101, images of 800 pixels).

Differs from the paper: regions are read by RoI align (He et al., arXiv:1703.06870) and not by RoI
pooling; smooth L1 bends at 1/9; the two parts are trained together and not in turns; an image has
2000 proposals in training and 1000 in testing, of all levels together. All four are torchvision's
ways, whose published weights load. ``faster_rcnn_c4`` is the first paper, without a pyramid.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnctl.backbones.base import Backbone
from cnnctl.backbones.pyramid import Pyramid
from cnnctl.models.base import Losses
from cnnctl.models.detection import DetectionModel, Truth
from cnnctl.models.one_stage import SMALL, require_counts, require_shares
from cnnctl.models.published_detectors import Published, load_published
from cnnctl.models.region_proposals import ProposalSettings, RegionProposals
from cnnctl.models.regions import Regions, in_a_row, named_regions, region_losses, sampled
from cnnctl.ops.boxes import Detections
from cnnctl.ops.clock import REGIONS, timed
from cnnctl.ops.levels import filled_up
from cnnctl.ops.regions import pyramid_roi_align
from cnnctl.structures import Images

BINS = 7  # of a region, each way
PUBLISHED = Published(
    "fasterrcnn_resnet50_fpn",
    by_class=r"roi_heads\.box_predictor\.(cls_score|bbox_pred)",
    fits="backbone=resnet50, width 256, hidden 1024 and three ratios",
    classes_first=True,
    background=True,
    norm_eps=0.0,
)


@dataclass(frozen=True)
class Numbers:
    """What is taken where a constructor's argument is None; see ``FasterRCNN`` for the names."""

    width: int
    hidden: int
    regions: int
    proposals_train: int
    proposals_test: int
    anchor_scale: float


# The papers', for training images from 256 pixels on (the shorter side) and for published weights.
PAPER = Numbers(256, 1024, 512, 2000, 1000, 8.0)
# For smaller ones, which have fewer objects. Anchors of 24 pixels on p2 are between a twentieth and
# a half of an image of 64 to 255 pixels; the paper's smallest, of 32, leave out what is smaller.
FEW_PIXELS = Numbers(128, 256, 64, 300, 100, 6.0)


@dataclass
class Features:
    maps: dict[str, Tensor]  # (N, width, h, w) of each level, the finest first
    size: tuple[int, int]  # (h, w) of the pixels that they were made of, filled up


class FasterRCNN(DetectionModel):
    """Images are filled up with zeros below and on the right to a multiple of c5's stride.

    Args:
        num_classes: K.
        size: (h, w) of the training input.
        backbone: its maps c2 to c5 are used.
        width: channels of the pyramid.
        hidden: of the two fully connected layers of a region.
        anchor_scale: side of an anchor on a map, in strides of that map; the papers' 8 is 32 pixels
            on p2 to 512 on p6.
        ratios: height / width of the anchors.
        regions: proposals of an image that are trained on.
        proposals_train, proposals_test: kept of an image.
        frozen_norm: keep the backbone's batch normalisation as it was published.
        score, overlap, detections: see ``best_of_classes``.
        weights: "COCO_V1", torchvision's of the whole network with ResNet-50.
        classes: their names, by which rows of a published head are taken.

    The numbers from ``width`` to ``proposals_test`` that are None are those of ``PAPER`` or, where
    ``size`` is below 256 and no ``weights`` are asked for, of ``FEW_PIXELS``.

    Attributes:
        rebuilt: the layers that start at random in spite of ``weights``, by name.

    Raises:
        ValueError: a number is out of range, the backbone lacks a map, or weights do not fit.
        UserError: the weights are not on this machine and cannot be downloaded.
    """

    published_seconds = (0.010, 0.188)  # arXiv:1506.01497, table 5: one map, VGG-16, a K40

    def __init__(
        self,
        num_classes: int,
        backbone: Backbone,
        size: tuple[int, int],
        width: int | None = None,
        hidden: int | None = None,
        anchor_scale: float | None = None,
        ratios: tuple[float, ...] = (0.5, 1.0, 2.0),
        regions: int | None = None,
        proposals_train: int | None = None,
        proposals_test: int | None = None,
        frozen_norm: bool = False,
        score: float = 0.05,
        overlap: float = 0.5,
        detections: int = 100,
        weights: str | None = None,
        classes: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        usual = PAPER if weights is not None or min(size) >= SMALL else FEW_PIXELS
        numbers = with_asked(
            usual,
            width=width,
            hidden=hidden,
            regions=regions,
            proposals_train=proposals_train,
            proposals_test=proposals_test,
            anchor_scale=anchor_scale,
        )
        _require(numbers, ratios)
        require_counts(detections=detections)
        require_shares(score=score, overlap=overlap)
        self.num_classes, self.regions = num_classes, numbers.regions
        self.score, self.overlap, self.most = score, overlap, detections
        self.backbone = Pyramid(backbone, width=numbers.width, frozen_norm=frozen_norm)
        self._multiple = backbone.strides["c5"]
        kept = (numbers.proposals_train, numbers.proposals_test)
        self.rpn = RegionProposals(
            numbers.width,
            [(numbers.anchor_scale * stride,) for stride in self.backbone.strides.values()],
            ratios,
            # Suppression takes the square of how many are compared: where few are kept, few are.
            ProposalSettings(before=(min(2000, 2 * kept[0]), min(1000, 2 * kept[1])), after=kept),
        )
        self.roi_heads = _RegionHead(numbers.width, numbers.hidden, num_classes)
        if weights is not None:
            self.rebuilt = load_published(self, PUBLISHED, weights, num_classes, classes)

    def features(self, pixels: Tensor) -> Features:
        pixels = filled_up(pixels, self._multiple)
        return Features(self.backbone(pixels), (pixels.shape[2], pixels.shape[3]))

    def losses(self, features: Features, images: Images, truth: Truth) -> Losses:
        return self.losses_and_regions(features, images, truth)[0]

    def losses_and_regions(
        self, features: Features, images: Images, truth: Truth
    ) -> tuple[Losses, Regions]:
        """The losses, and the regions that were trained on: for a branch that reads them too."""
        said = self.rpn(list(features.maps.values()), features.size)
        found = self.rpn.propose(said, images)
        regions = sampled(found.boxes, found.there, truth, self.num_classes, self.regions)
        logits, deltas = self._heads(features, regions.boxes, regions.image)
        losses = {**self.rpn.losses(said, images, truth), **region_losses(logits, deltas, regions)}
        return losses, regions

    def detect(self, features: Features, images: Images) -> Detections:
        said = self.rpn(list(features.maps.values()), features.size)
        found = self.rpn.propose(said, images)
        logits, deltas = self._heads(features, *in_a_row(found.boxes))
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
        anchors = self.rpn(list(features.maps.values()), features.size).anchors
        return anchors, self.rpn.matched(anchors, images, truth)

    def proposals(self, features: Features, images: Images) -> tuple[Tensor, Tensor]:
        found = self.rpn.propose(self.rpn(list(features.maps.values()), features.size), images)
        return found.boxes, found.scores

    @timed(REGIONS)
    def _heads(self, features: Features, boxes: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """(B, K + 1) logits, background last, and (B, K, 4) deltas."""
        return self.roi_heads(self.pooled(features, boxes, image, BINS))

    def pooled(self, features: Features, boxes: Tensor, image: Tensor, bins: int) -> Tensor:
        """(B, width, bins, bins) of boxes (B, 4), each of the level that suits it."""
        levels = list(self.backbone.strides.items())[:4]  # the coarsest is for proposals only
        maps = [features.maps[name] for name, _ in levels]
        strides = [stride for _, stride in levels]
        return pyramid_roi_align(maps, strides, boxes, image, (bins, bins))


def with_asked(usual: Any, **asked: float | None) -> Any:
    """``usual`` with what was asked for and is not None."""
    return replace(usual, **{name: value for name, value in asked.items() if value is not None})


def _require(numbers: Numbers, ratios: tuple[float, ...]) -> None:
    counts = vars(numbers).copy()
    scale = counts.pop("anchor_scale")
    require_counts(**counts)
    if not (scale > 0 and ratios and min(ratios) > 0):
        raise ValueError(
            f"anchor_scale and at least one of ratios must be above 0, got {scale:g} and"
            f" {list(ratios)}"
        )


class _RegionHead(nn.Module):
    """Two fully connected layers; torchvision's names, with background as its class 0."""

    def __init__(self, width: int, hidden: int, num_classes: int) -> None:
        super().__init__()
        self.box_head = nn.ModuleDict(
            {"fc6": nn.Linear(width * BINS**2, hidden), "fc7": nn.Linear(hidden, hidden)}
        )
        self.box_predictor = nn.ModuleDict(
            {
                "cls_score": nn.Linear(hidden, num_classes + 1),
                "bbox_pred": nn.Linear(hidden, (num_classes + 1) * 4),
            }
        )

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        hidden = F.relu(self.box_head["fc6"](pooled.flatten(1)))
        hidden = F.relu(self.box_head["fc7"](hidden))
        logits = self.box_predictor["cls_score"](hidden)
        deltas = self.box_predictor["bbox_pred"](hidden).unflatten(1, (-1, 4))
        return torch.cat([logits[:, 1:], logits[:, :1]], 1), deltas[:, 1:]
