"""Keypoint R-CNN: He, Gkioxari, Dollar, Girshick, "Mask R-CNN", arXiv:1703.06870, section 5 (table
4: 62.7 keypoint AP with ResNet-50 on a pyramid, images of 800 pixels).

Each point of a figure is one of 56 x 56 places of its region, by a softmax over all of them.

Differs from the paper: what ``faster_rcnn`` differs in; at the end a point lies at the top of a
parabola through the likeliest place and its neighbours and not on the grid of the enlarged map,
and its score is what the softmax gives to that place and the eight around it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnctl.backbones.base import Backbone
from cnnctl.models import faster_rcnn
from cnnctl.models.base import Losses
from cnnctl.models.detection import Truth
from cnnctl.models.faster_rcnn import FasterRCNN, Features, with_asked
from cnnctl.models.mask_rcnn import start_layers
from cnnctl.models.one_stage import SMALL, require_counts
from cnnctl.models.pose import PoseModel, Poses, count_points
from cnnctl.models.published_detectors import Published, load_published
from cnnctl.ops.clock import REGIONS, timed
from cnnctl.skeleton import Skeleton
from cnnctl.structures import Images

BINS, SIDE = 14, 56  # of a region, and of the map of each point, each way
PUBLISHED = Published(
    "keypointrcnn_resnet50_fpn",
    by_class=r"roi_heads\.box_predictor\.(cls_score|bbox_pred)",
    fits="backbone=resnet50, width 256, hidden 1024, three ratios, 8 layers of 512 point_width and"
    " COCO's 17 points",
    classes_first=True,
    background=True,
    norm_eps=0.0,
)

_AT_ONCE = 256  # regions whose points are said together: one has 56 x 56 numbers for each point


@dataclass(frozen=True)
class PointNumbers:
    """What is taken where a constructor's argument is None; see ``KeypointRCNN`` for the names."""

    point_width: int
    point_layers: int


# As in ``faster_rcnn``: the paper's, and for images below 256 pixels, where the paper's eight
# convolutions would be a hundred times the rest of the network.
PAPER = PointNumbers(512, 8)
FEW_PIXELS = PointNumbers(64, 4)


class KeypointRCNN(FasterRCNN, PoseModel):
    """Faster R-CNN, and for each region a place for every point.

    In training the regions that are objects have points, in testing the detections.

    Args:
        skeleton: of the data: how many points there are.
        point_width: channels of the convolutions that the points are said from.
        point_layers: 3x3 convolutions of a region of 14 x 14.

    See ``FasterRCNN`` for the others and what is raised. The two numbers that are None are the
    paper's, or those of ``FEW_PIXELS``.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: Backbone,
        size: tuple[int, int],
        skeleton: Skeleton | None,
        width: int | None = None,
        hidden: int | None = None,
        anchor_scale: float | None = None,
        ratios: tuple[float, ...] = (0.5, 1.0, 2.0),
        regions: int | None = None,
        proposals_train: int | None = None,
        proposals_test: int | None = None,
        point_width: int | None = None,
        point_layers: int | None = None,
        frozen_norm: bool = False,
        score: float = 0.05,
        overlap: float = 0.5,
        detections: int = 100,
        weights: str | None = None,
        classes: tuple[str, ...] = (),
    ) -> None:
        count = count_points(skeleton)
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
        points = with_asked(
            PAPER if large else FEW_PIXELS, point_width=point_width, point_layers=point_layers
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
        require_counts(**vars(points))
        self.points = count
        self.roi_heads.keypoint_head = PointHead(
            boxes.width, points.point_width, points.point_layers
        )
        self.roi_heads.keypoint_predictor = PointPredictor(points.point_width, count)
        if weights is not None:
            self.rebuilt = load_published(self, PUBLISHED, weights, num_classes, classes)

    def losses(self, features: Features, images: Images, truth: Truth) -> Losses:
        losses, regions = self.losses_and_regions(features, images, truth)
        if truth.keypoints is None or not truth.labels.shape[1]:
            rows = regions.owner.new_zeros(0)
            wanted = regions.boxes.new_zeros(0, self.points, 3)
        else:
            rows = (regions.owner >= 0).nonzero()[:, 0]
            wanted = truth.keypoints[regions.image[rows], regions.owner[rows]]  # (B, J, 3)
        boxes = regions.boxes[rows]
        logits = self.point_logits(features, boxes, regions.image[rows])
        return {**losses, "keypoint": point_loss(logits, places(wanted, boxes))}

    def detect(self, features: Features, images: Images) -> Poses:
        found = super().detect(features, images)
        image, row = (found.labels >= 0).nonzero(as_tuple=True)
        points = found.boxes.new_zeros(*found.labels.shape, self.points, 3, dtype=torch.float32)
        for start in range(0, max(1, len(image)), _AT_ONCE):
            own = image[start : start + _AT_ONCE], row[start : start + _AT_ONCE]
            boxes = found.boxes[own]
            points[own] = likeliest(self.point_logits(features, boxes, own[0]), boxes)
        return Poses(found.boxes, found.scores, found.labels, points)

    @timed(REGIONS)
    def point_logits(self, features: Features, boxes: Tensor, image: Tensor) -> Tensor:
        """(B, J, 56, 56) of boxes (B, 4) of images (B,)."""
        hidden = self.roi_heads.get_submodule("keypoint_head")(
            self.pooled(features, boxes, image, BINS)
        )
        return self.roi_heads.get_submodule("keypoint_predictor")(hidden)


def places(points: Tensor, boxes: Tensor) -> Tensor:
    """The place y * 56 + x of each of (B, J, 3) in a map of its box (B, 4): (B, J) int64.

    -1 where a point has no label or lies outside of its box.
    """
    low, high = boxes[:, None, :2], boxes[:, None, 2:]
    bins = (points[..., :2] - low) / (high - low).clamp(min=1e-3) * SIDE
    last = points[..., :2] == high  # on the right or lower side, which belongs to the last bin
    place = torch.where(last, SIDE - 1, bins.floor()).long()
    inside = ((place >= 0) & (place < SIDE)).all(2) & (points[..., 2] > 0)
    return torch.where(inside, place[..., 1] * SIDE + place[..., 0], -1)


def point_loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """Mean over labelled points of the cross-entropy over all places, in float32; 0 without any.

    Args:
        logits: (B, J, 56, 56).
        wanted: (B, J) of ``places``.
    """
    logits = logits.float().flatten(2)
    if not len(logits):
        return logits.sum()  # so that all that is trained has a gradient, of 0
    named = F.cross_entropy(
        logits.flatten(0, 1), wanted.flatten(), ignore_index=-1, reduction="sum"
    )
    return named / (wanted >= 0).sum().clamp(min=1)


def likeliest(logits: Tensor, boxes: Tensor) -> Tensor:
    """(B, J, 56, 56) in boxes (B, 4) -> (B, J, 3) x, y in pixels, and a score."""
    logits = logits.float()
    flat = logits.flatten(2)
    place = flat.argmax(2)  # (B, J)
    x, y = place % SIDE, place // SIDE
    shares = F.avg_pool2d(flat.softmax(2).view_as(logits), 3, 1, 1, divisor_override=1)
    score = shares.flatten(2).gather(2, place[..., None])[..., 0].clamp(max=1)
    offsets = [_top(flat, place, along, step) for along, step in ((x, 1), (y, SIDE))]
    at = torch.stack([x, y], 2) + 0.5 + torch.stack(offsets, 2)
    low, high = boxes[:, None, :2], boxes[:, None, 2:]
    return torch.cat([low + at / SIDE * (high - low), score[..., None]], 2)


def _top(flat: Tensor, place: Tensor, along: Tensor, step: int) -> Tensor:
    """(B, J) from -0.5 to 0.5: where between its neighbours on a line the top of a map is.

    Args:
        flat: (B, J, 56 * 56); place: (B, J) its largest; along: (B, J) the number on the line.
        step: from a place to the next one on the line.
    """
    last = flat.shape[2] - 1
    before, peak, after = (
        flat.gather(2, (place + move).clamp(0, last)[..., None])[..., 0]
        for move in (-step, 0, step)
    )
    bend = 2 * peak - before - after
    top = (after - before) / (2 * bend).clamp(min=1e-6)
    inside = (along > 0) & (along < SIDE - 1)
    return torch.where(inside, top.clamp(-0.5, 0.5), 0.0)


class PointHead(nn.Sequential):
    """3x3 convolutions, each with ReLU; torchvision's names of weights."""

    def __init__(self, channels: int, width: int, layers: int) -> None:
        parts: list[nn.Module] = []
        for given in (channels, *[width] * (layers - 1)):
            parts += [nn.Conv2d(given, width, 3, padding=1), nn.ReLU(inplace=True)]
        super().__init__(*parts)
        start_layers(self)


class PointPredictor(nn.Module):
    """Twice as large by a transposed convolution, then again by interpolation; its names too."""

    def __init__(self, channels: int, points: int) -> None:
        super().__init__()
        self.kps_score_lowres = nn.ConvTranspose2d(channels, points, 4, 2, 1)
        start_layers(self)

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, channels, h, w) -> logits (B, J, 4h, 4w)."""
        low = self.kps_score_lowres(hidden)
        return F.interpolate(low, scale_factor=2, mode="bilinear", align_corners=False)
