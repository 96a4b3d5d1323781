"""Any backbone with pooling and one linear layer: the shape of every ImageNet classifier since Lin,
Chen, Yan, "Network in network", arXiv:1312.4400, section 3.2 (global average pooling).

With backbone resnet18 to resnet152, plain18 or plain34 it is a network of He et al.,
arXiv:1512.03385, table 1 (torchvision's variant: see cnnctl/backbones/resnet.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from cnnctl.backbones.base import Backbone
from cnnctl.models.base import ClassificationModel
from cnnctl.models.published_classifiers import same_classes
from cnnctl.ops.score_maps import Trunk


class Classifier(ClassificationModel):
    """The backbone's deepest map, pooled to one vector, dropout, linear (K).

    Args:
        backbone: any; only its deepest map is used.
        num_classes: K.
        size: (h, w) of the input.
        pool: "avg" or "max" over all positions of the map.
        dropout: probability of zeroing a pooled feature (Srivastava et al., JMLR 15, 2014).
        classes: the data's; where they are those of the backbone's published weights, and ``pool``
            is "avg" as theirs, the linear layer is the published one too.

    Raises:
        ValueError: an argument is out of range, or the input is smaller than the total stride.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        size: tuple[int, int],
        pool: Literal["avg", "max"] = "avg",
        dropout: float = 0.0,
        classes: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if pool not in ("avg", "max"):
            raise ValueError(f'pool must be "avg" or "max", got "{pool}"')
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        backbone.require(size)
        self.backbone = backbone
        self.pool = pool
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(backbone.channels[backbone.deepest], num_classes)
        head, backbone.head = backbone.head, None
        if head and pool == "avg" and same_classes(head.categories, num_classes, classes):
            self.linear.load_state_dict({"weight": head.weight, "bias": head.bias})
            self.published = ("linear",)

    def features(self, pixels: Tensor) -> Tensor:
        """The backbone's deepest map, (N, C, h, w)."""
        return self.backbone(pixels)[self.backbone.deepest]

    def parts(self) -> tuple[Trunk, Sequence[nn.Module]]:
        pool = nn.AdaptiveAvgPool2d(1) if self.pool == "avg" else nn.AdaptiveMaxPool2d(1)
        return self.features, [pool, self.dropout, self.linear]

    def forward(self, pixels: Tensor) -> Tensor:
        features = self.features(pixels)
        # (N, C); the backward of amax is deterministic on CUDA, that of AdaptiveMaxPool2d is not
        pooled = features.mean((2, 3)) if self.pool == "avg" else features.amax((2, 3))
        return self.linear(self.dropout(pooled))
