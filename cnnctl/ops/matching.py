"""Which anchor answers for which box: matching by overlap, and a balanced sample of anchors.

A batch at once, without a loop over images or boxes; rows of no box (label -1) match nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cnnctl.ops.boxes import iou

NEGATIVE, IGNORED = -1, -2


def match(
    boxes: Tensor,
    labels: Tensor,
    anchors: Tensor,
    high: float,
    low: float,
    best: bool = False,
    ties: bool = True,
) -> Tensor:
    """(N, A) int64: the row of the box that each anchor answers for, -1 none, -2 undecided.

    Args:
        boxes: (N, R, 4) with labels (N, R), -1 where there is no box.
        anchors: (A, 4), or (N, A, 4) where each image has its own.
        high: from this overlap on an anchor belongs to the box that it overlaps most.
        low: below it an anchor is background; between the two it counts for nothing.
        best: each box also gets the anchor that overlaps it most, however little.
        ties: all anchors that overlap it that much (Faster R-CNN), or the first of them (SSD).
    """
    if not labels.shape[1]:
        return labels.new_full((len(labels), anchors.shape[-2]), NEGATIVE)
    overlap = iou(boxes, anchors if anchors.dim() == 3 else anchors[None])  # (N, R, A)
    overlap = overlap.masked_fill((labels < 0)[:, :, None], -1.0)
    most, row = overlap.max(1)  # (N, A)
    matched = torch.where(most >= high, row, torch.where(most < low, NEGATIVE, IGNORED))
    if not best:
        return matched
    peak = overlap.amax(2, keepdim=True)  # (N, R, 1)
    there = (labels >= 0)[:, :, None] & (peak > 0)
    if ties:
        # As torchvision's matcher: such an anchor goes to the box that it overlaps most.
        return torch.where(((overlap == peak) & there).any(1), row, matched)
    first = overlap.argmax(2)  # (N, R)
    owner = torch.full_like(matched, -1)
    rows = torch.arange(labels.shape[1], device=labels.device).expand_as(labels)
    # Where two boxes want one anchor, the later row has it, as in SSD's own loop.
    owner = owner.scatter_reduce(1, first, torch.where(there[..., 0], rows, -1), "amax")
    return torch.where(owner >= 0, owner, matched)


def taken(columns: Tensor, rows: Tensor) -> Tensor:
    """(N, R, ...) and rows (N, A) -> (N, A, ...); a row below 0 takes the first, to be masked."""
    index = rows.clamp(min=0)
    if not columns.shape[1]:
        return columns.new_zeros(*index.shape, *columns.shape[2:])
    if columns.dim() == 2:
        return columns.gather(1, index)
    return columns.gather(1, index[:, :, None].expand(-1, -1, columns.shape[2]))


def sample(matched: Tensor, count: int, positives: float) -> tuple[Tensor, Tensor]:
    """(positive, negative), each (N, A) bool: ``count`` anchors of every image, drawn at random.

    At most the share ``positives`` of them are such; background fills the rest. Torch's generator
    is asked, which the trainer sets from the step.
    """
    order = torch.rand(matched.shape, device=matched.device)
    most = matched.new_full(matched.shape[:1], int(count * positives))
    positive = _smallest(order, matched >= 0, most)
    room = count - positive.sum(1)
    return positive, _smallest(order, matched == NEGATIVE, room)


def _smallest(order: Tensor, among: Tensor, count: Tensor) -> Tensor:
    """(N, A) bool: of ``among`` those ``count`` (N,) with the smallest ``order``."""
    ranked = order.masked_fill(~among, 2.0).argsort(1)
    rank = torch.empty_like(ranked).scatter_(
        1, ranked, torch.arange(order.shape[1], device=order.device).expand_as(ranked)
    )
    return among & (rank < count[:, None])
