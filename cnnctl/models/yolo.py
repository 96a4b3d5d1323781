"""YOLO: Redmon, Divvala, Girshick, Farhadi, "You only look once: unified, real-time object
detection", arXiv:1506.02640, section 2 (table 1: 63.4 mAP on VOC 2007).

Differs from the paper: the network is any backbone and convolutions, whose cells are small enough
for small images; ``yolo_v1`` has the paper's. Where no predictor overlaps its object at all the
nearest one is responsible, and of several objects with their centre in one cell the first is learnt
(both as in the authors' code).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnctl.backbones.base import Backbone
from cnnctl.models.base import Losses
from cnnctl.models.detection import DetectionModel, Truth
from cnnctl.models.limited import LeftOut, stretched
from cnnctl.models.one_stage import require_counts, require_shares, width_for
from cnnctl.ops.boxes import Detections, best_of_classes, centred, clip, cornered, iou, sides_of
from cnnctl.ops.clock import POST_PROCESSING, timed
from cnnctl.ops.matching import taken
from cnnctl.structures import Images

SLOPE = 0.1  # of the leaky ReLU below 0, equation 2
STRIDES = (64, 32, 16, 8)  # sides of a cell that `YOLO` chooses from, in pixels
CELLS = 7  # along the shorter side: the fewest that it leaves where it can


@dataclass
class Said:
    """Of S cells of N images, row by row; each cell has B predictors."""

    code: Tensor  # (N, S, B, 4), see ``encode``
    confidence: Tensor  # (N, S, B)
    classes: Tensor  # (N, S, K), shared by the predictors of a cell
    grid: tuple[int, int]  # rows and columns of cells
    frame: tuple[int, int]  # (h, w) of the image under them, in input pixels


def encode(boxes: Tensor, grid: tuple[int, int], frame: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """What a cell is to say of boxes (..., 4) xyxy, and which one is to say it.

    Returns:
        code: (..., 4): where in the cell the centre is, x and y from 0 to 1, and the square roots
            of width and height as shares of the image's.
        cell: (...) int64, counted row by row.
    """
    shares = centred(boxes) / sides_of(frame, boxes)
    cells = sides_of(grid, boxes)[:2]
    place = shares[..., :2] * cells
    corner = place.floor().clamp(min=0).minimum(cells - 1)
    column, row = corner.long().unbind(-1)
    return torch.cat([place - corner, shares[..., 2:].clamp(min=0).sqrt()], -1), (
        row * grid[1] + column
    )


def decode(code: Tensor, grid: tuple[int, int], frame: tuple[int, int]) -> Tensor:
    """The inverse of ``encode`` for all cells at once: (N, S, B, 4) -> xyxy in input pixels."""
    rows, columns = grid
    line = torch.arange(rows * columns, device=code.device)
    corner = torch.stack([line % columns, line // columns], 1)[:, None]  # (S, 1, 2)
    centre = (code[..., :2] + corner) / sides_of(grid, code)[:2]
    shares = torch.cat([centre, code[..., 2:] ** 2], -1)
    return cornered(shares * sides_of(frame, code))


class Grid(DetectionModel):
    """Training and detection of a grid of cells; subclasses write ``said``.

    Args:
        boxes: B, predictors of a cell.
        coordinate: weight of place and size in the loss.
        no_object: weight of the confidence of predictors that no object has.
        score: below it nothing is detected; class times confidence.
        overlap: IoU above which the less likely of two boxes of a class goes.
        detections: the most of an image.

    Attributes:
        left_out: counts the objects whose cell another one has.
    """

    def __init__(
        self,
        num_classes: int,
        boxes: int,
        coordinate: float,
        no_object: float,
        score: float,
        overlap: float,
        detections: int,
    ) -> None:
        super().__init__()
        require_counts(boxes=boxes, detections=detections)
        require_shares(score=score, overlap=overlap)
        if coordinate <= 0 or no_object < 0:
            raise ValueError(
                "coordinate must be above 0 and no_object at least 0,"
                f" got {coordinate:g} and {no_object:g}"
            )
        self.num_classes, self.boxes = num_classes, boxes
        self.coordinate, self.no_object = coordinate, no_object
        self.score, self.overlap, self.most = score, overlap, detections
        self.left_out = LeftOut(
            "are not learnt, because another has its centre in the same cell: "
            "a larger model.grid has room for more"
        )

    @property
    def outputs(self) -> int:
        """Of each cell: B boxes with their confidence, and K classes."""
        return self.boxes * 5 + self.num_classes

    @abstractmethod
    def said(self, pixels: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, rows, columns, outputs)."""

    def features(self, pixels: Tensor) -> Said:
        said = self.said(pixels).float()
        n, rows, columns, _ = said.shape
        each, classes = said.flatten(1, 2).split([self.boxes * 5, self.num_classes], 2)
        code, confidence = each.reshape(n, rows * columns, self.boxes, 5).split([4, 1], 3)
        frame = (pixels.shape[2], pixels.shape[3])
        return Said(code, confidence[..., 0], classes, (rows, columns), frame)

    def losses(self, features: Said, images: Images, truth: Truth) -> Losses:
        """Equation 3; sums over an image's cells, means over the images."""
        code, cell = encode(truth.boxes.float(), features.grid, features.frame)
        owner = self._owners(cell, truth.labels, features.classes.shape[1])  # (N, S)
        there = owner >= 0
        with torch.no_grad():
            found = decode(features.code, features.grid, features.frame)
            wanted = taken(truth.boxes.float(), owner)[:, :, None]  # (N, S, 1, 4)
            overlap = iou(found, wanted)[..., 0]  # (N, S, B)
            best = _nearest(overlap, found, wanted, features.frame)
        chosen = F.one_hot(best, self.boxes).bool() & there[:, :, None]
        apart = (features.code - taken(code, owner)[:, :, None]).square().sum(3)
        sure = (features.confidence - torch.where(chosen, overlap, 0.0)).square()
        classes = F.one_hot(taken(truth.labels, owner).clamp(min=0), self.num_classes)
        named = (features.classes - classes).square().sum(2)
        sums = {
            "box": self.coordinate * torch.where(chosen, apart, 0.0),
            "object": torch.where(chosen, sure, 0.0),
            "background": self.no_object * torch.where(chosen, 0.0, sure),
            "class": torch.where(there, named, 0.0),
        }
        return {name: loss.flatten(1).sum(1).mean() for name, loss in sums.items()}

    def _owners(self, cell: Tensor, labels: Tensor, cells: int) -> Tensor:
        """(N, R) -> (N, S): the first row with its centre in each cell, -1 where there is none."""
        n, most = labels.shape
        there = labels >= 0
        rows = torch.arange(most, device=labels.device).expand(n, most)
        owner = torch.full((n, cells + 1), most, device=labels.device)  # the last is no cell
        owner.scatter_reduce_(1, torch.where(there, cell, cells), rows, "amin")
        owner = owner[:, :cells]
        owner = owner.masked_fill(owner == most, -1)
        if self.training:
            self.left_out.count(there.sum() - (owner >= 0).sum(), there.sum())
        return owner

    @timed(POST_PROCESSING)
    def detect(self, features: Said, images: Images) -> Detections:
        boxes = decode(features.code, features.grid, features.frame).flatten(1, 2)
        # Two numbers below 0 must not be a likely class.
        scores = (
            features.confidence.clamp(min=0)[..., None] * features.classes.clamp(min=0)[:, :, None]
        )
        return best_of_classes(
            clip(boxes, torch.tensor(images.sizes, device=boxes.device)),
            scores.flatten(1, 2).clamp(max=1),
            score=self.score,
            overlap=self.overlap,
            most=self.most,
        )


def _nearest(overlap: Tensor, found: Tensor, wanted: Tensor, frame: tuple[int, int]) -> Tensor:
    """(N, S) which predictor overlaps its object most; where none does, which is nearest to it."""
    away = centred(found) - centred(wanted)
    away = (away / sides_of(frame, away)).square().sum(-1)  # (N, S, B)
    met = overlap.amax(2, keepdim=True) > 0
    return torch.where(met, overlap, -away).argmax(2)


class YOLO(Grid):
    """A grid on any backbone and any size of images; a cell is 8, 16, 32 or 64 pixels wide.

    What the backbone's maps say at the cell's stride and at coarser ones is added up, and two
    convolutions go over it. Images are stretched until whole cells cover them.

    Args:
        backbone: any.
        num_classes: K.
        size: (h, w) of the training input.
        grid: cells along each side of every image. None: cells stay as large as they are in
            training, as large as possible with 7 along the shorter side (8 pixels at the least).
        boxes, coordinate, no_object, score, overlap, detections: see ``Grid``.
        width: channels of the convolutions; None is 256, or 128 where ``size`` is below 256.

    Attributes:
        stride: pixels of a cell's side, after stretching.

    Raises:
        ValueError: a number is out of range.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        size: tuple[int, int],
        grid: int | None = None,
        boxes: int = 2,
        coordinate: float = 5.0,
        no_object: float = 0.5,
        width: int | None = None,
        score: float = 0.01,
        overlap: float = 0.5,
        detections: int = 100,
    ) -> None:
        super().__init__(num_classes, boxes, coordinate, no_object, score, overlap, detections)
        width = width_for(size) if width is None else width
        require_counts(width=width, **({} if grid is None else {"grid": grid}))
        self.backbone, self.grid = backbone, grid
        self._coarsest = max(backbone.strides.values())
        self.stride = max(stride_for(size, grid), min(backbone.strides.values()))
        while grid is not None and grid * self.stride < self._coarsest:
            self.stride *= 2
        names = list(backbone.strides)
        below = [name for name in names if backbone.strides[name] <= self.stride]
        self._names = names[names.index(below[-1]) :]
        self.lateral = nn.ModuleList(
            nn.Conv2d(backbone.channels[name], width, 1) for name in self._names
        )
        halvings = round(math.log2(self.stride / backbone.strides[self._names[0]]))
        self.head = nn.Sequential(
            *(layer for _ in range(halvings) for layer in convolution(3, width, width, 2, True)),
            *convolution(3, width, width, 1, True),
            *convolution(3, width, width, 1, True),
            nn.Conv2d(width, self.outputs, 1),
        )
        initialise(self.lateral, self.head)

    def said(self, pixels: Tensor) -> Tensor:
        least = math.ceil(self._coarsest / self.stride)  # or the last map would have no pixel
        rows, columns = (
            self.grid or max(least, math.ceil(side / self.stride)) for side in pixels.shape[2:]
        )
        maps = self.backbone(stretched(pixels, (rows * self.stride, columns * self.stride)))
        first, *deeper = (
            lateral(maps[name]) for name, lateral in zip(self._names, self.lateral, strict=True)
        )
        for other in deeper:
            first = first + F.interpolate(other, first.shape[2:], mode="nearest")
        return self.head(first).permute(0, 2, 3, 1)


def stride_for(size: tuple[int, int], grid: int | None) -> int:
    """Pixels of a cell's side on a training input of (h, w), see ``YOLO``."""
    if grid is not None:
        side = math.sqrt(size[0] * size[1]) / grid
        return min(STRIDES, key=lambda stride: abs(math.log(stride / side)))
    return next((stride for stride in STRIDES if min(size) >= CELLS * stride), STRIDES[-1])


def convolution(kernel: int, given: int, channels: int, stride: int, norm: bool) -> list[nn.Module]:
    """The layers of one, from ``given`` channels on, with padding."""
    conv = nn.Conv2d(given, channels, kernel, stride, kernel // 2, bias=not norm)
    normed = [nn.BatchNorm2d(channels)] if norm else []
    return [conv, *normed, nn.LeakyReLU(SLOPE, inplace=True)]


def initialise(*parts: nn.Module) -> None:
    """He et al., arXiv:1502.01852; the last layer says little of anything."""
    layers = [
        layer
        for part in parts
        for layer in part.modules()
        if isinstance(layer, (nn.Conv2d, nn.Linear))
    ]
    for layer in layers:
        nn.init.kaiming_normal_(layer.weight, a=SLOPE, nonlinearity="leaky_relu")
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    with torch.no_grad():
        layers[-1].weight.mul_(0.1)
