"""GoogLeNet: Szegedy, Liu, Jia et al., "Going deeper with convolutions", arXiv:1409.4842, table 1
and figure 3. Aims at the 10.07 % top-5 error on ImageNet of one network and one crop (table 3).

Differs from the paper: weights start as in He et al., arXiv:1502.01852, and small in the layers
that name the classes (the paper does not say how); the constants of the local response
normalisation are those of Krizhevsky et al. (NIPS 2012), which the paper leaves open. torchvision's
variant is model=googlenet_tv.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from cnnctl.models.auxiliary_heads import weighted_losses
from cnnctl.models.base import ClassificationModel, Losses
from cnnctl.ops.local_response import LocalResponse
from cnnctl.ops.map_sides import map_size
from cnnctl.structures import Images, Targets

# Table 1: maps of 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5 and pool proj.
_Widths = tuple[int, int, int, int, int, int]
_MODULES: dict[str, _Widths] = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}
_TAPS = ("inception_4a", "inception_4d")  # what the auxiliary heads see (section 5)
_HEAD = (128, 1024)  # maps and units of an auxiliary head


class GoogLeNet(ClassificationModel):
    """A stem, nine inception modules, global average pooling, dropout of 0.4, linear (K).

    Args:
        in_channels: C.
        num_classes: K.
        size: (h, w) of the input, 224 x 224 in the paper.
        auxiliary: share of the loss of each of the two auxiliary heads, which are trained with the
            network and unused afterwards; 0 leaves them out.
        dropout: probability of zeroing one of the 1024 pooled features.

    Raises:
        ValueError: the share or the dropout is out of range, or the input is too small.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        size: tuple[int, int],
        auxiliary: float = 0.3,
        dropout: float = 0.4,
    ) -> None:
        super().__init__()
        if auxiliary < 0:
            raise ValueError(f"auxiliary must be at least 0, got {auxiliary}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        self.auxiliary = auxiliary
        self.features = _features(in_channels)  # (N, 1024, 7, 7)
        map_size(self.features, size, "GoogLeNet")
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(_width("5b"), num_classes))
        self.heads = nn.ModuleList()
        if auxiliary:
            for tap in _TAPS:
                width = _width(tap.removeprefix("inception_"))
                h, w = map_size(
                    [*self._up_to(tap), nn.AvgPool2d(5, 3)],
                    size,
                    "GoogLeNet with auxiliary heads (auxiliary=0 has none)",
                )
                self.heads.append(_head(width, (h, w), num_classes))
        self.apply(_initialise)
        for name in self.class_layers():  # so that at first all classes are about equally likely
            nn.init.normal_(self.get_parameter(f"{name}.weight"), std=0.01)

    def class_layers(self) -> tuple[str, ...]:
        return ("classifier.1", *(f"heads.{i}.7" for i in range(len(self.heads))))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.classifier(self.features(pixels).mean((2, 3)))

    def outputs(self, pixels: Tensor) -> list[Tensor]:
        """Logits (N, K) of the main head and of both auxiliary ones."""
        taps, out = [], pixels
        for name, layer in self.features.named_children():
            out = layer(out)
            if name in _TAPS:
                taps.append(out)
        heads = [head(tap) for head, tap in zip(self.heads, taps, strict=True)]
        return [self.classifier(out.mean((2, 3))), *heads]

    def loss(self, images: Images, targets: Targets) -> Losses:
        if not (self.training and self.heads):
            return super().loss(images, targets)
        return weighted_losses(self.outputs(images.pixels), targets, self.auxiliary)

    def _up_to(self, tap: str) -> list[nn.Module]:
        layers = dict(self.features.named_children())
        return [layers[name] for name in list(layers)[: list(layers).index(tap) + 1]]


class Inception(nn.Module):
    """Figure 2 (b): 1x1, 1x1 - 3x3, 1x1 - 5x5 and 3x3 max pooling - 1x1, side by side.

    (N, ``inputs``, H, W) -> (N, sum of the four branches' maps, H, W).
    """

    def __init__(self, inputs: int, widths: _Widths) -> None:
        super().__init__()
        one, reduce3, three, reduce5, five, project = widths
        self.branch1 = _convolution(inputs, one, 1)
        self.branch3 = nn.Sequential(
            *_convolution(inputs, reduce3, 1), *_convolution(reduce3, three, 3)
        )
        self.branch5 = nn.Sequential(
            *_convolution(inputs, reduce5, 1), *_convolution(reduce5, five, 5)
        )
        self.branch_pool = nn.Sequential(
            nn.MaxPool2d(3, 1, padding=1), *_convolution(inputs, project, 1)
        )

    def forward(self, inputs: Tensor) -> Tensor:
        branches = (self.branch1, self.branch3, self.branch5, self.branch_pool)
        return torch.cat([branch(inputs) for branch in branches], 1)


def _width(module: str) -> int:
    """Maps that come out of a module: 256, 480, 512, ... in table 1."""
    one, _, three, _, five, project = _MODULES[module]
    return one + three + five + project


def _features(in_channels: int) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["conv1"] = nn.Conv2d(in_channels, 64, 7, 2, padding=3)  # (N, 64, 112, 112)
    layers["relu1"] = nn.ReLU(inplace=True)
    layers["pool1"] = _pool()  # (N, 64, 56, 56)
    layers["norm1"] = LocalResponse()
    layers["conv2_reduce"], layers["relu2_reduce"] = _convolution(64, 64, 1)
    layers["conv2"], layers["relu2"] = _convolution(64, 192, 3)
    layers["norm2"] = LocalResponse()
    layers["pool2"] = _pool()  # (N, 192, 28, 28)
    inputs = 192
    for number, (name, widths) in enumerate(_MODULES.items()):
        previous = list(_MODULES)[number - 1]
        if number and name[0] != previous[0]:  # (N, 480, 14, 14) and (N, 832, 7, 7)
            layers[f"pool{previous[0]}"] = _pool()
        layers[f"inception_{name}"] = Inception(inputs, widths)
        inputs = _width(name)
    return nn.Sequential(layers)


def _pool() -> nn.MaxPool2d:
    return nn.MaxPool2d(3, 2, ceil_mode=True)  # 112 pixels become 56


def _convolution(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2), nn.ReLU(inplace=True)
    )


def _head(width: int, side: tuple[int, int], num_classes: int) -> nn.Sequential:
    """Section 5: average pooling to (N, width, 4, 4), 1x1 convolution, two dense layers."""
    maps, units = _HEAD
    return nn.Sequential(
        nn.AvgPool2d(5, 3),
        *_convolution(width, maps, 1),
        nn.Flatten(),
        nn.Linear(maps * side[0] * side[1], units),
        nn.ReLU(inplace=True),
        nn.Dropout(0.7),
        nn.Linear(units, num_classes),
    )


def _initialise(module: nn.Module) -> None:
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        assert module.bias is not None
        nn.init.zeros_(module.bias)
