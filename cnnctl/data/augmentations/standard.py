"""Pad, crop at random, flip: He et al., arXiv:1512.03385, section 4.2 (after Lee et al. 2015).

On 32 x 32 images with padding 4 it is the paper's; for images of many sizes it is a random
resized crop (Szegedy et al., arXiv:1409.4842, section 6) and a flip.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from cnnctl.data.augmentations.base import Augmentation, resize
from cnnctl.randomness import Draw


class Standard(Augmentation):
    """Shift by up to ``padding`` pixels with zeros from outside, and mirror half of the images.

    Args:
        padding: in pixels; None is an eighth of the size (4 of 32).
        flip: None mirrors unless the data says that a mirror image changes its class.
        scale: the smallest and largest share of the area that a random resized crop takes;
            used on images of many sizes only.
    """

    def __init__(
        self,
        num_classes: int,
        mirror: bool,
        native: tuple[int, int] | None,
        size: int | None = None,
        padding: int | None = None,
        flip: bool | None = None,
        scale: tuple[float, float] = (0.25, 1.0),
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(num_classes, mirror, native, size, label_smoothing)
        if padding is not None and padding < 0:
            raise ValueError(f"padding must not be negative, got {padding}")
        if not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(f"scale must be 0 < smallest <= largest <= 1, got {scale}")
        self.uniform = native is not None
        self.padding = min(self.size) // 8 if padding is None else padding
        self.flip = mirror if flip is None else flip
        self.scale = scale

    def sample(self, image: Tensor) -> Tensor:
        return random_resized_crop(image, self.size, self.scale)

    def augment(self, pixels: Tensor, label: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
        if self.uniform and self.padding:
            pixels = pad_crop(pixels, self.padding, draw)
        if self.flip:
            pixels = flip(pixels, draw)
        return pixels, label


def pad_crop(pixels: Tensor, padding: int, draw: Draw) -> Tensor:
    """Each of (N, C, H, W) moved by its own offset in [-padding, padding], zeros from outside."""
    n, c, h, w = pixels.shape
    padded = F.pad(pixels, (padding,) * 4)
    windows = padded.unfold(2, h, 1).unfold(3, w, 1)  # (N, C, 2p+1, 2p+1, H, W), a view
    top, left = draw.integers("crop", 2 * padding + 1, 2).unbind(1)
    return windows[torch.arange(n, device=pixels.device), :, top, left]


def flip(pixels: Tensor, draw: Draw) -> Tensor:
    """Mirror half of (N, C, H, W) left to right."""
    return torch.where(draw.chance("flip", 0.5)[:, None, None, None], pixels.flip(3), pixels)


def random_resized_crop(
    image: Tensor, size: tuple[int, int], scale: tuple[float, float]
) -> Tensor:
    """A rectangle of random area and of aspect 3:4 to 4:3 of (C, h, w), resized to (C, *size).

    Uses torch's global generator, which the loader seeds for each sample.
    """
    h, w = image.shape[-2:]
    share, aspect, y, x = torch.rand(4).tolist()
    area = h * w * (scale[0] + (scale[1] - scale[0]) * share)
    ratio = math.exp(math.log(3 / 4) + (math.log(4 / 3) - math.log(3 / 4)) * aspect)
    crop_h = min(h, max(1, round(math.sqrt(area / ratio))))
    crop_w = min(w, max(1, round(math.sqrt(area * ratio))))
    top, left = int(y * (h - crop_h + 1)), int(x * (w - crop_w + 1))
    return resize(image[None, :, top : top + crop_h, left : left + crop_w], size)[0]
