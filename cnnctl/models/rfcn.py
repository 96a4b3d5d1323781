"""R-FCN: Dai, Li, He, Sun, "R-FCN: object detection via region-based fully convolutional networks",
arXiv:1605.06409, section 2 (table 4: 79.5 mAP on VOC 2007 with ResNet-101).

Differs from the paper: proposals and regions are trained together and not in turns; a ResNet-v1.5
of any depth that backbone= has; hard regions are found among what one pass says of all of them, so
none is computed twice. For training images below 256 pixels a region has 3x3 bins and not 7x7, and
the map that is scored 256 channels and not 1024, and is c4 at stride 8 and not c5 at stride 16;
anchors are as in ``faster_rcnn_c4``.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from cnnctl.backbones.base import Backbone
from cnnctl.backbones.pyramid import freeze_norm
from cnnctl.backbones.resnet import ResNet
from cnnctl.models.base import Losses
from cnnctl.models.detection import DetectionModel, Truth
from cnnctl.models.faster_rcnn_c4 import BEND, COMPARED, HIDDEN, require_anchors
from cnnctl.models.one_stage import SMALL, require_counts, require_shares
from cnnctl.models.region_head import Map, until
from cnnctl.models.region_proposals import ProposalSettings, RegionProposals, sides_for
from cnnctl.models.regions import in_a_row, named_regions, region_losses, sampled
from cnnctl.ops.boxes import Detections
from cnnctl.ops.clock import REGIONS, timed
from cnnctl.ops.levels import filled_up
from cnnctl.ops.regions import position_sensitive_roi_pool
from cnnctl.structures import Images


@dataclass
class Features:
    map: Tensor  # (N, C, h, w) of the proposals
    named: Tensor  # (N, (K + 1) * k * k, h, w) score maps, background last
    placed: Tensor  # (N, 4 * k * k, h, w)
    size: tuple[int, int]  # (h, w) of the pixels that they were made of, filled up


class RFCN(DetectionModel):
    """Of each of the k x k bins of a region a map of its own says what is there; they vote.

    Proposals come from c4; c5 is dilated, so that it is at the same stride 16; or from c3, and c4
    is dilated, at stride 8. Images are filled up with zeros to a multiple of the stride.

    Args:
        num_classes: K.
        size: (h, w) of the training input.
        backbone: a ResNet.
        map: "c4" or "c3", that the proposals come from; what comes after the map above it is left
            out. None is "c4", or "c3" where ``size`` is below 256.
        bins: k; None is the paper's 7, or 3 where ``size`` is below 256.
        width: channels of the map that is scored; None is 1024, or 256 where ``size`` is below 256.
        anchor_scales, ratios: see ``FasterRCNNC4``.
        regions: proposals of an image that are trained on.
        hard: train on those regions of all proposals that are named or placed worst (section 2,
            "online hard example mining"); False: drawn, a quarter of them objects at most.
        proposals_train, proposals_test: kept of an image.
        frozen_norm: keep the backbone's batch normalisation as it was published.
        score, overlap, detections: see ``best_of_classes``.

    Raises:
        ValueError: a number is out of range, or the backbone is of another kind.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: Backbone,
        size: tuple[int, int],
        map: Map | None = None,
        bins: int | None = None,
        width: int | None = None,
        anchor_scales: tuple[float, ...] | None = None,
        ratios: tuple[float, ...] = (0.5, 1.0, 2.0),
        regions: int = 128,
        hard: bool = False,
        proposals_train: int = 300,
        proposals_test: int = 300,
        frozen_norm: bool = False,
        score: float = 0.05,
        overlap: float = 0.3,
        detections: int = 100,
    ) -> None:
        super().__init__()
        if not isinstance(backbone, ResNet):
            raise ValueError(f"rfcn needs a ResNet, got {type(backbone).__name__}")
        large = min(size) >= SMALL
        if map is None:
            map = "c4" if large else "c3"
        self.bins = (7 if large else 3) if bins is None else bins
        width = (1024 if large else 256) if width is None else width
        require_counts(
            bins=self.bins,
            width=width,
            regions=regions,
            proposals_train=proposals_train,
            proposals_test=proposals_test,
            detections=detections,
        )
        require_shares(score=score, overlap=overlap)
        scales = sides_for(size) if anchor_scales is None else anchor_scales
        require_anchors(scales, ratios, size)
        self.num_classes, self.regions, self.hard = num_classes, regions, hard
        self.score, self.overlap, self.most = score, overlap, detections
        if frozen_norm:
            freeze_norm(backbone)
        self.trunk, self.stride = until(backbone, map), backbone.strides[map]
        above, deep = ("c5", backbone.layer4) if map == "c4" else ("c4", backbone.layer3)
        self.above = without_stride(deep)
        self.rpn = RegionProposals(
            backbone.channels[map],
            [scales],
            ratios,
            ProposalSettings(inside=True, before=COMPARED, after=(proposals_train, proposals_test)),
            HIDDEN,
        )
        self.reduced = nn.Sequential(nn.Conv2d(backbone.channels[above], width, 1), nn.ReLU())
        self.named = nn.Conv2d(width, (num_classes + 1) * self.bins**2, 1)
        self.placed = nn.Conv2d(width, 4 * self.bins**2, 1)
        for layer in (self.reduced[0], self.named, self.placed):
            assert isinstance(layer, nn.Conv2d)
            assert layer.bias is not None
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)

    def features(self, pixels: Tensor) -> Features:
        pixels = filled_up(pixels, self.stride)
        size = (pixels.shape[2], pixels.shape[3])
        maps = self.trunk(pixels)
        deep = self.reduced(self.above(maps))
        return Features(maps, self.named(deep), self.placed(deep), size)

    def losses(self, features: Features, images: Images, truth: Truth) -> Losses:
        said = self.rpn([features.map], features.size)
        found = self.rpn.propose(said, images)
        count, share, hardest = self.regions, 0.25, None
        if self.hard:  # all of them are looked at
            count, share = found.boxes.shape[1] + truth.boxes.shape[1], 1.0
            hardest = self.regions
        regions = sampled(found.boxes, found.there, truth, self.num_classes, count, share)
        logits, deltas = self._votes(features, regions.boxes, regions.image)
        return {
            **self.rpn.losses(said, images, truth),
            **region_losses(logits, deltas, regions, bend=BEND, hardest=hardest),
        }

    def detect(self, features: Features, images: Images) -> Detections:
        found = self.rpn.propose(self.rpn([features.map], features.size), images)
        logits, deltas = self._votes(features, *in_a_row(found.boxes))
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

    @timed(REGIONS)
    def _votes(self, features: Features, boxes: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """(B, K + 1) logits, background last, and (B, 1, 4) deltas: the means of their bins."""
        size, scale = (self.bins, self.bins), 1 / self.stride
        named, placed = (
            position_sensitive_roi_pool(maps, boxes, image, size, scale).float().mean((2, 3))
            for maps in (features.named, features.placed)
        )
        return named, placed[:, None]


def without_stride(layers: nn.Module) -> nn.Module:
    """Stride 1 in place of 2, and dilation 2 in what comes after: at every second position the same
    as before, with the same weights (the paper's "hole algorithm")."""
    for conv in layers.modules():
        if not isinstance(conv, nn.Conv2d):
            continue
        if conv.stride == (2, 2):
            conv.stride = (1, 1)
        elif conv.kernel_size == (3, 3):
            conv.dilation, conv.padding = (2, 2), (2, 2)
    return layers
