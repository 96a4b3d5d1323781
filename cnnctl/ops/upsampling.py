"""Ways up: from (N, C, h, w) to (N, D, scale * h, scale * w), all with one interface.

``upsampler(kind, in_channels, out_channels, scale)`` makes any of them. Where a way has no weights
of its own to change the channels, a 1x1 convolution does it first, on the small map; it is left
out where C = D. Max unpooling needs the positions that its pooling remembered, so it stands apart.

Everything but the learned convolutions is written with operations whose gradient is the same in
every run on every device; those of ``torch.nn.functional.interpolate`` on CUDA are not.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor, nn

Kind = Literal["nearest", "bed_of_nails", "bilinear", "transposed", "sub_pixel"]


def upsampler(kind: Kind, in_channels: int, out_channels: int, scale: int = 2) -> nn.Module:
    """The way up that ``kind`` names.

    Raises:
        ValueError: there is no such kind, or a number is out of range.
    """
    if kind not in get_args(Kind):
        raise ValueError(f'upsampling must be one of {", ".join(get_args(Kind))}, got "{kind}"')
    return _WAYS[kind](in_channels, out_channels, scale)


def nearest(maps: Tensor, scale: int) -> Tensor:
    """Each value repeated over scale x scale pixels."""
    n, c, h, w = maps.shape
    spread = maps[:, :, :, None, :, None].expand(n, c, h, scale, w, scale)
    return spread.reshape(n, c, h * scale, w * scale)


def bed_of_nails(maps: Tensor, scale: int) -> Tensor:
    """Each value at the top left of scale x scale pixels, zeros around it."""
    n, c, h, w = maps.shape
    out = maps.new_zeros(n, c, h * scale, w * scale)
    out[:, :, ::scale, ::scale] = maps
    return out


def bilinear(maps: Tensor, scale: int) -> Tensor:
    """Linear between the centres of pixels, the border repeated outside them."""
    rows, columns = (_between(side, scale, maps) for side in maps.shape[-2:])
    return rows @ maps @ columns.T


def _between(side: int, scale: int, like: Tensor) -> Tensor:
    """(scale * side, side): row i has the shares of its two neighbours in output pixel i."""
    place = (torch.arange(scale * side, device=like.device) + 0.5) / scale - 0.5
    place = place.clamp(0, side - 1)[:, None]
    return (1 - (place - torch.arange(side, device=like.device)).abs()).clamp(min=0).to(like.dtype)


def max_unpool(maps: Tensor, positions: Tensor, size: tuple[int, ...]) -> Tensor:
    """Each value back to where its pooling found it, zeros elsewhere (Zeiler and Fergus 2014).

    Args:
        maps: (N, C, h, w).
        positions: (N, C, h, w) int64, each y * W + x in the map that was pooled, as
            ``nn.MaxPool2d(..., return_indices=True)`` gives them.
        size: (H, W) of that map.

    Returns:
        (N, C, H, W).
    """
    flat = maps.new_zeros(*maps.shape[:2], size[0] * size[1])
    return flat.scatter(2, positions.flatten(2), maps.flatten(2)).unflatten(2, tuple(size))


def bilinear_filter(scale: int) -> Tensor:
    """(k, k) with k = 2 * scale - scale % 2: a transposed convolution with it and stride ``scale``
    interpolates (Long, Shelhamer, Darrell, arXiv:1411.4038, section 3.3)."""
    kernel = 2 * scale - scale % 2
    place = torch.arange(kernel, dtype=torch.float32)
    line = 1 - (place - (kernel - 1) / 2).abs() / scale
    return line[:, None] * line


def bilinear_(weight: Tensor, scale: int) -> Tensor:
    """Make a transposed convolution's (C, C, k, k) ``weight`` interpolate each channel alone."""
    with torch.no_grad():
        weight.zero_()
        weight.diagonal().copy_(bilinear_filter(scale).to(weight)[..., None])
    return weight


def icnr_(weight: Tensor, scale: int) -> Tensor:
    """Give the scale^2 channels of a sub-pixel convolution's ``weight`` that make one output
    channel the same filter, so that it starts as nearest neighbour and not as a checkerboard
    (Aitken et al., arXiv:1707.02937, section 3.3)."""
    with torch.no_grad():
        weight.copy_(weight[:: scale**2].repeat_interleave(scale**2, 0))
    return weight


class Nearest(nn.Module):
    """1x1 convolution where the channels change, then ``nearest``."""

    def __init__(self, in_channels: int, out_channels: int, scale: int = 2) -> None:
        super().__init__()
        self.scale = _checked(scale)
        self.channels = _channels(in_channels, out_channels)

    def forward(self, maps: Tensor) -> Tensor:
        return nearest(self.channels(maps), self.scale)


class BedOfNails(nn.Module):
    """1x1 convolution where the channels change, then ``bed_of_nails``."""

    def __init__(self, in_channels: int, out_channels: int, scale: int = 2) -> None:
        super().__init__()
        self.scale = _checked(scale)
        self.channels = _channels(in_channels, out_channels)

    def forward(self, maps: Tensor) -> Tensor:
        return bed_of_nails(self.channels(maps), self.scale)


class Bilinear(nn.Module):
    """1x1 convolution where the channels change, then ``bilinear``."""

    def __init__(self, in_channels: int, out_channels: int, scale: int = 2) -> None:
        super().__init__()
        self.scale = _checked(scale)
        self.channels = _channels(in_channels, out_channels)

    def forward(self, maps: Tensor) -> Tensor:
        return bilinear(self.channels(maps), self.scale)


class Transposed(nn.Module):
    """Transposed convolution of stride ``scale``; the size is exactly ``scale`` times the input's.

    Args:
        kernel: side of the filter, at least ``scale``; None is ``scale`` (no overlap), or the
            side of ``bilinear_filter``.
        bilinear: start as bilinear interpolation of each channel (C = D), without a bias.

    Raises:
        ValueError: a number is out of range.

    A kernel that ``scale`` does not divide covers some pixels with more taps than others: a
    checkerboard, that training has to undo (Odena, Dumoulin, Olah, "Deconvolution and checkerboard
    artifacts", Distill 2016). A warning says so; not of a bilinear start, which is smooth.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        scale: int = 2,
        kernel: int | None = None,
        bilinear: bool = False,
    ) -> None:
        super().__init__()
        _checked(scale)
        own = 2 * scale - scale % 2 if bilinear else scale
        kernel = own if kernel is None else kernel
        if kernel < scale:
            raise ValueError(f"kernel must be at least scale ({scale}), got {kernel}")
        if bilinear and (kernel != own or in_channels != out_channels):
            raise ValueError(
                f"a bilinear start needs a kernel of {own} and as many channels out as in, got "
                f"{kernel}, {in_channels} and {out_channels}"
            )
        if kernel % scale and not bilinear:
            warnings.warn(
                f"a transposed convolution of kernel {kernel} and stride {scale} makes a "
                f"checkerboard: take a kernel that {scale} divides",
                stacklevel=2,
            )
        padding = (kernel - scale + 1) // 2
        self.conv = nn.ConvTranspose2d(
            in_channels,
            out_channels,
            kernel,
            scale,
            padding,
            output_padding=2 * padding - (kernel - scale),
            bias=not bilinear,
        )
        if bilinear:
            bilinear_(self.conv.weight, scale)

    def forward(self, maps: Tensor) -> Tensor:
        return self.conv(maps)


class SubPixel(nn.Module):
    """3x3 convolution to D * scale^2 channels, then those of a pixel put side by side (Shi et al.,
    arXiv:1609.05158, section 2.2); ``icnr`` starts it as nearest neighbour."""

    def __init__(
        self, in_channels: int, out_channels: int, scale: int = 2, icnr: bool = True
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels * _checked(scale) ** 2, 3, padding=1)
        self.shuffle = nn.PixelShuffle(scale)
        if icnr:
            assert self.conv.bias is not None
            icnr_(self.conv.weight, scale)
            nn.init.zeros_(self.conv.bias)

    def forward(self, maps: Tensor) -> Tensor:
        return self.shuffle(self.conv(maps))


class MaxUnpool(nn.Module):
    """``max_unpool``; without ``size`` to ``scale`` times the map's own."""

    def __init__(self, scale: int = 2) -> None:
        super().__init__()
        self.scale = _checked(scale)

    def forward(
        self, maps: Tensor, positions: Tensor, size: tuple[int, ...] | None = None
    ) -> Tensor:
        h, w = maps.shape[-2:]
        return max_unpool(maps, positions, size or (h * self.scale, w * self.scale))


_WAYS: dict[str, Callable[[int, int, int], nn.Module]] = {
    "nearest": Nearest,
    "bed_of_nails": BedOfNails,
    "bilinear": Bilinear,
    "transposed": Transposed,
    "sub_pixel": SubPixel,
}


def _channels(given: int, made: int) -> nn.Module:
    return nn.Identity() if given == made else nn.Conv2d(given, made, 1)


def _checked(scale: int) -> int:
    if scale < 2:
        raise ValueError(f"scale must be at least 2, got {scale}")
    return scale
