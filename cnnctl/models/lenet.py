"""LeNet-5: LeCun, Bottou, Bengio, Haffner, "Gradient-based learning applied to document
recognition", Proc. IEEE 86(11), 1998, section II.B and figure 2. Aims at the 0.95 % test error on
MNIST of its figure 9 (0.8 % with distortions).

Differs from the paper: ReLU for the scaled tanh, max pooling for the trainable average, all 6 maps
connected to all 16 (the paper's table 1 connects some), a linear layer and cross-entropy for the
radial basis output; MNIST's 28 x 28 are enlarged to 32 x 32, not centred in them.
"""

from __future__ import annotations

from torch import Tensor, nn

from cnnctl.models.base import ClassificationModel


class LeNet(ClassificationModel):
    """conv 5x5 (6) - pool - conv 5x5 (16) - pool - conv 5x5 (120) - fc (84) - fc (K).

    Args:
        in_channels: 1 for grey, 3 for colour.
        num_classes: K.
        size: (h, w) of the input; 32 x 32 in the paper, other sizes change the layer to 120.

    Raises:
        ValueError: the input is too small for the three convolutions.
    """

    def __init__(self, in_channels: int, num_classes: int, size: tuple[int, int]) -> None:
        super().__init__()
        if min(size) < 32:
            raise ValueError(f"LeNet-5 needs images of at least 32 x 32, got {size[0]} x {size[1]}")
        height, width = (((side - 4) // 2 - 4) // 2 for side in size)
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, 6, 5),  # C1 (N, 6, 28, 28)
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),  # S2 (N, 6, 14, 14)
            nn.Conv2d(6, 16, 5),  # C3 (N, 16, 10, 10)
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),  # S4 (N, 16, 5, 5)
        )
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(16 * height * width, 120),  # C5: a 5x5 convolution over a 5x5 map
            nn.ReLU(inplace=True),
            nn.Linear(120, 84),  # F6
            nn.ReLU(inplace=True),
            nn.Linear(84, num_classes),
        )

    def forward(self, pixels: Tensor) -> Tensor:
        return self.classifier(self.features(pixels))
