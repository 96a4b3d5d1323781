"""A patch classifier over a sliding window: Ciresan, Giusti, Gambardella, Schmidhuber, "Deep neural
networks segment neuronal membranes in electron microscopy images", NIPS 2012, section 2 and table
1; the idea for natural scenes: Farabet, Couprie, Najman, LeCun, "Learning hierarchical features for
scene labeling", PAMI 2013.

``shared`` computes the same scores for all windows at once: Giusti, Ciresan, Masci, Gambardella,
Schmidhuber, "Fast image scanning with deep max-pooling convolutional neural networks",
arXiv:1302.1700; Sermanet et al., "OverFeat", arXiv:1312.6229, section 3.5.

Differs from the paper: the default is a small network for a CPU; ``patch=95 widths=[48,48,48,48]
kernels=[4,5,4,4] dense=[200]`` is the paper's largest, N4, with ReLU. Balanced classes are drawn
within each image, not over the data set. No foveation, no nonuniform sampling of the window, no
calibration of the outputs, no median filter, no average over networks. Dense layers on dilated maps
do here what Giusti et al. do by cutting maps into fragments.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnctl.models.base import GradientStage, Losses, SegmentationModel, Stage
from cnnctl.ops.borders import mirror_pad, mirrored
from cnnctl.structures import IGNORE, Batch, Images, Targets

CHUNK = 1 << 24  # numbers in the largest map of the windows that are looked at together


class SlidingWindow(SegmentationModel):
    """The class of each pixel is that of the window around it, seen by a small classifier.

    Trained on ``per_image`` windows of each image of a batch, around labelled pixels drawn at
    random; a validation loss is that of all pixels.

    Args:
        in_channels: C.
        num_classes: K.
        patch: side of the window, odd, so that a pixel is its centre.
        widths: channels of the convolutions, each followed by ReLU and 2x2 max pooling.
        kernels: side of each of them.
        dense: units of the hidden dense layers, each with ReLU.
        per_image: windows of each image in a training step.
        balanced: the windows show each class of an image equally often; False: as often as the
            image does.
        border: what is seen outside an image: its mirror image, or zeros.
        shared: compute what neighbouring windows have in common once: every pooling has stride 1,
            and all that follows it is dilated by 2. False looks at one window after another. The
            scores are the same.

    Raises:
        ValueError: a number is out of range, or a window too small for its layers.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        patch: int = 33,
        widths: tuple[int, ...] = (16, 32, 64),
        kernels: tuple[int, ...] = (4, 4, 3),
        dense: tuple[int, ...] = (128,),
        per_image: int = 64,
        balanced: bool = True,
        border: Literal["mirror", "zero"] = "mirror",
        shared: bool = True,
    ) -> None:
        super().__init__()
        if patch < 1 or patch % 2 == 0:
            raise ValueError(f"patch must be odd, so that a pixel is its centre, got {patch}")
        if not widths or len(widths) != len(kernels):
            raise ValueError(
                f"widths and kernels must be as long, got {len(widths)} and {len(kernels)}"
            )
        if min(*widths, *kernels, *dense, per_image) < 1:
            raise ValueError("widths, kernels, dense and per_image must be at least 1")
        if border not in ("mirror", "zero"):
            raise ValueError(f'border must be "mirror" or "zero", got "{border}"')
        self.patch, self.per_image = patch, per_image
        self.balanced, self.mirrored, self.shared = balanced, border == "mirror", shared
        self.convs, side = nn.ModuleList(), patch
        for (given, made), kernel in zip(pairwise((in_channels, *widths)), kernels, strict=True):
            self.convs.append(Conv(given, made, kernel))
            side = (side - kernel + 1) // 2
            if side < 1:
                raise ValueError(f"a patch of {patch} is too small for the kernels {list(kernels)}")
        self.pool = Pool()
        sides = (side, *[1] * len(dense))
        units = pairwise((widths[-1], *dense, num_classes))
        self.dense = nn.ModuleList(
            Conv(given, made, kernel) for (given, made), kernel in zip(units, sides, strict=True)
        )
        self.largest = max(in_channels, widths[0]) * patch**2  # map of a window, in numbers

    def stages(self) -> Sequence[Stage]:
        return [GradientStage("train", self.window_loss, self.parameters, view=self.windows)]

    def windows(self, batch: Batch) -> Batch:
        """A batch of N images -> one of N * per_image windows, each with a mask of 1 x 1.

        They are drawn with torch's own generator, which the loop seeds for every step. An image
        without a labelled pixel gives windows without a label.
        """
        images, targets = batch.images, batch.targets
        assert targets.mask is not None, "segmentation needs the column `mask`"
        chosen = drawn(targets.mask, self.per_image, self.balanced)  # (N, per_image)
        width = targets.mask.shape[2]
        row = torch.arange(len(batch), device=chosen.device).repeat_interleave(self.per_image)
        y, x = (chosen // width).flatten(), (chosen % width).flatten()
        sides = torch.tensor(images.sizes, device=chosen.device)[row]  # (M, 2)
        pixels = self._cut(images.pixels, row, y, x, sides)
        size = (self.patch, self.patch)
        columns = (
            None if column is None else column[row, y, x][:, None, None]
            for column in (targets.mask, targets.pixel_weight)
        )
        mask, weight = columns
        return Batch(
            Images(pixels, [size] * len(row), [size] * len(row)),
            Targets(targets.image_id[row], mask=mask, pixel_weight=weight),
        )

    def window_loss(self, images: Images, targets: Targets) -> Losses:
        """The task's loss of windows (M, C, patch, patch) whose masks are (M, 1, 1)."""
        assert targets.mask is not None
        out = self.classify(images.pixels)
        # Balanced windows were drawn so that classes are as frequent as one another.
        weighted = not self.balanced
        return self._losses({"out": out}, targets.mask, targets.pixel_weight, weighted)

    def classify(self, windows: Tensor) -> Tensor:
        """(M, C, patch, patch) -> logits (M, K, 1, 1) of the centres."""
        for conv in self.convs:
            windows = self.pool(conv(windows).relu())
        return self._dense(windows, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        framed = self._framed(pixels)
        scan = self._scan if self.shared else self._one_by_one
        return scan(framed, (pixels.shape[2], pixels.shape[3]))

    def _scan(self, framed: Tensor, size: tuple[int, int]) -> Tensor:
        """All windows at once. Of the positions that a pooling with stride 2 would drop, each
        belongs to other windows, so that neighbours of one window are now ``dilation`` apart."""
        maps, dilation = framed, 1
        for conv in self.convs:
            maps = self.pool(conv(maps, dilation).relu(), dilation, stride=1)
            dilation *= 2
        # Where a pooling drops a window's last line, there is a line more than windows.
        return self._dense(maps, dilation)[..., : size[0], : size[1]]

    def _one_by_one(self, framed: Tensor, size: tuple[int, int]) -> Tensor:
        n = len(framed)
        views = framed.unfold(2, self.patch, 1).unfold(3, self.patch, 1)  # (N, C, H, W, p, p)
        places = torch.arange(n * size[0] * size[1], device=framed.device)
        scores = []
        for place in places.split(max(1, CHUNK // self.largest)):
            row, inside = place // (size[0] * size[1]), place % (size[0] * size[1])
            windows = views[row, :, inside // size[1], inside % size[1]]
            scores.append(self.classify(windows).flatten(1))
        return torch.cat(scores).view(n, *size, -1).permute(0, 3, 1, 2)

    def _dense(self, maps: Tensor, dilation: int) -> Tensor:
        *hidden, last = self.dense
        for layer in hidden:
            maps = layer(maps, dilation).relu()
        return last(maps, dilation)

    def _framed(self, pixels: Tensor) -> Tensor:
        """With half a window of what is outside the image on every side."""
        reach = self.patch // 2
        if not self.mirrored:
            return F.pad(pixels, (reach,) * 4)
        return mirror_pad(pixels, (reach, reach), (reach, reach))

    def _cut(self, pixels: Tensor, row: Tensor, y: Tensor, x: Tensor, sides: Tensor) -> Tensor:
        """(M, C, patch, patch): around pixel (y, x) of an image of (h, w) ``sides``, as framed."""
        reach = torch.arange(-(self.patch // 2), self.patch // 2 + 1, device=pixels.device)
        down, across = y[:, None] + reach, x[:, None] + reach  # (M, patch)
        high, wide = sides[:, :1], sides[:, 1:]
        lines, columns = mirrored(down, high), mirrored(across, wide)
        cut = pixels.permute(0, 2, 3, 1)[row[:, None, None], lines[:, :, None], columns[:, None]]
        if not self.mirrored:
            inside = ((down == lines)[:, :, None] & (across == columns)[:, None])[..., None]
            cut = cut * inside
        return cut.permute(0, 3, 1, 2)


class Conv(nn.Conv2d):
    """A convolution without padding whose dilation is given with its input."""

    def __init__(self, given: int, made: int, kernel: int) -> None:
        super().__init__(given, made, kernel)
        nn.init.kaiming_normal_(self.weight, nonlinearity="relu")
        assert self.bias is not None
        nn.init.zeros_(self.bias)

    def forward(self, input: Tensor, dilation: int = 1) -> Tensor:
        return F.conv2d(input, self.weight, self.bias, dilation=dilation)


class Pool(nn.Module):
    """2x2 max pooling whose dilation and stride are given with its input."""

    def forward(self, input: Tensor, dilation: int = 1, stride: int = 2) -> Tensor:
        return F.max_pool2d(input, 2, stride, dilation=dilation)


def drawn(mask: Tensor, count: int, balanced: bool) -> Tensor:
    """(N, H, W) uint8 -> (N, count): positions of labelled pixels in an image's H * W, repeated
    where there are few. ``balanced``: each class that an image has is equally likely."""
    classes = mask.flatten(1).long()
    labelled = classes != IGNORE
    weight = labelled.float()
    if balanced:
        pixels = weight.new_zeros(len(mask), IGNORE + 1).scatter_add_(1, classes, weight)
        weight = labelled / pixels.gather(1, classes).clamp(min=1)
    none = ~labelled.any(1, keepdim=True)  # any pixel then, all without a label
    return torch.multinomial(weight + none, count, replacement=True)
