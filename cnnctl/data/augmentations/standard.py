"""Pad, crop at random, flip: He et al., arXiv:1512.03385, section 4.2 (after Lee et al. 2015).

On 32 x 32 images with padding 4 it is the paper's; for images of many sizes it is a random
resized crop (Szegedy et al., arXiv:1409.4842, section 6) and a flip.

Differs from the papers: the padding is black and not the mean colour; the random resized crop
follows torchvision (ten attempts at a rectangle, then the largest in the centre), and by default
takes a quarter or more of the area, not 8 %, which suits small data sets and short runs better.
"""

from __future__ import annotations

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

    moves = ("label",)

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
        super().__init__(
            num_classes=num_classes,
            mirror=mirror,
            native=native,
            size=size,
            label_smoothing=label_smoothing,
        )
        if padding is not None and not 0 <= padding <= max(self.size):
            raise ValueError(f"padding must be from 0 to the size {max(self.size)}, got {padding}")
        if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(f"scale must be 0 < smallest <= largest <= 1, got {scale}")
        self.padding = min(self.size) // 8 if padding is None else padding
        self.flip = mirror if flip is None else flip
        self.scale = scale

    def sample(self, image: Tensor) -> Tensor:
        if self.native is not None:
            return resize(image[None], self.size)[0]
        return random_resized_crop(image, self.size, self.scale)

    def augment(self, pixels: Tensor, label: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
        if self.native is not None and self.padding:
            pixels = pad_crop(pixels, self.padding, draw)
        if self.flip:
            pixels = flip(pixels, draw)
        return pixels, label


def pad_crop(pixels: Tensor, padding: int, draw: Draw) -> Tensor:
    """Each of (N, C, H, W) moved by its own offset in [-padding, padding], zeros from outside."""
    return cropped(F.pad(pixels, (padding,) * 4), padding, draw)


def cropped(padded: Tensor, padding: int, draw: Draw) -> Tensor:
    """(N, C, H + 2 padding, W + 2 padding) -> (N, C, H, W), each at a place of its own."""
    size = (padded.shape[2] - 2 * padding, padded.shape[3] - 2 * padding)
    top, left = draw.integers("crop", 2 * padding + 1, 2).unbind(1)
    # The same result; the copies are the fastest on a CPU, but their overlapping view of the
    # whole batch is one that some devices would write out in full.
    crop = crop_by_copy if padded.device.type == "cpu" else crop_by_gather
    return crop(padded, size, top, left)


def crop_by_copy(padded: Tensor, size: tuple[int, int], top: Tensor, left: Tensor) -> Tensor:
    """Windows of ``size`` at (top, left) of each of (N, C, H, W): one memcpy for each image.

    A window is a run of the flat image, from its first pixel to its last, seen with the strides
    of the larger image.
    """
    n, c, height, width = padded.shape
    h, w = size
    length = ((c - 1) * height + h - 1) * width + w
    start = torch.arange(n) * (c * height * width) + top * width + left  # (N,)
    runs = padded.as_strided((padded.numel() - length + 1, length), (1, 1))  # at every start
    windows = runs.index_select(0, start)  # (N, length)
    return windows.as_strided((n, c, h, w), (length, height * width, width, 1)).contiguous()


def crop_by_gather(padded: Tensor, size: tuple[int, int], top: Tensor, left: Tensor) -> Tensor:
    """Windows of ``size`` at (top, left) of each of (N, C, H, W), by an index for each pixel."""
    n, c, _, width = padded.shape
    rows = top[:, None] + torch.arange(size[0], device=padded.device)  # (N, h)
    columns = left[:, None] + torch.arange(size[1], device=padded.device)  # (N, w)
    index = (rows[:, :, None] * width + columns[:, None, :]).flatten(1)  # (N, h * w)
    windows = padded.flatten(2).gather(2, index[:, None].expand(-1, c, -1))
    return windows.view(n, c, *size)


def flip(pixels: Tensor, draw: Draw) -> Tensor:
    """Mirror half of (N, C, H, W) left to right."""
    return mirrored(pixels, draw.chance("flip", 0.5))


def mirrored(pixels: Tensor, which: Tensor) -> Tensor:
    """(N, C, H, W), left to right where ``which`` (N,) bool is True."""
    n = len(pixels)
    # Choosing whole images is three times faster than torch.where on bytes.
    either = torch.cat([pixels, pixels.flip(3)])  # (2N, C, H, W)
    chosen = torch.arange(n, device=pixels.device) + n * which
    return either.index_select(0, chosen)


def random_resized_crop(image: Tensor, size: tuple[int, int], scale: tuple[float, float]) -> Tensor:
    """A rectangle of random area and of aspect 3:4 to 4:3 of (C, h, w), resized to (C, *size).

    Uses torch's global generator, which the loader seeds for each sample.
    """
    from torchvision.transforms import RandomResizedCrop

    top, left, h, w = RandomResizedCrop.get_params(image, list(scale), [3 / 4, 4 / 3])
    return resize(image[None, :, top : top + h, left : left + w], size)[0]
