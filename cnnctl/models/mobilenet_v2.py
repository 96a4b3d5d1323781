"""MobileNetV2: Sandler, Howard, Zhu et al., "MobileNetV2: inverted residuals and linear
bottlenecks", arXiv:1801.04381, table 2, by torchvision, whose names of weights are kept so that the
published ones load (72.2 % top-1 with IMAGENET1K_V2; the paper 72.0 %, table 4).

Differs from the paper: nothing in the network of width 1; of other widths torchvision's multiples
of 8, and at least 1280 maps at the end, as the paper has for widths above 1.
"""

from __future__ import annotations

from torch import Tensor

from cnnctl.models.base import ClassificationModel
from cnnctl.models.torchvision_classifiers import require, torchvision_classifier


class MobileNetV2(ClassificationModel):
    """Inverted residual blocks to 1280 maps, average pooling, dropout of 0.2, linear (K).

    Args:
        in_channels: C.
        num_classes: K.
        size: (h, w) of the input, 224 x 224 in the paper.
        width: multiplier of the maps (table 4: 1 and 1.4).
        weights: torchvision's, by name, for width 1; for other than the published classes the last
            layer starts at random.
        classes: their names, by which a published head is known to be theirs.

    Attributes:
        rebuilt: the layers that start at random in spite of ``weights``, by name.

    Raises:
        ValueError: the width is out of range, the input too small, or weights do not fit.
        UserError: the weights are not on this machine and cannot be downloaded.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        size: tuple[int, int],
        width: float = 1.0,
        weights: str | None = None,
        classes: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        if width <= 0:
            raise ValueError(f"width must be above 0, got {width}")
        require("MobileNetV2", size)
        network = torchvision_classifier(
            *("mobilenet_v2", in_channels, num_classes, weights, classes),
            fits="width=1",
            width_mult=width,
        )
        self.features, self.classifier = network.features, network.classifier
        self.rebuilt = network.rebuilt

    def forward(self, pixels: Tensor) -> Tensor:
        return self.classifier(self.features(pixels).mean((2, 3)))
