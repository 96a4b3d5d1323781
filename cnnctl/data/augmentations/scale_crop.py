"""Scale at random, crop, flip: how networks for segmentation are trained on photographs.

Scale jitter of 0.5 to 2 and mirrored images are the practice of DeepLab (Chen et al.,
arXiv:1606.00915, section 4.1, and arXiv:1706.05587, section 4.1), which crops 513 pixels.

Differs from the papers: rotation and colour jitter by option; a crop may be drawn again, up to ten
times, where one class covers too much of it (an idea of the OpenMMLab toolbox) or no pixel of it
has a label; crops that reach over the edge of an image have it anywhere, not in the upper left.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from cnnctl.data.augmentations.base import Augmentation, Truth, resize, resize_mask
from cnnctl.data.warp import View, centres, largest_share, turned, warp, warp_map, xy
from cnnctl.randomness import Draw
from cnnctl.structures import IGNORE, Images, Targets

TRIES = 10  # crops that are drawn where there is something to choose
COARSE = 32  # points a side, at which the crops of a batch are compared
OUTSIDE = {"mask": IGNORE, "pixel_weight": 0}  # the maps that move, and what they have outside

Uniform = Callable[[str, int], Tensor]  # (purpose, count) -> (N, count) in [0, 1)


class ScaleCrop(Augmentation):
    """Image and mask scaled, turned and flipped together, in a crop of exactly ``size``.

    Images of many sizes are cropped in the workers; those that have one size are scaled to
    ``size`` there, and moved in whole batches on the device. What comes from outside of an image
    has the mean colour and no label. Evaluation sees whole images.

    Args:
        mean: the data's mean colour, 0..1.
        flip: None mirrors unless the data says that a mirror image changes its class.
        scale: the smallest and largest factor, evenly drawn, on the size that is evaluated. None
            is 0.5 to 2, or 0.75 to 1.33 on images that all have one size and are seen whole.
        degrees: of rotation, to either side.
        max_share: of one class among a crop's labelled pixels; None is any.
        colour: strength from 0 to 1: brightness, contrast and saturation change by up to this
            share, the hue by up to a quarter of it, in turns of the colour circle. Grey images
            have the first two.
        eval_side: of the longer side in evaluation; None keeps an image's own resolution. For
            images of many sizes only.
    """

    moves = ("mask",)
    upside_down: ClassVar[bool] = False  # whether `flip` turns images over too

    def __init__(
        self,
        num_classes: int,
        mirror: bool,
        native: tuple[int, int] | None,
        mean: tuple[float, ...] = (0.0,),
        size: int | None = None,
        flip: bool | None = None,
        scale: tuple[float, float] | None = None,
        degrees: float = 0.0,
        max_share: float | None = None,
        colour: float = 0.0,
        eval_side: int | None = None,
    ) -> None:
        super().__init__(
            num_classes=num_classes, mirror=mirror, native=native, size=size, mean=mean
        )
        if scale is None:
            scale = (0.5, 2.0) if native is None else (0.75, 1.33)
        if len(scale) != 2 or not 0 < scale[0] <= scale[1] < math.inf:
            raise ValueError(f"scale must be 0 < smallest <= largest, got {scale}")
        if not 0 <= degrees <= 180:
            raise ValueError(f"degrees must be from 0 to 180, got {degrees}")
        if max_share is not None and not 0 < max_share <= 1:
            raise ValueError(f"max_share must be above 0 and at most 1, got {max_share}")
        if not 0 <= colour <= 1:
            raise ValueError(f"colour must be from 0 to 1, got {colour}")
        if eval_side is not None and eval_side < 1:
            raise ValueError(f"eval_side must be at least 1, got {eval_side}")
        self.flip = mirror if flip is None else flip
        self.scale = scale
        self.degrees = degrees
        self.max_share = max_share
        self.colour = colour
        self.eval_side = eval_side
        self.eval_size = None if native is None else self.size
        self.bends = degrees > 0  # else a crop's pixels are an upright rectangle

    # One image, in a worker.

    def sample(self, image: Tensor) -> Tensor:
        return self.joint(image, {})[0]

    def sample_eval(self, image: Tensor) -> Tensor:
        if self.native is not None:
            return resize(image[None], self.size)[0]
        h, w = image.shape[-2:]
        factor = self._unit(h, w)
        return resize(image[None], (max(1, round(h * factor)), max(1, round(w * factor))))[0]

    def joint(self, image: Tensor, target: Truth) -> tuple[Tensor, Truth]:
        if self.native is not None:
            maps = {n: resize_mask(target[n][None], self.size)[0] for n in OUTSIDE if n in target}
            return self.sample_eval(image), {**target, **maps}
        view, mask = self._drawn(image, target.get("mask"))
        moved = dict(target)
        if mask is not None:
            moved["mask"] = mask
        if "pixel_weight" in target:
            moved["pixel_weight"] = view.map(target["pixel_weight"], OUTSIDE["pixel_weight"])
        return view.image(image, self.around), moved

    def joint_eval(self, image: Tensor, target: Truth) -> tuple[Tensor, Truth]:
        return self.sample_eval(image), target

    def _unit(self, h: int, w: int) -> float:
        """From an image's own pixels to those that are evaluated."""
        return self.eval_side / max(h, w) if self.eval_side else 1.0

    def _drawn(self, image: Tensor, mask: Tensor | None) -> tuple[View, Tensor | None]:
        """The first of ten crops that will do, else the best of them; and its mask."""
        uniform: Uniform = lambda purpose, count: torch.rand(1, count)  # noqa: E731
        h, w = image.shape[-2:]
        factor = self._unit(h, w) * float(self.scales(uniform))
        scaled = (max(1, round(h * factor)), max(1, round(w * factor)))
        points = self.bent(centres(self.size)[None], uniform) if self.bends else None
        across, down = self.flips(uniform)[0].tolist()
        room = torch.tensor([scaled[1] - self.size[1], scaled[0] - self.size[0]])
        best, least = None, math.inf
        for x, y in (room * self.places(uniform)[0]).round().int().tolist():
            view = View(scaled, (y, x), self.size, points, (across, down))
            if mask is None:
                return view, None
            seen = view.map(mask, IGNORE)
            share = float(largest_share(seen[None]))
            if best is None or share < least:
                best, least = (view, seen), share
            if share <= self._limit():
                break
        assert best is not None
        return best

    def _limit(self) -> float:
        return 1.0 if self.max_share is None else self.max_share

    # What is drawn, alike for one image and for a batch.

    def scales(self, uniform: Uniform) -> Tensor:
        """(N,) factors."""
        low, high = self.scale
        return low + (high - low) * uniform("scale", 1)[:, 0]

    def places(self, uniform: Uniform) -> Tensor:
        """(N, TRIES, 2), the share of the room to the left of and above each crop."""
        return uniform("place", 2 * TRIES).view(-1, TRIES, 2)

    def flips(self, uniform: Uniform) -> Tensor:
        """(N, 2) bool: across, down."""
        drawn = uniform("flip", 2) < 0.5
        drawn[:, 0] &= self.flip
        drawn[:, 1] &= self.flip and self.upside_down
        return drawn

    def bent(self, points: Tensor, uniform: Uniform) -> Tensor:
        """``points`` (N or 1, 2, H, W) of the crop, turned each by an angle of its own."""
        if not self.degrees:
            return points
        angle = math.radians(self.degrees) * (2 * uniform("turn", 1)[:, 0] - 1)
        return turned(points, angle, self.size)

    # A batch, on the device.

    def batch(self, images: Images, targets: Targets, draw: Draw) -> tuple[Images, Targets]:
        if self.native is not None:
            points = self._seen(targets.mask, draw.uniform)
            images.pixels = warp(images.pixels, points, self.around)
            for name, outside in OUTSIDE.items():
                if (values := getattr(targets, name)) is not None:
                    setattr(targets, name, warp_map(values, points, outside))
        if self.colour:
            images.pixels = jitter(images.pixels, self.colour, draw)
        return images, targets

    def _seen(self, mask: Tensor | None, uniform: Uniform) -> Tensor:
        """(N, 2, H, W): where in its image each pixel of the crops lies."""
        height, width = self.size
        scale = self.scales(uniform)
        points = centres(self.size, scale.device)[None]
        middle = xy(points, width / 2, height / 2)
        sign = 1 - 2 * self.flips(uniform).float()
        points = (points - middle) * sign[:, :, None, None] + middle
        points = self.bent(points, uniform)
        room = (scale[:, None] - 1) * xy(
            scale, width, height
        ).flatten()  # images have this size too
        corners = self.places(uniform) * room[:, None]  # (N, TRIES, 2)
        corner = corners[:, 0] if mask is None else self._chosen(mask, points, corners, scale)
        return (points + corner[:, :, None, None]) / scale[:, None, None, None]

    def _chosen(self, mask: Tensor, points: Tensor, corners: Tensor, scale: Tensor) -> Tensor:
        """(N, 2), of each image's ``corners`` as in ``_drawn``, by a look at every few pixels."""
        step = math.ceil(max(self.size) / COARSE)
        few = points[:, :, None, step // 2 :: step, step // 2 :: step]  # (N, 2, 1, a, b)
        seen = (few + corners.mT[..., None, None]) / scale[:, None, None, None, None]
        classes = warp_map(mask, seen.flatten(2, 3), IGNORE)  # (N, TRIES * a, b)
        share = largest_share(classes.view(len(mask) * TRIES, -1)).view(-1, TRIES)
        order = torch.arange(TRIES, device=share.device)
        cost = torch.where(share <= self._limit(), order, TRIES + share)
        return corners[torch.arange(len(corners), device=share.device), cost.argmin(1)]


# Luma and two chroma axes from red, green, blue: the matrix of NTSC's YIQ.
_YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))


def jitter(pixels: Tensor, strength: float, draw: Draw) -> Tensor:
    """Brightness, contrast, saturation and hue of each of (N, C, H, W) -> float32 in 0..255.

    All four are one linear map of an image's colours: the hue turns in the chroma plane of YIQ.
    """
    change = strength * (2 * draw.uniform("colour", 4) - 1)
    brightness, contrast, saturation, hue = change.unbind(1)
    return recoloured(pixels, 1 + brightness, 1 + contrast, 1 + saturation, hue / 4)


def recoloured(
    pixels: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor, hue: Tensor
) -> Tensor:
    """(N, C, H, W) -> float32 in 0..255; factors (N,), ``hue`` (N,) in turns."""
    pixels = pixels.float()
    if pixels.shape[1] == 3:
        yiq = pixels.new_tensor(_YIQ)
        turn = 2 * math.pi * hue
        cos, sin = saturation * turn.cos(), saturation * turn.sin()
        zero, one = torch.zeros_like(cos), torch.ones_like(cos)
        chroma = torch.stack([one, zero, zero, zero, cos, -sin, zero, sin, cos], 1).view(-1, 3, 3)
        colours = torch.linalg.inv(yiq) @ chroma @ yiq  # (N, 3, 3)
        luma = (pixels.mean((2, 3)) * yiq[0]).sum(1)
        pixels = (colours @ pixels.flatten(2)).view_as(pixels)
    else:
        luma = pixels.mean((1, 2, 3))
    factor, shift = brightness * contrast, brightness * (1 - contrast) * luma
    moved = torch.addcmul(shift[:, None, None, None], pixels, factor[:, None, None, None])
    return moved.clamp_(0, 255)
