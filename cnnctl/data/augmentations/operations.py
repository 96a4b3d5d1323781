"""The operations of AutoAugment's family, with a strength of its own for each image of a batch.

Cubuk et al., "AutoAugment", arXiv:1805.09501, table 6. Each takes pixels (N, C, H, W) uint8 with
C = 1 or 3 and strengths (N,) float32, and gives the same shape; what comes from outside is black.
The arithmetic is that of torchvision's uint8 tensors.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as vision

from cnnctl.data.warp import centres, turned, xy

Operation = Callable[[Tensor, Tensor], Tensor]

_LUMA = (0.2989, 0.587, 0.114)
_SMOOTH = ((1, 1, 1), (1, 5, 1), (1, 1, 1))  # over 13


def shear(pixels: Tensor, slope: Tensor, axis: int) -> Tensor:
    """By ``slope`` pixels a row (axis 0, along x) or a column (axis 1, along y); the upper left
    corner stays."""
    points = centres(_size(pixels), pixels.device)[None].repeat(len(pixels), 1, 1, 1)
    points[:, axis] += slope[:, None, None] * points[:, 1 - axis]
    return _nearest(pixels, points)


def translate(pixels: Tensor, shift: Tensor, axis: int) -> Tensor:
    """By whole pixels to the right (axis 0) or down (axis 1), cut towards zero."""
    points = centres(_size(pixels), pixels.device)[None].repeat(len(pixels), 1, 1, 1)
    points[:, axis] -= shift.trunc()[:, None, None]
    return _nearest(pixels, points)


def rotate(pixels: Tensor, degrees: Tensor) -> Tensor:
    """Counter-clockwise around the centre."""
    size = _size(pixels)
    points = centres(size, pixels.device)[None]
    return _nearest(pixels, turned(points, degrees.deg2rad(), size))


def brightness(pixels: Tensor, factor: Tensor) -> Tensor:
    return _blend(pixels.float(), torch.zeros((), device=pixels.device), factor)


def saturation(pixels: Tensor, factor: Tensor) -> Tensor:
    """Grey images have none to change."""
    if pixels.shape[1] == 1:
        return pixels
    return _blend(pixels.float(), _grey(pixels), factor)


def contrast(pixels: Tensor, factor: Tensor) -> Tensor:
    mean = _grey(pixels).mean((1, 2, 3), keepdim=True)
    return _blend(pixels.float(), mean, factor)


def sharpness(pixels: Tensor, factor: Tensor) -> Tensor:
    """Away from (above 1) or towards (below 1) a smoothed image; the border stays."""
    if min(_size(pixels)) <= 2:
        return pixels
    values = pixels.float()
    channels = pixels.shape[1]
    kernel = values.new_tensor(_SMOOTH) / 13
    smooth = F.conv2d(values, kernel.expand(channels, 1, 3, 3), groups=channels).round_()
    inner = _blend(values[:, :, 1:-1, 1:-1], smooth, factor)
    changed = pixels.clone()
    changed[:, :, 1:-1, 1:-1] = inner
    return changed


def posterize(pixels: Tensor, bits: Tensor) -> Tensor:
    """Keep the highest ``bits`` (0 to 8) of each value."""
    mask = (255 << (8 - bits.round().int())) & 255
    return pixels & mask.to(torch.uint8)[:, None, None, None]


def solarize(pixels: Tensor, threshold: Tensor) -> Tensor:
    """Invert what is at least as bright as ``threshold``, 0 to 255 and above."""
    return torch.where(pixels >= threshold[:, None, None, None], 255 - pixels, pixels)


# Signed strengths go both ways; what has no strength takes any.
OPERATIONS: dict[str, Operation] = {
    "identity": lambda pixels, _: pixels,
    "shear_x": functools.partial(shear, axis=0),
    "shear_y": functools.partial(shear, axis=1),
    "translate_x": functools.partial(translate, axis=0),
    "translate_y": functools.partial(translate, axis=1),
    "rotate": rotate,
    "brightness": brightness,
    "saturation": saturation,
    "contrast": contrast,
    "sharpness": sharpness,
    "posterize": posterize,
    "solarize": solarize,
    "autocontrast": lambda pixels, _: vision.autocontrast(pixels),
    "equalize": lambda pixels, _: vision.equalize(pixels),
}


def apply(pixels: Tensor, names: list[str], codes: Tensor, strengths: Tensor) -> Tensor:
    """To each image the operation ``names[code]`` at its strength.

    Args:
        pixels: (N, C, H, W) uint8.
        codes: (N,) int64, on the host: how many images drew what is to be known there.
        strengths: (N,) float32, on the device of the pixels.
    """
    order = codes.argsort(stable=True)
    counts = torch.bincount(codes, minlength=len(names)).tolist()
    there = order.to(pixels.device)
    groups = pixels.index_select(0, there).split(counts)
    parts = strengths.index_select(0, there).split(counts)
    done = [
        OPERATIONS[name](group, strength)
        for name, group, strength in zip(names, groups, parts, strict=True)
        if len(group)
    ]
    return torch.cat(done).index_select(0, order.argsort().to(pixels.device))


def _size(pixels: Tensor) -> tuple[int, int]:
    return pixels.shape[2], pixels.shape[3]


def _blend(pixels: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    factor = factor[:, None, None, None]
    mixed = other + factor * (pixels - other)  # what both have in common stays to the last bit
    return mixed.clamp_(0, 255).to(torch.uint8)


def _grey(pixels: Tensor) -> Tensor:
    """(N, C, H, W) uint8 -> (N, 1, H, W) float32 of whole numbers, the luma."""
    if pixels.shape[1] == 1:
        return pixels.float()
    red, green, blue = pixels.float().unbind(1)
    luma = red * _LUMA[0] + green * _LUMA[1] + blue * _LUMA[2]
    return luma.floor_()[:, None]


def _nearest(pixels: Tensor, points: Tensor) -> Tensor:
    """Each image seen at its points (N, 2, H, W), the nearest pixel's value."""
    h, w = _size(pixels)
    grid = (points * xy(points, 2 / w, 2 / h) - 1).permute(0, 2, 3, 1)
    seen = F.grid_sample(pixels.float(), grid, "nearest", "zeros", align_corners=False)
    return seen.to(torch.uint8)
