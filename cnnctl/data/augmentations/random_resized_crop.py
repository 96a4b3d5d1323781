"""Random resized crops: Szegedy et al., "Going deeper with convolutions", arXiv:1409.4842,
section 6: patches of 8 to 100 % of the area, of an aspect from 3/4 to 4/3.

Differs from the paper: always bilinear interpolation. As in torchvision, ten rectangles are drawn
until one lies in the image, else it is the largest of such an aspect in the middle.

On images that all have one size, the crop is made on the device from the image at the size of the
input; augmentation=standard pads and crops those.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cnnctl.data.augmentations.base import Augmentation, resize
from cnnctl.data.augmentations.standard import flip
from cnnctl.data.warp import warp
from cnnctl.randomness import Draw

TRIES = 10  # rectangles


class RandomResizedCrop(Augmentation):
    """A rectangle of random area and aspect of each image, enlarged to ``size``; mirror half.

    Args:
        scale: the smallest and largest share of the area.
        ratio: the smallest and largest width over height; its logarithm is evenly drawn.
        flip: None mirrors unless the data says that a mirror image changes its class.
    """

    moves = ("label",)

    def __init__(
        self,
        num_classes: int,
        mirror: bool,
        native: tuple[int, int] | None,
        size: int | None = None,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip: bool | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(
            num_classes=num_classes,
            mirror=mirror,
            native=native,
            size=size,
            label_smoothing=label_smoothing,
        )
        if not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(f"scale must be 0 < smallest <= largest <= 1, got {scale}")
        if not 0 < ratio[0] <= ratio[1] < float("inf"):
            raise ValueError(f"ratio must be 0 < smallest <= largest, got {ratio}")
        self.scale = scale
        self.ratio = ratio
        self.flip = mirror if flip is None else flip

    def sample(self, image: Tensor) -> Tensor:
        if self.native is not None:
            return self.sample_eval(image)
        h, w = image.shape[-2:]
        drawn = torch.rand(1, 2 * TRIES + 2)
        left, top, width, height = self.rectangles((h, w), drawn)[0].tolist()
        return resize(image[None, :, top : top + height, left : left + width], self.size)[0]

    def augment(self, pixels: Tensor, label: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
        if self.native is not None:
            size = (pixels.shape[2], pixels.shape[3])
            drawn = draw.uniform("resized crop", 2 * TRIES + 2)
            pixels = enlarged(pixels, self.rectangles(size, drawn))
        if self.flip:
            pixels = flip(pixels, draw)
        return pixels, label

    def rectangles(self, size: tuple[int, int], uniform: Tensor) -> Tensor:
        """(N, 4) int64: left, top, width and height in an image (h, w) of ``size``.

        Args:
            uniform: (N, 2 * TRIES + 2) in [0, 1): shares of the area, aspects, and the place.
        """
        h, w = size
        area = h * w * (self.scale[0] + (self.scale[1] - self.scale[0]) * uniform[:, :TRIES])
        low, high = (math.log(value) for value in self.ratio)
        aspect = (low + (high - low) * uniform[:, TRIES:-2]).exp()
        sides = torch.stack([(area * aspect).sqrt(), (area / aspect).sqrt()], 2).round().long()
        room = sides.new_tensor([w, h])  # as (width, height)
        fits = ((sides > 0) & (sides <= room)).all(2)  # (N, TRIES)
        first = fits.byte().argmax(1)
        chosen = sides[torch.arange(len(sides), device=sides.device), first]
        chosen = torch.where(fits.any(1)[:, None], chosen, self._largest(size).to(sides.device))
        place = (uniform[:, -2:] * (room - chosen + 1)).long()
        middle = (room - chosen) // 2
        place = torch.where(fits.any(1)[:, None], place, middle)
        return torch.cat([place, chosen], 1)

    def _largest(self, size: tuple[int, int]) -> Tensor:
        """(2,): width and height of the largest rectangle of an aspect in range."""
        h, w = size
        low, high = self.ratio
        if w / h < low:
            return torch.tensor([w, min(h, round(w / low))])
        if w / h > high:
            return torch.tensor([min(w, round(h * high)), h])
        return torch.tensor([w, h])


def enlarged(pixels: Tensor, rectangles: Tensor) -> Tensor:
    """A rectangle (N, 4) of each of (N, C, H, W) at the size of all of it -> (N, C, H, W) float32.

    Bilinear; the border of a rectangle is repeated, and nothing beyond it is seen.
    """
    axes = []
    for axis in (0, 1):
        side = pixels.shape[3 - axis]
        line = torch.arange(side, device=pixels.device) + 0.5
        start, length = rectangles[:, axis, None], rectangles[:, axis + 2, None]
        inside = (line * length / side).clamp(min=0.5).minimum(length - 0.5)
        axes.append(start + inside)  # (N, W), (N, H)
    columns, rows = axes
    shape = (len(pixels), pixels.shape[2], pixels.shape[3])
    points = torch.stack([columns[:, None].expand(shape), rows[:, :, None].expand(shape)], 1)
    return warp(pixels, points, pixels.new_zeros(pixels.shape[1], 1, 1))
