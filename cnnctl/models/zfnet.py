"""ZFNet: Zeiler and Fergus, "Visualizing and understanding convolutional networks",
arXiv:1311.2901, figure 3. Aims at the 16.5 % top-5 error of one network on ImageNet's validation
images (table 2), 1.7 points less than AlexNet.

Differs from the paper: it does not say the constants of its contrast normalisation across maps,
which are AlexNet's here; filters whose root mean square exceeds 0.1 are not scaled back to it
during training. A padding of 1 in the first convolution, and poolings that keep an incomplete last
window, give the figure's maps of 110, 55, 26, 13 and 6 pixels.
"""

from __future__ import annotations

from torch import Tensor, nn

from cnnctl.models.base import ClassificationModel
from cnnctl.ops.local_response import LocalResponse
from cnnctl.ops.map_sides import map_size

_UNITS = 4096  # of each hidden dense layer


class ZFNet(ClassificationModel):
    """Five convolutions, the first 7x7 at stride 2, pooled after 1, 2 and 5; three dense layers.

    Args:
        in_channels: C.
        num_classes: K.
        size: (h, w) of the input, 224 x 224 in the paper; the first dense layer follows.
        widths: maps of each convolution; 96, 256, 512, 1024, 512 is its larger model (table 2).
        normalise: contrast normalisation across maps after the first two poolings.
        dropout: of the hidden dense units.

    Raises:
        ValueError: a number is out of range, or the image is too small.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        size: tuple[int, int],
        widths: tuple[int, int, int, int, int] = (96, 256, 384, 384, 256),
        normalise: bool = True,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        if len(widths) != 5 or min(widths) < 1:
            raise ValueError(f"widths must be five numbers of at least 1, got {list(widths)}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")

        def pool() -> nn.MaxPool2d:
            return nn.MaxPool2d(3, 2, ceil_mode=True)

        def norm() -> list[nn.Module]:
            return [LocalResponse()] if normalise else []

        first, second, third, fourth, fifth = widths
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, first, 7, stride=2, padding=1),  # (N, 96, 110, 110)
            *(nn.ReLU(inplace=True), pool(), *norm()),  # (N, 96, 55, 55)
            nn.Conv2d(first, second, 5, stride=2),  # (N, 256, 26, 26)
            *(nn.ReLU(inplace=True), pool(), *norm()),  # (N, 256, 13, 13)
            *(nn.Conv2d(second, third, 3, padding=1), nn.ReLU(inplace=True)),
            *(nn.Conv2d(third, fourth, 3, padding=1), nn.ReLU(inplace=True)),
            *(nn.Conv2d(fourth, fifth, 3, padding=1), nn.ReLU(inplace=True)),
            pool(),  # (N, 256, 6, 6)
        )
        height, width = map_size(self.features, size, "ZFNet")
        self.classifier = nn.Sequential(
            nn.Flatten(),
            *(nn.Linear(fifth * height * width, _UNITS), nn.ReLU(inplace=True)),
            nn.Dropout(dropout),
            *(nn.Linear(_UNITS, _UNITS), nn.ReLU(inplace=True), nn.Dropout(dropout)),
            nn.Linear(_UNITS, num_classes),
        )
        self.apply(_initialise)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.classifier(self.features(pixels))


def _initialise(module: nn.Module) -> None:
    """Normal of deviation 0.01, biases 0; the paper gives "10^-2" alone (section 3.1)."""
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.normal_(module.weight, std=0.01)
        assert module.bias is not None
        nn.init.zeros_(module.bias)
