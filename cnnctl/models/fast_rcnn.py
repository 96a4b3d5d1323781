"""Fast R-CNN: Girshick, "Fast R-CNN", arXiv:1504.08083, sections 2 and 3 (table 1: 66.9 mAP on VOC
2007 with VGG-16 and selective search; table 4: 0.32 s an image, 0.22 s with truncated SVD).

Differs from the paper: all layers of a backbone are trained, not from conv2_1 or conv3_1 on; a step
has as many images as trainer.batch_size says (the paper has 2), each with 64 regions, or fewer
where too few proposals overlap an object; the backbones are torchvision's, with ResNets by the
layers that they have above the map; box targets are divided by fixed deviations (0.1 of a place,
0.2 of a size), in the paper by those of the training set, with its means taken off. For training
images below 256 pixels the map is at stride 8, two dense layers of 256 units on 4 x 4 bins are
above it, and an image is trained on 32 regions.
From the published code and not in the paper: the true boxes are among the proposals that are
trained on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from cnnctl.backbones.base import Backbone
from cnnctl.backbones.pyramid import freeze_norm
from cnnctl.models.base import Losses
from cnnctl.models.detection import DetectionModel, Truth
from cnnctl.models.one_stage import SMALL, require_counts, require_shares
from cnnctl.models.region_head import CHUNK, FEW_UNITS, Map, RegionHead, parts_of
from cnnctl.models.regions import (
    FEW_REGIONS,
    REGIONS_OF_AN_IMAGE,
    named_regions,
    proposed,
    region_losses,
    sampled,
)
from cnnctl.ops.boxes import Detections
from cnnctl.ops.clock import REGIONS, timed
from cnnctl.ops.levels import filled_up
from cnnctl.ops.regions import roi_pool
from cnnctl.ops.truncated_svd import TruncatedLinear
from cnnctl.structures import Images

BEND = 1.0  # of smooth L1: equation 3


@dataclass
class Features:
    map: Tensor  # (N, C, h, w)


class FastRCNN(DetectionModel):
    """The classes and boxes of proposals from one map of the whole image.

    With VGG the map is conv5_3, with AlexNet conv5, and what is pooled of a region goes through fc6
    and fc7; with ResNet it is c4, and regions go through what makes c5 of it. Images are filled up
    with zeros to a multiple of the stride.

    Args:
        num_classes: K.
        size: (h, w) of the training input.
        backbone: a VGG, AlexNet or a ResNet.
        map: "c4" at stride 16, or "c3" at stride 8, with all layers above it for each region; None
            is "c4", or "c3" where ``size`` is below 256.
        dense: units of layers above the map in place of the backbone's own; [] is these, None too,
            or two of 256 where ``size`` is below 256.
        regions: proposals of an image that are trained on, a quarter of them objects at most; None
            is the paper's 64 of each of two images, or 32 where ``size`` is below 256.
        lowest: IoU with an object from which a proposal below 0.5 is trained on as background
            (section 2.3, "Mini-batch sampling").
        svd: rank of each dense layer of the region's in prediction ([1024, 256] for fc6 and fc7 of
            VGG-16), or a share of each one's shorter side; None: as they are (section 3.1).
        frozen_norm: keep the backbone's batch normalisation as it was published.
        score, overlap, detections: see ``best_of_classes``.

    Raises:
        ValueError: a number is out of range, or the backbone is of another kind.
    """

    reads_proposals: ClassVar[bool] = True
    published_seconds = (2.0, 0.32)  # table 4: VGG-16, a K40; selective search, a CPU
    eval_pixels = 1 << 18  # of an image there may be thousands of regions

    def __init__(
        self,
        num_classes: int,
        backbone: Backbone,
        size: tuple[int, int],
        map: Map | None = None,
        dense: tuple[int, ...] | None = None,
        regions: int | None = None,
        lowest: float = 0.1,
        svd: tuple[int, ...] | float | None = None,
        frozen_norm: bool = False,
        score: float = 0.05,
        overlap: float = 0.3,
        detections: int = 100,
    ) -> None:
        super().__init__()
        large = min(size) >= SMALL
        if regions is None:
            regions = REGIONS_OF_AN_IMAGE if large else FEW_REGIONS
        if dense is None:
            dense = () if large else FEW_UNITS
        if map is None:
            map = "c4" if large else "c3"
        require_counts(regions=regions, detections=detections, dense=min(dense, default=1))
        require_shares(lowest=lowest, score=score, overlap=overlap)
        self.num_classes, self.regions, self.lowest = num_classes, regions, lowest
        self.score, self.overlap, self.most = score, overlap, detections
        if frozen_norm:
            freeze_norm(backbone)
        parts = parts_of(backbone, size, "fast_rcnn", map, dense)
        self.trunk, self.stride, self.bins = parts.trunk, parts.stride, parts.bins
        self.head = RegionHead(parts.top, parts.width, num_classes)
        self.pooled_numbers = parts.channels * parts.bins**2
        self.truncated = truncated_layers(parts.top, svd)

    def features(self, pixels: Tensor) -> Features:
        return Features(self.trunk(filled_up(pixels, self.stride)))

    def losses(self, features: Features, images: Images, truth: Truth) -> Losses:
        boxes, there = proposed(images)
        regions = sampled(boxes, there, truth, self.num_classes, self.regions, lowest=self.lowest)
        if not len(regions.boxes):
            return self._nothing(features)
        logits, deltas = self.head(self.pooled(features, regions.boxes, regions.image))
        return region_losses(logits, deltas, regions, bend=BEND)

    def detect(self, features: Features, images: Images) -> Detections:
        boxes, there = proposed(images)
        with timed(REGIONS):
            logits, deltas = self._read(features, boxes, there)
        return named_regions(
            logits,
            deltas,
            boxes,
            there,
            images,
            score=self.score,
            overlap=self.overlap,
            most=self.most,
        )

    def pooled(self, features: Features, boxes: Tensor, image: Tensor) -> Tensor:
        """(B, C, bins, bins) of boxes (B, 4)."""
        return roi_pool(features.map, boxes, image, (self.bins, self.bins), 1 / self.stride)

    def _read(self, features: Features, boxes: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
        """(N * P, K + 1) logits and (N * P, K, 4) deltas, 0 where there is no proposal; of a part
        of the regions at a time, so that memory does not grow with their number."""
        count = max(1, CHUNK // self.pooled_numbers)
        image = there.nonzero()[:, 0]
        found = [
            self._named(self.pooled(features, some, whose))
            for some, whose in zip(boxes[there].split(count), image.split(count), strict=True)
        ]
        logits = features.map.new_zeros(there.numel(), self.num_classes + 1)
        deltas = features.map.new_zeros(there.numel(), self.num_classes, 4)
        rows = there.flatten()
        logits[rows] = torch.cat([one for one, _ in found]).to(logits.dtype)
        deltas[rows] = torch.cat([one for _, one in found]).to(deltas.dtype)
        return logits, deltas

    def _named(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        if not self.truncated:
            return self.head(pooled)
        hidden = pooled
        left = iter(self.truncated)
        for layer in self.head.top.children():
            hidden = next(left)(layer, hidden) if isinstance(layer, nn.Linear) else layer(hidden)
        return self.head.named(hidden)

    def _nothing(self, features: Features) -> Losses:
        """Losses of no region at all: 0, with gradients of 0. Batch normalisation of nothing would
        leave its statistics without a number."""
        nothing = features.map.sum() * 0 + sum(one.sum() * 0 for one in self.head.parameters())
        return {"class": nothing, "box": nothing.clone()}


def truncated_layers(
    layers: nn.Module, svd: tuple[int, ...] | float | None
) -> list[TruncatedLinear]:
    """One for each dense layer, in order; none where none are asked for.

    Raises:
        ValueError: a rank is out of range, or there are not as many as layers.
    """
    if svd is None:
        return []
    dense = [layer for layer in layers.children() if isinstance(layer, nn.Linear)]
    if not dense:
        raise ValueError("svd needs dense layers above the map, which a ResNet has by dense alone")
    sides = [min(layer.in_features, layer.out_features) for layer in dense]
    if isinstance(svd, float | int):
        if not 0 < svd <= 1:
            raise ValueError(f"svd must be ranks, or a share above 0 and up to 1, got {svd:g}")
        ranks = [max(1, round(svd * side)) for side in sides]
    else:
        ranks = list(svd)
    if len(ranks) != len(dense) or any(not 1 <= r <= s for r, s in zip(ranks, sides, strict=False)):
        raise ValueError(f"svd must be {len(dense)} ranks from 1 to at most {sides}, got {ranks}")
    return [TruncatedLinear(rank) for rank in ranks]
