"""Mask R-CNN on a feature pyramid: He, Gkioxari, Dollar, Girshick, "Mask R-CNN", arXiv:1703.06870,
section 3 and figure 4 on the right (table 1: 35.7 mask AP with ResNet-101, images of 800 pixels).

Differs from the paper: what ``faster_rcnn`` differs in; a mask is learnt from shares of its bins
and not from 0 and 1; the last convolution is computed for the class of a region alone, which gives
the same numbers, and has an output for background, which nothing asks for, so that torchvision's
published weights load. ``mask_rcnn_c4`` is the one without a pyramid.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnctl.backbones.base import Backbone
from cnnctl.models import faster_rcnn
from cnnctl.models.base import Losses
from cnnctl.models.detection import Truth
from cnnctl.models.faster_rcnn import FasterRCNN, Features, with_asked
from cnnctl.models.instance import (
    InstanceModel,
    Instances,
    mask_loss,
    mask_targets,
    with_masks,
)
from cnnctl.models.one_stage import SMALL, require_counts
from cnnctl.models.published_detectors import Published, load_published
from cnnctl.ops.clock import REGIONS, timed
from cnnctl.structures import Images

BINS, SIDE = 14, 28  # of a region, and of its mask, each way
PUBLISHED = Published(
    "maskrcnn_resnet50_fpn",
    by_class=r"roi_heads\.(box_predictor\.(cls_score|bbox_pred)|mask_predictor\.mask_fcn_logits)",
    fits="backbone=resnet50, width 256, hidden 1024, three ratios, mask_width 256, mask_convs 4"
    " and class_agnostic false",
    classes_first=True,
    background=True,
    norm_eps=0.0,
)


@dataclass(frozen=True)
class MaskNumbers:
    """What is taken where a constructor's argument is None; see ``MaskRCNN`` for the names."""

    mask_width: int
    mask_convs: int
    mask_regions: int


# As in ``faster_rcnn``: the paper's, and for images below 256 pixels, where the mask costs about
# as much as the rest of a step if it has all regions.
PAPER = MaskNumbers(256, 4, sys.maxsize)
FEW_PIXELS = MaskNumbers(64, 2, 8)


class MaskRCNN(FasterRCNN, InstanceModel):
    """Faster R-CNN, and for each region a mask of 28 x 28 for its class.

    In training the regions that are objects have one, in testing the detections.

    Args:
        mask_width: channels of the mask's convolutions.
        mask_convs: 3x3 convolutions of a region of 14 x 14, before it becomes twice as large.
        mask_regions: of an image whose masks are trained on at most; they are drawn at random.
        class_agnostic: one mask for all classes (section 3.1, "class-agnostic").

    See ``FasterRCNN`` for the others and what is raised. The three numbers of the mask that are
    None are the paper's, with all regions that are objects, or those of ``FEW_PIXELS``.
    """

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
        mask_width: int | None = None,
        mask_convs: int | None = None,
        mask_regions: int | None = None,
        class_agnostic: bool = False,
        frozen_norm: bool = False,
        score: float = 0.05,
        overlap: float = 0.5,
        detections: int = 100,
        weights: str | None = None,
        classes: tuple[str, ...] = (),
    ) -> None:
        large = weights is not None or min(size) >= SMALL
        boxes = with_asked(
            faster_rcnn.PAPER if large else faster_rcnn.FEW_PIXELS,
            width=width,
            hidden=hidden,
            anchor_scale=anchor_scale,
            regions=regions,
            proposals_train=proposals_train,
            proposals_test=proposals_test,
        )
        masks = with_asked(
            PAPER if large else FEW_PIXELS,
            mask_width=mask_width,
            mask_convs=mask_convs,
            mask_regions=mask_regions,
        )
        super().__init__(
            num_classes,
            backbone,
            size,
            ratios=ratios,
            frozen_norm=frozen_norm,
            score=score,
            overlap=overlap,
            detections=detections,
            **vars(boxes),
        )
        require_counts(**vars(masks))
        self.class_agnostic, self.mask_regions = class_agnostic, masks.mask_regions
        self.roi_heads.mask_head = MaskHead(boxes.width, masks.mask_width, masks.mask_convs)
        self.roi_heads.mask_predictor = MaskPredictor(
            masks.mask_width, masks.mask_width, 1 if class_agnostic else num_classes + 1
        )
        if weights is not None:
            self.rebuilt = load_published(self, PUBLISHED, weights, num_classes, classes)

    def losses(self, features: Features, images: Images, truth: Truth) -> Losses:
        losses, regions = self.losses_and_regions(features, images, truth)
        rows, wanted = mask_targets(regions, truth, SIDE, self.mask_regions)
        logits = self.mask_logits(
            features, regions.boxes[rows], regions.image[rows], regions.labels[rows]
        )
        return {**losses, "mask": mask_loss(logits, wanted)}

    def detect(self, features: Features, images: Images) -> Instances:
        found = super().detect(features, images)
        return with_masks(found, SIDE, lambda *regions: self.mask_logits(features, *regions))

    @timed(REGIONS)
    def mask_logits(
        self, features: Features, boxes: Tensor, image: Tensor, labels: Tensor
    ) -> Tensor:
        """(B, 28, 28) of boxes (B, 4) of images (B,), each for its class (B,) of 0 to K - 1."""
        hidden = self.roi_heads.get_submodule("mask_head")(
            self.pooled(features, boxes, image, BINS)
        )
        # The first output is background's.
        output = torch.zeros_like(labels) if self.class_agnostic else labels + 1
        return self.roi_heads.get_submodule("mask_predictor")(hidden, output)


class MaskHead(nn.Sequential):
    """3x3 convolutions, each with ReLU; torchvision's names of weights."""

    def __init__(self, channels: int, width: int, count: int) -> None:
        given = [channels, *[width] * (count - 1)]
        super().__init__(
            *(nn.Sequential(nn.Conv2d(c, width, 3, padding=1), nn.ReLU()) for c in given)
        )
        start_layers(self)
        self.register_load_state_dict_pre_hook(_with_present_names)


class MaskPredictor(nn.Module):
    """Twice as large, then a 1x1 convolution to ``outputs`` masks; torchvision's names."""

    def __init__(self, channels: int, width: int, outputs: int) -> None:
        super().__init__()
        self.conv5_mask = Doubled(channels, width, 2, 2)
        self.mask_fcn_logits = OneOutput(width, outputs)
        start_layers(self)

    def forward(self, hidden: Tensor, output: Tensor) -> Tensor:
        """(B, channels, h, w) and which mask (B,) is asked for -> logits (B, 2h, 2w)."""
        said = self.mask_fcn_logits(F.relu(self.conv5_mask(hidden)), output)
        return said.permute(0, 1, 3, 2, 4).flatten(3).flatten(1, 2)


class Doubled(nn.ConvTranspose2d):
    """A transposed convolution of 2x2 with stride 2, where no two windows overlap, so that it is a
    product of matrices. The four pixels that one becomes stay together: what follows reads each on
    its own, and rows of all channels need not be moved."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """(B, C, h, w) -> (B, h, w, 2, 2, width)."""
        assert self.bias is not None
        weight = self.weight.permute(2, 3, 1, 0).flatten(0, 2)  # (2 * 2 * width, C)
        larger = F.linear(input.permute(0, 2, 3, 1), weight, self.bias.repeat(4))
        return larger.unflatten(3, (2, 2, -1))


class OneOutput(nn.Module):
    """A 1x1 convolution of which each region is asked for one output only."""

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        # Every mask is about a half everywhere at the start, whatever the width.
        self.weight = nn.Parameter(torch.randn(outputs, channels, 1, 1) * 0.001)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, pixels: Tensor, output: Tensor) -> Tensor:
        """(B, ..., channels) and (B,) -> (B, ...)."""
        own = self.weight[output].flatten(1)[:, :, None]  # (B, channels, 1)
        said = pixels.flatten(1, -2) @ own + self.bias[output, None, None]
        return said.view(pixels.shape[:-1])


def start_layers(layers: nn.Module) -> None:
    """At random as He et al. have it, arXiv:1502.01852; biases at 0."""
    for layer in layers.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def _with_present_names(
    module: nn.Module, state: dict[str, Any], prefix: str, *_: Sequence[Any]
) -> None:
    """torchvision's published files are older than its names."""
    for i in range(len(list(module.children()))):
        for kind in ("weight", "bias"):
            if f"{prefix}mask_fcn{i + 1}.{kind}" in state:
                state[f"{prefix}{i}.0.{kind}"] = state.pop(f"{prefix}mask_fcn{i + 1}.{kind}")
