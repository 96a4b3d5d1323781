"""RandAugment: Cubuk, Zoph, Shlens, Le, "RandAugment: practical automated data augmentation with a
reduced search space", arXiv:1909.13719, figure 2. It reports a WRN-28-10 on CIFAR-10 at 97.3 %
(96.1 % with crop and flip alone) and a ResNet-50 on ImageNet at 77.6 % (76.3 %).

Differs from the paper: the operations and strengths are those of torchvision's RandAugment on
uint8 tensors, to the last bit; no cutout after it (the paper adds it on CIFAR).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as vision

from cnnctl.data.augmentations.standard import Standard
from cnnctl.randomness import Draw

BINS = 31  # magnitudes are 0..30


class RandAugment(Standard):
    """Pad, crop, flip, then ``num_ops`` operations drawn for each image from fourteen.

    Args:
        num_ops: N of the paper.
        magnitude: M of the paper, 0..30, the strength of all operations.
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
        num_ops: int = 2,
        magnitude: int = 9,
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
        if num_ops < 1:
            raise ValueError(f"num_ops must be at least 1, got {num_ops}")
        if not 0 <= magnitude < BINS:
            raise ValueError(f"magnitude must be from 0 to {BINS - 1}, got {magnitude}")
        self.num_ops = num_ops
        self.magnitude = magnitude

    def augment(self, pixels: Tensor, label: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
        pixels, label = super().augment(pixels, label, draw)
        chosen = draw.integers("randaugment", len(OPERATIONS), self.num_ops)
        negative = draw.uniform("randaugment sign", self.num_ops) < 0.5
        # One copy to the host tells how many images drew what, for all rounds.
        for codes in (2 * chosen + (negative & (chosen < SIGNED))).cpu().unbind(1):
            pixels = self._round(pixels, codes)
        return pixels, label

    def _round(self, pixels: Tensor, codes: Tensor) -> Tensor:
        """Apply to each image the operation of its code (N,): 2 x operation + negative."""
        order = codes.argsort(stable=True)
        operations = list(OPERATIONS.values())
        counts = torch.bincount(codes, minlength=2 * len(operations)).tolist()
        groups = pixels.index_select(0, order.to(pixels.device)).split(counts)
        done = [
            operations[code // 2](group, self.magnitude, -1 if code % 2 else 1)
            for code, group in enumerate(groups)
            if len(group)
        ]
        return torch.cat(done).index_select(0, order.argsort().to(pixels.device))


def level(largest: float, magnitude: int, sign: int = 1) -> float:
    """The strength at a magnitude, in float32 as torchvision has it: whole pixels depend on it."""
    return sign * float(torch.linspace(0, largest, BINS)[magnitude])


def shear(pixels: Tensor, x: float = 0.0, y: float = 0.0) -> Tensor:
    """(N, C, H, W) by ``x`` pixels a row and ``y`` pixels a column, the upper left corner fixed."""
    degrees = [math.degrees(math.atan(slope)) for slope in (x, y)]
    return vision.affine(pixels, 0.0, [0, 0], 1.0, degrees, center=[0, 0])


def translate(pixels: Tensor, x: float = 0.0, y: float = 0.0) -> Tensor:
    """(N, C, H, W) by whole pixels."""
    return vision.affine(pixels, 0.0, [int(x), int(y)], 1.0, [0.0, 0.0])


def solarize(pixels: Tensor, magnitude: int) -> Tensor:
    """Invert what is at least as bright as a threshold, which falls from 255 to 0."""
    return vision.solarize(pixels, 255 * float(torch.linspace(1, 0, BINS)[magnitude]))


# (N, C, H, W) uint8 with C = 1 or 3, magnitude, sign -> the same shape. Black from outside.
OPERATIONS: dict[str, Callable[[Tensor, int, int], Tensor]] = {
    "ShearX": lambda x, m, sign: shear(x, x=level(0.3, m, sign)),
    "ShearY": lambda x, m, sign: shear(x, y=level(0.3, m, sign)),
    "TranslateX": lambda x, m, sign: translate(x, x=level(150 / 331 * x.shape[3], m, sign)),
    "TranslateY": lambda x, m, sign: translate(x, y=level(150 / 331 * x.shape[2], m, sign)),
    "Rotate": lambda x, m, sign: vision.rotate(x, level(30, m, sign)),
    "Brightness": lambda x, m, sign: vision.adjust_brightness(x, 1 + level(0.9, m, sign)),
    "Color": lambda x, m, sign: vision.adjust_saturation(x, 1 + level(0.9, m, sign)),
    "Contrast": lambda x, m, sign: vision.adjust_contrast(x, 1 + level(0.9, m, sign)),
    "Sharpness": lambda x, m, sign: vision.adjust_sharpness(x, 1 + level(0.9, m, sign)),
    # those below have no sign
    "Identity": lambda x, m, sign: x,
    "Posterize": lambda x, m, sign: vision.posterize(x, round(8 - level(4, m))),
    "Solarize": lambda x, m, sign: solarize(x, m),
    "AutoContrast": lambda x, m, sign: vision.autocontrast(x),
    "Equalize": lambda x, m, sign: vision.equalize(x),
}
SIGNED = 9  # the first nine; grouped by sign too
