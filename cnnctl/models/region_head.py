"""A backbone cut in two: the layers to one map, and what says of a region of it what is there.

Girshick, "Fast R-CNN", arXiv:1504.08083, sections 2.1 and 2.3; with ResNet He et al.,
arXiv:1512.03385, appendix A.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from cnnctl.backbones.alexnet import AlexNet
from cnnctl.backbones.base import Backbone
from cnnctl.backbones.resnet import ResNet
from cnnctl.backbones.vgg import VGG
from cnnctl.models.one_stage import SMALL

Map = Literal["c3", "c4"]
BINS, FEW_BINS = 7, 4  # along a region's side that dense layers of one's own see; of small images
FEW_UNITS = (256, 256)  # of dense layers of one's own, of small images
# Numbers of pooled regions that go through the dense layers together. Each time the weights are
# made bf16 anew, which for few regions takes as long as the product.
CHUNK = 1 << 24


@dataclass
class Parts:
    trunk: nn.Sequential  # to the map
    channels: int  # of the map
    stride: int
    top: nn.Sequential  # from (B, channels, bins, bins) to (B, width)
    width: int
    bins: int


class RegionHead(nn.Module):
    """What a backbone has above the map, and two dense layers (Fast R-CNN, section 2.3)."""

    def __init__(self, top: nn.Module, width: int, num_classes: int) -> None:
        super().__init__()
        self.top = top
        self.cls_score = nn.Linear(width, num_classes + 1)
        self.bbox_pred = nn.Linear(width, num_classes * 4)
        for layer, deviation in ((self.cls_score, 0.01), (self.bbox_pred, 0.001)):
            nn.init.normal_(layer.weight, std=deviation)
            nn.init.zeros_(layer.bias)

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        return self.named(self.top(pooled))

    def named(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """(B, width) -> (B, K + 1) logits and (B, K, 4) deltas."""
        return self.cls_score(hidden), self.bbox_pred(hidden).unflatten(1, (-1, 4))


def parts_of(
    backbone: Backbone,
    size: tuple[int, int],
    model: str,
    at: Map = "c4",
    dense: Sequence[int] = (),
) -> Parts:
    """The layers to a map (VGG's and AlexNet's without the pooling that ends there) and the rest.

    The layers of AlexNet are padded by half their side, as Fast R-CNN's and SPP-net's own are, so
    that a map has a pixel for every ``stride`` pixels of the image. Its weights stay as they are.

    Args:
        size: (h, w) of the training input: of one below 256 regions have fewer bins, 7x7 for a
            ResNet's own layers and 4x4 for ``dense``.
        model: its name, for the message.
        at: "c4" is at stride 16, "c3" at stride 8.
        dense: units of layers that are above the map in place of the backbone's own; () is these.

    Raises:
        ValueError: the backbone is of another kind.
    """
    if isinstance(backbone, ResNet):
        parts = _parts_of_resnet(backbone, size, at)
    elif isinstance(backbone, VGG | AlexNet):
        parts = _parts_of_sequence(backbone, at, bool(dense))
    else:
        kind = type(backbone).__name__
        raise ValueError(f"{model} needs a VGG, AlexNet or a ResNet, got {kind}")
    if dense:
        parts.bins, parts.width = BINS if min(size) >= SMALL else FEW_BINS, dense[-1]
        parts.top = dense_layers(parts.channels * parts.bins**2, dense)
    return parts


def _parts_of_resnet(backbone: ResNet, size: tuple[int, int], at: Map) -> Parts:
    names = ["layer3", "layer4"] if at == "c3" else ["layer4"]
    above = OrderedDict((name, getattr(backbone, name)) for name in names)
    top = nn.Sequential(above | {"mean": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten()})
    bins = 14 if min(size) >= SMALL else 7
    channels, stride = backbone.channels[at], backbone.strides[at]
    return Parts(until(backbone, at), channels, stride, top, backbone.channels["c5"], bins)


def _parts_of_sequence(backbone: VGG | AlexNet, at: Map, replaced: bool) -> Parts:
    """Convolutions until a pooling; it, what follows but the last pooling, and the published dense
    layers."""
    layers = list(backbone.features)
    if isinstance(backbone, AlexNet):
        pad_by_half(layers)
    pools = [row for row, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d)]
    cut = pools[-2] if at == "c3" else pools[-1]
    channels = [layer.out_channels for layer in layers[:cut] if isinstance(layer, nn.Conv2d)][-1]
    trunk, stride = nn.Sequential(*layers[:cut]), backbone.strides[at]
    if replaced:  # by layers that are yet to be made
        return Parts(trunk, channels, stride, nn.Sequential(), 0, 0)
    dense = backbone.build_top()
    first, *_, last = (layer for layer in dense if isinstance(layer, nn.Linear))
    side = math.isqrt(first.in_features // backbone.channels[backbone.deepest])
    bins = 2 * side if at == "c3" else side  # a pooling is still to come
    top = nn.Sequential(*layers[cut : pools[-1]], *dense)
    return Parts(trunk, channels, stride, top, last.out_features, bins)


def pad_by_half(layers: Iterable[nn.Module]) -> None:
    """The smallest shift of its map against its input that each layer can have: He et al.,
    arXiv:1406.4729, appendix A."""
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            layer.padding = (layer.kernel_size[0] // 2, layer.kernel_size[1] // 2)
        elif isinstance(layer, nn.MaxPool2d):
            assert isinstance(layer.kernel_size, int)
            layer.padding = layer.kernel_size // 2


def until(backbone: ResNet, at: Map) -> nn.Sequential:
    """The layers from pixels to a map, by their names."""
    names = ["conv1", "bn1", "relu", "maxpool", "layer1", "layer2"]
    names += ["layer3"] if at == "c4" else []
    return nn.Sequential(OrderedDict((name, getattr(backbone, name)) for name in names))


def dense_layers(given: int, units: Sequence[int], dropout: float = 0.0) -> nn.Sequential:
    """(B, ...) of ``given`` numbers -> (B, units[-1]): dense layers with ReLU, and dropout."""
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in pairwise((given, *units)):
        layer = nn.Linear(inputs, outputs)
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)
        layers += [layer, nn.ReLU(inplace=True), *([nn.Dropout(dropout)] if dropout else [])]
    return nn.Sequential(*layers)


def centre_of(trunk: nn.Module) -> float:
    """Where the centre of what the first pixel of a map sees lies in the image, in pixels from the
    image's left (or upper) side, as boxes are; the next ones are a stride apart each."""
    place, step = 0.0, 1
    for name, layer in trunk.named_modules():
        if not isinstance(layer, nn.Conv2d | nn.MaxPool2d) or "downsample" in name:
            continue
        kernel, stride, padding = (
            int(value[0] if isinstance(value, tuple) else value)
            for value in (layer.kernel_size, layer.stride, layer.padding)
        )
        place += step * ((kernel - 1) / 2 - padding)
        step *= stride
    return place + 0.5  # the middle of a pixel


def parameters_of(*modules: nn.Module) -> Iterator[nn.Parameter]:
    """What a stage trains."""
    return (parameter for module in modules for parameter in module.parameters())
