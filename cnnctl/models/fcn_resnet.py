"""A fully convolutional network on a dilated ResNet, torchvision's: the head of Long, Shelhamer,
Darrell, "Fully convolutional networks for semantic segmentation", arXiv:1411.4038, grown to two
convolutions, on He et al., arXiv:1512.03385, with the last two strides dilated as Yu, Koltun,
Funkhouser, "Dilated residual networks", arXiv:1705.09914.

Differs from the paper: no skips and no transposed convolutions, bilinear upsampling by 8 instead;
an auxiliary head (Zhao et al., arXiv:1612.01105, section 3.3). torchvision's names of weights are
kept so that the published weights load.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from cnnctl.models.base import SegmentationModel
from cnnctl.models.torchvision_networks import AUXILIARY, head_scores, torchvision_network


class FCNResNet(SegmentationModel):
    """3x3 convolution, batch normalisation, ReLU, dropout, 1x1 convolution on a ResNet's maps at
    stride 8; torchvision's, in ``network``.

    Args:
        in_channels: C.
        num_classes: K.
        depth: of the ResNet.
        auxiliary: train a second head on the backbone's last map but one, with half the weight.
        weights: torchvision's of the whole network. For other classes than VOC's,
            ``classifier.4`` and ``aux_classifier.4`` start at random.
        backbone_weights: torchvision's of the backbone, where ``weights`` is None.
        classes: their names, by which a published head is known to be theirs.

    Raises:
        ValueError: the depth or the name of the weights is unknown, or both are given.
        UserError: the weights are not on this machine and cannot be downloaded.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        depth: Literal[50, 101] = 50,
        auxiliary: bool = True,
        weights: str | None = None,
        backbone_weights: str | None = None,
        classes: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        if depth not in (50, 101):
            raise ValueError(f"depth must be 50 or 101, got {depth}")
        backbone = f"resnet{depth}"
        self.network = torchvision_network(
            f"fcn_{backbone}",
            in_channels,
            num_classes,
            auxiliary,
            weights,
            backbone,
            backbone_weights,
            classes,
        )
        self.rebuilt = self.network.rebuilt
        self.auxiliary = {"aux": AUXILIARY} if auxiliary else {}

    def forward(self, pixels: Tensor) -> Tensor:
        return head_scores(self.network, pixels, ("out",))["out"]

    def outputs(self, pixels: Tensor) -> dict[str, Tensor]:
        return head_scores(self.network, pixels, ("out", *self.auxiliary))
