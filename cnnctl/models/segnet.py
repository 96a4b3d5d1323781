"""SegNet: Badrinarayanan, Kendall, Cipolla, "SegNet: a deep convolutional encoder-decoder
architecture for image segmentation", arXiv:1511.00561, section 3 and figures 2 and 3.

Differs from the paper: the convolutions have no biases where batch normalisation follows (it takes
them out again); the decoder's last convolution names the classes itself; the encoder starts at
random, as the decoder does, and not from VGG-16; the image is filled up with zeros, below and to
the right, to a multiple of 32. The paper's weights of classes by median frequency are
``task.class_weights=median``.
"""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from cnnctl.models.base import SegmentationModel
from cnnctl.ops.upsampling import MaxUnpool

_GROUPS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # VGG-16's channels and convolutions


class SegNet(SegmentationModel):
    """The 13 convolutions of VGG-16 and their mirror image; nothing but the positions of the
    poolings' maxima goes from one to the other.

    Args:
        in_channels: C.
        num_classes: K.
        width: factor of all channels; 1.0 is the paper's network.

    Raises:
        ValueError: the width is not positive.
    """

    def __init__(self, in_channels: int, num_classes: int, width: float = 1.0) -> None:
        super().__init__()
        if width <= 0:
            raise ValueError(f"width must be positive, got {width}")
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        self.pool, self.unpool = nn.MaxPool2d(2, return_indices=True), MaxUnpool(2)
        made = [max(1, round(channels * width)) for channels, _ in _GROUPS]
        before, after = [in_channels, *made], [num_classes, *made]
        for level, (_, count) in enumerate(_GROUPS):
            same = [made[level]] * count
            self.down.append(_group([before[level], *same]))
            self.up.insert(0, _group([*same, after[level]], scores=level == 0))

    def forward(self, pixels: Tensor) -> Tensor:
        h, w = pixels.shape[-2:]
        step = 1 << len(_GROUPS)
        maps = F.pad(pixels, (0, -w % step, 0, -h % step))
        places: list[Tensor] = []
        for group in self.down:
            maps, place = self.pool(group(maps))
            places.append(place)
        for group in self.up:
            maps = group(self.unpool(maps, places.pop()))
        return maps[..., :h, :w]


def _group(channels: list[int], scores: bool = False) -> nn.Sequential:
    """3x3 convolutions from each number of channels to the next; ``scores``: the last is bare."""
    layers: list[nn.Module] = []
    for number, (given, made) in enumerate(pairwise(channels), start=2):
        bare = scores and number == len(channels)
        conv = nn.Conv2d(given, made, 3, padding=1, bias=bare)
        nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")  # section 4.1: as He et al.
        layers += [conv] if bare else [conv, nn.BatchNorm2d(made), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)
