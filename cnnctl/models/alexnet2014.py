"""AlexNet in one tower: Krizhevsky, "One weird trick for parallelizing convolutional neural
networks", arXiv:1404.5997, section 5. It is torchvision's `alexnet` under its names, so that the
published weights load (56.5 % top-1 of ImageNet's validation images).

Differs from the paper: the maps of torchvision, 64, 192, 384, 256, 256 (384 in the paper's fourth
convolution); torch's own initial weights. Differs from torchvision's: the first dense layer follows
the size of the last map, which torchvision pools or repeats to 6 x 6; from images of 224 x 224 that
is its size.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn

from cnnctl.models.base import ClassificationModel
from cnnctl.models.published_classifiers import load_classifier
from cnnctl.ops.map_sides import map_size

_UNITS = 4096  # of each hidden dense layer


class AlexNet2014(ClassificationModel):
    """Five convolutions, pooled after 1, 2 and 5, no normalisation; three dense layers.

    Args:
        in_channels: C.
        num_classes: K.
        size: (h, w) of the input, 224 x 224 in the paper.
        dropout: of what goes into the two hidden dense layers.
        weights: a name of torchvision's, "IMAGENET1K_V1"; None starts at random.
        classes: the data's; with other than ImageNet's the last layer starts at random.

    Raises:
        ValueError: a number is out of range, the image is too small, or the weights do not fit.
        UserError: the weights are not on this machine and cannot be downloaded.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        size: tuple[int, int],
        dropout: float = 0.5,
        weights: str | None = None,
        classes: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        self.features = nn.Sequential(
            *(nn.Conv2d(in_channels, 64, 11, stride=4, padding=2), nn.ReLU(inplace=True)),
            nn.MaxPool2d(3, 2),  # (N, 64, 27, 27)
            *(nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(inplace=True)),
            nn.MaxPool2d(3, 2),  # (N, 192, 13, 13)
            *(nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(inplace=True)),
            *(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(inplace=True)),
            *(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(inplace=True)),
            nn.MaxPool2d(3, 2),  # (N, 256, 6, 6)
        )
        height, width = map_size(self.features, size, "AlexNet (2014)")
        layers = [
            *(nn.Dropout(dropout), nn.Linear(256 * height * width, _UNITS), nn.ReLU(inplace=True)),
            *(nn.Dropout(dropout), nn.Linear(_UNITS, _UNITS), nn.ReLU(inplace=True)),
            nn.Linear(_UNITS, num_classes),
        ]
        # torchvision flattens outside of the layers that it counts.
        named = [("flatten", nn.Flatten()), *((str(i), layer) for i, layer in enumerate(layers))]
        self.classifier = nn.Sequential(OrderedDict(named))
        if weights is not None:
            fits = "images of 224 x 224 (a last map of 6 x 6): set augmentation.size=224"
            self.rebuilt = load_classifier(
                self, "alexnet", weights, num_classes, classes, fits=fits
            )

    def forward(self, pixels: Tensor) -> Tensor:
        return self.classifier(self.features(pixels))
