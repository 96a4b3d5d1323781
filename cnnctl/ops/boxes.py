"""Boxes as rows of xyxy: overlap, the code that a network regresses, and what to keep of many.

Leading dimensions are free: a batch of images is one call. The right and lower sides are exclusive.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cnnctl.structures import NO_BOX

SCALES = (10.0, 5.0)  # of a code, so that what is regressed varies about alike in all its parts
_LARGEST = math.log(1000 / 16)  # of a regressed log size: e**it must stay a number


@dataclass
class Detections:
    """What was found in N images, in input pixels, the most likely first.

    Args:
        boxes: (N, D, 4), scores: (N, D), labels: (N, D) int64, -1 where an image has fewer.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor


def area(boxes: Tensor) -> Tensor:
    """(..., 4) -> (...); 0 where a box is turned inside out."""
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1)


def intersection(a: Tensor, b: Tensor) -> Tensor:
    """(..., A, 4) and (..., B, 4) -> (..., A, B) pixels that two boxes share."""
    a, b = a[..., :, None, :], b[..., None, :, :]
    # Side by side: of large A and B, tensors of both at once would be what takes the most memory.
    across = torch.minimum(a[..., 2], b[..., 2]) - torch.maximum(a[..., 0], b[..., 0])
    down = torch.minimum(a[..., 3], b[..., 3]) - torch.maximum(a[..., 1], b[..., 1])
    return across.clamp_(min=0) * down.clamp_(min=0)


def iou(a: Tensor, b: Tensor) -> Tensor:
    """(..., A, 4) and (..., B, 4) -> (..., A, B) intersection over union; 0 of two empty boxes."""
    shared = intersection(a, b)
    either = area(a)[..., :, None] + area(b)[..., None, :] - shared
    return shared / either.clamp_(min=1e-6)


def centred(boxes: Tensor) -> Tensor:
    """xyxy -> centre x, centre y, width, height."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low], -1)


def cornered(boxes: Tensor) -> Tensor:
    """Centre x, centre y, width, height -> xyxy."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centre - half, centre + half], -1)


def sides_of(size: tuple[int, int], like: Tensor) -> Tensor:
    """(4,) w, h, w, h of an image of (h, w), as ``like`` is; made where that lies, so that nothing
    waits for a device."""
    h, w = size
    return torch.cat([like.new_full((1,), w), like.new_full((1,), h)]).repeat(2)


def encode(boxes: Tensor, anchors: Tensor, scales: tuple[float, float] = (1, 1)) -> Tensor:
    """What a network is to say of ``anchors`` (..., 4) so that they become ``boxes`` (..., 4).

    Girshick et al., "Rich feature hierarchies", arXiv:1311.2524, appendix C: shift of the centre
    in sizes of the anchor, and log of the change of size; each of the two times its scale.
    """
    b, a = centred(boxes), centred(anchors)
    sizes = a[..., 2:].clamp(min=1e-3)
    shift = (b[..., :2] - a[..., :2]) / sizes
    growth = (b[..., 2:].clamp(min=1e-3) / sizes).log()
    return torch.cat([shift * scales[0], growth * scales[1]], -1)


def decode(deltas: Tensor, anchors: Tensor, scales: tuple[float, float] = (1, 1)) -> Tensor:
    """The inverse of ``encode``; a size grows by 62.5 at most, so that it stays a number."""
    deltas, a = deltas.float(), centred(anchors)
    centre = a[..., :2] + deltas[..., :2] / scales[0] * a[..., 2:]
    half = a[..., 2:] * (deltas[..., 2:] / scales[1]).clamp(max=_LARGEST).exp() / 2
    return torch.cat([centre - half, centre + half], -1)


def clip(boxes: Tensor, sizes: Tensor) -> Tensor:
    """(N, B, 4) cut off at each image's border; ``sizes`` (N, 2) are (h, w)."""
    limit = sizes.flip(1).repeat(1, 2)[:, None].to(boxes.dtype)
    return torch.minimum(boxes.clamp(min=0), limit)


def suppressed(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float) -> Tensor:
    """Positions of (B, 4) that survive non-maximum suppression among those of their group, the
    most likely first. Groups are classes, images or both: none is compared with another."""
    from torchvision.ops import batched_nms

    # Groups are moved apart by up to millions of pixels: float32 would round small boxes then.
    return batched_nms(boxes.double(), scores.double(), groups, threshold)


def best_of_classes(
    boxes: Tensor,
    scores: Tensor,
    *,
    score: float,
    overlap: float,
    most: int,
    candidates: int = 1000,
    labels: Tensor | None = None,
) -> Detections:
    """The detections of N images: of each class the boxes that no likelier one overlaps.

    Args:
        boxes: (N, B, 4), or (N, B, K, 4) where each class has boxes of its own.
        scores: (N, B, K), or (N, B) with ``labels``.
        score: below it nothing counts.
        overlap: IoU above which the less likely of two boxes of a class goes.
        most: that are kept of an image.
        candidates: of an image that are compared at most, the most likely.
        labels: (N, B) int64, where a box has one class only; -1 is none.
    """
    n = len(scores)
    flat = scores.masked_fill(labels < 0, -1.0) if labels is not None else scores.flatten(1)
    top = flat.topk(min(candidates, flat.shape[1]), dim=1)  # (N, C) sorted
    # What is not a number stays: whoever reads the scores must see that the network is broken.
    image, place = (~(top.values <= score)).nonzero(as_tuple=True)
    chosen = top.indices[image, place]
    if labels is not None:
        classes, found = labels[image, chosen], boxes[image, chosen]
    else:
        k = scores.shape[2]
        classes = chosen % k
        found = (
            boxes[image, chosen // k, classes] if boxes.dim() == 4 else boxes[image, chosen // k]
        )
    values = top.values[image, place]
    kinds = (
        int(scores.shape[-1]) if labels is None else int(labels.max()) + 1 if labels.numel() else 1
    )
    keep = suppressed(found, values, image * kinds + classes, overlap)
    # Of each image in order of score: the order of an image is kept by a stable sort.
    keep = keep[image[keep].argsort(stable=True)]
    return together(n, image[keep], found[keep], values[keep], classes[keep], most)


def together(
    n: int, image: Tensor, boxes: Tensor, scores: Tensor, labels: Tensor, most: int
) -> Detections:
    """Rows (B,) of all images, sorted by image -> N rows of at most ``most`` each."""
    counts = torch.bincount(image, minlength=n)
    rank = torch.arange(len(image), device=image.device) - (counts.cumsum(0) - counts)[image]
    inside = rank < most
    image, rank = image[inside], rank[inside]
    width = min(most, int(counts.max())) if len(counts) else 0
    columns = Detections(
        boxes.new_zeros(n, width, 4),
        scores.new_zeros(n, width),
        labels.new_full((n, width), int(NO_BOX["labels"])),
    )
    columns.boxes[image, rank] = boxes[inside]
    columns.scores[image, rank] = scores[inside]
    columns.labels[image, rank] = labels[inside]
    return columns
