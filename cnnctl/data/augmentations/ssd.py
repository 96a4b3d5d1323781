"""SSD's augmentation: Liu et al., "SSD: single shot multibox detector", arXiv:1512.02325, sections
2.2 and 3.6. Table 2: flips alone 65.5, with crops and colours 74.3 mAP on VOC2007's test images;
the zoomed-out images of section 3.6 add two to three points.

Each image is shown whole on a canvas of up to sixteen times its area (half of them), then a patch
of it is taken: all of it, one that overlaps an object by at least 0.1, 0.3, 0.5, 0.7 or 0.9, or any
one. A patch has 0.3 to 1 of the sides and an aspect of 1/2 to 2; boxes stay if their centre is in.

Differs from the paper: the choice is even among the kinds of patches that fifty trials could
make, as in its code; a patch of an image with boxes has the centre of one; the strengths of the
colours are those of torchvision's RandomPhotometricDistort, in one order and with no swap of
channels; colours change last and on the device, so what fills a canvas changes with them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cnnctl.data.augmentations.base import Augmentation, Truth, resize
from cnnctl.data.augmentations.boxes import centre_inside, cut, sides
from cnnctl.data.augmentations.scale_crop import Uniform, recoloured
from cnnctl.data.windows import Windows, alone, present, whole
from cnnctl.randomness import Draw
from cnnctl.structures import Images, Targets

SIDE = 300
TRIALS = 50
OVERLAPS = (0.1, 0.3, 0.5, 0.7, 0.9, -1.0)  # with some box; the last is satisfied by any patch
SMALLEST = 0.3  # of a patch's sides, as a share of the image's
STRENGTHS = (0.125, 0.5, 0.5, 0.05)  # brightness, contrast, saturation; hue in turns


class Ssd(Augmentation):
    """Zoom out, crop, flip, resize to a square without keeping the aspect, change colours.

    Args:
        size: None is the data's own, 300 where its images differ.
        zoom_out: the longest side of a canvas in sides of its image; 1 is never.
        crop: whether patches are taken.
        colour: whether brightness, contrast, saturation and hue change, each of half the images.
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
        zoom_out: float = 4.0,
        crop: bool = True,
        colour: bool = True,
        flip: bool | None = None,
    ) -> None:
        if size is None and native is None:
            size = SIDE
        super().__init__(
            num_classes=num_classes, mirror=mirror, native=native, size=size, mean=mean
        )
        if not 1 <= zoom_out <= 100:
            raise ValueError(f"zoom_out must be from 1 to 100, got {zoom_out}")
        self.zoom_out = zoom_out
        self.crop = crop
        self.colour = colour
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
        if self.colour:
            drawn = draw.uniform("colour", 8)
            change = (2 * drawn[:, 4:] - 1) * (drawn[:, :4] < 0.5)  # (N, 4) in -1..1
            light, contrast, saturation, hue = (change * change.new_tensor(STRENGTHS)).unbind(1)
            images.pixels = recoloured(images.pixels, 1 + light, 1 + contrast, 1 + saturation, hue)
        return images, targets

    def windows(
        self, boxes: Tensor, there: Tensor, shape: tuple[int, int], uniform: Uniform
    ) -> Windows:
        """Of N images of ``shape`` with boxes (N, R, 4), of which ``there`` (N, R) are some."""
        frames = whole(shape, boxes).expand(len(boxes), -1)
        if self.zoom_out > 1:
            frames = zoomed_out(frames, self.zoom_out, uniform)
        if self.crop:
            frames = cropped(frames, boxes, there, uniform)
        mirror = (uniform("flip", 1)[:, 0] < 0.5) & self.flip
        return Windows(frames, mirror, there & centre_inside(boxes, frames))


def zoomed_out(frames: Tensor, largest: float, uniform: Uniform) -> Tensor:
    """Frames (N, 4), half of them with a canvas around: 1 to ``largest`` times the sides."""
    chance, ratio, *place = uniform("zoom out", 4)[..., None].unbind(1)  # (N, 1) each
    room = (largest - 1) * ratio * sides(frames) * (chance < 0.5)
    before = (room * torch.cat(place, 1)).floor()
    return torch.cat([frames[:, :2] - before, frames[:, 2:] + room.floor() - before], 1)


def cropped(frames: Tensor, boxes: Tensor, there: Tensor, uniform: Uniform) -> Tensor:
    """Frames (N, 4) or patches of them, the first of fifty that overlaps a box as it should."""
    patches = _patches(frames, uniform)  # (N, T, 4)
    rows = boxes[:, None]  # (N, 1, R, 4), beside (N, T, R)
    shared = sides(cut(rows, patches)).prod(-1)
    either = sides(rows).prod(-1) + sides(patches).prod(-1)[..., None] - shared
    iou = (shared / either).masked_fill(~there[:, None], -1.0)
    best = F.pad(iou, (0, 1), value=-1.0).amax(2)  # (N, T); an image may have no box
    centred = (centre_inside(rows, patches) & there[:, None]).any(2)
    centred |= ~there.any(1, keepdim=True)
    fits = best[:, None] >= best.new_tensor(OVERLAPS)[:, None]  # (N, kinds, T)
    fits &= centred[:, None]
    every = torch.arange(len(boxes), device=boxes.device)
    first = patches[every[:, None], fits.int().argmax(2)]  # (N, kinds, 4)
    choices = torch.cat([frames[:, None], first], 1)
    possible = F.pad(fits.any(2), (1, 0), value=True)  # a frame as it is always is
    lot = uniform("kind of patch", choices.shape[1]).masked_fill(~possible, -1.0)
    return choices[every, lot.argmax(1)]


def _patches(frames: Tensor, uniform: Uniform) -> Tensor:
    """(N, T, 4) inside of frames (N, 4), of random size, aspect and place, in whole pixels."""
    scale, aspect, *place = uniform("patch", 4 * TRIALS).view(-1, TRIALS, 4).unbind(2)
    scale = SMALLEST + (1 - SMALLEST) * scale  # of both sides together
    low, high = (scale**2).clamp(min=0.5), (scale**-2).clamp(max=2)
    aspect = (low + (high - low) * aspect).sqrt()
    share = torch.stack([scale * aspect, scale / aspect], 2).clamp(max=1)  # (N, T, 2)
    whole_sides = sides(frames)[:, None]
    wanted = (share * whole_sides).round().clamp(min=1)
    low_corner = frames[:, None, :2] + ((whole_sides - wanted + 1) * torch.stack(place, 2)).floor()
    return torch.cat([low_corner, low_corner + wanted], 2)
