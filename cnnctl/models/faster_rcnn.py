"""Faster R-CNN on a feature pyramid: Ren, He, Girshick, Sun, arXiv:1506.01497, with Lin et al.,
"Feature pyramid networks for object detection", arXiv:1612.03144, sections 4.1 and 4.2.

Differs from the paper: regions are read by RoI align (He et al., arXiv:1703.06870) and not by RoI
pooling; smooth L1 bends at 1/9; the two parts are trained together and not in turns. All three are
torchvision's ways, whose published weights load. ``faster_rcnn_c4`` is the paper without a pyramid.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnctl.backbones.base import Backbone
from cnnctl.backbones.pyramid import Pyramid
from cnnctl.models.base import Losses
from cnnctl.models.detection import DetectionModel, Truth
from cnnctl.models.region_proposals import ProposalSettings, Proposed, RegionProposals
from cnnctl.models.regions import named_regions, region_losses, sampled
from cnnctl.ops.boxes import Detections
from cnnctl.ops.regions import pyramid_roi_align
from cnnctl.structures import Images

BINS = 7  # of a region, each way


@dataclass
class Features:
    maps: dict[str, Tensor]


class FasterRCNN(DetectionModel):
    """
    Args:
        num_classes: K.
        size: (h, w) of the training input.
        backbone: its maps c2 to c5 are used.
        width: channels of the pyramid.
        hidden: of the two fully connected layers of a region.
        anchor_scale: side of an anchor on a map, in strides of that map; the papers' 8 (32 pixels
            on p2 to 512 on p6).
        ratios: height / width of the anchors.
        regions: proposals of an image that are trained on (the paper's 512 of a large image).
        proposals_train, proposals_test: kept of an image.
        frozen_norm: keep the backbone's batch normalisation as it was published.
        score, overlap, detections: see ``best_of_classes``.

    Raises:
        ValueError: a number is out of range.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: Backbone,
        size: tuple[int, int],
        width: int = 256,
        hidden: int = 1024,
        anchor_scale: float = 8.0,
        ratios: tuple[float, ...] = (0.5, 1.0, 2.0),
        regions: int = 512,
        proposals_train: int = 2000,
        proposals_test: int = 1000,
        frozen_norm: bool = False,
        score: float = 0.05,
        overlap: float = 0.5,
        detections: int = 100,
    ) -> None:
        super().__init__()
        self.num_classes, self.regions = num_classes, regions
        self.score, self.overlap, self.most = score, overlap, detections
        self.backbone = Pyramid(backbone, width=width, frozen_norm=frozen_norm)
        strides = list(self.backbone.strides.values())
        self.rpn = RegionProposals(
            width,
            strides,
            [(anchor_scale * stride,) for stride in strides],
            ratios,
            ProposalSettings(after=(proposals_train, proposals_test)),
        )
        self.roi_heads = _RegionHead(width, hidden, num_classes)

    def features(self, pixels: Tensor) -> dict[str, Tensor]:
        return self.backbone(pixels)

    def losses(self, features: dict[str, Tensor], images: Images, truth: Truth) -> Losses:
        said: Proposed = self.rpn(list(features.values()), images)
        regions = sampled(said.boxes, said.scores.isfinite(), truth, self.num_classes, self.regions)
        logits, deltas = self._heads(features, regions.boxes, regions.image)
        return {**self.rpn.losses(said, truth), **region_losses(logits, deltas, regions)}

    def detect(self, features: dict[str, Tensor], images: Images) -> Detections:
        said: Proposed = self.rpn(list(features.values()), images)
        n, p = said.scores.shape
        image = torch.arange(n, device=said.scores.device).repeat_interleave(p)
        logits, deltas = self._heads(features, said.boxes.flatten(0, 1), image)
        return named_regions(
            logits.unflatten(0, (n, p)),
            deltas.unflatten(0, (n, p)),
            said.boxes,
            said.scores.isfinite(),
            images,
            score=self.score,
            overlap=self.overlap,
            most=self.most,
        )

    def _heads(
        self, features: dict[str, Tensor], boxes: Tensor, image: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(B, K + 1) logits, background last, and (B, K, 4) deltas."""
        levels = list(self.backbone.strides.items())[:4]  # the coarsest is for proposals only
        maps = [features[name] for name, _ in levels]
        strides = [stride for _, stride in levels]
        pooled = pyramid_roi_align(maps, strides, boxes, image, (BINS, BINS))
        return self.roi_heads(pooled)


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
