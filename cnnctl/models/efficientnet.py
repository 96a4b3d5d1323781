"""EfficientNet: Tan and Le, "EfficientNet: rethinking model scaling for convolutional neural
networks", arXiv:1905.11946, tables 1 and 2, by torchvision, whose names of weights are kept so that
the published ones load (B0 77.7 % to B7 84.1 % top-1; the paper 77.1 to 84.3 %).

Differs from the paper: nothing in the network. Its resolutions are in the YAML files, 224 for B0 to
600 for B7; torchvision's weights of B2 were made for 288, not 260.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from cnnctl.models.base import ClassificationModel
from cnnctl.models.torchvision_classifiers import require, torchvision_classifier

_VARIANTS = tuple(f"b{number}" for number in range(8))


class EfficientNet(ClassificationModel):
    """Mobile inverted bottlenecks with squeeze-and-excitation and swish, scaled in width, depth and
    resolution at once; average pooling, dropout, linear (K).

    Args:
        in_channels: C.
        num_classes: K.
        size: (h, w) of the input.
        variant: b0 to b7.
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
        variant: Literal["b0", "b1", "b2", "b3", "b4", "b5", "b6", "b7"] = "b0",
        weights: str | None = None,
        classes: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        if variant not in _VARIANTS:
            raise ValueError(f'variant must be one of {", ".join(_VARIANTS)}, got "{variant}"')
        require("EfficientNet", size)
        name = f"efficientnet_{variant}"
        network = torchvision_classifier(name, in_channels, num_classes, weights, classes)
        self.features, self.classifier = network.features, network.classifier
        self.rebuilt = network.rebuilt

    def forward(self, pixels: Tensor) -> Tensor:
        return self.classifier(self.features(pixels).mean((2, 3)))
