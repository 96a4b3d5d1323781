"""Plain regression of the points of one figure: Toshev and Szegedy, "DeepPose: human pose
estimation via deep neural networks", arXiv:1312.4659, section 3.1: the first stage, 2J numbers at
the end of an ordinary classification network, learnt by the squared distance (L2).

Differs from the paper: any backbone instead of AlexNet, and one fully connected layer before the
last instead of two of 4096; there are no further stages that look again around each point; the
points are shares of the whole image, whose centre is 0; a class is said too, whose probability is
the score, and the box is that of the points.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnctl.backbones.base import Backbone
from cnnctl.models.base import Losses
from cnnctl.models.detection import Truth
from cnnctl.models.limited import LeftOut, stretched
from cnnctl.models.one_stage import require_counts
from cnnctl.models.pose import PoseModel, Poses, count_points
from cnnctl.ops.boxes import area, clip, sides_of
from cnnctl.skeleton import Skeleton
from cnnctl.structures import Images


@dataclass
class Said:
    """Of the one figure of each of N images."""

    logits: Tensor  # (N, K)
    points: Tensor  # (N, J, 2) x and y as shares of the image's sides, 0 in its middle
    frame: tuple[int, int]  # (h, w) in input pixels


class PoseRegression(PoseModel):
    """Exactly one figure in every image; where there are more the largest is learnt.

    Args:
        backbone: any; its deepest map is used.
        num_classes: K.
        size: (h, w) of the training input; all images are stretched to it, or to the next size
            that has whole pixels on that map.
        skeleton: of the data: how many points there are.
        hidden: units of the dense layer before the points.
        pooled: read the average of the map, which knows no places, and not every place of it.
        dropout: probability of zeroing one of these units.
        weight: of the points in the loss; their distances are in shares of the image.

    Attributes:
        left_out: counts the figures that are not the largest of their image.

    Raises:
        ValueError: a number is out of range, the input is smaller than the backbone's stride, or
            the data has no points.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        size: tuple[int, int],
        skeleton: Skeleton | None,
        hidden: int = 512,
        pooled: bool = False,
        dropout: float = 0.0,
        weight: float = 10.0,
    ) -> None:
        super().__init__()
        require_counts(hidden=hidden)
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be from 0 to below 1, got {dropout:g}")
        if weight <= 0:
            raise ValueError(f"weight must be above 0, got {weight:g}")
        backbone.require(size)
        stride = backbone.strides[backbone.deepest]
        rows, columns = (math.ceil(side / stride) for side in size)
        self.backbone, self.weight, self.pooled = backbone, weight, pooled
        self._size = rows * stride, columns * stride
        channels = backbone.channels[backbone.deepest]
        self.named = nn.Linear(channels, num_classes)
        last = nn.Linear(hidden, 2 * count_points(skeleton))
        nn.init.normal_(last.weight, std=0.01)
        nn.init.zeros_(last.bias)  # the middle of the image
        self.placed = nn.Sequential(
            nn.Linear(channels * (1 if pooled else rows * columns), hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            last,
        )
        self.left_out = LeftOut(
            "are not learnt, because another of the same image is larger: "
            "a model that detects several finds them, for example model=keypoint_rcnn"
        )

    def features(self, pixels: Tensor) -> Said:
        seen = self.backbone(stretched(pixels, self._size))[self.backbone.deepest]
        average = seen.mean((2, 3))
        points = self.placed(average if self.pooled else seen.flatten(1)).float()
        frame = (pixels.shape[2], pixels.shape[3])
        return Said(self.named(average).float(), points.unflatten(1, (-1, 2)), frame)

    def losses(self, features: Said, images: Images, truth: Truth) -> Losses:
        """Cross-entropy, and the mean squared distance of labelled points; 0 without a figure."""
        points, labels = self._largest(truth)
        sides = sides_of(features.frame, points)[:2]
        wanted = points[..., :2] / sides - 0.5
        labelled = (points[..., 2] > 0) & (labels >= 0)[:, None]  # (N, J)
        apart = (features.points - wanted).square().sum(2) * labelled
        named = F.cross_entropy(features.logits, labels, ignore_index=-1, reduction="none")
        return {
            "class": named.mean(),
            "keypoint": self.weight * (apart.sum(1) / labelled.sum(1).clamp(min=1)).mean(),
        }

    def _largest(self, truth: Truth) -> tuple[Tensor, Tensor]:
        """Points (N, J, 3) and label (N,) of each image's largest figure; -1 where it has none."""
        assert truth.keypoints is not None, "a network of points learns from keypoints"
        # One row more, of no figure: there is always a largest.
        boxes = F.pad(truth.boxes.float(), (0, 0, 0, 1))
        labels = F.pad(truth.labels, (0, 1), value=-1)
        points = F.pad(truth.keypoints.float(), (0, 0, 0, 0, 0, 1))
        row = area(boxes).masked_fill(labels < 0, -1.0).argmax(1)  # (N,)
        image = torch.arange(len(row), device=row.device)
        if self.training:
            total = (labels >= 0).sum()
            self.left_out.count(total - (labels[image, row] >= 0).sum(), total)
        return points[image, row], labels[image, row]

    def detect(self, features: Said, images: Images) -> Poses:
        points = (features.points + 0.5) * sides_of(features.frame, features.points)[:2]
        boxes = torch.cat([points.amin(1), points.amax(1)], 1)[:, None]  # (N, 1, 4)
        score, label = features.logits.softmax(1).max(1, keepdim=True)
        sure = score[..., None].expand(-1, points.shape[1], -1)
        boxes = clip(boxes, torch.tensor(images.sizes, device=boxes.device))
        return Poses(boxes, score, label, torch.cat([points, sure], 2)[:, None])
