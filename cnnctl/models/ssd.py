"""SSD: Liu, Anguelov, Erhan, Szegedy, Reed, Fu, Berg, "SSD: single shot multibox detector",
arXiv:1512.02325, sections 2 and 3 (table 6: SSD300 has 77.2 mAP on VOC2007 and 25.1 COCO AP, SSD512
79.8 and 28.8), with the head of torchvision, whose names of weights are kept so that the published
ones load.

Differs from the paper: fc6 and fc7 start at random and not from VGG-16's subsampled ones; default
boxes are the released code's, whose scales do not end at 0.9 and whose centres are whole steps
apart; maps that would vanish on images below 300 pixels are left out. `SSD` on any backbone is not
in the paper: it takes the backbone's maps from stride 8 on, without L2 normalisation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnctl.backbones.base import Backbone
from cnnctl.backbones.extended import Extended
from cnnctl.backbones.reduced_vgg import ReducedVGG
from cnnctl.backbones.vgg import VGG
from cnnctl.models.base import Losses
from cnnctl.models.detection import DetectionModel, Truth
from cnnctl.models.published_detectors import (
    CAFFE,
    Published,
    entry_of,
    load_features,
    load_published,
)
from cnnctl.ops.anchors import tiled
from cnnctl.ops.boxes import SCALES, Detections, best_of_classes, clip, decode, encode
from cnnctl.ops.clock import POST_PROCESSING, timed
from cnnctl.ops.default_boxes import default_shapes, hard_negative_sum, ratios_of, spread
from cnnctl.ops.matching import match, taken
from cnnctl.structures import Images

PUBLISHED = Published(
    "ssd300_vgg16",
    by_class=r"head\.classification_head\.module_list\.\d+",
    fits="an input of 300 x 300",
    background=True,
    normal=CAFFE,
)


@dataclass(frozen=True)
class Rules:
    """Numbers of training and of detection, with the paper's values.

    Args:
        positive: IoU with a true box from which a default box is its, besides the closest one.
        negatives: background boxes of an image that are trained on, the most wrong ones, for each
            positive one (section 2.2, "hard negative mining").
        score: below it nothing is detected.
        overlap: IoU above which the less likely of two boxes of a class goes.
        candidates: boxes of a class that are compared at most, the most likely.
        detections: the most of an image.

    Raises:
        ValueError: a number is out of range.
    """

    positive: float = 0.5
    negatives: float = 3.0
    score: float = 0.01
    overlap: float = 0.45
    candidates: int = 400
    detections: int = 200

    def __post_init__(self) -> None:
        for name in ("positive", "overlap"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} must be above 0 and at most 1, got {getattr(self, name)}")
        if not 0 <= self.score < 1:
            raise ValueError(f"score must be from 0 to below 1, got {self.score}")
        if self.negatives <= 0:
            raise ValueError(f"negatives must be above 0, got {self.negatives}")
        for name in ("candidates", "detections"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


@dataclass
class Said:
    """Of every default box of N images; A boxes of all maps, the finest first."""

    logits: Tensor  # (N, A, K + 1), background first
    deltas: Tensor  # (N, A, 4)
    defaults: Tensor  # (A, 4) in input pixels


class SingleShot(DetectionModel):
    """Classes and shifts of default boxes on several maps; what all models of this kind share.

    Args:
        backbone: from pixels to maps (N, C, h, w) by name, the finest first.
        head: from these to ``cls_logits`` (N, A, K + 1) and ``bbox_regression`` (N, A, 4).
        shapes: (k, 2) width and height of the default boxes of each map, in sides of the image.
        steps: input pixels from one to the next of each map; None is the image's part of a cell.
        least: pixels of a side, to which smaller images are filled up with zeros.
    """

    shapes: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Module,
        shapes: Sequence[Tensor],
        steps: Sequence[int | None],
        rules: Rules,
        least: int = 1,
    ) -> None:
        super().__init__()
        self.backbone, self.head, self.rules, self._least = backbone, head, rules, least
        self._steps, self._counts = tuple(steps), [len(shape) for shape in shapes]
        self.register_buffer("shapes", torch.cat(list(shapes)), persistent=False)

    def features(self, pixels: Tensor) -> Said:
        below, right = (max(0, self._least - side) for side in pixels.shape[2:])
        pixels = F.pad(pixels, (0, right, 0, below)) if below or right else pixels
        maps = list(self.backbone(pixels).values())
        said = self.head(maps)
        sizes = [(level.shape[2], level.shape[3]) for level in maps]
        defaults = self.default_boxes(sizes, (pixels.shape[2], pixels.shape[3]))
        return Said(said["cls_logits"].float(), said["bbox_regression"].float(), defaults)

    def default_boxes(self, maps: Sequence[tuple[int, int]], image: tuple[int, int]) -> Tensor:
        """(A, 4) xyxy in pixels of an image of (h, w), of maps of (h, w) each."""
        height, width = image
        half = torch.stack([self.shapes[:, 0] * width, self.shapes[:, 1] * height], 1) / 2
        around = torch.cat([-half, half], 1).split(self._counts)
        return torch.cat(
            [
                tiled(base, (h, w), (step or height / h, step or width / w), 0.5)
                for base, (h, w), step in zip(around, maps, self._steps, strict=True)
            ]
        )

    def matches(self, said: Said, truth: Truth) -> Tensor:
        """(N, A) the row of the box that each default box answers for, -1 none (section 2.2)."""
        high = self.rules.positive
        return match(truth.boxes, truth.labels, said.defaults, high, high, best=True, ties=False)

    def anchors_and_matches(
        self, features: Said, images: Images, truth: Truth
    ) -> tuple[Tensor, Tensor]:
        return features.defaults, self.matches(features, truth)

    def losses(self, features: Said, images: Images, truth: Truth) -> Losses:
        """Equation 1 of the paper, its two parts; 0 where no image has a box."""
        matched = self.matches(features, truth)
        positive = matched >= 0
        total = positive.sum().clamp(min=1)
        wanted = encode(taken(truth.boxes, matched), features.defaults, SCALES)
        apart = F.smooth_l1_loss(features.deltas, wanted, reduction="none").sum(2)  # (N, A)
        classes = torch.where(positive, taken(truth.labels, matched) + 1, 0)
        wrong = F.cross_entropy(
            features.logits.flatten(0, 1), classes.flatten(), reduction="none"
        ).view_as(apart)
        background = hard_negative_sum(wrong, positive, self.rules.negatives)
        return {
            "class": (torch.where(positive, wrong, 0.0).sum() + background) / total,
            "box": torch.where(positive, apart, 0.0).sum() / total,
        }

    @timed(POST_PROCESSING)
    def detect(self, features: Said, images: Images) -> Detections:
        rules = self.rules
        scores = features.logits.softmax(2)[..., 1:]  # (N, A, K)
        _, a, k = scores.shape
        sizes = torch.tensor(images.sizes, device=scores.device)
        boxes = clip(decode(features.deltas, features.defaults, SCALES), sizes)
        best = scores.topk(min(rules.candidates, a), dim=1)  # (N, c, K)
        return best_of_classes(
            taken(boxes, best.indices.flatten(1)),
            best.values.flatten(1),
            labels=torch.arange(k, device=scores.device).expand_as(best.values).flatten(1),
            score=rules.score,
            overlap=rules.overlap,
            most=rules.detections,
            candidates=best.values[0].numel(),
        )


class SSDVGG(SingleShot):
    """The paper's: VGG-16 with fc6 and fc7 as convolutions, and extra layers; SSD300, SSD512.

    Args:
        in_channels: C.
        num_classes: K.
        size: (h, w) of the training input; from 512 pixels on there is one extra layer more.
        scale_first: side of the first map's default boxes, as a share of the image's.
        scale_min, scale_max: of the second and the last map's, evenly in between.
        negatives, score, overlap, candidates, detections: see ``Rules``.
        weights: "COCO_V1", torchvision's of the whole SSD300.
        backbone_weights: torchvision's of VGG-16: "IMAGENET1K_FEATURES" (the paper's) or
            "IMAGENET1K_V1".
        classes: their names, by which rows of the published head are taken.

    Attributes:
        rebuilt: the layers that start at random in spite of ``weights``, by name.

    Raises:
        ValueError: a number is out of range, the input is too small, or weights do not fit.
        UserError: the weights are not on this machine and cannot be downloaded.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        size: tuple[int, int],
        scale_first: float = 0.07,
        scale_min: float = 0.15,
        scale_max: float = 0.87,
        negatives: float = 3.0,
        score: float = 0.01,
        overlap: float = 0.45,
        candidates: int = 400,
        detections: int = 200,
        weights: str | None = None,
        backbone_weights: str | None = None,
        classes: tuple[str, ...] = (),
    ) -> None:
        if weights is not None and backbone_weights is not None:
            raise ValueError("weights hold those of the backbone: set backbone_weights to null")
        backbone = ReducedVGG(_vgg16(in_channels, backbone_weights), size)
        shapes = _shapes(len(backbone.channels), scale_first, scale_min, scale_max)
        rules = Rules(0.5, negatives, score, overlap, candidates, detections)
        head = _head(backbone.channels, shapes, num_classes)
        super().__init__(backbone, head, shapes, backbone.steps, rules, backbone.least)
        if weights is not None:
            if (scale_first, scale_min, scale_max) != (0.07, 0.15, 0.87):
                raise ValueError("published weights are of the scales 0.07, 0.15 and 0.87")
            self.rebuilt = load_published(self, PUBLISHED, weights, num_classes, classes)


class SSD(SingleShot):
    """On any backbone: its maps from stride 8 on, and extra layers until a map has one pixel;
    see ``Extended``.

    Args:
        backbone: any.
        num_classes: K.
        size: (h, w) of the training input, which settles the number of maps.
        scale_first, scale_min, scale_max, negatives, score, overlap, candidates, detections: see
            ``SSDVGG``.

    Raises:
        ValueError: a number is out of range, or the input is smaller than the backbone's stride.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        size: tuple[int, int],
        scale_first: float = 0.2,
        scale_min: float = 0.35,
        scale_max: float = 0.9,
        negatives: float = 3.0,
        score: float = 0.01,
        overlap: float = 0.45,
        candidates: int = 400,
        detections: int = 200,
    ) -> None:
        backbone.require(size)
        extended = Extended(backbone, size)
        shapes = _shapes(len(extended.channels), scale_first, scale_min, scale_max)
        rules = Rules(0.5, negatives, score, overlap, candidates, detections)
        head = _head(extended.channels, shapes, num_classes)
        super().__init__(extended, head, shapes, [None] * len(shapes), rules)


def _vgg16(in_channels: int, weights: str | None) -> VGG:
    if weights != "IMAGENET1K_FEATURES":
        return VGG(16, in_channels, weights=weights)
    body = VGG(16, in_channels)
    load_features(body, entry_of("vgg16", "backbone_weights", weights), CAFFE)
    return body


def _shapes(count: int, first: float, low: float, high: float) -> list[Tensor]:
    """(k, 2) width and height of the default boxes of each of ``count`` maps."""
    if not 0 < first <= low <= high:
        raise ValueError(
            "scales must be 0 < scale_first <= scale_min <= scale_max, "
            f"got {first}, {low} and {high}"
        )
    return default_shapes([first, *spread(count - 1, low, high)], ratios_of(count))


def _head(channels: Sequence[int], shapes: Sequence[Tensor], num_classes: int) -> nn.Module:
    """A 3x3 convolution of each map for classes and one for boxes; torchvision's, which starts
    with Xavier's weights as in section 3."""
    from torchvision.models.detection.ssd import SSDHead

    return SSDHead(list(channels), [len(shape) for shape in shapes], num_classes + 1)
