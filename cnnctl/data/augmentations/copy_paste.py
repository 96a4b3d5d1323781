"""Copy-paste: Ghiasi et al., "Simple copy-paste is a strong data augmentation method for instance
segmentation", arXiv:2012.07177, section 3: a random subset of the objects of one image is put into
another, at their own place and without a choice of context.

Differs from the paper: without masks a box is pasted with all that it shows, and a box that is
partly hidden keeps its extent; the images are scaled and moved as YOLO does it, not by 0.1 to 2;
the partner comes from the same batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cnnctl.data.augmentations.boxes import LEAST
from cnnctl.data.augmentations.yolo import Yolo
from cnnctl.data.windows import present
from cnnctl.randomness import Draw
from cnnctl.structures import NO_BOX, Images, Targets

MOST = 0.5  # of a box of the partner that is pasted without being chosen: then it comes too


class CopyPaste(Yolo):
    """YOLO's jitter, then boxes of the image before it pasted into each image.

    A box goes where less than a fifth of it is left uncovered. Columns of boxes become twice as
    wide; rows that hold none stay among them.

    Args:
        probability: of pasting at all.
        share: of the partner's boxes that are chosen, on average.
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
        pasted = covered(foreign, chosen, self.size)  # (N, H, W)
        images.pixels = torch.where(pasted[:, None], images.pixels.roll(1, 0), images.pixels)
        comes = there.roll(1, 0) & (chosen | (share_covered(foreign, pasted) > MOST))
        stays = there & (share_covered(boxes, pasted) <= 1 - LEAST)
        for name, nothing in NO_BOX.items():
            if (column := getattr(targets, name)) is not None:
                both, kept = torch.cat([column, column.roll(1, 0)], 1), torch.cat([stays, comes], 1)
                gone = ~kept if both.dim() == 2 else ~kept[..., None]
                setattr(targets, name, both.masked_fill(gone, nothing))
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
