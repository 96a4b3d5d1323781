"""MobileNetV3: Howard, Sandler, Chu et al., "Searching for MobileNetV3", arXiv:1905.02244, tables 1
and 2, by torchvision, whose names of weights are kept so that the published ones load (large 75.3 %
top-1 with IMAGENET1K_V2, small 67.7 %; the paper 75.2 and 67.4 %, table 3).

Differs from the paper: the layer after the pooling is dense, which is the same as its 1x1
convolution; momentum and epsilon of the normalisation are torchvision's.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from cnnctl.models.base import ClassificationModel
from cnnctl.models.torchvision_classifiers import require, torchvision_classifier


class MobileNetV3(ClassificationModel):
    """Inverted residual blocks with squeeze-and-excitation and hard swish, average pooling, a dense
    layer, dropout of 0.2, linear (K).

    Args:
        in_channels: C.
        num_classes: K.
        size: (h, w) of the input, 224 x 224 in the paper.
        variant: table 1's or table 2's layers.
        weights: torchvision's, by name; for other than the published classes the last layer starts
            at random.
        classes: their names, by which a published head is known to be theirs.

    Attributes:
        rebuilt: the layers that start at random in spite of ``weights``, by name.

    Raises:
        ValueError: the variant or the name of the weights is unknown, or the input is too small.
        UserError: the weights are not on this machine and cannot be downloaded.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        size: tuple[int, int],
        variant: Literal["large", "small"] = "large",
        weights: str | None = None,
        classes: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        if variant not in ("large", "small"):
            raise ValueError(f'variant must be large or small, got "{variant}"')
        require("MobileNetV3", size)
        name = f"mobilenet_v3_{variant}"
        network = torchvision_classifier(name, in_channels, num_classes, weights, classes)
        self.features, self.classifier = network.features, network.classifier
        self.rebuilt = network.rebuilt

    def forward(self, pixels: Tensor) -> Tensor:
        return self.classifier(self.features(pixels).mean((2, 3)))
