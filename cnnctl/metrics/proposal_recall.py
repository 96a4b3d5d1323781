"""How many of the objects proposals find: recall by the number of proposals and by IoU.

Hosang, Benenson, Dollar, Schiele, "What makes for effective detection proposals?",
arXiv:1502.05082. An object is found by the first n proposals of its image where the best of them
overlaps it by an IoU of at least t; two objects may be found by one proposal. Average recall is the
mean of the recall over all t from 0.5 to 1: twice the mean of max(IoU - 0.5, 0) of each object's
best proposal (section 5.2). Difficult and crowd objects are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cnnctl.ops import boxes as box_ops

IOUS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9)
COUNTS = tuple(step * 10**power for power in range(5) for step in (1, 2, 3, 5))
SHOWN = (1, 10, 100, 300, 1000, 2000)  # of a table
_AT_A_TIME = 1 << 22  # overlaps


@dataclass(frozen=True)
class Recall:
    """What ``ProposalRecall`` found.

    Args:
        counts: C numbers of proposals, rising; the last is the most that an image has.
        ious: T thresholds, rising.
        recall: (C, T) share of the objects that are found, 0 to 1; NaN without an object.
        average: (C,) average recall.
        images, objects: how many.
        proposals: mean number of an image.
    """

    counts: tuple[int, ...]
    ious: tuple[float, ...]
    recall: Tensor
    average: Tensor
    images: int
    objects: int
    proposals: float

    def at(self, iou: float) -> list[float]:
        """Recall at one threshold, for each number of proposals."""
        return self.recall[:, self.ious.index(iou)].tolist()

    def rows(self, shown: Sequence[int] = SHOWN) -> list[dict[str, float]]:
        """A table: a row for each of ``shown`` that is below the most, and one for the most.

        Columns: proposals, recall50, recall70, recall90 (as far as they were asked for) and
        average_recall.
        """
        chosen = [c for c in self.counts[:-1] if c in shown] + list(self.counts[-1:])
        rows = []
        for count in chosen:
            place = self.counts.index(count)
            row: dict[str, float] = {"proposals": count}
            for column, iou in enumerate(self.ious):
                if iou in (0.5, 0.7, 0.9):
                    row[f"recall{round(100 * iou)}"] = float(self.recall[place, column])
            rows.append({**row, "average_recall": float(self.average[place])})
        return rows


class ProposalRecall:
    """Adds up images; what it keeps does not grow with them.

    Args:
        ious: thresholds, rising.
        counts: numbers of proposals, rising.
    """

    def __init__(self, ious: Sequence[float] = IOUS, counts: Sequence[int] = COUNTS) -> None:
        if not ious or list(ious) != sorted(set(ious)) or not 0 < ious[0] <= ious[-1] <= 1:
            raise ValueError(f"ious must rise, above 0 and up to 1, got {list(ious)}")
        if not counts or list(counts) != sorted(set(counts)) or counts[0] < 1:
            raise ValueError(f"counts must rise from 1 or above, got {list(counts)}")
        self.ious, self.counts = tuple(ious), tuple(counts)
        columns = len(self.counts) + 1  # the last: all proposals of an image
        self.found = torch.zeros(columns, len(self.ious), dtype=torch.int64)
        self.above_half = torch.zeros(columns, dtype=torch.float64)
        self.images = self.objects = self.proposals = self.most = 0

    def update(self, proposals: Tensor, boxes: Tensor, ignored: Tensor | None = None) -> None:
        """One image.

        Args:
            proposals: (P, 4) corners in pixels, the likeliest first; rows without area are none.
            boxes: (R, 4) of its objects, in the same pixels.
            ignored: (R,) bool, difficult or crowd: nobody must find them.
        """
        proposals = proposals[box_ops.area(proposals) > 0].float()
        boxes = boxes.float() if ignored is None else boxes[~ignored].float()
        self.images, self.objects = self.images + 1, self.objects + len(boxes)
        self.proposals, self.most = self.proposals + len(proposals), max(self.most, len(proposals))
        if not len(proposals):
            return
        ends = torch.tensor([*self.counts, len(proposals)]).clamp(max=len(proposals)) - 1
        thresholds = torch.tensor(self.ious)
        for some in boxes.split(max(1, _AT_A_TIME // len(proposals))):
            best = box_ops.iou(some, proposals).cummax(1).values[:, ends]  # (R, C + 1)
            self.found += (best[:, :, None] >= thresholds).sum(0)
            self.above_half += (best.double() - 0.5).clamp(min=0).sum(0)

    def merge(self, other: ProposalRecall) -> None:
        """What another one of the same numbers added up, of other images."""
        if (self.ious, self.counts) != (other.ious, other.counts):
            raise ValueError("only recalls of the same ious and counts can be added up")
        self.found += other.found
        self.above_half += other.above_half
        self.images, self.objects = self.images + other.images, self.objects + other.objects
        self.proposals, self.most = self.proposals + other.proposals, max(self.most, other.most)

    def compute(self) -> Recall:
        below = [place for place, count in enumerate(self.counts) if count < self.most]
        rows = torch.tensor([*below, -1])
        objects = self.objects or float("nan")
        return Recall(
            counts=(*(self.counts[place] for place in below), self.most),
            ious=self.ious,
            recall=self.found[rows].double() / objects,
            average=2 * self.above_half[rows] / objects,
            images=self.images,
            objects=self.objects,
            proposals=self.proposals / max(self.images, 1),
        )
