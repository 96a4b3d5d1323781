"""OverFeat: Sermanet, Eigen, Zhang, Mathieu, Fergus, LeCun, "OverFeat: integrated recognition,
localization and detection using convolutional networks", arXiv:1312.6229, tables 1 (fast) and 3
(accurate). Aims at table 2: 17.12 % top-5 error of one fast network on ImageNet's validation images
(one scale, coarse stride).

Differs from the paper: its evaluation at six scales with shifted poolings is none of the network,
which is fully convolutional as any network here can be made.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

from torch import Tensor, nn

from cnnctl.models.base import ClassificationModel
from cnnctl.ops.map_sides import map_size


class Stage(NamedTuple):
    """A convolution with its ReLU, and max pooling of non-overlapping windows (0: none)."""

    maps: int
    kernel: int
    stride: int = 1
    padding: int = 0
    pool: int = 0


_STAGES = {
    "fast": (
        Stage(96, 11, stride=4, pool=2),  # 231 -> 56 -> 28
        Stage(256, 5, pool=2),  # 24 -> 12
        Stage(512, 3, padding=1),
        Stage(1024, 3, padding=1),
        Stage(1024, 3, padding=1, pool=2),  # 12 -> 6
    ),
    "accurate": (
        Stage(96, 7, stride=2, pool=3),  # 221 -> 108 -> 36
        Stage(256, 7, pool=2),  # 30 -> 15
        Stage(512, 3, padding=1),
        Stage(512, 3, padding=1),
        Stage(1024, 3, padding=1),
        Stage(1024, 3, padding=1, pool=3),  # 15 -> 5
    ),
}
_UNITS = {"fast": (3072, 4096), "accurate": (4096, 4096)}  # of the hidden dense layers


class OverFeat(ClassificationModel):
    """Convolutions without normalisation, poolings that do not overlap, three dense layers.

    Args:
        in_channels: C.
        num_classes: K.
        size: (h, w) of the input; 231 x 231 in the fast model, 221 x 221 in the accurate one. The
            first dense layer follows.
        version: "fast" or "accurate".
        dropout: of the hidden dense units.

    Raises:
        ValueError: an argument is out of range, or the image is too small.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        size: tuple[int, int],
        version: Literal["fast", "accurate"] = "fast",
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        if version not in _STAGES:
            raise ValueError(f'version must be "fast" or "accurate", got "{version}"')
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        self.features = nn.Sequential(*_convolutions(in_channels, _STAGES[version]))
        height, width = map_size(self.features, size, f"OverFeat ({version})")
        first, second = _UNITS[version]
        maps = _STAGES[version][-1].maps
        self.classifier = nn.Sequential(
            nn.Flatten(),
            *(nn.Linear(maps * height * width, first), nn.ReLU(inplace=True), nn.Dropout(dropout)),
            *(nn.Linear(first, second), nn.ReLU(inplace=True), nn.Dropout(dropout)),
            nn.Linear(second, num_classes),
        )
        self.apply(_initialise)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.classifier(self.features(pixels))


def _convolutions(given: int, stages: tuple[Stage, ...]) -> Iterator[nn.Module]:
    for stage in stages:
        yield nn.Conv2d(given, stage.maps, stage.kernel, stage.stride, stage.padding)
        yield nn.ReLU(inplace=True)
        if stage.pool:
            yield nn.MaxPool2d(stage.pool)
        given = stage.maps


def _initialise(module: nn.Module) -> None:
    """Normal of deviation 0.01 (section 3.1), biases 0."""
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.normal_(module.weight, std=0.01)
        assert module.bias is not None
        nn.init.zeros_(module.bias)
