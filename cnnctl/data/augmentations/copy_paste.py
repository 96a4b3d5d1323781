"""Copy-paste: Ghiasi et al., "Simple copy-paste is a strong data augmentation method for instance
segmentation", arXiv:2012.07177, section 3: a random subset of the objects of one image is put into
another, at their own place and without a choice of context.

With masks exactly the pixels of objects are pasted. Those that they cover leave the masks of other
objects, and the boxes of these become those of what is left.

Differs from the paper: without masks a box is pasted with all that it shows, and a box that is
partly hidden keeps its extent; what is pasted is not blended in (alike there, section 3); an object
goes where less than a fifth of it is left; the images are scaled and moved as YOLO does it, not by
0.1 to 2; the partner comes from the same batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cnnctl.data.augmentations.boxes import LEAST, keep_rows
from cnnctl.data.augmentations.joined import join, paste_masks
from cnnctl.data.augmentations.yolo import Yolo
from cnnctl.data.windows import present
from cnnctl.randomness import Draw
from cnnctl.structures import Images, Targets

MOST = 0.5  # of an object of the partner that is pasted without being chosen: then it comes too


class CopyPaste(Yolo):
    """YOLO's jitter, then objects of the image before it pasted into each image.

    An object goes where less than a fifth of it is left uncovered. Columns of boxes become twice as
    wide; rows that hold none stay among them.

    Args:
        probability: of pasting at all.
        share: of the partner's objects that are chosen, on average.
    """

    mixes = True
    moves = ("boxes", "masks")  # what is pasted hides points of other figures

    def __init__(
        self,
        num_classes: int,
        mirror: bool,
        native: tuple[int, int] | None,
        mean: tuple[float, ...] = (0.0,),
        size: int | None = None,
        probability: float = 0.5,
        share: float = 0.5,
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
        for name, value in (("probability", probability), ("share", share)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must be from 0 to 1, got {value}")
        self.probability = probability
        self.share = share

    def batch(self, images: Images, targets: Targets, draw: Draw) -> tuple[Images, Targets]:
        images, targets = super().batch(images, targets, draw)
        boxes, there = present(targets)
        # The batch is in random order, so its neighbour is a random partner for each image.
        foreign, chosen = boxes.roll(1, 0), there.roll(1, 0)
        chosen = chosen & (draw.uniform("chosen boxes", boxes.shape[1]) < self.share)
        chosen &= draw.chance("copy-paste", self.probability)[:, None]
        if targets.bits is not None:
            paste_masks(images, targets, chosen, LEAST, MOST)
            return images, targets
        pasted = covered(foreign, chosen, self.size)  # (N, H, W)
        images.pixels = torch.where(pasted[:, None], images.pixels.roll(1, 0), images.pixels)
        comes = there.roll(1, 0) & (chosen | (share_covered(foreign, pasted) > MOST))
        stays = there & (share_covered(boxes, pasted) <= 1 - LEAST)
        join(targets, 2)
        keep_rows(targets, torch.cat([stays, comes], 1))
        return images, targets


def _lines(boxes: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """(N, R, H) and (N, R, W) float: which rows and columns have their centre in each box."""
    y, x = (torch.arange(side, device=boxes.device) + 0.5 for side in size)
    left, top, right, bottom = boxes[..., None].unbind(2)
    return ((y > top) & (y < bottom)).float(), ((x > left) & (x < right)).float()


def covered(boxes: Tensor, chosen: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, H, W) bool: the pixels whose centre is in one of the ``chosen`` (N, R) boxes."""
    rows, columns = _lines(boxes, size)
    return (rows * chosen[..., None]).mT @ columns > 0


def share_covered(boxes: Tensor, pasted: Tensor) -> Tensor:
    """(N, R): how much of each box ``pasted`` (N, H, W) covers; 0 of one without a pixel."""
    rows, columns = _lines(boxes, (pasted.shape[1], pasted.shape[2]))
    hidden = ((rows @ pasted.float()) * columns).sum(2)
    return hidden / (rows.sum(2) * columns.sum(2)).clamp(min=1)
