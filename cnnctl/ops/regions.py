"""Regions of maps brought to one size: (N, C, H, W) and B boxes -> (B, C, h, w).

Boxes are xyxy in pixels of the network's input, the right and the lower side exclusive; ``image``
says which row of the batch each lies in. No gradient reaches them. What is returned has the type of
the maps; B may be 0.

RoI align is a weighted sum of pixels, so ``weighted_rows`` of the table (pixels, channels) does all
bins of all boxes of all maps at once. torchvision's operator, which gives the same numbers, is used
on a GPU; on a CPU its gradient is one thread's work. The others are torchvision's everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
import torchvision.ops
from torch import Tensor

from cnnctl.ops.weighted_rows import weighted_rows

Size = tuple[int, int]


def roi_align(
    features: Tensor,
    boxes: Tensor,
    image: Tensor,
    size: Size,
    scale: float,
    sampling: int = 2,
    aligned: bool = False,
) -> Tensor:
    """(B, C, *size): every bin the mean of points interpolated from their four pixels.

    Mask R-CNN (He et al. 2017, arXiv:1703.06870, section 3).

    Args:
        features: (N, C, H, W).
        boxes: (B, 4) float.
        image: (B,) int64.
        size: (h, w), the number of bins.
        scale: of the map to the input, 1 / stride.
        sampling: points along each side of a bin.
        aligned: the first pixel's centre is at 0.5, and a box may be smaller than a pixel of the
            map; otherwise the centre is at 0, and a smaller box is widened to one pixel.

    Raises:
        ValueError: sampling is below 1.
    """
    level = image.new_zeros(len(image))
    return _Align([features], [scale], boxes, image, level, size, sampling, aligned).pooled()


def pyramid_roi_align(
    maps: Sequence[Tensor],
    strides: Sequence[int],
    boxes: Tensor,
    image: Tensor,
    size: Size,
    sampling: int = 2,
    aligned: bool = False,
    canonical: float = 224.0,
) -> Tensor:
    """(B, C, *size) in the order of the boxes: ``roi_align`` of the map that suits each box.

    Args:
        maps: of L levels, (N, C, H_l, W_l) each.
        strides: of the levels, powers of 2, each twice the one before.
        canonical: as in ``pyramid_levels``.

    Raises:
        ValueError: strides are not as above, or not one for every map; sampling is below 1.
    """
    level = pyramid_levels(boxes, strides, canonical)
    scales = [1 / stride for stride in strides]
    return _Align(maps, scales, boxes, image, level, size, sampling, aligned).pooled()


def pyramid_levels(boxes: Tensor, strides: Sequence[int], canonical: float = 224.0) -> Tensor:
    """(B,) int64 index in ``strides`` of the level that suits each box.

    Feature Pyramid Networks (Lin et al. 2017, arXiv:1612.03144), equation 1 with k0 = 4.

    Args:
        boxes: (B, 4) float.
        strides: powers of 2, each twice the one before.
        canonical: side in pixels of the square box that is read at stride 16.

    Raises:
        ValueError: strides are not as above.
    """
    first = strides[0].bit_length() - 1
    if list(strides) != [2 ** (first + i) for i in range(len(strides))]:
        raise ValueError(
            f"strides must be powers of 2, each twice the one before, got {list(strides)}"
        )
    width, height = (boxes[:, 2:] - boxes[:, :2]).float().unbind(1)
    side = (width * height).sqrt()
    # A little more, as torchvision has it: rounding must not put a box below its level. No area
    # is the first level, and so is a wrong box.
    level = ((side / canonical).log2() + 4 + 1e-6).floor().nan_to_num(nan=first)
    return level.clamp(first, first + len(strides) - 1).long() - first


@dataclass(frozen=True)
class _Align:
    maps: Sequence[Tensor]
    scales: Sequence[float]
    boxes: Tensor
    image: Tensor
    level: Tensor  # (B,) int64, in maps
    size: Size
    sampling: int
    aligned: bool

    def __post_init__(self) -> None:
        if self.sampling < 1:
            raise ValueError(f"sampling must be at least 1, got {self.sampling}")
        if len(self.maps) != len(self.scales):
            raise ValueError(f"{len(self.maps)} maps need as many strides, got {len(self.scales)}")

    def pooled(self) -> Tensor:
        # On a GPU torchvision's gradient is summed in an order that changes.
        on_cpu = self.boxes.device.type == "cpu"
        own = on_cpu or torch.are_deterministic_algorithms_enabled()
        return self.by_bags() if own else self.by_torchvision()

    def by_torchvision(self) -> Tensor:
        rows = _rows(self.boxes, self.image)
        order = self.level.argsort(stable=True)
        counts = self.level.bincount(minlength=len(self.maps)).tolist()
        align, how = torchvision.ops.roi_align, (self.sampling, self.aligned)
        parts = [
            _torchvision(align, features, part, self.size, scale, *how)
            for features, scale, part in zip(
                self.maps, self.scales, rows[order].split(counts), strict=True
            )
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)[order.argsort()]

    def by_bags(self) -> Tensor:
        rows, weights = self._taps()
        tables = [one.permute(0, 2, 3, 1).flatten(0, 2) for one in self.maps]  # (N * H * W, C)
        table = tables[0] if len(tables) == 1 else torch.cat(tables)
        bins = weighted_rows(table, rows.flatten(0, 2), weights.flatten(0, 2))
        return bins.unflatten(0, (len(self.boxes), *self.size)).permute(0, 3, 1, 2)

    def _taps(self) -> tuple[Tensor, Tensor]:
        """(rows int32 of the tables one after the other, weights), both (B, h, w, T): the
        T = 4 * sampling^2 pixels of each bin."""
        shapes, first = [], 0
        for one in self.maps:
            n, _, height, width = one.shape
            shapes.append((first, height, width))
            first += n * height * width
        scale = self.boxes.new_tensor(self.scales, dtype=torch.float32)[self.level, None]
        # (B,) each
        first, height, width = torch.tensor(shapes, device=scale.device)[self.level].unbind(1)
        corners = self.boxes.detach().float() * scale - (0.5 if self.aligned else 0.0)
        down, down_share = self._axis(corners[:, 1::2], height, self.size[0])
        along, along_share = self._axis(corners[:, 0::2], width, self.size[1])
        down = (first + self.image * height * width)[:, None, None] + down * width[:, None, None]
        rows = down.int()[:, :, None, :, None] + along.int()[:, None, :, None, :]
        weights = down_share[:, :, None, :, None] * along_share[:, None, :, None, :]
        return rows.flatten(3), weights.flatten(3)

    def _axis(self, sides: Tensor, length: Tensor, bins: int) -> tuple[Tensor, Tensor]:
        """(pixels int64, shares), both (B, bins, 2 * sampling), along one axis.

        Args:
            sides: (B, 2), low and high in pixels of the map.
            length: (B,) of the map.
        """
        low, high = sides[:, :, None, None].unbind(1)
        extent = high - low if self.aligned else (high - low).clamp(min=1)
        step = extent / bins
        point = (torch.arange(self.sampling, device=low.device) + 0.5) * (step / self.sampling)
        place = low + torch.arange(bins, device=low.device)[:, None] * step + point
        last = (length - 1)[:, None, None]
        # The border is repeated for one pixel, beyond it is nothing; NaN is beyond it.
        inside = (place >= -1) & (place <= last + 1)
        place = torch.where(inside, place, 0.0).clamp(min=0).minimum(last)
        pixel = place.long()
        share = place - pixel
        pixels = torch.stack([pixel, (pixel + 1).minimum(last)], 3)
        shares = torch.stack([1 - share, share], 3) * (inside / self.sampling)[..., None]
        return pixels.flatten(2), shares.flatten(2)


def roi_pool(features: Tensor, boxes: Tensor, image: Tensor, size: Size, scale: float) -> Tensor:
    """(B, C, *size): every bin the largest of its pixels, 0 where it has none.

    Fast R-CNN (Girshick 2015, arXiv:1504.08083, section 2.1). The sides of a box are rounded to
    pixels of the map.

    Args:
        features: (N, C, H, W).
        boxes: (B, 4) float.
        image: (B,) int64.
        size: (h, w), the number of bins.
        scale: of the map to the input, 1 / stride.
    """
    return _torchvision(torchvision.ops.roi_pool, features, _rows(boxes, image), size, scale)


def position_sensitive_roi_pool(
    features: Tensor, boxes: Tensor, image: Tensor, size: Size, scale: float
) -> Tensor:
    """(B, D, h, w): every bin the mean of its pixels in a map of its own.

    R-FCN (Dai et al. 2016, arXiv:1605.06409, equation 1).

    Args:
        features: (N, D * h * w, H, W); channel (d * h + i) * w + j is read by bin (i, j) of d.
        boxes, image, size, scale: as in ``roi_pool``.

    Raises:
        ValueError: the channels cannot be shared out to the bins.
    """
    if features.shape[1] % (size[0] * size[1]):
        raise ValueError(
            f"{features.shape[1]} channels cannot be shared by {size[0]} x {size[1]} bins"
        )
    # torchvision's operator never reads the last row and the last column of a map.
    framed = F.pad(features, (0, 1, 0, 1))
    return _torchvision(torchvision.ops.ps_roi_pool, framed, _rows(boxes, image), size, scale)


def spatial_pyramid_pool(
    features: Tensor,
    boxes: Tensor,
    image: Tensor,
    levels: Sequence[int] = (1, 2, 3, 6),
    scale: float = 1 / 16,
) -> Tensor:
    """(B, C * sum of n^2 over levels): ``roi_pool`` to n x n bins for each n, one after the other,
    each as (C, n, n).

    SPP-net (He et al. 2014, arXiv:1406.4729, section 2.2); its windows are projected as in
    ``roi_pool``.
    """
    pooled = [roi_pool(features, boxes, image, (n, n), scale).flatten(1) for n in levels]
    return torch.cat(pooled, 1)


def _rows(boxes: Tensor, image: Tensor) -> Tensor:
    """(B, 5) float32 for torchvision's operators; finite, as they do not look."""
    finite = boxes.detach().float().nan_to_num(nan=0.0).clamp(-1e6, 1e6)
    return torch.cat([image[:, None].to(finite), finite], 1)


def _torchvision(
    operator: Callable[..., Tensor], features: Tensor, rows: Tensor, *settings: Any
) -> Tensor:
    """In float32 at least: they know no bfloat16, and boxes have too many digits for it."""
    wide = torch.promote_types(features.dtype, torch.float32)
    return operator(features.to(wide), rows.to(wide), *settings).to(features.dtype)
