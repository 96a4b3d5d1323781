"""SPP-net: He, Zhang, Ren, Sun, "Spatial pyramid pooling in deep convolutional networks for visual
recognition", arXiv:1406.4729, section 4 (59.2 mAP on VOC 2007 with ZF-5, five scales and
box regression; 0.38 s an image at five scales, 0.14 s at one, without proposals).

The convolutions see the image once. Each proposal is projected onto their last map and pooled to a
pyramid of bins, whose length is the same whatever its size; dense layers are fine-tuned on that, an
SVM and a box regressor for each class are solved on what the last of them and the pyramid say.

Differs from the paper: the convolutions are those of the backbones here, and no published dense
layers fit on the pyramid, so these start at random and are not taken from a classifier of ImageNet.
Convolutions without published weights would stay at random, for they are fixed from the fine-tuning
on: where there are none, a first stage trains all layers together to classify regions
(``convolutions``). Fine-tuning sees regions at the scale that testing would take, in the paper at
one. Scales are factors of the input's size. An SVM may have all negatives of its class, in the
paper none that overlaps another by more than 70 %, and hard ones are mined until few are new, in
the paper once. Regressors see the coarser levels of a pyramid alone where all would be more than
12800 numbers, ZF-5's. Scores are the logistic function of the margins; boxes are corrected before
overlapping ones are dropped. For training images below 256 pixels the map is at stride 8, the
levels are 1, 2 and 4, the dense layers have 256 units and no dropout, and SVMs and regressors are
solved on 500 images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnctl.backbones.base import Backbone
from cnnctl.backbones.pyramid import freeze_norm
from cnnctl.models.base import GradientStage, Losses, Stage
from cnnctl.models.detection import DetectionModel, Truth, of_one_size, truth_of
from cnnctl.models.fitted_regions import FittedRegions
from cnnctl.models.one_stage import SMALL, require_counts, require_shares
from cnnctl.models.region_features import RegionFeatures
from cnnctl.models.region_fitting import fitting_of
from cnnctl.models.region_head import (
    CHUNK,
    FEW_UNITS,
    Map,
    centre_of,
    dense_layers,
    parameters_of,
    parts_of,
)
from cnnctl.models.regions import (
    FEW_REGIONS,
    REGIONS_OF_AN_IMAGE,
    best_regions,
    proposed,
    sampled,
)
from cnnctl.ops.boxes import Detections, area
from cnnctl.ops.clock import REGIONS, timed
from cnnctl.ops.levels import filled_up
from cnnctl.ops.projection import projected
from cnnctl.ops.regions import spatial_pyramid_pool
from cnnctl.structures import Images, Targets

LEVELS, FEW_LEVELS = (1, 2, 3, 6), (1, 2, 4)  # of the pyramid; few of small images
UNITS, DROPOUT = (4096, 4096), 0.5
WINDOW = 224 / 688  # a window is best seen at 224 pixels, in an image whose shorter side has 688
NEAR = 0.5  # overlap of the proposals that regressors learn from (section 4.1)
PLACED = 12800  # numbers at most that a regressor sees: 50 bins of ZF-5's 256 channels


@dataclass
class Features:
    """Of N images.

    Args:
        maps: (N, C, h, w) for each scale.
        factors: (x, y) of each: pixels that the network saw for a pixel of the input.
    """

    maps: list[Tensor]
    factors: list[tuple[float, float]]


class SPPNet(DetectionModel):
    """Convolutions once an image; regions by a spatial pyramid, dense layers, SVMs, regressors.

    Args:
        num_classes: K.
        size: (h, w) of the training input.
        backbone: a VGG, AlexNet or a ResNet, of which the layers up to the map are used.
        map: "c4" at stride 16, or "c3" at stride 8; None is "c4", or "c3" where ``size`` is below
            256.
        levels: n of the n x n bins of each level of the pyramid; None is the paper's 1, 2, 3, 6, or
            1, 2, 4 where ``size`` is below 256.
        dense: units of the layers on it; None is the paper's two of 4096, or of 256 where ``size``
            is below 256.
        scales: the image is seen at, as factors of its input size. A region is seen at that one
            where its area comes nearest to 224 x 224 of an image of 688 (section 4.1); the paper's
            five are then [0.70, 0.84, 1.0, 1.26, 1.74].
        convolutions: train them, with all else, in a first stage; None: where the backbone has no
            published weights. False fixes them from the start, as in the paper; say so where they
            come from a run, by weights=.
        regions: proposals of an image that are trained on, a quarter of them objects at most; None
            is 64, or 32 where ``size`` is below 256.
        lowest: IoU with an object from which a proposal below 0.5 is trained on as background.
        svm, regress, fit_images, C, ridge, cache_gb: see ``RCNN``.
        frozen_norm: keep the backbone's batch normalisation as it was published.
        score, overlap, detections: see ``best_of_classes``.
        classes: their names, for warnings.

    Raises:
        ValueError: a number is out of range, or the backbone is of another kind.
    """

    reads_proposals: ClassVar[bool] = True
    published_seconds = (2.0, 2.3)  # Fast R-CNN, table 4: VGG-16, a K40; selective search, a CPU
    eval_pixels = 1 << 18  # of an image there may be thousands of regions

    def __init__(
        self,
        num_classes: int,
        backbone: Backbone,
        size: tuple[int, int],
        map: Map | None = None,
        levels: tuple[int, ...] | None = None,
        dense: tuple[int, ...] | None = None,
        scales: tuple[float, ...] = (1.0,),
        convolutions: bool | None = None,
        regions: int | None = None,
        lowest: float = 0.1,
        svm: bool = True,
        regress: bool = True,
        fit_images: int | None = None,
        C: float = 1e-3,
        ridge: float = 1000.0,
        cache_gb: float = 20.0,
        frozen_norm: bool = False,
        score: float = 0.05,
        overlap: float = 0.3,
        detections: int = 100,
        classes: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        large = min(size) >= SMALL
        map = map or ("c4" if large else "c3")
        levels = levels if levels is not None else LEVELS if large else FEW_LEVELS
        dense = dense if dense is not None else UNITS if large else FEW_UNITS
        regions = regions if regions is not None else REGIONS_OF_AN_IMAGE if large else FEW_REGIONS
        require_counts(
            levels=min(levels, default=0),
            dense=min(dense, default=0),
            regions=regions,
            detections=detections,
        )
        require_shares(lowest=lowest, score=score, overlap=overlap)
        if not scales or min(scales) <= 0:
            raise ValueError(f"scales must be above 0, got {list(scales)}")
        self.num_classes, self.regions, self.lowest = num_classes, regions, lowest
        self.score, self.overlap, self.most = score, overlap, detections
        self.levels, self.scales = levels, scales
        self.window = min(size) * WINDOW
        if frozen_norm:
            freeze_norm(backbone)
        parts = parts_of(backbone, size, "sppnet", map, dense)
        self.trunk, self.stride, self.centre = parts.trunk, parts.stride, centre_of(parts.trunk)
        self.learnt = convolutions if convolutions is not None else not backbone.published
        self.length = parts.channels * sum(n * n for n in levels)
        self.top = dense_layers(self.length, dense, DROPOUT if large else 0.0)
        self.cls_score = nn.Linear(dense[-1], num_classes + 1)
        nn.init.normal_(self.cls_score.weight, std=0.01)
        nn.init.zeros_(self.cls_score.bias)
        self.placed = placed_length(levels, parts.channels)
        fitting = fitting_of(size, svm, regress, fit_images, C, ridge, cache_gb, near=NEAR)
        self.fitted = FittedRegions(num_classes, dense[-1], self.placed, fitting, classes)

    def stages(self) -> Sequence[Stage]:
        fits = self.fitted.stages(
            self.describe,
            lambda: [*self.trunk.state_dict().values(), *self.top.state_dict().values()],
            f"sppnet {self.levels} {self.scales} {self.window}",
            lambda: self.training_images,
        )
        dense = partial(parameters_of, self.top, self.cls_score)
        finetune = GradientStage(
            "finetune", self.fixed_loss, dense, evaluate=not fits, still=lambda: [self.trunk]
        )
        if not self.learnt:
            return [finetune, *fits]
        everything = partial(parameters_of, self.trunk, self.top, self.cls_score)
        return [
            GradientStage("convolutions", self.loss, everything, evaluate=False),
            finetune,
            *fits,
        ]

    def disk_needed(self, images: int, proposals: int) -> int:
        return self.fitted.disk_needed(images, proposals)

    def class_layers(self) -> tuple[str, ...]:
        return ("cls_score",)

    def class_buffers(self) -> tuple[str, ...]:
        return tuple(f"fitted.{name}" for name, _ in self.fitted.named_buffers())

    def fixed_loss(self, images: Images, targets: Targets) -> Losses:
        """That of the dense layers on fixed convolutions (section 4.1)."""
        with torch.no_grad():
            features = self.features(images.pixels)
        return self.losses(features, images, truth_of(images, targets))

    def features(self, pixels: Tensor) -> Features:
        """The map at each scale, once for all regions."""
        h, w = pixels.shape[-2:]
        maps, factors = [], []
        for scale in self.scales:
            size = max(1, round(h * scale)), max(1, round(w * scale))
            seen = pixels
            if size != (h, w):
                seen = F.interpolate(pixels, size, mode="bilinear", antialias=scale < 1)
            maps.append(self.trunk(filled_up(seen, self.stride)))
            factors.append((size[1] / w, size[0] / h))
        return Features(maps, factors)

    def losses(self, features: Features, images: Images, truth: Truth) -> Losses:
        """Cross-entropy of the classes of regions that are drawn as in Fast R-CNN."""
        boxes, there = proposed(images)
        drawn = sampled(boxes, there, truth, self.num_classes, self.regions, lowest=self.lowest)
        pooled = self.pooled(features, drawn.boxes, drawn.image)
        logits = self.cls_score(self.top(pooled)).float()
        summed = F.cross_entropy(logits, drawn.labels, reduction="sum")
        return {"class": summed / max(1, len(logits))}

    def detect(self, features: Features, images: Images) -> Detections:
        boxes, there = proposed(images)
        with timed(REGIONS):
            parts = self._described(features, boxes[there], there.nonzero()[:, 0])
            scores, codes = self.fitted.said(parts, self.cls_score)
        return best_regions(
            scores,
            codes,
            boxes,
            there,
            images,
            score=self.score,
            overlap=self.overlap,
            most=self.most,
        )

    def describe(
        self, images: Images, boxes: Tensor, image: Tensor
    ) -> Iterator[tuple[Tensor, RegionFeatures]]:
        """Of boxes (B, 4) in input pixels: each image goes through the convolutions once."""
        everyone = torch.arange(len(images), device=image.device)
        for rows, part in of_one_size(images):
            place = torch.full_like(everyone, -1)
            place[rows] = torch.arange(len(part), device=image.device)
            own = (place[image] >= 0).nonzero()[:, 0]
            features = self.features(part.pixels)
            for some, said in self._described(features, boxes[own], place[image[own]]):
                yield own[some], said

    def pooled(self, features: Features, boxes: Tensor, image: Tensor) -> Tensor:
        """(B, C * bins) of boxes (B, 4), each from the map of the scale that suits it."""
        if len(features.maps) == 1:
            return self._pooled(features, 0, boxes, image)
        rows, found = zip(*self._parts(features, boxes, image, len(boxes)), strict=True)
        return torch.cat(found)[torch.cat(rows).argsort()]

    def scale_of(self, features: Features, boxes: Tensor) -> Tensor:
        """(B,) int64: the scale at which the area of each box is nearest to the window's."""
        grown = torch.tensor([x * y for x, y in features.factors], device=boxes.device)
        return (area(boxes)[:, None] * grown - self.window**2).abs().argmin(1)

    def _pooled(self, features: Features, number: int, boxes: Tensor, image: Tensor) -> Tensor:
        maps, factors = features.maps[number], boxes.new_tensor(features.factors[number])
        size = (maps.shape[2], maps.shape[3])
        cells = projected(boxes * factors.repeat(2), self.stride, size, self.centre)
        return spatial_pyramid_pool(maps, cells.float(), image, self.levels, 1.0)

    def _described(
        self, features: Features, boxes: Tensor, image: Tensor
    ) -> Iterator[tuple[Tensor, RegionFeatures]]:
        """Of a part of the regions at a time, so that memory does not grow with their number."""
        for rows, pooled in self._parts(features, boxes, image, CHUNK // self.length):
            yield rows, RegionFeatures(self.top(pooled), pooled[:, : self.placed])

    def _parts(
        self, features: Features, boxes: Tensor, image: Tensor, most: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Which of the boxes, at most so many and of one scale, and what is pooled of them."""
        order, counts = torch.arange(len(boxes), device=boxes.device), [len(boxes)]
        if len(features.maps) > 1:
            scale = self.scale_of(features, boxes)
            order = scale.argsort(stable=True)
            counts = scale.bincount(minlength=len(features.maps)).tolist()
        for number, own in enumerate(order.split(counts)):
            for rows in own.split(max(1, most)):
                yield rows, self._pooled(features, number, boxes[rows], image[rows])


def placed_length(levels: Sequence[int], channels: int) -> int:
    """Numbers of the first levels that are ``PLACED`` at most, and of the first in any case."""
    found = channels * levels[0] ** 2
    for level in levels[1:]:
        more = found + channels * level**2
        if more > PLACED:
            break
        found = more
    return found
