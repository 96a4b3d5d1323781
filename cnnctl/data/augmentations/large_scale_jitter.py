"""Large-scale jitter: Ghiasi et al., "Simple copy-paste is a strong data augmentation method for
instance segmentation", arXiv:2012.07177, section 3: an image is resized by 0.1 to 2.0, where the
usual jitter is 0.8 to 1.25, then cropped or filled up to a fixed size, and mirrored half the time.

A factor of 1 is the largest size at which the image, its shape kept, fits into the output.

Differs from the paper: an image that is smaller than the output lies anywhere in it, not in the
upper left; an object goes where less than a fifth of its box is left, not where nothing is.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cnnctl.data.augmentations.base import Augmentation, Truth
from cnnctl.data.augmentations.boxes import LEAST, share_left, sides
from cnnctl.data.augmentations.scale_crop import Uniform
from cnnctl.data.windows import Windows, alone, present, whole
from cnnctl.randomness import Draw
from cnnctl.structures import Images, Targets

SIDE = 1024


class LargeScaleJitter(Augmentation):
    """Resize by a random factor, crop or fill up to a square, flip; the aspect is kept.

    Evaluation sees whole images, as large as they fit into the square.

    Args:
        size: side of the square; None is the data's own size, 1024 where its images differ.
        scale: the smallest and largest factor, evenly drawn; the paper's usual jitter is 0.8, 1.25.
        flip: None mirrors unless the data says that a mirror image changes its class.
    """

    moves = ("boxes", "masks", "keypoints")

    def __init__(
        self,
        num_classes: int,
        mirror: bool,
        native: tuple[int, int] | None,
        mean: tuple[float, ...] = (0.0,),
        size: int | None = None,
        scale: tuple[float, float] = (0.1, 2.0),
        flip: bool | None = None,
    ) -> None:
        if size is None and native is None:
            size = SIDE
        super().__init__(
            num_classes=num_classes, mirror=mirror, native=native, size=size, mean=mean
        )
        if len(scale) != 2 or not 0.01 <= scale[0] <= scale[1] < math.inf:
            raise ValueError(f"scale must be 0.01 <= smallest <= largest, got {list(scale)}")
        self.scale = (float(scale[0]), float(scale[1]))
        self.flip = mirror if flip is None else flip

    def joint(self, image: Tensor, target: Truth) -> tuple[Tensor, Truth]:
        if self.native is not None:  # moved in whole batches, on the device
            return super().joint(image, target)
        shape = (image.shape[1], image.shape[2])
        windows = self.windows(target["boxes"][None], target["labels"][None] >= 0, shape, alone)
        return windows.sample(image, target, self.size, self.around)

    def batch(self, images: Images, targets: Targets, draw: Draw) -> tuple[Images, Targets]:
        if self.native is not None:
            boxes, there = present(targets)
            windows = self.windows(boxes, there, self.size, draw.uniform)
            windows.batch(images, targets, self.around)
        return images, targets

    def windows(
        self, boxes: Tensor, there: Tensor, shape: tuple[int, int], uniform: Uniform
    ) -> Windows:
        """Of N images of ``shape`` with boxes (N, R, 4), of which ``there`` (N, R) are some."""
        frames = whole(shape, boxes).expand(len(boxes), -1)
        fits = min(self.size[0] / shape[0], self.size[1] / shape[1])
        low, high = self.scale
        factor = fits * (low + (high - low) * uniform("scale", 1))
        seen = (whole(self.size, boxes)[2:] / factor).round().clamp(min=1)  # (N, 2)
        # The room is negative where the image is the smaller one; then it lies in the window.
        start = ((sides(frames) - seen) * uniform("place", 2)).round()
        frames = torch.cat([start, start + seen], 1)
        mirror = (uniform("flip", 1)[:, 0] < 0.5) & self.flip
        return Windows(frames, mirror, there & (share_left(boxes, frames) >= LEAST))
