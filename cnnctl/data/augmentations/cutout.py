"""Cutout: DeVries and Taylor, "Improved regularization of convolutional neural networks with
cutout", arXiv:1708.04552, section 3.2. It reports a ResNet-18 on CIFAR-10 at 3.99 % error with
cutout (4.72 % with crop and flip alone).
"""

from __future__ import annotations

import torch
from torch import Tensor

from cnnctl.data.augmentations.standard import Standard
from cnnctl.randomness import Draw


class Cutout(Standard):
    """Pad, crop, flip, then blank a square around a random pixel; it may stick out of the image.

    Args:
        mean: the data's mean colour, 0..1, which the square gets; zero once normalised.
        length: side of the square in pixels; None is half of the size. The paper takes 16 of 32
            for CIFAR-10, 8 for CIFAR-100, 20 for SVHN and 32 of 96 for STL-10.
    """

    def __init__(
        self,
        num_classes: int,
        mirror: bool,
        native: tuple[int, int] | None,
        mean: tuple[float, ...] = (0.0,),
        size: int | None = None,
        padding: int | None = None,
        flip: bool | None = None,
        scale: tuple[float, float] = (0.25, 1.0),
        length: int | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(
            num_classes=num_classes,
            mirror=mirror,
            native=native,
            size=size,
            padding=padding,
            flip=flip,
            scale=scale,
            label_smoothing=label_smoothing,
        )
        if length is not None and not 1 <= length <= max(self.size):
            raise ValueError(f"length must be from 1 to the size {max(self.size)}, got {length}")
        self.length = max(1, min(self.size) // 2) if length is None else length
        self.fill = torch.tensor(mean).mul(255).round().to(torch.uint8)[:, None, None]

    def augment(self, pixels: Tensor, label: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
        pixels, label = super().augment(pixels, label, draw)
        n, _, h, w = pixels.shape
        centre = random_centres("cutout", (h, w), draw)
        hole = rectangles(centre, centre.new_full((n, 2), self.length), (h, w))
        fill = self.fill.to(pixels.device, non_blocking=True)
        return paste(pixels, fill, hole), label


def paste(pixels: Tensor, other: Tensor, where: Tensor) -> Tensor:
    """``other`` where ``where`` and ``pixels`` elsewhere, both uint8, as torch.where.

    Bit operations do to bytes what torch.where does, six times faster on a CPU.
    """
    mask = where.to(torch.uint8).neg_()  # 0 or 255
    return (pixels ^ other).bitwise_and_(mask).bitwise_xor_(pixels)


def random_centres(purpose: str, size: tuple[int, int], draw: Draw) -> Tensor:
    """(N, 2) int64: row and column of a random pixel of each image."""
    row = draw.integers(f"{purpose} row", size[0])  # (N, 1)
    column = draw.integers(f"{purpose} column", size[1])
    return torch.cat([row, column], 1)


def rectangles(centre: Tensor, sides: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, 1, H, W) bool, True within a rectangle in each image, cut off at the border.

    Args:
        centre: (N, 2) int64, row and column; the pixel after the middle where a side is even.
        sides: (N, 2) int64, height and width.
        size: (H, W).
    """
    start = centre - sides // 2
    inside = []
    for axis in (0, 1):
        line = torch.arange(size[axis], device=centre.device)
        first, count = start[:, axis, None], sides[:, axis, None]
        inside.append((line >= first) & (line < first + count))  # (N, H), (N, W)
    return (inside[0][:, :, None] & inside[1][:, None, :])[:, None]
