"""Random affine maps: rotation, shear, scale and translation. Simard, Steinkraus, Platt, "Best
practices for convolutional neural networks applied to visual document analysis", ICDAR 2003,
section 2, report 0.6 % error on MNIST with "affine distortions" (table 1).

Differs from the paper: it names no ranges, here they are options, all evenly drawn; what comes from
outside of an image has the data's mean colour.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cnnctl.data.augmentations.base import Augmentation
from cnnctl.data.augmentations.standard import flip
from cnnctl.data.warp import centres, warp, xy
from cnnctl.randomness import Draw


class Affine(Augmentation):
    """Turn, shear, scale and move each image by numbers of its own, and mirror half of them.

    Images of many sizes are first scaled and cut as for evaluation.

    Args:
        mean: the data's mean colour, 0..1, which what lies outside gets.
        degrees: of rotation, to either side.
        shear: degrees that a vertical and a horizontal line lean, to either side.
        scale: the smallest and largest factor; above 1 enlarges.
        shift: the largest, as a share of the side, across and down.
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
        degrees: float = 15.0,
        shear: float = 10.0,
        scale: tuple[float, float] = (0.9, 1.1),
        shift: float = 0.1,
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
        if not 0 <= degrees <= 180:
            raise ValueError(f"degrees must be from 0 to 180, got {degrees}")
        if not 0 <= shear < 90:
            raise ValueError(f"shear must be at least 0 and below 90, got {shear}")
        if not 0 < scale[0] <= scale[1] < float("inf"):
            raise ValueError(f"scale must be 0 < smallest <= largest, got {scale}")
        if not 0 <= shift <= 1:
            raise ValueError(f"shift must be from 0 to 1, got {shift}")
        self.degrees = degrees
        self.shear = shear
        self.scale = scale
        self.shift = shift
        self.flip = mirror if flip is None else flip

    def augment(self, pixels: Tensor, label: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
        if self.flip:
            pixels = flip(pixels, draw)
        size = (pixels.shape[2], pixels.shape[3])
        drawn = draw.uniform("affine", 6)
        turn, lean_x, lean_y, across, down = (2 * drawn[:, :5] - 1).unbind(1)
        scale = self.scale[0] + (self.scale[1] - self.scale[0]) * drawn[:, 5]
        moved = torch.stack([across * size[1], down * size[0]], 1) * self.shift
        lean = torch.stack([lean_x, lean_y], 1) * self.shear
        points = sources(size, (turn * self.degrees).deg2rad(), lean.deg2rad(), scale, moved)
        return warp(pixels, points, self.around), label


def sources(
    size: tuple[int, int], turn: Tensor, lean: Tensor, scale: Tensor, moved: Tensor
) -> Tensor:
    """(N, 2, H, W): where each pixel of the moved images lies in the given ones.

    Around the centre, images are sheared along x, then along y, turned, scaled and moved, in the
    order and with the signs of torchvision's ``affine``.

    Args:
        turn: (N,), radians, clockwise.
        lean: (N, 2), radians along x and y.
        scale: (N,).
        moved: (N, 2), pixels to the right and down.
    """
    cos, sin, (x, y) = turn.cos(), turn.sin(), lean.tan().unbind(1)
    turn_back = torch.stack([cos, sin, -sin, cos], 1).view(-1, 2, 2)
    one, zero = torch.ones_like(x), torch.zeros_like(x)
    lean_back_y = torch.stack([one, zero, y, one], 1).view(-1, 2, 2)
    lean_back_x = torch.stack([one, x, zero, one], 1).view(-1, 2, 2)
    matrix = lean_back_x @ lean_back_y @ turn_back / scale[:, None, None]
    points = centres(size, turn.device)
    middle = xy(points, size[1] / 2, size[0] / 2)
    offset = (points - middle).flatten(1) - moved[:, :, None]  # (N, 2, H * W)
    return (matrix @ offset).view(-1, 2, *size) + middle
