"""VGG, columns A, A-LRN, B, C, D and E: Simonyan and Zisserman, "Very deep convolutional networks
for large-scale image recognition", arXiv:1409.1556, table 1. Aims at table 3: 29.6, 29.7, 28.7,
28.1, 27.0 and 27.3 % top-1 error at one scale (trained at 256, D and E 25.6 and 25.5 % with scale
jitter). A, B, D and E have torchvision's names of weights (vgg11, vgg13, vgg16, vgg19), so that the
published weights load.

Differs from the paper: convolutions start as in He et al., arXiv:1502.01852, which needs no
shallower network to be trained first; ``norm`` (Ioffe and Szegedy, arXiv:1502.03167) is not in it.
Differs from torchvision's: the first dense layer follows the size of the last map, which
torchvision pools or repeats to 7 x 7; from images of 224 x 224 that is its size.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Literal

from torch import Tensor, nn

from cnnctl.models.base import ClassificationModel
from cnnctl.models.published_classifiers import load_classifier
from cnnctl.ops.local_response import LocalResponse
from cnnctl.ops.map_sides import map_size

Column = Literal["A", "A-LRN", "B", "C", "D", "E"]

_WIDTHS = (64, 128, 256, 512, 512)  # maps of each group; a 2x2 max pooling follows it
# Sides of the filters of each group's convolutions.
_KERNELS: dict[Column, tuple[tuple[int, ...], ...]] = {
    "A": ((3,), (3,), (3, 3), (3, 3), (3, 3)),
    "A-LRN": ((3,), (3,), (3, 3), (3, 3), (3, 3)),
    "B": ((3, 3), (3, 3), (3, 3), (3, 3), (3, 3)),
    "C": ((3, 3), (3, 3), (3, 3, 1), (3, 3, 1), (3, 3, 1)),
    "D": ((3, 3), (3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3)),
    "E": ((3, 3), (3, 3), (3, 3, 3, 3), (3, 3, 3, 3), (3, 3, 3, 3)),
}
# torchvision's names.
_PUBLISHED: dict[Column, str] = {"A": "vgg11", "B": "vgg13", "D": "vgg16", "E": "vgg19"}


class VGG(ClassificationModel):
    """Five groups of convolutions, each pooled by two, and three dense layers.

    Args:
        in_channels: C.
        num_classes: K.
        size: (h, w) of the input, 224 x 224 in the paper, 32 x 32 at least.
        column: of table 1. A-LRN has AlexNet's normalisation after the first convolution; C has
            1x1 filters where D has 3x3 ones.
        norm: batch normalisation after each convolution (torchvision's vgg16_bn and so on).
        units: of each hidden dense layer.
        dropout: of those units.
        weights: a name of torchvision's, "IMAGENET1K_V1"; None starts at random.
        classes: the data's; with other than ImageNet's the last layer starts at random.

    Raises:
        ValueError: an argument is out of range, the image is too small, or there are no such
            weights or they do not fit.
        UserError: the weights are not on this machine and cannot be downloaded.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        size: tuple[int, int],
        column: Column = "D",
        norm: bool = False,
        units: int = 4096,
        dropout: float = 0.5,
        weights: str | None = None,
        classes: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if column not in _KERNELS:
            raise ValueError(f'column must be one of {", ".join(_KERNELS)}, got "{column}"')
        if units < 1:
            raise ValueError(f"units must be at least 1, got {units}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        if weights is not None and column not in _PUBLISHED:
            raise ValueError(f"there are no published weights of VGG {column}, only of A, B, D, E")
        if weights == "IMAGENET1K_FEATURES":  # for pixels from 0 to 255, its dense layers are NaN
            raise ValueError(f'weights "{weights}" have no dense layers: take IMAGENET1K_V1')
        self.features = nn.Sequential(*_convolutions(in_channels, column, norm))
        height, width = map_size(self.features, size, "VGG")
        layers = [
            *(nn.Linear(_WIDTHS[-1] * height * width, units), nn.ReLU(inplace=True)),
            nn.Dropout(dropout),
            *(nn.Linear(units, units), nn.ReLU(inplace=True), nn.Dropout(dropout)),
            nn.Linear(units, num_classes),
        ]
        # torchvision flattens outside of the layers that it counts.
        named = [("flatten", nn.Flatten()), *((str(i), layer) for i, layer in enumerate(layers))]
        self.classifier = nn.Sequential(OrderedDict(named))
        self.apply(_initialise)
        if weights is not None:
            name = f"{_PUBLISHED[column]}{'_bn' if norm else ''}"
            fits = "4096 units and images of 224 x 224 (a last map of 7 x 7)"
            self.rebuilt = load_classifier(self, name, weights, num_classes, classes, fits=fits)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.classifier(self.features(pixels))


def _convolutions(given: int, column: Column, norm: bool) -> Iterator[nn.Module]:
    """3x3 (or 1x1) convolutions that keep the size, with ReLU; pooling after each group."""
    first = True
    for kernels, width in zip(_KERNELS[column], _WIDTHS, strict=True):
        for kernel in kernels:
            yield nn.Conv2d(given, width, kernel, padding=kernel // 2)
            if norm:
                yield nn.BatchNorm2d(width)
            yield nn.ReLU(inplace=True)
            if first and column == "A-LRN":
                yield LocalResponse()
            first = False
            given = width
        yield nn.MaxPool2d(2)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.01)
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        assert module.bias is not None
        nn.init.zeros_(module.bias)
