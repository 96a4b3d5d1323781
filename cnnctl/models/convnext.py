"""ConvNeXt: Liu, Mao, Wu, Feichtenhofer, Darrell, Xie, "A ConvNet for the 2020s",
arXiv:2201.03545, section 3, by torchvision, whose names of weights are kept so that the published
ones load (tiny 82.5, small 83.6, base 84.1 % top-1; the paper 82.1, 83.1, 83.8 %, table 1).

Differs from the paper: nothing in the network; weights start as torchvision's do.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from cnnctl.models.base import ClassificationModel
from cnnctl.models.torchvision_classifiers import require, torchvision_classifier


class ConvNeXt(ClassificationModel):
    """4x4 patches, four stages of 7x7 depthwise blocks, average pooling, layer norm, linear (K).

    Args:
        in_channels: C.
        num_classes: K.
        size: (h, w) of the input, 224 x 224 in the paper.
        variant: tiny, small or base.
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
        variant: Literal["tiny", "small", "base"] = "tiny",
        weights: str | None = None,
        classes: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        if variant not in ("tiny", "small", "base"):
            raise ValueError(f'variant must be tiny, small or base, got "{variant}"')
        require("ConvNeXt", size)
        name = f"convnext_{variant}"
        network = torchvision_classifier(name, in_channels, num_classes, weights, classes)
        self.features, self.avgpool = network.features, network.avgpool
        self.classifier = network.classifier
        self.rebuilt = network.rebuilt

    def forward(self, pixels: Tensor) -> Tensor:
        return self.classifier(self.avgpool(self.features(pixels)))
