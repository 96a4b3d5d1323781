"""Scale jitter: Simonyan and Zisserman, "Very deep convolutional networks for large-scale image
recognition", arXiv:1409.1556, section 3.1: the shorter side is drawn from 256 to 512 pixels, a crop
of 224 x 224 at a random place is trained on, mirrored or not, with AlexNet's colour noise. Table 3:
25.5 % top-1 error of VGG-19 with it, 27.3 % at one scale.

Differs from the paper: sides in proportion where the input has another size. On images that all
have one size, crops are made on the device from the image at the size of the input. With
sides=[256,256] it is AlexNet's crop (NIPS 2012, section 4.1), but from all of an image, not from
the square in its middle.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cnnctl.data.augmentations.base import Augmentation
from cnnctl.data.augmentations.pca_noise import pca_noise
from cnnctl.data.augmentations.standard import flip
from cnnctl.data.warp import scaled_part, warp
from cnnctl.randomness import Draw

SIDES = (256 / 224, 512 / 224)  # of the input's side


class ScaleJitter(Augmentation):
    """Scale the shorter side to a random length, crop ``size`` at random, mirror half, add noise.

    Args:
        sides: the smallest and largest length of the shorter side, pixels; None is 256 to 512 of
            an input of 224.
        sigma: of AlexNet's colour noise; 0 adds none.
        flip: None mirrors unless the data says that a mirror image changes its class.
    """

    moves = ("label",)

    def __init__(
        self,
        num_classes: int,
        mirror: bool,
        native: tuple[int, int] | None,
        size: int | None = None,
        sides: tuple[int, int] | None = None,
        sigma: float = 0.1,
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
        # Images of one size stay of their shape, so that the shorter sides are compared.
        least = min(self.size)
        if sides is None:
            sides = (round(least * SIDES[0]), round(least * SIDES[1]))
        if not least <= sides[0] <= sides[1]:
            raise ValueError(
                f"sides must be {least} (the crop's) <= smallest <= largest, got {sides}"
            )
        if not 0 <= sigma < float("inf"):
            raise ValueError(f"sigma must be at least 0, got {sigma}")
        self.sides = sides
        self.sigma = sigma
        self.flip = mirror if flip is None else flip

    def sample(self, image: Tensor) -> Tensor:
        if self.native is not None:
            return self.sample_eval(image)
        h, w = image.shape[-2:]
        height, width, top, left = self.views((h, w), torch.rand(1, 3))[0].tolist()
        return scaled_part(
            image, (height, width), (top, left, self.size[0], self.size[1]), smooth=True
        )

    def augment(self, pixels: Tensor, label: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
        if self.native is not None:
            views = self.views((pixels.shape[2], pixels.shape[3]), draw.uniform("scale jitter", 3))
            pixels = magnified(pixels, views)
        if self.flip:
            pixels = flip(pixels, draw)
        if self.sigma:
            pixels = pca_noise(pixels, self.sigma, draw)
        return pixels, label

    def views(self, size: tuple[int, int], uniform: Tensor) -> Tensor:
        """(N, 4) int64: (h, w) of a scaled image, and (top, left) of the crop in it.

        Args:
            size: (h, w) of the image.
            uniform: (N, 3) in [0, 1): the scale and the place.
        """
        low, high = self.sides
        shorter = low + (uniform[:, :1] * (high - low + 1)).long()
        scaled = shorter * shorter.new_tensor(size) // min(size)  # (N, 2)
        room = scaled - scaled.new_tensor(self.size) + 1
        return torch.cat([scaled, (uniform[:, 1:] * room).long()], 1)


def magnified(pixels: Tensor, views: Tensor) -> Tensor:
    """A crop (N, 4), as of ``ScaleJitter.views``, of each of (N, C, H, W) -> as large, float32.

    Bilinear, the border of the image is repeated.
    """
    axes = []
    for axis in (0, 1):
        side = pixels.shape[2 + axis]
        scaled, corner = views[:, axis, None], views[:, axis + 2, None]
        line = torch.arange(side, device=pixels.device) + 0.5
        axes.append(((line + corner) * side / scaled).clamp(0.5, side - 0.5))  # (N, H), (N, W)
    rows, columns = axes
    shape = (len(pixels), pixels.shape[2], pixels.shape[3])
    points = torch.stack([columns[:, None].expand(shape), rows[:, :, None].expand(shape)], 1)
    return warp(pixels, points, pixels.new_zeros(pixels.shape[1], 1, 1))
