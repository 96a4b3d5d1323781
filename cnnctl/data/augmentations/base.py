"""What every augmentation pipeline promises, and the one that changes nothing.

A pipeline has two halves. ``sample`` runs in a worker on one image of any size and returns one of
the pipeline's size (only streamed data needs it). ``batch`` runs on the device on whole uint8
batches, vectorised, each sample with random numbers of its own counter; resident and streamed
data share it. Evaluation uses ``sample_eval`` alone.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cnnctl.randomness import Draw
from cnnctl.structures import Images, Targets

UNSIZED = 224  # the side of the input where neither the user nor the data sets one


class Augmentation:
    """Resize to ``size`` and nothing else; the base of every pipeline.

    Args:
        num_classes: K, for soft labels.
        mirror: whether the data's classes survive a mirror.
        native: (h, w) of the data's images, None where they differ.
        size: side of the square input; None is the data's own size, 224 where its images differ.
        label_smoothing: probability taken from the true class and spread over all K
            (Szegedy et al., arXiv:1512.00567, section 7); training only.
    """

    def __init__(
        self,
        num_classes: int,
        mirror: bool,
        native: tuple[int, int] | None,
        size: int | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        if size is not None and size < 1:
            raise ValueError(f"size must be at least 1, got {size}")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1), got {label_smoothing}")
        self.num_classes = num_classes
        self.mirror = mirror
        self.size = (size, size) if size else native or (UNSIZED, UNSIZED)
        self.label_smoothing = label_smoothing

    def sample(self, image: Tensor) -> Tensor:
        """One training image (C, h, w) uint8 of any size -> (C, *size) uint8, in a worker."""
        return self.sample_eval(image)

    def sample_eval(self, image: Tensor) -> Tensor:
        """Shorter side to 256/224 of the size, then the centre: the ImageNet protocol.

        Images that all have the data's own shape are only resized (``resize``).
        """
        height, width = self.size
        h, w = image.shape[-2:]
        scale = max(height / h, width / w) * 256 / 224
        resized = resize(image[None], (max(height, round(h * scale)), max(width, round(w * scale))))
        top, left = (resized.shape[-2] - height) // 2, (resized.shape[-1] - width) // 2
        return resized[0, :, top : top + height, left : left + width]

    def batch(self, images: Images, targets: Targets, draw: Draw) -> tuple[Images, Targets]:
        """Augment a training batch in place of the plain one; uint8 (or 0..255 float) pixels."""
        assert targets.label is not None
        pixels, label = self.augment(images.pixels, targets.label, draw)
        if self.label_smoothing and not label.is_floating_point():
            label = F.one_hot(label, self.num_classes).float()
        if self.label_smoothing:
            label = label * (1 - self.label_smoothing) + self.label_smoothing / self.num_classes
        images.pixels, targets.label = pixels, label
        return images, targets

    def augment(self, pixels: Tensor, label: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
        """Pixels (N, C, H, W) and label (N,) -> the same, or soft labels (N, K)."""
        return pixels, label


def resize(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, C, h, w) uint8 -> (N, C, *size) uint8, bilinear, antialiased when shrinking."""
    if tuple(pixels.shape[-2:]) == size:
        return pixels
    scaled = F.interpolate(pixels.float(), size, mode="bilinear", antialias=True)
    return scaled.round_().clamp_(0, 255).to(torch.uint8)
