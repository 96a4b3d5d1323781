"""What the mask of a region is learnt from: its pixels and, beside them, its target (He et al.,
"Mask R-CNN", arXiv:1703.06870, section 3.1: m x m of what the region sees of its object)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cnnctl.data.base import Dataset
from cnnctl.data.palette import Colour
from cnnctl.drawing import pictures
from cnnctl.drawing.box_marks import Mark, class_colours, counted, marked
from cnnctl.drawing.box_pictures import OVERLAP
from cnnctl.models.base import Model
from cnnctl.models.detection import Truth, truth_of
from cnnctl.models.instance import InstanceModel, mask_targets
from cnnctl.models.regions import Regions
from cnnctl.ops.boxes import iou
from cnnctl.ops.matching import match
from cnnctl.ops.regions import roi_align
from cnnctl.structures import Batch

SIDE = 496  # pixels of the longer side of an image
_CELL, _PAIRS, _ACROSS = 112, 9, 3  # pixels of a region, regions of an image, and in a row
_IMAGES = 4


@dataclass
class Shown:
    """Some positive regions of one image.

    Args:
        boxes: (B, 4) in pixels of the image that the network sees; labels: (B,).
        overlaps: (B,) IoU of each with the box of its object.
        targets: (B, m, m) float 0..1.
    """

    boxes: Tensor
    labels: Tensor
    overlaps: Tensor
    targets: Tensor


def draw_targets(
    image: Tensor, shown: Shown, classes: Sequence[str], own: Sequence[Colour]
) -> Tensor:
    """(H, W, 3): the image with the regions, and each region stretched to a square by its target.

    Args:
        image: (3, h, w) uint8.
        own: the colour of each class.
    """
    side = shown.targets.shape[-1]
    colours = [own[k] for k in shown.labels.tolist()]
    rows = zip(shown.boxes.tolist(), colours, shown.labels.tolist(), strict=True)
    marks = [
        Mark(box, colour, f"{number}: {classes[k]}", thin=True)
        for number, (box, colour, k) in enumerate(rows, 1)
    ]
    whole = marked(image, marks, SIDE).permute(2, 0, 1)
    text = f"{counted(len(marks), 'region')} that are objects, targets of {side} x {side}"
    left = pictures.gallery([whole], [[text]], side=SIDE)
    if not marks:
        return left
    owner = torch.zeros(len(marks), dtype=torch.int64)
    pixels = roi_align(image[None].float(), shown.boxes, owner, (_CELL, _CELL), 1.0, aligned=True)
    cells, captions = [], []
    for number, (crop, target, overlap) in enumerate(
        zip(pixels, shown.targets, shown.overlaps.tolist(), strict=True), 1
    ):
        cells += [crop.round().byte(), (target * 255).round().byte().expand(3, -1, -1)]
        captions += [[f"{number}"], [f"IoU {overlap:.2f}"]]
    right = pictures.gallery(cells, captions, columns=2 * _ACROSS, side=_CELL)
    height = max(left.shape[0], right.shape[0])
    both = [F.pad(one, (0, 0, 0, 0, 0, height - one.shape[0]), value=255) for one in (left, right)]
    return torch.cat(both, 1)


def stacked(drawn: Sequence[Tensor]) -> Tensor:
    """(H, W, 3) pictures one below the other, on white."""
    width = max(picture.shape[1] for picture in drawn)
    return torch.cat([F.pad(p, (0, 0, 0, width - p.shape[1]), value=255) for p in drawn])


def draw_batch_targets(model: Model, batch: Batch, data: Dataset) -> list[Tensor]:
    """A picture of each of some images of a batch; [] where the model learns no masks.

    Args:
        model: in eval mode.
        batch: its pixels normalised, on the model's device.
    """
    if not isinstance(model, InstanceModel):
        return []
    part = batch.rows(slice(_IMAGES))
    pixels = pictures.displayable(part.images.pixels, data.mean, data.std)
    colours = class_colours(len(data.classes), data.palette)
    sizes = part.images.sizes
    return [
        draw_targets(image[:, :h, :w], shown, data.classes, colours)
        for image, (h, w), shown in zip(pixels, sizes, shown_of(model, part), strict=True)
    ]


@torch.no_grad()
def shown_of(model: InstanceModel, batch: Batch) -> Iterator[Shown]:
    """For each image some of the network's proposals that are objects; where it has none yet, the
    true boxes, which are among the regions too. Nothing is drawn at random."""
    truth = truth_of(batch.images, batch.targets)
    features = model.features(batch.images.pixels)
    proposed = model.proposals(features, batch.images)
    boxes = truth.boxes if proposed is None else torch.cat([proposed[0], truth.boxes], 1)
    there = truth.labels >= 0
    if proposed is not None:
        there = torch.cat([proposed[1] > -torch.inf, there], 1)
    matched = match(truth.boxes, truth.labels, boxes, OVERLAP, OVERLAP).masked_fill(~there, -1)
    side = model.detect(features, batch.images).masks.shape[-1]
    for row in range(len(boxes)):
        place = _one_of_each(matched[row], _PAIRS)
        regions = Regions(
            boxes[row, place],
            torch.full_like(place, row),
            truth.labels[row, matched[row, place]],
            matched[row, place],
            boxes[row, place],
        )
        yield _with_targets(regions, truth, side)


def _one_of_each(matched: Tensor, most: int) -> Tensor:
    """(B,) places in ``matched`` (A,) of the first region of each object, then of the second..."""
    place = (matched >= 0).nonzero()[:, 0]
    own = matched[place]
    turn = torch.stack([(own[:n] == own[n]).sum() for n in range(len(own))]) if len(own) else own
    return place[turn.argsort(stable=True)[:most]]


def _with_targets(regions: Regions, truth: Truth, side: int) -> Shown:
    rows, targets = mask_targets(regions, truth, side)
    boxes, image, owner = (column[rows] for column in (regions.boxes, regions.image, regions.owner))
    theirs = truth.boxes[image, owner].float()
    overlaps = iou(boxes.float(), theirs).diagonal()
    columns = (boxes.float(), regions.labels[rows], overlaps, targets)
    return Shown(*(column.cpu() for column in columns))
