"""Classification and localisation of one object: a softmax over classes and a regressed box on top
of the same convolutions, as in Simonyan and Zisserman, "Very deep convolutional networks for
large-scale image recognition", arXiv:1409.1556, appendix A (ImageNet's localisation task;
single-class regression, Euclidean loss).

Differs from the paper: class and box are learnt by one network and at once, not by two; any
backbone, whose last map is averaged for the class and read place by place for the box, without
fully connected layers in between; place and size are shares of the image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnctl.backbones.base import Backbone
from cnnctl.models.base import Losses
from cnnctl.models.detection import DetectionModel, Truth
from cnnctl.models.limited import LeftOut, stretched
from cnnctl.models.one_stage import require_counts
from cnnctl.ops.boxes import Detections, area, centred, clip, cornered, sides_of
from cnnctl.structures import Images


@dataclass
class Said:
    """Of the one object of each of N images."""

    logits: Tensor  # (N, K)
    place: Tensor  # (N, 4) x and y of the centre, width and height, as shares of the image's
    frame: tuple[int, int]  # (h, w) in input pixels


class Localisation(DetectionModel):
    """Exactly one detection of every image; where there are more objects the largest is learnt.

    Args:
        backbone: any; its deepest map is used, place by place.
        num_classes: K.
        size: (h, w) of the training input; all images are stretched to it, or to the next size
            that has whole pixels on that map.
        hidden: channels that the box is said from.
        dropout: probability of zeroing a feature that the class is said from.
        box: weight of the box in the loss.

    Attributes:
        left_out: counts the objects that are not the largest of their image.

    Raises:
        ValueError: a number is out of range, or the input is smaller than the backbone's stride.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        size: tuple[int, int],
        hidden: int = 128,
        dropout: float = 0.0,
        box: float = 1.0,
    ) -> None:
        super().__init__()
        require_counts(hidden=hidden)
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be from 0 to below 1, got {dropout:g}")
        if box <= 0:
            raise ValueError(f"box must be above 0, got {box:g}")
        backbone.require(size)
        stride = backbone.strides[backbone.deepest]
        rows, columns = (math.ceil(side / stride) for side in size)
        self.backbone, self.box = backbone, box
        self._size = rows * stride, columns * stride
        channels = backbone.channels[backbone.deepest]
        self.named = nn.Sequential(nn.Dropout(dropout), nn.Linear(channels, num_classes))
        last = nn.Linear(hidden * rows * columns, 4)
        nn.init.normal_(last.weight, std=0.01)
        nn.init.constant_(last.bias, 0.5)  # half the image, in its middle
        self.placed = nn.Sequential(
            nn.Conv2d(channels, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU(inplace=True),
            nn.Flatten(),
            last,
        )
        self.left_out = LeftOut(
            "are not learnt, because another of the same image is larger: "
            "a model that detects several finds them, for example model=yolo"
        )

    def features(self, pixels: Tensor) -> Said:
        seen = self.backbone(stretched(pixels, self._size))[self.backbone.deepest]
        frame = (pixels.shape[2], pixels.shape[3])
        return Said(self.named(seen.mean((2, 3))).float(), self.placed(seen).float(), frame)

    def losses(self, features: Said, images: Images, truth: Truth) -> Losses:
        """Cross-entropy, and the squared distance of place and size; 0 where there is no object."""
        boxes, labels, there = self._largest(truth)
        wanted = centred(boxes) / sides_of(features.frame, boxes)
        named = F.cross_entropy(features.logits, labels, ignore_index=-1, reduction="none")
        apart = (features.place - wanted).square().sum(1)
        return {
            "class": torch.where(there, named, 0.0).mean(),
            "box": self.box * torch.where(there, apart, 0.0).mean(),
        }

    def _largest(self, truth: Truth) -> tuple[Tensor, Tensor, Tensor]:
        """Box (N, 4) and label (N,) of each image's largest object, and whether (N,) it has one."""
        # One row more, of no box: there is always a largest.
        boxes = F.pad(truth.boxes.float(), (0, 0, 0, 1))
        labels = F.pad(truth.labels, (0, 1), value=-1)
        row = area(boxes).masked_fill(labels < 0, -1.0).argmax(1, keepdim=True)  # (N, 1)
        label = labels.gather(1, row)[:, 0]
        there = label >= 0
        if self.training:
            total = (labels >= 0).sum()
            self.left_out.count(total - there.sum(), total)
        return boxes.gather(1, row[:, :, None].expand(-1, -1, 4))[:, 0], label, there

    def detect(self, features: Said, images: Images) -> Detections:
        place = torch.cat([features.place[:, :2], features.place[:, 2:].clamp(min=0)], 1)
        boxes = cornered(place * sides_of(features.frame, place))[:, None]
        score, label = features.logits.softmax(1).max(1, keepdim=True)
        return Detections(
            clip(boxes, torch.tensor(images.sizes, device=boxes.device)), score, label
        )
