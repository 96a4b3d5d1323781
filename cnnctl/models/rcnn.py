"""R-CNN: Girshick, Donahue, Darrell, Malik, "Rich feature hierarchies for accurate object detection
and semantic segmentation", arXiv:1311.2524 (table 2: 58.5 mAP on VOC 2007 with AlexNet, fine-tuned
fc7 and box regression; 66.0 with VGG-16, table 3).

Proposals are cut out of the image with some context and stretched to one size; a network sees each
crop on its own. It is fine-tuned to tell the classes and background apart (section 2.3); then an
SVM for each class is solved on its last hidden layer, and a box regressor for each class on its
last map.

Differs from the paper: the crops of a step come from the images of a batch, in the paper from all
images; where a batch has too few objects, background takes their place. A ResNet has no fc7: the
SVMs see the mean of its last map. What the regressors see of a map is averaged into at most 6 x 6
bins, and fewer where that would be more than 9216 numbers, AlexNet's. Crops are 224 x 224, which
torchvision's networks are made for (227 in the paper). Of images below 256 pixels crops are small,
and dense layers of one's own on the map at stride 8 take the place of what a backbone has above it.
Scores are the logistic function of the margins. Boxes are corrected before overlapping ones are
dropped.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnctl.backbones.base import Backbone
from cnnctl.backbones.pyramid import freeze_norm
from cnnctl.models.base import GradientStage, Losses, Stage
from cnnctl.models.detection import DetectionModel, Truth, truth_of
from cnnctl.models.fitted_regions import FittedRegions
from cnnctl.models.one_stage import SMALL, require_counts, require_shares
from cnnctl.models.region_features import RegionFeatures
from cnnctl.models.region_fitting import fitting_of
from cnnctl.models.region_head import FEW_UNITS, Parts, dense_layers, parts_of
from cnnctl.models.regions import best_regions, proposed
from cnnctl.ops.boxes import Detections
from cnnctl.ops.clock import REGIONS, timed
from cnnctl.ops.matching import match, sample, taken
from cnnctl.ops.warped_crops import warped_crops
from cnnctl.structures import Batch, Images, Targets

POSITIVES, OBJECT = 0.25, 0.5  # 32 of 128 crops show an object; overlap from which one does
NOTHING = -1  # the label of a crop that counts for nothing
CROPS, MANY_CROPS = 128, 256
PLACED = 9216  # numbers at most that a regressor sees: AlexNet's pool5
BINS = 6  # along a side of them
AT_ONCE = 1 << 22  # pixels of the crops that go through the network together


class RCNN(DetectionModel):
    """Fine-tuned on crops of proposals, then an SVM and a box regressor for each class.

    Args:
        num_classes: K.
        size: (h, w) of the training input.
        backbone: any; cut at a map a VGG, AlexNet or ResNet.
        side: of a crop, in pixels; None: 224, or 32 where ``size`` is below 256.
        map: "c4" at stride 16 or "c3" at stride 8, where the backbone is cut in two; "whole": not
            at all, the dense layers that its published network has go on from its last map, or else
            its mean is taken; None: "whole", or "c3" where ``size`` is below 256.
        dense: units of layers on the map, in place of the backbone's own; () are these; None: (),
            or two of 256 where ``size`` is below 256.
        crops: of a batch that the network is fine-tuned on, a quarter objects at most; None is the
            paper's 128, or 256 where ``size`` is below 256, and crops are small.
        svm: SVMs say what a region is; False: the fine-tuned network (the paper's appendix B).
        regress: correct the boxes.
        fit_images: of the training data, the first, that SVMs and regressors are solved on; None:
            all, or 500 where ``size`` is below 256.
        C: weight of the losses of an SVM against its margin, on features of an average norm of 20.
        ridge: penalty of the regressors' squared weights, likewise.
        cache_gb: of features on the disk while these are solved, at most.
        frozen_norm: keep the backbone's batch normalisation as it was published.
        score, overlap, detections: see ``best_of_classes``.
        classes: their names, for warnings.

    Raises:
        ValueError: a number is out of range.
    """

    reads_proposals: ClassVar[bool] = True
    published_seconds = (2.0, 47.0)  # Fast R-CNN, table 4: VGG-16, a K40; selective search, a CPU
    eval_pixels = 1 << 17  # of whose regions there are as many as there are proposals

    def __init__(
        self,
        num_classes: int,
        backbone: Backbone,
        size: tuple[int, int],
        side: int | None = None,
        map: Literal["c3", "c4", "whole"] | None = None,
        dense: tuple[int, ...] | None = None,
        crops: int | None = None,
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
        small = min(size) < SMALL
        if side is None:
            side = 32 if small else 224
        if crops is None:
            crops = MANY_CROPS if small else CROPS
        if dense is None:
            dense = FEW_UNITS if small else ()
        require_counts(side=side, crops=crops, detections=detections, dense=min(dense, default=1))
        require_shares(score=score, overlap=overlap)
        if frozen_norm:
            freeze_norm(backbone)
        self.num_classes, self.side, self.crops = num_classes, side, crops
        self.score, self.overlap, self.most = score, overlap, detections
        at = map or ("c3" if small else "whole")
        if at == "whole":
            backbone.require((side, side))
        parts = whole(backbone) if at == "whole" else parts_of(backbone, size, "rcnn", at, dense)
        self.network = RegionNetwork(parts, dense, side, num_classes, cut=at != "whole")
        fitting = fitting_of(size, svm, regress, fit_images, C, ridge, cache_gb)
        net = self.network
        self.fitted = FittedRegions(num_classes, net.width, net.placed, fitting, classes)

    def stages(self) -> Sequence[Stage]:
        fits = self.fitted.stages(
            self.describe,
            lambda: self.network.state_dict().values(),
            f"rcnn {self.side}",
            lambda: self.training_images,
        )
        own = [self.crop_loss, self.network.parameters]
        return [GradientStage("finetune", *own, view=self.cut, evaluate=not fits), *fits]

    def disk_needed(self, images: int, proposals: int) -> int:
        return self.fitted.disk_needed(images, proposals)

    def class_layers(self) -> tuple[str, ...]:
        return ("network.cls_score",)

    def class_buffers(self) -> tuple[str, ...]:
        return tuple(f"fitted.{name}" for name, _ in self.fitted.named_buffers())

    def cut(self, batch: Batch) -> Batch:
        """A batch of N images -> one of about ``crops`` crops, a multiple of N, with labels (K for
        background), drawn from all of the images together, in their order."""
        images, n = batch.images, len(batch)
        truth, count = truth_of(images, batch.targets), math.ceil(self.crops / n) * n
        boxes, image, labels = self.sampled(*proposed(images), truth, count)
        pixels = warped_crops(images.pixels, boxes, image, self.side, images.sizes)
        sizes = [(self.side, self.side)] * len(boxes)
        targets = Targets(batch.targets.image_id[image], label=labels)
        return Batch(Images(pixels, sizes, list(sizes)), targets)

    @torch.no_grad()
    def sampled(
        self, boxes: Tensor, there: Tensor, truth: Truth, count: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes (count, 4), whose image each lies in and its class, of all images together.

        Where there are fewer regions they are taken again; where there is none, an empty box that
        counts for nothing.

        Args:
            boxes: (N, P, 4) proposals; there: (N, P) which of them are some.
        """
        boxes = torch.cat([boxes, truth.boxes.to(boxes)], 1)
        there = torch.cat([there, truth.labels >= 0], 1)
        if not there.any():
            nothing = boxes.new_zeros(count, 4), truth.labels.new_zeros(count)
            return *nothing, truth.labels.new_full((count,), NOTHING)
        matched = match(truth.boxes, truth.labels, boxes, OBJECT, OBJECT).masked_fill(~there, -2)
        positive, negative = sample(matched.view(1, -1), count, POSITIVES)
        chosen = (positive | negative).view_as(matched)
        image, row = chosen.nonzero(as_tuple=True)
        labels = taken(truth.labels, matched)[image, row]
        labels = torch.where(matched[image, row] >= 0, labels, self.num_classes)
        again = torch.arange(count, device=image.device) % len(image)
        return boxes[image, row][again], image[again], labels[again]

    def crop_loss(self, images: Images, targets: Targets) -> Losses:
        """Cross-entropy of crops and their labels."""
        assert targets.label is not None
        if not (targets.label != NOTHING).any():
            return self._nothing()
        logits = self.network.logits(self.network(images.pixels).named)
        return {"class": _cross_entropy(logits, targets.label)}

    def features(self, pixels: Tensor) -> Tensor:
        """The pixels: each region goes through the network on its own."""
        return pixels

    def losses(self, features: Tensor, images: Images, truth: Truth) -> Losses:
        """That of fine-tuning, on as many crops of all of the images."""
        boxes, image, labels = self.sampled(*proposed(images), truth, self.crops)
        if not (labels != NOTHING).any():
            return self._nothing()
        said = [one.named for _, one in self.describe(images, boxes, image)]
        logits = self.network.logits(torch.cat(said))
        return {"class": _cross_entropy(logits, labels)}

    def detect(self, features: Tensor, images: Images) -> Detections:
        boxes, there = proposed(images)
        with timed(REGIONS):
            image, row = there.nonzero(as_tuple=True)
            parts = self.describe(images, boxes[image, row], image)
            scores, codes = self.fitted.said(parts, self.network.logits)
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

    def _nothing(self) -> Losses:
        """The loss of no crop at all: 0, with gradients of 0. Empty crops would change what batch
        normalisation knows of its inputs."""
        summed = [one.sum() for one in self.network.parameters()]
        return {"class": torch.stack(summed).sum() * 0}

    def describe(
        self, images: Images, boxes: Tensor, image: Tensor
    ) -> Iterator[tuple[Tensor, RegionFeatures]]:
        """Of boxes (B, 4), so many crops at a time that memory is bounded."""
        step = max(1, AT_ONCE // (self.side**2 * images.pixels.shape[1]))
        for rows in torch.arange(len(boxes), device=boxes.device).split(step):
            crops = warped_crops(images.pixels, boxes[rows], image[rows], self.side, images.sizes)
            yield rows, self.network(crops)


class RegionNetwork(nn.Module):
    """Layers to a map, layers on it, and the softmax over K + 1.

    Args:
        parts: the two.
        dense: units of other layers on the map; () are those of ``parts``.
        side: of the crops that it sees.
        cut: the layers to the map end before a pooling of the largest; published dense layers above
            it then see what is largest in each bin.

    Attributes:
        width, placed: numbers of a crop that SVMs and regressors see.
    """

    def __init__(
        self, parts: Parts, dense: tuple[int, ...], side: int, num_classes: int, cut: bool
    ) -> None:
        super().__init__()
        self.largest = False
        self.trunk, self.top = parts.trunk, parts.top
        self.seen, self.width = parts.bins, parts.width
        there = math.ceil(side / parts.stride)  # along a side of the map
        if dense:
            self.seen, self.width = min(BINS, there), dense[-1]
            self.top = dense_layers(parts.channels * self.seen**2, dense)
        elif not any(isinstance(layer, nn.Linear) for layer in self.top):
            self.seen = min(self.seen, there)
        else:
            self.largest = cut
        self.bins = max(1, min(BINS, there, math.isqrt(PLACED // parts.channels)))
        self.placed = parts.channels * self.bins**2
        self.cls_score = nn.Linear(self.width, num_classes + 1)
        nn.init.normal_(self.cls_score.weight, std=0.01)
        nn.init.zeros_(self.cls_score.bias)

    def forward(self, crops: Tensor) -> RegionFeatures:
        """(B, C, side, side) -> what SVMs and regressors see."""
        maps = self.trunk(crops)
        pool = F.adaptive_max_pool2d if self.largest else F.adaptive_avg_pool2d
        named = self.top(pool(maps, self.seen))
        return RegionFeatures(named, F.adaptive_avg_pool2d(maps, self.bins).flatten(1))

    def logits(self, named: Tensor) -> Tensor:
        """(B, width) -> (B, K + 1), background last."""
        return self.cls_score(named)


class Deepest(nn.Module):
    """A backbone from pixels to its last map alone."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, pixels: Tensor) -> Tensor:
        return self.backbone(pixels)[self.backbone.deepest]


def whole(backbone: Backbone) -> Parts:
    """A backbone to its last map, and the published dense layers after it, or the map's mean."""
    last = backbone.deepest
    channels, stride = backbone.channels[last], backbone.strides[last]
    trunk, top = nn.Sequential(Deepest(backbone)), backbone.build_top()
    if top is None:
        return Parts(trunk, channels, stride, nn.Sequential(nn.Flatten()), channels, 1)
    dense = [layer for layer in top.modules() if isinstance(layer, nn.Linear)]
    bins, width = math.isqrt(dense[0].in_features // channels), dense[-1].out_features
    return Parts(trunk, channels, stride, nn.Sequential(*top.children()), width, bins)


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean over the crops that count."""
    summed = F.cross_entropy(logits.float(), labels, ignore_index=NOTHING, reduction="sum")
    return summed / (labels != NOTHING).sum().clamp(min=1)
