"""What two-stage detectors do with proposals: sample them for training, and name their boxes.

Girshick, "Fast R-CNN", arXiv:1504.08083, section 2.3.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cnnctl.models.base import Losses
from cnnctl.models.detection import Truth, given_proposals
from cnnctl.ops.boxes import SCALES, Detections, best_of_classes, clip, decode, encode
from cnnctl.ops.clock import POST_PROCESSING, timed
from cnnctl.ops.matching import match, sample
from cnnctl.structures import Images

REGIONS_OF_AN_IMAGE, FEW_REGIONS = 64, 32  # that are trained on; few of one below 256 pixels


@dataclass
class Regions:
    """Regions of all images in one row, for training.

    Args:
        boxes: (B, 4) in input pixels; image: (B,) whose it is.
        labels: (B,) int64: the class, K for background; owner: (B,) row of the truth, or below 0.
        wanted: (B, 4) the code of its true box; of background without meaning.
    """

    boxes: Tensor
    image: Tensor
    labels: Tensor
    owner: Tensor
    wanted: Tensor


@torch.no_grad()
def sampled(
    boxes: Tensor,
    there: Tensor,
    truth: Truth,
    num_classes: int,
    count: int,
    positives: float = 0.25,
    overlap: float = 0.5,
    lowest: float = 0.0,
) -> Regions:
    """``count`` proposals of each image, the true boxes among them, at most a share of objects.

    Args:
        boxes: (N, P, 4) proposals; there: (N, P) which of them are some.
        overlap: from which a proposal is an object, else background.
        lowest: background overlaps a true box by at least this much (Fast R-CNN's 0.1).
    """
    boxes = torch.cat([boxes, truth.boxes.to(boxes.dtype)], 1)
    there = torch.cat([there, truth.labels >= 0], 1)
    matched = match(truth.boxes, truth.labels, boxes, overlap, overlap)
    if lowest:
        near = match(truth.boxes, truth.labels, boxes, lowest, lowest) >= 0
        matched = matched.masked_fill((matched < 0) & ~near, -2)
    matched = matched.masked_fill(~there, -2)
    positive, negative = sample(matched, count, positives)
    image, row = (positive | negative).nonzero(as_tuple=True)
    owner = matched[image, row]
    if truth.labels.shape[1]:
        labels = torch.where(owner >= 0, truth.labels[image, owner.clamp(min=0)], num_classes)
        theirs = truth.boxes[image, owner.clamp(min=0)]
    else:
        labels = torch.full_like(owner, num_classes)
        theirs = boxes[image, row]
    chosen = boxes[image, row]
    return Regions(chosen, image, labels, owner, encode(theirs, chosen, SCALES))


def region_losses(
    logits: Tensor,
    deltas: Tensor,
    regions: Regions,
    bend: float = 1 / 9,
    hardest: int | None = None,
) -> Losses:
    """Class by softmax and box by smooth L1, both a mean over all regions that count.

    Args:
        logits: (B, K + 1), background last; deltas: (B, K, 4), or (B, 1, 4) for any class.
        bend: where smooth L1 becomes straight; Fast R-CNN's 1, torchvision's 1/9.
        hardest: that many regions of each image count, those with the largest losses (Shrivastava,
            Gupta, Girshick, "Training region-based object detectors with online hard example
            mining", arXiv:1604.03540, without its suppression of neighbours); None: all.
    """
    background = logits.shape[1] - 1
    named = F.cross_entropy(logits.float(), regions.labels, reduction="none")
    kind = regions.labels.clamp(max=deltas.shape[1] - 1)
    own = deltas.float()[torch.arange(len(kind), device=kind.device), kind]
    apart = F.smooth_l1_loss(own, regions.wanted, beta=bend, reduction="none").sum(1)
    apart = torch.where(regions.labels < background, apart, 0.0)
    if hardest is not None:
        counted = hardest_of_images((named + apart).detach(), regions.image, hardest)
        named, apart = named[counted], apart[counted]
    total = max(1, len(named))
    return {"class": named.sum() / total, "box": apart.sum() / total}


def hardest_of_images(loss: Tensor, image: Tensor, count: int) -> Tensor:
    """(H,) rows of the ``count`` largest of ``loss`` (B,) of each image (B,), in any order."""
    order = loss.argsort(descending=True)
    order = order[image[order].argsort(stable=True)]  # the largest first, image by image
    owner = image[order]
    counts = owner.bincount()
    rank = torch.arange(len(owner), device=owner.device) - (counts.cumsum(0) - counts)[owner]
    return order[rank < count]


def proposed(images: Images) -> tuple[Tensor, Tensor]:
    """(N, P, 4) proposals in input pixels and (N, P) which of them are some. A row
    without area is none."""
    boxes = given_proposals(images)
    assert boxes is not None, "a model that reads proposals is given some"
    return boxes, (boxes[..., 2:] > boxes[..., :2]).all(-1)


def in_a_row(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """(N, P, 4) -> (N * P, 4) and whose each is (N * P,)."""
    n, p, _ = boxes.shape
    return boxes.flatten(0, 1), torch.arange(n, device=boxes.device).repeat_interleave(p)


@timed(POST_PROCESSING)
def named_regions(
    logits: Tensor,
    deltas: Tensor,
    boxes: Tensor,
    there: Tensor,
    images: Images,
    *,
    score: float,
    overlap: float,
    most: int,
) -> Detections:
    """Detections of N images of what a head says of their proposals.

    Args:
        logits: (N * P, K + 1), background last; deltas: (N * P, K or 1, 4).
        boxes: (N, P, 4); there: (N, P) which proposals are some.
        score, overlap, most: see ``best_of_classes``.
    """
    n, p, k = len(boxes), boxes.shape[1], logits.shape[1] - 1
    scores = logits.float().softmax(1)[:, :k].unflatten(0, (n, p)) * there[:, :, None]
    moved = decode(deltas.unflatten(0, (n, p)), boxes[:, :, None], SCALES)
    own = moved.shape[2]
    sizes = torch.tensor(images.sizes, device=boxes.device)
    moved = clip(moved.flatten(1, 2), sizes).view(n, p, own, 4).expand(-1, -1, k, -1)
    wide = (moved[..., 2:] - moved[..., :2]).amin(-1) >= 1e-2
    return best_of_classes(moved, scores * wide, score=score, overlap=overlap, most=most)


@timed(POST_PROCESSING)
def best_regions(
    scores: Tensor,
    codes: Tensor | None,
    boxes: Tensor,
    there: Tensor,
    images: Images,
    *,
    score: float,
    overlap: float,
    most: int,
) -> Detections:
    """Detections of N images of what SVMs and regressors say of their proposals.

    Args:
        scores: (B, K) of the proposals that are some, in the order of ``there``.
        codes: (B, K, 4), likewise; None: boxes stay as they are.
        boxes: (N, P, 4); there: (N, P) which proposals are some.
        score, overlap, most: see ``best_of_classes``.
    """
    n, p, k = len(boxes), boxes.shape[1], scores.shape[1]
    laid = scores.new_zeros(n, p, k)
    laid[there] = scores
    if codes is None:
        return best_of_classes(boxes, laid, score=score, overlap=overlap, most=most)
    moved = boxes.new_zeros(n, p, k, 4)
    moved[there] = decode(codes, boxes[there][:, None])
    sizes = torch.tensor(images.sizes, device=boxes.device)
    moved = clip(moved.flatten(1, 2), sizes).view(n, p, k, 4)
    wide = (moved[..., 2:] - moved[..., :2]).amin(-1) >= 1e-2
    return best_of_classes(moved, laid * wide, score=score, overlap=overlap, most=most)
