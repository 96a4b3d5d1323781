"""DeconvNet: Noh, Hong, Han, "Learning deconvolution network for semantic segmentation",
arXiv:1505.04366, section 3, table 2 and figure 2.

Differs from the paper: the weights start at random, not from VGG-16; there are no biases where
batch normalisation follows (it takes them out again); an image of any size is filled up with zeros,
below and to the right, to a multiple of 32, and its deepest map to the 7 x 7 that fc6 covers. The
first of the two stages takes for an object the box around all pixels of one class, since masks do
not tell objects of a class apart; the second trains on whole images where the paper draws object
proposals, and it predicts whole images too.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnctl.models.base import GradientStage, SegmentationModel, Stage
from cnnctl.ops.upsampling import MaxUnpool
from cnnctl.structures import IGNORE, Batch, Images, Targets

_GROUPS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # VGG-16's channels and convolutions
_SIDE = 7  # of the map that fc6 sees, from an image of 224 x 224
_CONTEXT = 1.2  # section 4.2: the box around an object, enlarged


class DeconvNet(SegmentationModel):
    """VGG-16 with its dense layers as convolutions, then its mirror image: deconvolutions
    (transposed convolutions of stride 1), and unpooling to where the maxima were.

    Args:
        in_channels: C.
        num_classes: K; 0 is the background.
        size: (h, w) that the first stage brings its crops to.
        width: factor of the channels of all but fc6 and fc7; 1.0 is the paper's network.
        fc: channels of fc6 and fc7.
        staged: train on crops around objects first, then on whole images; or on these alone.

    Raises:
        ValueError: a number is out of range.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        size: tuple[int, int],
        width: float = 1.0,
        fc: int = 4096,
        staged: bool = False,
    ) -> None:
        super().__init__()
        if width <= 0:
            raise ValueError(f"width must be positive, got {width}")
        if fc < 1:
            raise ValueError(f"fc must be at least 1, got {fc}")
        self.size, self.staged = size, staged
        made = [max(1, round(channels * width)) for channels, _ in _GROUPS]
        before, after = [in_channels, *made], [made[0], *made]
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        self.pool, self.unpool = nn.MaxPool2d(2, return_indices=True), MaxUnpool(2)
        for level, (_, count) in enumerate(_GROUPS):
            same = [made[level]] * count
            self.down.append(_group(nn.Conv2d, [before[level], *same]))
            self.up.insert(0, _group(nn.ConvTranspose2d, [*same, after[level]]))
        self.dense = nn.Sequential(
            *_block(nn.Conv2d, made[-1], fc, _SIDE, 0),
            *_block(nn.Conv2d, fc, fc, 1, 0),
            *_block(nn.ConvTranspose2d, fc, made[-1], _SIDE, 0),
        )
        self.classify = nn.Conv2d(made[0], num_classes, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        h, w = pixels.shape[-2:]
        step = 1 << len(_GROUPS)
        maps = F.pad(pixels, (0, -w % step, 0, -h % step))
        places: list[Tensor] = []
        for group in self.down:
            maps, place = self.pool(group(maps))
            places.append(place)
        tall, wide = maps.shape[-2:]
        below, right = (max(0, _SIDE - side) for side in (tall, wide))
        maps = self.dense(F.pad(maps, (0, right, 0, below)))[..., :tall, :wide]
        for group in self.up:
            maps = group(self.unpool(maps, places.pop()))
        return self.classify(maps)[..., :h, :w]

    def stages(self) -> Sequence[Stage]:
        if not self.staged:
            return super().stages()
        return [
            GradientStage("objects", self.loss, self.parameters, view=self._around_objects),
            GradientStage("images", self.loss, self.parameters),
        ]

    def _around_objects(self, batch: Batch) -> Batch:
        return around_objects(batch, self.size)


def around_objects(batch: Batch, size: tuple[int, int]) -> Batch:
    """Each image cut to the box around one of its classes, enlarged 1.2 times, as (h, w) ``size``.

    All other classes become background (0), as in section 4.2; 255 stays. Which class it is
    follows from the batch alone (the image's number and how many pixels are labelled), so that a
    run repeats, and differs from epoch to epoch where the augmentation does. An image without an
    object is taken whole.
    """
    images, targets = batch.images, batch.targets
    assert targets.mask is not None, "crops around objects need the column `mask`"
    mask = targets.mask
    count, (h, w) = len(mask), mask.shape[-2:]
    chosen = _chosen(mask, targets.image_id)
    y, x = _places(mask, chosen, torch.tensor(images.sizes, device=mask.device), size)
    grid = torch.stack(
        [(2 * x / w - 1)[:, None].expand(-1, *size), (2 * y / h - 1)[..., None].expand(-1, *size)],
        -1,
    )
    pixels = F.grid_sample(
        images.pixels, grid.to(images.pixels.dtype), padding_mode="border", align_corners=False
    )
    row = torch.arange(count, device=mask.device)[:, None, None]
    at = (row, y.long()[:, :, None], x.long()[:, None])
    cut = mask[at]
    cut = cut.masked_fill((cut != chosen[:, None, None]) & (cut != IGNORE), 0)
    weight = None if targets.pixel_weight is None else targets.pixel_weight[at]
    return Batch(
        Images(pixels, [size] * count, [size] * count),
        Targets(targets.image_id, mask=cut, pixel_weight=weight),
    )


def _places(
    mask: Tensor, chosen: Tensor, sizes: Tensor, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Rows (N, h) and columns (N, w), in pixels from the image's edge, that a crop looks at."""
    found = mask == chosen[:, None, None]
    lines = []
    for axis, other in ((0, 2), (1, 1)):
        whole, side = chosen == 0, sizes[:, axis].float()
        first, last = _extent(found.any(other))
        centre, half = (first + last) / 2, (last - first) * (_CONTEXT / 2)
        low = (centre - half).clamp(min=0).masked_fill(whole, 0)
        high = torch.where(whole, side, torch.minimum(centre + half, side))
        step = (torch.arange(size[axis], device=mask.device) + 0.5) / size[axis]
        line = low[:, None] + step * (high - low)[:, None]
        # Nothing is mixed with what lies outside the image.
        lines.append(torch.minimum(line.clamp(min=0.5), side[:, None] - 0.5))
    return lines[0], lines[1]


def _chosen(mask: Tensor, image_id: Tensor) -> Tensor:
    """(N,) a class that each mask has, 0 where it has none but the background."""
    present = mask.new_zeros(len(mask), 256, dtype=torch.bool)
    present.scatter_(1, mask.flatten(1).long(), True)
    present[:, 0] = present[:, IGNORE] = False
    labelled = ((mask != 0) & (mask != IGNORE)).sum((1, 2))
    turn = (image_id + labelled) % present.sum(1).clamp(min=1)
    rank = present.cumsum(1) - 1  # of each class among those present
    return ((rank == turn[:, None]) & present).int().argmax(1).to(mask.dtype)


def _extent(line: Tensor) -> tuple[Tensor, Tensor]:
    """(N, L) -> where each row's True begins and ends, as edges of pixels; (0, L) for none."""
    first = line.int().argmax(1)
    last = line.shape[1] - line.flip(1).int().argmax(1)
    return first.float(), last.float()


def _group(kind: type[nn.Module], channels: list[int]) -> nn.Sequential:
    """3x3 layers from each number of channels to the next."""
    layers = (layer for pair in pairwise(channels) for layer in _block(kind, *pair, 3, 1))
    return nn.Sequential(*layers)


def _block(
    kind: type[nn.Module], given: int, made: int, kernel: int, padding: int
) -> list[nn.Module]:
    conv = kind(given, made, kernel, padding=padding, bias=False)
    return [conv, nn.BatchNorm2d(made), nn.ReLU(inplace=True)]
