"""TrivialAugment: Müller and Hutter, "TrivialAugment: tuning-free yet state-of-the-art data
augmentation", arXiv:2103.10158, section 3 and table 1 ("wide"). It reports a WRN-28-10 on CIFAR-10
at 97.46 %.

Differs from the paper: the strengths are those of torchvision's TrivialAugmentWide; no cutout after
it (the paper adds it on CIFAR).
"""

from __future__ import annotations

import torch
from torch import Tensor

from cnnctl.data.augmentations.operations import apply
from cnnctl.data.augmentations.standard import Standard
from cnnctl.randomness import Draw

BINS = 31  # strengths of each operation, evenly drawn

_SIGNED = {
    **dict.fromkeys(("shear_x", "shear_y"), 0.99),
    **dict.fromkeys(("translate_x", "translate_y"), 32.0),  # pixels
    "rotate": 135.0,  # degrees
    **dict.fromkeys(("brightness", "saturation", "contrast", "sharpness"), 0.99),  # beside 1
}
FACTORS = ("brightness", "saturation", "contrast", "sharpness")
NAMES = [*_SIGNED, "identity", "posterize", "solarize", "autocontrast", "equalize"]


class TrivialAugment(Standard):
    """Pad, crop, flip, then one operation of fourteen at one strength of 31, drawn for each image.

    There is nothing to tune.
    """

    def augment(self, pixels: Tensor, label: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
        pixels, label = super().augment(pixels, label, draw)
        chosen, level, sign = draw.uniform("trivialaugment", 3).unbind(1)
        codes = (chosen * len(NAMES)).long()
        levels = (level * BINS).long() + BINS * (sign < 0.5)
        strengths = ladders().to(pixels.device, non_blocking=True)[codes, levels]
        return apply(pixels, NAMES, codes.cpu(), strengths), label


def ladders() -> Tensor:
    """(14, 62) float32: the strengths of each operation, then those of the other sign."""
    rows = []
    for name in NAMES:
        steps = torch.linspace(0, _SIGNED.get(name, 0.0), BINS)
        if name == "posterize":
            steps = (8 - torch.arange(BINS) / ((BINS - 1) / 6)).round()
        elif name == "solarize":
            steps = 255 * torch.linspace(1, 0, BINS)
        both = torch.cat([steps, -steps if name in _SIGNED else steps])
        rows.append(1 + both if name in FACTORS else both)
    return torch.stack(rows)
