"""Lens distortion and elastic deformation of labelled images.

The lens: radial distortion by one coefficient, Brown, "Decentering distortion of lenses",
Photogrammetric Engineering 32(3), 1966. Elastic: Simard, Steinkraus, Platt, "Best practices for
convolutional neural networks applied to visual document analysis", ICDAR 2003, section 2, which
reports 0.4 % error on MNIST with it (0.6 % with affine maps, table 1).

Differs from the papers: the elastic field is bicubic between random vectors on a coarse grid (as in
augmentation=elastic, which bends masks), where Simard et al. smooth one random vector a pixel by a
Gaussian; what comes from outside of an image has the data's mean colour.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cnnctl.data.augmentations.base import Augmentation
from cnnctl.data.augmentations.elastic import normal
from cnnctl.data.augmentations.standard import flip
from cnnctl.data.warp import centres, displacement, warp, xy
from cnnctl.randomness import Draw


class Distort(Augmentation):
    """See each image through a lens and bend it, by numbers of its own; mirror half of them.

    Images of many sizes are first scaled and cut as for evaluation.

    Args:
        mean: the data's mean colour, 0..1, which what lies outside gets.
        lens: the largest relative shift of a corner, out (barrel: straight lines bulge) or in
            (pincushion); 0 has no lens.
        grid: vectors a side of the elastic field.
        sigma: deviation of each of their coordinates, in pixels; None is a twentieth of the
            shorter side, 0 bends nothing.
        flip: None mirrors unless the data says that a mirror image changes its class.
    """

    moves = ("label",)

    def __init__(
        self,
        num_classes: int,
        mirror: bool,
        native: tuple[int, int] | None,
        mean: tuple[float, ...] = (0.0,),
        size: int | None = None,
        lens: float = 0.3,
        grid: int = 4,
        sigma: float | None = None,
        flip: bool | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(
            num_classes=num_classes,
            mirror=mirror,
            native=native,
            mean=mean,
            size=size,
            label_smoothing=label_smoothing,
        )
        if not 0 <= lens < 1:
            raise ValueError(f"lens must be at least 0 and below 1, got {lens}")
        if grid < 2:
            raise ValueError(f"grid must be at least 2, got {grid}")
        if sigma is not None and not 0 <= sigma <= max(self.size):
            raise ValueError(f"sigma must be from 0 to the size {max(self.size)}, got {sigma}")
        self.lens = lens
        self.grid = grid
        self.sigma = min(self.size) / 20 if sigma is None else sigma
        self.flip = mirror if flip is None else flip

    def augment(self, pixels: Tensor, label: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
        if self.flip:
            pixels = flip(pixels, draw)
        size = (pixels.shape[2], pixels.shape[3])
        strength = self.lens * (2 * draw.uniform("lens")[:, 0] - 1)
        points = through_lens(size, strength)
        if self.sigma:
            vectors = normal(draw.uniform("elastic", 2 * self.grid**2)) * self.sigma
            points = points + displacement(vectors.view(-1, 2, self.grid, self.grid), size)
        return warp(pixels, points, self.around), label


def through_lens(size: tuple[int, int], strength: Tensor) -> Tensor:
    """(N, 2, H, W): where each pixel of an image seen through a lens lies in the image.

    At a distance r from the centre, as a share of a corner's, it is seen what was at
    r (1 + strength r^2).

    Args:
        strength: (N,) in (-1, 1); above 0 is barrel distortion, below it pincushion.
    """
    points = centres(size, strength.device)
    middle = xy(points, size[1] / 2, size[0] / 2)
    offset = points - middle
    share = offset.square().sum(0) / (math.hypot(*size) / 2) ** 2  # (H, W)
    factor = torch.addcmul(torch.ones_like(share), strength[:, None, None], share)
    return offset * factor[:, None] + middle
