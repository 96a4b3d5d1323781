"""Mosaic: Bochkovskiy, Wang, Liao, "YOLOv4: optimal speed and accuracy of object detection",
arXiv:2004.10934, section 3.3: four images in one, so that objects appear outside of their usual
context and at other scales.

Differs from the paper: each of the four is shrunk by its own factor, evenly drawn, to at least its
part of the picture (the paper's code leaves this to the jitter); the other three come from the
same batch; a box goes where less than a fifth of it is left.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from cnnctl.data.augmentations.boxes import (
    LEAST,
    carried,
    mapped,
    moved_frames,
    set_boxes,
    share_left,
)
from cnnctl.data.augmentations.joined import join, join_void
from cnnctl.data.augmentations.yolo import Yolo
from cnnctl.data.windows import present, resampled, whole
from cnnctl.randomness import Draw
from cnnctl.structures import Images, Targets

EDGE = 0.2  # the point where the four meet stays away from the edges by this share


class Mosaic(Yolo):
    """YOLO's jitter, then parts of four images of the batch around a random point.

    Columns of boxes become four times as wide; rows that hold none stay among them.

    Args:
        probability: of a mosaic at all; 0.5 in the paper's code.
    """

    mixes = True

    def __init__(
        self,
        num_classes: int,
        mirror: bool,
        native: tuple[int, int] | None,
        mean: tuple[float, ...] = (0.0,),
        size: int | None = None,
        probability: float = 0.5,
        jitter: float = 0.2,
        exposure: float = 1.5,
        saturation: float = 1.5,
        flip: bool | None = None,
    ) -> None:
        super().__init__(
            num_classes=num_classes,
            mirror=mirror,
            native=native,
            mean=mean,
            size=size,
            jitter=jitter,
            exposure=exposure,
            saturation=saturation,
            flip=flip,
        )
        if not 0 <= probability <= 1:
            raise ValueError(f"probability must be from 0 to 1, got {probability}")
        self.probability = probability

    def batch(self, images: Images, targets: Targets, draw: Draw) -> tuple[Images, Targets]:
        images, targets = super().batch(images, targets, draw)
        boxes, there = present(targets)
        pixels, nothing = images.pixels.float(), torch.zeros(1, 1, 1)
        images.pixels, moved, kept = torch.zeros_like(pixels), [], []
        frames, places = [], []
        for turn, (into, source) in enumerate(parts(self.size, self.probability, draw)):
            # The batch is in random order, so those before an image are random partners.
            images.pixels += resampled(pixels.roll(turn, 0), source, into, self.size, nothing)
            own = boxes.roll(turn, 0)
            moved.append(carried(own, source, into))
            kept.append(there.roll(turn, 0) & (share_left(own, source) >= LEAST))
            places.append(into)
            others = {name: column.roll(turn, 0) for name, column in _framed(targets)}
            frames.append(moved_frames(others, partial(mapped, source=source, into=into), into))
        join(targets, 4)
        if targets.frames is not None:
            targets.frames = torch.cat([own["frames"] for own in frames], 1)
        if targets.keypoints is not None:
            targets.keypoints = torch.cat([own["keypoints"] for own in frames], 1)
        if targets.void_frame is not None:
            join_void(targets, [own["void_frame"] for own in frames], places, self.size)
        set_boxes(targets, torch.cat(moved, 1), torch.cat(kept, 1))
        return images, targets


def _framed(targets: Targets) -> Iterator[tuple[str, Tensor]]:
    """The columns that ``moved_frames`` looks at."""
    for name in ("frames", "void_frame", "keypoints", "swap"):
        if (column := getattr(targets, name)) is not None:
            yield name, column


def parts(size: tuple[int, int], probability: float, draw: Draw) -> Iterator[tuple[Tensor, Tensor]]:
    """Where each of four images goes in a mosaic, and what is seen of it: (N, 4) each.

    The four meet in one point and cover the whole; all are whole pixels, inside of each image.
    Where there is to be no mosaic the first covers the whole.
    """
    meet = EDGE + (1 - 2 * EDGE) * draw.uniform("mosaic centre", 2)  # (N, 2)
    sides = whole(size, meet)[2:]
    meet = (sides * meet).round()
    meet = torch.where(draw.chance("mosaic", probability)[:, None], meet, sides)
    for corner, part in enumerate(draw.uniform("mosaic parts", 12).view(-1, 4, 3).unbind(1)):
        far = torch.arange(1, 3, device=meet.device) & corner > 0  # right, below
        first = torch.where(far, meet, 0)
        own = torch.where(far, sides - meet, meet)
        smallest = (own / sides).amax(1, keepdim=True)
        factor = smallest + (1 - smallest) * part[:, :1]
        seen = (own / factor).round().minimum(sides)
        start = ((sides - seen + 1) * part[:, 1:]).floor()
        yield torch.cat([first, first + own], 1), torch.cat([start, start + seen], 1)
