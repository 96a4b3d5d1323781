"""Lite R-ASPP on MobileNetV3-Large: Howard et al., "Searching for MobileNetV3", arXiv:1905.02244,
section 6.4 and figure 10, by torchvision, whose names of weights are kept so that the published
weights load.

Differs from the paper: the pooling in the upper branch is over the whole map, not over windows of
49 x 49 with stride (16, 20); the last block of the backbone keeps its full width.
"""

from __future__ import annotations

from torch import Tensor

from cnnctl.models.base import SegmentationModel
from cnnctl.models.torchvision_networks import torchvision_network


class LRASPP(SegmentationModel):
    """Maps at stride 16, weighed by a pooled branch, plus a 1x1 convolution of those at stride 8;
    torchvision's, in ``network``.

    Args:
        in_channels: C.
        num_classes: K.
        weights: torchvision's of the whole network. For other classes than VOC's,
            ``classifier.low_classifier`` and ``classifier.high_classifier`` start at random.
        backbone_weights: torchvision's of the backbone, where ``weights`` is None.
        classes: their names, by which a published head is known to be theirs.

    Raises:
        ValueError: the name of the weights is unknown, or both are given.
        UserError: the weights are not on this machine and cannot be downloaded.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        weights: str | None = None,
        backbone_weights: str | None = None,
        classes: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        backbone = "mobilenet_v3_large"
        self.network = torchvision_network(
            f"lraspp_{backbone}",
            in_channels,
            num_classes,
            False,
            weights,
            backbone,
            backbone_weights,
            classes,
        )
        self.rebuilt = self.network.rebuilt

    def forward(self, pixels: Tensor) -> Tensor:
        return self.network(pixels)["out"]
