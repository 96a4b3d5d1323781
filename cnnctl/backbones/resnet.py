"""ResNet-18, 34, 50, 101 and 152: He, Zhang, Ren, Sun, "Deep residual learning for image
recognition", arXiv:1512.03385, table 1, by torchvision, whose names of weights are kept so that the
published weights load.

Differs from the paper: from ResNet-50 on the stride is in a block's 3x3 convolution and not in its
first 1x1 ("v1.5", torchvision's variant); ``small_input`` is not in the paper.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from cnnctl.backbones.base import Backbone, Head, published_weights
from cnnctl.ops.batch_norm_relu import batch_norm_relu

_NAMES = ("c2", "c3", "c4", "c5")


class ResNet(Backbone):
    """Maps c2, c3, c4, c5 at strides 4, 8, 16, 32 (1, 2, 4, 8 with ``small_input``).

    Args:
        depth: 18 or 34 (two 3x3 convolutions a block), or 50, 101, 152 (bottlenecks).
        in_channels: C of the pixels. With other than 3 and ``weights``, each channel gets an equal
            share of the published filters' sum, so that an image whose channels are all the same
            has the response of the grey image with three.
        weights: a name of torchvision's, for example "IMAGENET1K_V1"; None starts at random.
        small_input: a 3x3 stem of stride 1 without pooling, for images of about 32 x 32; the stem
            starts at random whatever ``weights``.

    Raises:
        ValueError: the depth or the name of the weights is unknown.
        UserError: the weights are not on this machine and cannot be downloaded.
    """

    def __init__(
        self,
        depth: Literal[18, 34, 50, 101, 152],
        in_channels: int = 3,
        weights: str | None = None,
        small_input: bool = False,
    ) -> None:
        super().__init__()
        if depth not in (18, 34, 50, 101, 152):
            raise ValueError(f"depth must be 18, 34, 50, 101 or 152, got {depth}")
        from torchvision.models import get_model, get_model_weights

        from cnnctl.backbones.residual_blocks import fuse

        entries = get_model_weights(f"resnet{depth}").__members__
        if weights is not None and weights not in entries:
            names = ", ".join(entries)
            raise ValueError(f'weights must be null or one of {names}, got "{weights}"')
        network: Any = get_model(f"resnet{depth}", weights=None)
        fuse(network)
        self.published = weights is not None
        if weights is not None:
            network.load_state_dict(published_weights(entries[weights].value))
            if not small_input:
                fc, categories = network.fc, entries[weights].value.meta["categories"]
                self.head = Head(fc.weight.detach(), fc.bias.detach(), tuple(categories))
        self.conv1 = _stem(network.conv1, in_channels, small_input, weights is not None)
        self.bn1, self.relu = network.bn1, network.relu
        self.maxpool = nn.Identity() if small_input else network.maxpool
        self.layer1, self.layer2 = network.layer1, network.layer2
        self.layer3, self.layer4 = network.layer3, network.layer4
        wider = network.fc.in_features // 512
        first = 1 if small_input else 4
        self.channels = {name: 64 * wider << i for i, name in enumerate(_NAMES)}
        self.strides = {name: first << i for i, name in enumerate(_NAMES)}

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        out = self.maxpool(batch_norm_relu(self.bn1, self.conv1(pixels)))
        maps = {}
        for name, group in zip(_NAMES, self._groups(), strict=True):
            out = maps[name] = group(out)
        return maps

    def _groups(self) -> tuple[nn.Module, ...]:
        return self.layer1, self.layer2, self.layer3, self.layer4


def _stem(conv: nn.Conv2d, in_channels: int, small_input: bool, trained: bool) -> nn.Conv2d:
    """torchvision's first convolution for other inputs than 224 x 224 in colour."""
    if in_channels == 3 and not small_input:
        return conv
    kernel, stride, padding = (3, 1, 1) if small_input else (7, 2, 3)
    stem = nn.Conv2d(in_channels, conv.out_channels, kernel, stride, padding, bias=False)
    nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")  # as torchvision's
    if trained and not small_input:
        with torch.no_grad():
            stem.weight.copy_(conv.weight.sum(1, keepdim=True) / in_channels)
    return stem
