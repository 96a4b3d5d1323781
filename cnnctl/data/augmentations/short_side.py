"""The shorter side to a fixed length, the longer one capped: Ren, He, Girshick, Sun, "Faster
R-CNN: towards real-time object detection with region proposal networks", arXiv:1506.01497,
section 3.3 (600 pixels) and Girshick, "Fast R-CNN", arXiv:1504.08083, section 5.2 (several, at most
1000). Half of the images are mirrored, as there.

Differs from the paper: only where the data says that a mirror image keeps its class.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cnnctl.data.augmentations.base import Augmentation, Truth, resize
from cnnctl.data.augmentations.boxes import (
    carried,
    mirrored,
    mirrored_frames,
    move_frames,
    set_boxes,
)
from cnnctl.data.augmentations.standard import flip
from cnnctl.data.windows import Windows, alone, present, whole
from cnnctl.randomness import Draw
from cnnctl.structures import Images, Targets

SHORTER, LONGER = 600, 1000


class ShortSide(Augmentation):
    """Images keep their shape; half of them are mirrored.

    Where all images have one size they are resized to a square of ``size``, or stay as they are;
    ``sizes`` and ``cap`` are refused there.

    Args:
        size: the shorter side, pixels; None is the largest of ``sizes``, or 600.
        sizes: shorter sides that training draws from, evenly; None is ``size`` alone.
        cap: of the longer side, pixels.
        flip: None mirrors unless the data says that a mirror image changes its class.
    """

    moves = ("boxes", "masks", "keypoints", "proposals")

    def __init__(
        self,
        num_classes: int,
        mirror: bool,
        native: tuple[int, int] | None,
        mean: tuple[float, ...] = (0.0,),
        size: int | None = None,
        sizes: tuple[int, ...] | None = None,
        cap: int = LONGER,
        flip: bool | None = None,
    ) -> None:
        if sizes is not None and (not sizes or min(sizes) < 1):
            raise ValueError(f"sizes must be a list of sides of at least 1, got {list(sizes)}")
        if cap < 1:
            raise ValueError(f"cap must be at least 1, got {cap}")
        if native is not None and (sizes is not None or cap != LONGER):
            raise ValueError(
                f"sizes and cap are for images of different sizes, all here are {native[1]} x "
                f"{native[0]}: leave them out, size is the side of the square they become"
            )
        if size is None and native is None:
            size = max(sizes) if sizes else SHORTER
        super().__init__(
            num_classes=num_classes, mirror=mirror, native=native, size=size, mean=mean
        )
        self.sizes = tuple(sizes) if sizes else self.size[:1]
        self.cap = cap
        self.flip = mirror if flip is None else flip
        self.eval_size = None if native is None else self.size

    def joint(self, image: Tensor, target: Truth) -> tuple[Tensor, Truth]:
        if self.native is not None:  # mirrored in whole batches, on the device
            return super().joint(image, target)
        shape = (image.shape[1], image.shape[2])
        side = self.sizes[int(torch.randint(len(self.sizes), ()))]
        mirror = (alone("flip", 1)[:, 0] < 0.5) & self.flip
        frame = whole(shape, target["boxes"])[None]
        windows = Windows(frame, mirror, target["labels"][None] >= 0)
        size = self._shape(shape, side)
        image, moved = windows.sample(image, target, size, self.around)
        if "proposals" in target:
            given = target["proposals"]
            given = carried(given, frame[0], whole(size, given))
            moved["proposals"] = mirrored(given, size[1]) if mirror else given
        return image, moved

    def batch(self, images: Images, targets: Targets, draw: Draw) -> tuple[Images, Targets]:
        if self.native is not None and self.flip:
            boxes, there = present(targets)
            images.pixels = flip(images.pixels, draw)
            mirror = draw.chance("flip", 0.5)[:, None, None]
            width = self.size[1]
            move_frames(targets, lambda f: torch.where(mirror, mirrored_frames(f, width), f))
            set_boxes(targets, torch.where(mirror, mirrored(boxes, width), boxes), there)
            if (given := images.proposals) is not None:
                some = (given[..., 2:] > given[..., :2]).all(-1, keepdim=True)
                images.proposals = torch.where(mirror & some, mirrored(given, width), given)
        return images, targets

    def _scaled(self, image: Tensor) -> Tensor:
        size = self.size
        if self.native is None:
            size = self._shape((image.shape[1], image.shape[2]), self.size[0])
        return resize(image[None], size)[0]

    def _shape(self, shape: tuple[int, int], shorter: int) -> tuple[int, int]:
        """(h, w) that an image of ``shape`` gets."""
        factor = min(shorter / min(shape), self.cap / max(shape))
        return max(1, round(shape[0] * factor)), max(1, round(shape[1] * factor))
