"""Mask R-CNN on one map at stride 16: He, Gkioxari, Dollar, Girshick, "Mask R-CNN",
arXiv:1703.06870, section 3 and figure 4 on the left (table 2a: 30.3 mask AP with ResNet-50).

Differs from the paper: what ``faster_rcnn_c4`` differs in, but RoI align is as published, and boxes
of a class are one where they overlap by more than 0.5; a mask is learnt from shares of its bins and
not from 0 and 1. Below 256 pixels a region is 7x7, c5 of it 4x4, and a mask becomes twice as large
two times: 16x16, where the paper has 14x14.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cnnctl.backbones.base import Backbone
from cnnctl.backbones.resnet import ResNet
from cnnctl.models.base import Losses
from cnnctl.models.detection import Truth
from cnnctl.models.faster_rcnn_c4 import BEND, FasterRCNNC4, Features
from cnnctl.models.instance import (
    InstanceModel,
    Instances,
    mask_loss,
    mask_targets,
    with_masks,
)
from cnnctl.models.mask_rcnn import MaskPredictor, start_layers
from cnnctl.models.one_stage import require_counts
from cnnctl.models.region_proposals import Proposals
from cnnctl.models.regions import region_losses, sampled
from cnnctl.ops.clock import REGIONS, timed
from cnnctl.ops.regions import roi_align
from cnnctl.structures import Images

SIDE = 14  # of a mask, at least


class MaskRCNNC4(FasterRCNNC4, InstanceModel):
    """Faster R-CNN with RoI align, and a mask from what its head makes of c5 of a region.

    Args:
        mask_width: channels that a mask is made of.
        class_agnostic: one mask for all classes (section 3.1, "class-agnostic").

    See ``FasterRCNNC4`` for the others and what is raised; all is trained at once.

    Raises:
        ValueError: the backbone is no ResNet.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: Backbone,
        size: tuple[int, int],
        anchor_scales: tuple[float, ...] | None = None,
        ratios: tuple[float, ...] = (0.5, 1.0, 2.0),
        regions: int | None = None,
        proposals_train: int = 2000,
        proposals_test: int = 300,
        mask_width: int = 256,
        class_agnostic: bool = False,
        frozen_norm: bool = False,
        score: float = 0.05,
        overlap: float = 0.5,
        detections: int = 100,
    ) -> None:
        if not isinstance(backbone, ResNet):
            raise ValueError(f"mask_rcnn_c4 needs a ResNet, got {type(backbone).__name__}")
        super().__init__(
            num_classes,
            backbone,
            size,
            map="c4",
            dense=(),  # a mask is made of c5
            anchor_scales=anchor_scales,
            ratios=ratios,
            regions=regions,
            proposals_train=proposals_train,
            proposals_test=proposals_test,
            frozen_norm=frozen_norm,
            score=score,
            overlap=overlap,
            detections=detections,
        )
        require_counts(mask_width=mask_width)
        self.class_agnostic = class_agnostic
        side, channels, layers = -(-self.bins // 2), backbone.channels["c5"], []
        while 2 * side < SIDE:
            layers += [nn.ConvTranspose2d(channels, mask_width, 2, 2), nn.ReLU()]
            side, channels = 2 * side, mask_width
        self.side = 2 * side
        self.larger = nn.Sequential(*layers)
        start_layers(self.larger)
        self.masks = MaskPredictor(channels, mask_width, 1 if class_agnostic else num_classes)

    def pooled(self, maps: Tensor, boxes: Tensor, image: Tensor) -> Tensor:
        return roi_align(maps, boxes, image, (self.bins, self.bins), 1 / self.stride)

    def detect(self, features: Features, images: Images) -> Instances:
        found = super().detect(features, images)

        def read(boxes: Tensor, image: Tensor, labels: Tensor) -> Tensor:
            return self._masks(self._deep(features.map, boxes, image), labels)

        return with_masks(found, self.side, read)

    def _region_losses(self, maps: Tensor, found: Proposals, truth: Truth) -> Losses:
        """c5 is made once of each region, for its class, its box and its mask."""
        regions = sampled(found.boxes, found.there, truth, self.num_classes, self.regions)
        deep = self._deep(maps, regions.boxes, regions.image)
        logits, deltas = self.head.named(deep.mean((2, 3)))
        rows, wanted = mask_targets(regions, truth, self.side)
        said = self._masks(deep[rows], regions.labels[rows])
        losses = region_losses(logits, deltas, regions, bend=BEND)
        return {**losses, "mask": mask_loss(said, wanted)}

    @timed(REGIONS)
    def _deep(self, maps: Tensor, boxes: Tensor, image: Tensor) -> Tensor:
        """(B, C, h, w), c5 of each region."""
        return self.head.top.get_submodule("layer4")(self.pooled(maps, boxes, image))

    @timed(REGIONS)
    def _masks(self, deep: Tensor, labels: Tensor) -> Tensor:
        """Logits (B, side, side), each for its class (B,)."""
        output = torch.zeros_like(labels) if self.class_agnostic else labels
        return self.masks(self.larger(deep), output)
