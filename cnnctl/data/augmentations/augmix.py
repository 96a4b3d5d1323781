"""AugMix: Hendrycks, Mu, Cubuk, Zoph, Gilmer, Lakshminarayanan, "AugMix: a simple data processing
method to improve robustness and uncertainty", arXiv:1912.02781, algorithm 1. With its consistency
loss it reports a WRN-40-2 on CIFAR-10-C at 11.2 % error (26.9 % with crop and flip alone).

Differs from the paper: without that loss, the Jensen-Shannon divergence of what the network says to
three views of an image, which would need three views of each in a batch; alpha is 1, as in all its
experiments.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cnnctl.data.augmentations.operations import apply
from cnnctl.data.augmentations.standard import Standard
from cnnctl.randomness import Draw

NAMES = [
    *("autocontrast", "equalize", "posterize", "rotate", "solarize"),
    *("shear_x", "shear_y", "translate_x", "translate_y"),
    "identity",  # of a chain that has ended
]
DRAWN = len(NAMES) - 1
LONGEST = 3  # operations of a chain


class AugMix(Standard):
    """Pad, crop, flip, then mix each image with what chains of operations make of it.

    A chain is one to three operations, each of a strength of its own. The chains' results are
    averaged with random weights, and that average is mixed with the image itself.

    Pixels come out as floats in 0..255.

    Args:
        severity: 1..10, the largest strength; it is drawn from 0.1 up to it.
        width: chains, k of the paper.
        depth: operations of a chain; None draws one to three for each.
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
        severity: int = 3,
        width: int = 3,
        depth: int | None = None,
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
        if not 1 <= severity <= 10:
            raise ValueError(f"severity must be from 1 to 10, got {severity}")
        if width < 1:
            raise ValueError(f"width must be at least 1, got {width}")
        if depth is not None and depth < 1:
            raise ValueError(f"depth must be at least 1, got {depth}")
        self.severity = severity
        self.width = width
        self.depth = depth

    def augment(self, pixels: Tensor, label: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
        pixels, label = super().augment(pixels, label, draw)
        shares, own = self.weights(draw)
        mixed = torch.zeros_like(pixels, dtype=torch.float32)
        for chain, share in zip(self.chains(pixels, draw), shares.unbind(1), strict=True):
            mixed += share[:, None, None, None] * chain
        return pixels.float().lerp_(mixed, own[:, None, None, None]).clamp_(0, 255), label

    def weights(self, draw: Draw) -> tuple[Tensor, Tensor]:
        """(N, width) of the chains, Dirichlet(1, ..., 1), and (N,) of them all, Beta(1, 1)."""
        # Independent exponential numbers over their sum are evenly distributed on the simplex.
        shares = -(1 - draw.uniform("augmix weights", self.width)).log()
        shares = shares.clamp(min=1e-12)
        return shares / shares.sum(1, keepdim=True), draw.uniform("augmix")[:, 0]

    def chains(self, pixels: Tensor, draw: Draw) -> list[Tensor]:
        """What each of the ``width`` chains makes of the images, each (N, C, H, W) uint8."""
        longest, width = self.depth or LONGEST, self.width
        drawn = draw.uniform("augmix operations", width * longest * 3).view(-1, width, longest, 3)
        codes = (drawn[..., 0] * DRAWN).long()  # (N, width, longest)
        if self.depth is None:
            length = draw.integers("augmix depth", LONGEST, width) + 1
            ended = torch.arange(LONGEST, device=codes.device) >= length[:, :, None]
            codes = codes.masked_fill(ended, DRAWN)
        level = 0.1 + (self.severity - 0.1) * drawn[..., 1]
        size = (pixels.shape[2], pixels.shape[3])
        strengths = strength(codes, level, drawn[..., 2] < 0.5, size)
        there = codes.cpu()  # one copy tells how many images drew what, for all rounds
        made = []
        for chain in range(width):
            image = pixels
            for turn in range(longest):
                image = apply(image, NAMES, there[:, chain, turn], strengths[:, chain, turn])
            made.append(image)
        return made


def strength(codes: Tensor, level: Tensor, negative: Tensor, size: tuple[int, int]) -> Tensor:
    """Of the operations NAMES[code] at a level of 0 to 10, any shape: the authors' ranges."""
    h, w = size
    share = level / 10
    sign = 1 - 2 * negative.float()
    steps = {
        "posterize": 4 - (4 * share).trunc(),  # bits
        "rotate": sign * (30 * share).trunc(),  # degrees
        "solarize": 256 - (256 * share).trunc(),
        **dict.fromkeys(("shear_x", "shear_y"), sign * 0.3 * share),
        "translate_x": sign * (w / 3 * share).trunc(),  # pixels
        "translate_y": sign * (h / 3 * share).trunc(),
    }
    none = torch.zeros_like(level)
    every = torch.stack([steps.get(name, none) for name in NAMES])
    return every.gather(0, codes[None])[0]
