"""AlexNet: Krizhevsky, Sutskever, Hinton, "ImageNet classification with deep convolutional neural
networks", NIPS 2012, section 3 and figure 2. Aims at the 18.2 % top-5 error of one network on
ImageNet's validation images (table 2); about 60 million parameters.

Differs from the paper: one device, so that what it splits between two GPUs are groups of
convolutions; images of 227 x 227, of which 55 x 55 positions of the first filters come out, where
the paper says 224 x 224 (any size from 67 x 67 will do, and the dense layers follow).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from cnnctl.models.base import ClassificationModel
from cnnctl.ops.local_response import LocalResponse
from cnnctl.ops.map_sides import map_size

_UNITS = 4096  # of each hidden dense layer
_ONES = (1, 3, 4)  # convolutions whose biases start at 1: the second, fourth and fifth


class AlexNet(ClassificationModel):
    """Five convolutions (96, 256, 384, 384, 256 maps), pooled after 1, 2 and 5, and three dense
    layers.

    Args:
        in_channels: C.
        num_classes: K.
        size: (h, w) of the input, 227 x 227 for maps of the paper's sizes.
        groups: halves of the maps that do not see each other in convolutions 2, 4 and 5; 1 joins
            them, which has 62.4 million parameters.
        pool: side of the max pooling's windows at stride 2: 3 overlaps, 2 does not (section 3.4).
        normalise: local response normalisation after layers 1 and 2 (section 3.3).
        dropout: of the hidden dense units (section 4.2).

    Raises:
        ValueError: a number is out of range, or the image is too small.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        size: tuple[int, int],
        groups: int = 2,
        pool: int = 3,
        normalise: bool = True,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        if groups < 1 or any(maps % groups for maps in (96, 256, 384)):
            raise ValueError(f"groups must divide the 96, 256 and 384 maps, got {groups}")
        if pool not in (2, 3):
            raise ValueError(f"pool must be 2 or 3, got {pool}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")

        def norm() -> list[nn.Module]:
            return [LocalResponse()] if normalise else []

        self.features = nn.Sequential(
            *(nn.Conv2d(in_channels, 96, 11, stride=4), nn.ReLU(inplace=True)),  # (N, 96, 55, 55)
            *(*norm(), nn.MaxPool2d(pool, 2)),  # (N, 96, 27, 27)
            *(nn.Conv2d(96, 256, 5, padding=2, groups=groups), nn.ReLU(inplace=True)),
            *(*norm(), nn.MaxPool2d(pool, 2)),  # (N, 256, 13, 13)
            *(nn.Conv2d(256, 384, 3, padding=1), nn.ReLU(inplace=True)),
            *(nn.Conv2d(384, 384, 3, padding=1, groups=groups), nn.ReLU(inplace=True)),
            *(nn.Conv2d(384, 256, 3, padding=1, groups=groups), nn.ReLU(inplace=True)),
            nn.MaxPool2d(pool, 2),  # (N, 256, 6, 6)
        )
        height, width = map_size(self.features, size, "AlexNet")
        self.classifier = nn.Sequential(
            nn.Flatten(),
            *(nn.Linear(256 * height * width, _UNITS), nn.ReLU(inplace=True), nn.Dropout(dropout)),
            *(nn.Linear(_UNITS, _UNITS), nn.ReLU(inplace=True), nn.Dropout(dropout)),
            nn.Linear(_UNITS, num_classes),
        )
        self._initialise()

    def forward(self, pixels: Tensor) -> Tensor:
        return self.classifier(self.features(pixels))

    def _initialise(self) -> None:
        """Weights normal of deviation 0.01, biases 1 where ReLUs would start without input, else 0
        (section 5)."""
        convolutions = [layer for layer in self.features if isinstance(layer, nn.Conv2d)]
        dense = [layer for layer in self.classifier if isinstance(layer, nn.Linear)]
        ones = [*(convolutions[i] for i in _ONES), *dense[:-1]]
        for layer in cast(Sequence[nn.Conv2d], [*convolutions, *dense]):
            nn.init.normal_(layer.weight, std=0.01)
            assert layer.bias is not None
            nn.init.constant_(layer.bias, float(any(layer is other for other in ones)))
