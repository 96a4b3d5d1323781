"""Elastic deformation: Ronneberger, Fischer, Brox, "U-Net: convolutional networks for biomedical
image segmentation", arXiv:1505.04597, section 3.1, after Simard, Steinkraus, Platt, "Best practices
for convolutional neural networks applied to visual document analysis", ICDAR 2003.

Random vectors on a coarse 3 x 3 grid, with a deviation of 10 pixels, bicubic in between; shift,
rotation and a variation of grey values; the weights of equation 2, which hold borders apart.

Differs from the paper: it names no ranges for shift, rotation and grey values; what comes from
outside of an image is void, and not mirrored; flips, which it does not mention.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cnnctl.data.augmentations.base import Truth
from cnnctl.data.augmentations.scale_crop import ScaleCrop, Uniform
from cnnctl.data.border_weights import border_weights
from cnnctl.data.warp import displacement, xy
from cnnctl.randomness import Draw
from cnnctl.structures import Images, Targets


class Elastic(ScaleCrop):
    """Bend image and mask together, then all that ``ScaleCrop`` does; flips both ways.

    Args:
        grid: vectors a side.
        sigma: deviation of each of their coordinates, in pixels of the crop; None is the paper's
            10, but at most a twentieth of the crop's side.
        shift: the largest, as a share of the crop's side, beside the choice of a crop.
        border_weight: w0 of equation 2, 10 in the paper; 0 weighs all pixels alike.
        border_sigma: of equation 2, in pixels.
    """

    upside_down = True

    def __init__(
        self,
        num_classes: int,
        mirror: bool,
        native: tuple[int, int] | None,
        mean: tuple[float, ...] = (0.0,),
        size: int | None = None,
        grid: int = 3,
        sigma: float | None = None,
        shift: float = 0.05,
        degrees: float = 15.0,
        flip: bool | None = None,
        scale: tuple[float, float] = (1.0, 1.0),
        max_share: float | None = None,
        colour: float = 0.2,
        border_weight: float = 0.0,
        border_sigma: float = 5.0,
        eval_side: int | None = None,
    ) -> None:
        super().__init__(
            num_classes=num_classes,
            mirror=mirror,
            native=native,
            mean=mean,
            size=size,
            flip=flip,
            scale=scale,
            degrees=degrees,
            max_share=max_share,
            colour=colour,
            eval_side=eval_side,
        )
        if grid < 2:
            raise ValueError(f"grid must be at least 2, got {grid}")
        if sigma is not None and not 0 <= sigma <= max(self.size):
            raise ValueError(f"sigma must be from 0 to the size {max(self.size)}, got {sigma}")
        if not 0 <= shift <= 1:
            raise ValueError(f"shift must be from 0 to 1, got {shift}")
        if not 0 <= border_weight < math.inf:
            raise ValueError(f"border_weight must be at least 0, got {border_weight}")
        if not 0 < border_sigma < math.inf:
            raise ValueError(f"border_sigma must be above 0, got {border_sigma}")
        self.grid = grid
        self.sigma = min(10.0, min(self.size) / 20) if sigma is None else sigma
        self.shift = shift
        self.border_weight = border_weight
        self.border_sigma = border_sigma
        self.bends = True

    def bent(self, points: Tensor, uniform: Uniform) -> Tensor:
        points = super().bent(points, uniform)
        # A field over the crop as it is seen: it is not turned with it.
        vectors = normal(uniform("elastic", 2 * self.grid**2)) * self.sigma
        points = points + displacement(vectors.view(-1, 2, self.grid, self.grid), self.size)
        moved = (2 * uniform("shift", 2) - 1) * self.shift
        return points + moved[:, :, None, None] * xy(points, self.size[1], self.size[0])

    def joint(self, image: Tensor, target: Truth) -> tuple[Tensor, Truth]:
        image, target = super().joint(image, target)
        if self.native is None and self.border_weight and "mask" in target:
            target["pixel_weight"] = self._weights(target["mask"])
        return image, target

    def batch(self, images: Images, targets: Targets, draw: Draw) -> tuple[Images, Targets]:
        images, targets = super().batch(images, targets, draw)
        if self.native is not None and self.border_weight and targets.mask is not None:
            weights = [self._weights(mask) for mask in targets.mask.cpu()]
            targets.pixel_weight = torch.stack(weights).to(targets.mask.device)
        return images, targets

    def _weights(self, mask: Tensor) -> Tensor:
        return border_weights(mask, self.border_weight, self.border_sigma)


def normal(uniform: Tensor) -> Tensor:
    """Numbers in [0, 1) -> normally distributed ones, by the inverse of the distribution."""
    # Half of the last of 24 bits keeps zero away from minus infinity.
    return math.sqrt(2) * torch.erfinv(2 * uniform.clamp(min=2.0**-25) - 1)
