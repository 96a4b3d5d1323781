"""Convolution at full resolution: no pooling, no stride, every map as large as the image. The plain
network that the others are set against; its nearest relative in print is Pinheiro and Collobert,
"Recurrent convolutional neural networks for scene labeling", arXiv:1306.2795.

Differs from the paper: no pooling, no recurrence; batch normalisation (Ioffe and Szegedy,
arXiv:1502.03167).

A position sees 1 + depth * (kernel - 1) pixels a side: 17 after 8 layers of 3x3. "Where" is kept,
"what" is not reached: the 212 pixels that VGG-16's poolings and convolutions see would take 106
such layers. And every layer works on every pixel: with 64 channels a layer of 3x3 takes 74 kFLOPs
and 256 bytes of activations a pixel.
"""

from __future__ import annotations

from torch import Tensor, nn

from cnnctl.models.base import SegmentationModel


class FullResolution(SegmentationModel):
    """``depth`` convolutions of stride 1 with ReLU, then a 1x1 convolution to the classes.

    Args:
        in_channels: C.
        num_classes: K.
        depth: convolutions before the last.
        width: their channels.
        kernel: their side, odd, padded with zeros to keep the size.
        norm: batch normalisation after each of them.

    Raises:
        ValueError: a number is out of range.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        depth: int = 8,
        width: int = 32,
        kernel: int = 3,
        norm: bool = True,
    ) -> None:
        super().__init__()
        if min(depth, width) < 1:
            raise ValueError(f"depth and width must be at least 1, got {depth} and {width}")
        if kernel < 1 or kernel % 2 == 0:
            raise ValueError(f"kernel must be odd, so that the size is kept, got {kernel}")
        layers: list[nn.Module] = []
        for given in (in_channels, *[width] * (depth - 1)):
            conv = nn.Conv2d(given, width, kernel, padding=kernel // 2, bias=not norm)
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            layers += [conv, *([nn.BatchNorm2d(width)] if norm else []), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers)
        self.classify = nn.Conv2d(width, num_classes, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.classify(self.layers(pixels))
