"""YOLO's augmentation: Redmon, Divvala, Girshick, Farhadi, "You only look once: unified, real-time
object detection", arXiv:1506.02640, section 2.2: scaling and translation of up to 20 % of the
image's size, exposure and saturation of up to a factor of 1.5 in HSV.

As in the authors' code each side of the window moves on its own by up to 20 %, in or out, so that
the aspect changes too, and a factor is as often its inverse; half of the images are mirrored.

Differs from the paper: what comes from outside of an image has the mean colour; a box goes where
less than a fifth of it is left.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cnnctl.data.augmentations.base import Augmentation, Truth, resize
from cnnctl.data.augmentations.boxes import LEAST, share_left, sides
from cnnctl.data.augmentations.scale_crop import Uniform
from cnnctl.data.windows import Windows, alone, present, whole
from cnnctl.randomness import Draw
from cnnctl.structures import Images, Targets

SIDE = 448


class Yolo(Augmentation):
    """Scale, move, flip, resize to a square without keeping the aspect, change colours.

    Args:
        size: None is the data's own, 448 where its images differ.
        jitter: how far each side of the window moves, as a share of the image's.
        exposure: the largest factor of a colour's value in HSV; 1 is never.
        saturation: likewise of its saturation.
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
        jitter: float = 0.2,
        exposure: float = 1.5,
        saturation: float = 1.5,
        flip: bool | None = None,
    ) -> None:
        if size is None and native is None:
            size = SIDE
        super().__init__(
            num_classes=num_classes, mirror=mirror, native=native, size=size, mean=mean
        )
        if not 0 <= jitter <= 0.45:
            raise ValueError(f"jitter must be from 0 to 0.45, got {jitter}")
        for name, factor in (("exposure", exposure), ("saturation", saturation)):
            if not 1 <= factor <= 100:
                raise ValueError(f"{name} must be from 1 to 100, got {factor}")
        self.jitter = jitter
        self.exposure = exposure
        self.saturation = saturation
        self.flip = mirror if flip is None else flip

    def joint(self, image: Tensor, target: Truth) -> tuple[Tensor, Truth]:
        if self.native is not None:  # moved in whole batches, on the device
            return super().joint(image, target)
        shape = (image.shape[1], image.shape[2])
        windows = self.windows(target["boxes"][None], target["labels"][None] >= 0, shape, alone)
        return windows.sample(image, target, self.size, self.around)

    def own(self, image: Tensor, fields: tuple[str, ...]) -> Tensor:
        return self._scaled(image)

    def _scaled(self, image: Tensor) -> Tensor:
        return resize(image[None], self.size)[0]

    def batch(self, images: Images, targets: Targets, draw: Draw) -> tuple[Images, Targets]:
        if self.native is not None:
            boxes, there = present(targets)
            windows = self.windows(boxes, there, self.size, draw.uniform)
            windows.batch(images, targets, self.around)
        if self.exposure > 1 or self.saturation > 1:
            drawn = draw.uniform("colour", 4)
            exposure, saturation = (
                (1 + (most - 1) * drawn[:, i]) ** torch.where(drawn[:, i + 2] < 0.5, -1.0, 1.0)
                for i, most in enumerate((self.exposure, self.saturation))
            )
            images.pixels = exposed(images.pixels, exposure, saturation)
        return images, targets

    def windows(
        self, boxes: Tensor, there: Tensor, shape: tuple[int, int], uniform: Uniform
    ) -> Windows:
        """Of N images of ``shape`` with boxes (N, R, 4), of which ``there`` (N, R) are some."""
        frames = whole(shape, boxes).expand(len(boxes), -1)
        reach = self.jitter * sides(frames).repeat(1, 2)
        frames = (frames + reach * (2 * uniform("jitter", 4) - 1)).round()
        # An image of few pixels must not lose the last.
        frames = torch.cat([frames[:, :2], frames[:, 2:].maximum(frames[:, :2] + 1)], 1)
        mirror = (uniform("flip", 1)[:, 0] < 0.5) & self.flip
        return Windows(frames, mirror, there & (share_left(boxes, frames) >= LEAST))


def exposed(pixels: Tensor, exposure: Tensor, saturation: Tensor) -> Tensor:
    """Value and saturation in HSV, each by a factor (N,), of (N, C, H, W) -> float32 in 0..255.

    A colour's largest channel is its value v and the smallest v (1 - s); both are cut off at what
    there is, and hue, the relation of the third to them, stays. Grey images have no saturation.
    """
    pixels = pixels.float()
    exposure, saturation = exposure[:, None, None, None], saturation[:, None, None, None]
    value = pixels.amax(1, keepdim=True)
    below = value - pixels
    # (v - c) / (v - smallest) stays, and s becomes at most 1.
    share = (saturation / value.clamp(min=1e-6)).minimum(
        1 / below.amax(1, keepdim=True).clamp(min=1e-6)
    )
    return (value * exposure).clamp(max=255) * (1 - below * share)
