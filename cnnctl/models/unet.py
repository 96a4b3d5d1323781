"""U-Net: Ronneberger, Fischer, Brox, "U-Net: convolutional networks for biomedical image
segmentation", arXiv:1505.04597, section 2 and figure 1.

Differs from the paper: the default keeps the size of every map by zero padding and normalises each
convolution (Ioffe and Szegedy, arXiv:1502.03167), with a quarter of the paper's channels, so that
it trains on a CPU; ``padding=valid norm=false width=64 depth=4`` is the paper's network. Its input
tile is extrapolated by mirroring here, inside the network, so that the output has the input's size
either way. The paper's dropout is at the end of the contracting path; so is ours.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnctl.models.base import SegmentationModel
from cnnctl.ops.borders import mirror_pad
from cnnctl.ops.upsampling import MaxUnpool, Transposed, upsampler

_MORE = 4  # valid outputs of every depth have sides of 2^depth n + 4

Up = Literal["transposed", "bilinear", "nearest", "bed_of_nails", "sub_pixel", "max_unpooling"]


class UNet(SegmentationModel):
    """A contracting and an expanding path with a copy of each map from one to the other.

    Args:
        in_channels: C.
        num_classes: K.
        width: channels of the first level; every level down has twice as many.
        depth: how often the maps are halved.
        padding: "same", or "valid": convolutions see no made-up zeros, the maps shrink, and the
            input is mirrored at its border to make up for it.
        up: how maps are enlarged; "max_unpooling" puts values back to where the pooling found
            them.
        kernel: side of a transposed convolution's filter; None is 2, the paper's. One that 2 does
            not divide covers pixels unevenly (a checkerboard), and a warning says so.
        norm: batch normalisation after each convolution.
        dropout: probability of zeroing a channel of the deepest map.

    Raises:
        ValueError: a number is out of range.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        width: int = 16,
        depth: int = 4,
        padding: Literal["same", "valid"] = "same",
        up: Up = "transposed",
        kernel: int | None = None,
        norm: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        _check(width, depth, padding, up, kernel, dropout)
        self.depth, self.valid = depth, padding == "valid"
        channels = [width << level for level in range(depth + 1)]
        before = (in_channels, *channels)
        self.down = nn.ModuleList(
            _Double(given, made, self.valid, norm)
            for given, made in zip(before, channels, strict=False)
        )
        self.dropout = nn.Dropout2d(dropout)
        self.pool = nn.MaxPool2d(2, return_indices=up == "max_unpooling")
        self.up, self.merge = nn.ModuleList(), nn.ModuleList()
        for small, large in zip(channels[:0:-1], channels[-2::-1], strict=True):
            if up == "max_unpooling":
                self.up.append(nn.Conv2d(small, large, 1))
            elif kernel is not None:
                self.up.append(Transposed(small, large, 2, kernel))
            else:
                self.up.append(upsampler(up, small, large, 2))
            self.merge.append(_Double(2 * large, large, self.valid, norm))
        for layer in self.up.modules():
            if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
                _he(layer)
        self.unpool = MaxUnpool(2) if up == "max_unpooling" else None
        self.classify = nn.Conv2d(width, num_classes, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        h, w = pixels.shape[-2:]
        return self._paths(self._framed(pixels))[..., :h, :w]

    def tiles(self, pixels: Tensor, tile: int) -> Tensor | None:
        """Section 2's overlap-tile strategy, with valid convolutions: logits (N, K, H, W) by parts.

        A part's input is the true image around it, mirrored at the image's own border alone, so
        that its scores are those of the whole image, in the memory of one part.
        """
        if not self.valid:
            return None
        h, w = pixels.shape[-2:]
        step = 1 << self.depth
        side = max(step, tile // step * step)  # every part is pooled where the whole image is
        seen = side + _MORE + 2 * self._margin
        margin = self._margin
        below, right = (-length % side + _MORE + margin for length in (h, w))
        framed = mirror_pad(pixels, (margin, margin), (below, right))
        rows = [
            torch.cat(
                [
                    self._paths(framed[..., top : top + seen, left : left + seen])[
                        ..., :side, :side
                    ]
                    for left in range(0, w, side)
                ],
                3,
            )
            for top in range(0, h, side)
        ]
        return torch.cat(rows, 2)[..., :h, :w]

    @property
    def _margin(self) -> int:
        """Pixels that valid convolutions take on each side. A double convolution takes 4 of its
        level; in pixels of the output those of both paths take 12 * 2^depth - 8 (184 of 572)."""
        return 6 * (1 << self.depth) - 4

    def _framed(self, pixels: Tensor) -> Tensor:
        """The input that gives an output of at least its size, from its first pixel on."""
        step = 1 << self.depth
        if not self.valid:
            right, below = (-side % step for side in (pixels.shape[3], pixels.shape[2]))
            return F.pad(pixels, (0, right, 0, below))
        margin = self._margin
        below, right = (-(side - _MORE) % step + margin for side in pixels.shape[2:])
        return mirror_pad(pixels, (margin, margin), (below, right))

    def _paths(self, maps: Tensor) -> Tensor:
        kept: list[Tensor] = []
        places: list[Tensor] = []
        for level, block in enumerate(self.down):
            maps = block(maps)
            if level == self.depth:
                break
            kept.append(maps)
            if self.unpool is None:
                maps = self.pool(maps)
            else:
                maps, place = self.pool(maps)
                places.append(place)
        maps = self.dropout(maps)
        for enlarge, merge in zip(self.up, self.merge, strict=True):
            maps, copy = enlarge(maps), kept.pop()
            if self.unpool is not None:
                place = places.pop()
                place = _centre(place, maps.shape[-2:])
                twice = (2 * maps.shape[2], 2 * maps.shape[3])
                maps = _centre(self.unpool(maps, place, copy.shape[-2:]), twice)
            maps = merge(torch.cat([_centre(copy, maps.shape[-2:]), maps], 1))
        return self.classify(maps)


def _check(
    width: int, depth: int, padding: str, up: str, kernel: int | None, dropout: float
) -> None:
    if width < 1:
        raise ValueError(f"width must be at least 1, got {width}")
    if not 1 <= depth <= 8:
        raise ValueError(f"depth must be from 1 to 8, got {depth}")
    if padding not in ("same", "valid"):
        raise ValueError(f'padding must be "same" or "valid", got "{padding}"')
    if kernel is not None and up != "transposed":
        raise ValueError(f"kernel is of up=transposed, not of up={up}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be in [0, 1), got {dropout}")


class _Double(nn.Sequential):
    """Two 3x3 convolutions, each with ReLU."""

    def __init__(self, given: int, made: int, valid: bool, norm: bool) -> None:
        layers: list[nn.Module] = []
        for channels in (given, made):
            conv = nn.Conv2d(channels, made, 3, padding=0 if valid else 1, bias=not norm)
            _he(conv)
            layers += [conv, *([nn.BatchNorm2d(made)] if norm else []), nn.ReLU(inplace=True)]
        super().__init__(*layers)


def _he(conv: nn.Conv2d | nn.ConvTranspose2d) -> None:
    """Section 3: standard deviation sqrt(2 / incoming nodes).

    Torch's own start of a transposed convolution lets a sixth of the variance through, so that
    four levels down nothing of the deepest map is left beside the copies.
    """
    taps = math.prod(conv.kernel_size)
    if isinstance(conv, nn.ConvTranspose2d):
        taps /= math.prod(conv.stride)  # of each output, on average
    nn.init.normal_(conv.weight, std=math.sqrt(2 / (conv.in_channels * taps)))


def _centre(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    """The middle (h, w) of (N, C, H, W); itself where it has that size."""
    top, left = ((have - want) // 2 for have, want in zip(maps.shape[-2:], size, strict=True))
    return maps[..., top : top + size[0], left : left + size[1]]
