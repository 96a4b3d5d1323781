"""DeepLabV3: Chen, Papandreou, Schroff, Adam, "Rethinking atrous convolution for semantic image
segmentation", arXiv:1706.05587, section 3 and figure 5, by torchvision, whose names of weights are
kept so that the published weights load.

Differs from the paper: output stride 8 (16 with MobileNetV3) in training too, rates 12, 24, 36 at
both strides; no multi-grid; one 3x3 convolution more before the classes; dropout of
0.5 after the pyramid; an auxiliary head (Zhao et
al., arXiv:1612.01105, section 3.3).
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from cnnctl.models.base import SegmentationModel
from cnnctl.models.torchvision_networks import AUXILIARY, head_scores, torchvision_network


class DeepLabV3(SegmentationModel):
    """Atrous spatial pyramid pooling on a dilated backbone; torchvision's, in ``network``.

    Args:
        in_channels: C.
        num_classes: K.
        variant: the backbone.
        auxiliary: train a second head with half the weight, on ResNet's last map but one or on
            MobileNetV3's fourth block, at stride 8.
        weights: torchvision's of the whole network. For other classes than VOC's,
            ``classifier.4`` and ``aux_classifier.4`` start at random.
        backbone_weights: torchvision's of the backbone, where ``weights`` is None.
        classes: their names, by which a published head is known to be theirs.

    Raises:
        ValueError: the variant or the name of the weights is unknown, or both are given.
        UserError: the weights are not on this machine and cannot be downloaded.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        variant: Literal["resnet50", "resnet101", "mobilenet_v3_large"] = "resnet50",
        auxiliary: bool = True,
        weights: str | None = None,
        backbone_weights: str | None = None,
        classes: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        if variant not in ("resnet50", "resnet101", "mobilenet_v3_large"):
            raise ValueError(
                f'variant must be resnet50, resnet101 or mobilenet_v3_large, got "{variant}"'
            )
        self.network = torchvision_network(
            f"deeplabv3_{variant}",
            in_channels,
            num_classes,
            auxiliary,
            weights,
            variant,
            backbone_weights,
            classes,
        )
        self.rebuilt = self.network.rebuilt
        pooling = self.network.classifier[0].convs[-1]
        pooling[2] = PooledNorm.of(pooling[2])
        self.auxiliary = {"aux": AUXILIARY} if auxiliary else {}

    def forward(self, pixels: Tensor) -> Tensor:
        return head_scores(self.network, pixels, ("out",))["out"]

    def outputs(self, pixels: Tensor) -> dict[str, Tensor]:
        return head_scores(self.network, pixels, ("out", *self.auxiliary))


class PooledNorm(nn.BatchNorm2d):
    """Batch normalisation of one value a channel and image: (N, C, 1, 1).

    One image alone has no statistics: less its own mean, every channel would be 0, and torch
    refuses. Such a batch is normalised by the running statistics and leaves them as they are.
    """

    @classmethod
    def of(cls, norm: nn.BatchNorm2d) -> PooledNorm:
        own = cls(norm.num_features, norm.eps, norm.momentum)
        own.load_state_dict(norm.state_dict())
        return own

    def forward(self, input: Tensor) -> Tensor:
        if len(input) > 1 or not self.training:
            return super().forward(input)
        mean, var = self.running_mean, self.running_var
        return F.batch_norm(input, mean, var, self.weight, self.bias, eps=self.eps)
