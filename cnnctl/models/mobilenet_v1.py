"""MobileNet: Howard, Zhu, Chen et al., "MobileNets: efficient convolutional neural networks for
mobile vision applications", arXiv:1704.04861, table 1. Aims at 70.6 % top-1 on ImageNet with 4.2
million parameters and 569 million multiply-adds (table 4); its resolution multiplier is
augmentation.size (table 7: 224, 192, 160, 128).

Differs from the paper: the last depthwise convolution, which table 1 gives stride 2 at equal map
sizes, has stride 1; weights start as in He et al., arXiv:1502.01852, which the paper leaves open.
"""

from __future__ import annotations

from torch import Tensor, nn

from cnnctl.models.base import ClassificationModel
from cnnctl.models.torchvision_classifiers import require

_STEM = 32  # maps
_LAYERS = (  # maps of the 1x1 and stride of the depthwise convolution before it
    *((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)),
    *[(512, 1)] * 5,
    *((1024, 2), (1024, 1)),
)


class MobileNetV1(ClassificationModel):
    """3x3 convolution, 13 depthwise separable ones, global average pooling, linear (K).

    Args:
        in_channels: C.
        num_classes: K.
        size: (h, w) of the input, 224 x 224 in the paper.
        width: multiplier of all maps (the paper's alpha: 1, 0.75, 0.5, 0.25).
        dropout: probability of zeroing one of the pooled features.

    Raises:
        ValueError: a number is out of range, or the input is too small.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        size: tuple[int, int],
        width: float = 1.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if width * _STEM < 1:
            raise ValueError(f"width must be at least 1/{_STEM}, got {width}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        require("MobileNet", size)
        inputs = int(_STEM * width)
        layers: list[nn.Module] = [
            nn.Sequential(
                nn.Conv2d(in_channels, inputs, 3, 2, padding=1, bias=False),
                nn.BatchNorm2d(inputs),
                nn.ReLU(inplace=True),
            )
        ]
        for maps, stride in _LAYERS:
            outputs = int(maps * width)
            layers.append(_separable(inputs, outputs, stride))
            inputs = outputs
        self.features = nn.Sequential(*layers)  # (N, 1024 * width, 7, 7)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(inputs, num_classes))
        self.apply(_initialise)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.classifier(self.features(pixels).mean((2, 3)))


def _separable(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """Figure 3, right: 3x3 of each map alone, then 1x1 of all; both with batch norm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, inputs, 3, stride, padding=1, groups=inputs, bias=False),
        nn.BatchNorm2d(inputs),
        nn.ReLU(inplace=True),
        nn.Conv2d(inputs, outputs, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def _initialise(module: nn.Module) -> None:
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
