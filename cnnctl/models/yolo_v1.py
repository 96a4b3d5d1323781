"""YOLO with the network of its paper: Redmon, Divvala, Girshick, Farhadi, "You only look once:
unified, real-time object detection", arXiv:1506.02640, section 2 and figure 3 (table 1: 63.4 mAP on
VOC 2007); what its cells say is in ``yolo``.

Differs from the paper: nothing is trained on ImageNet first, and the network has batch
normalisation (as the authors' later files have), without which it hardly starts from random
weights; ``norm=False`` is the paper's. See also ``yolo``.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from cnnctl.models.limited import stretched
from cnnctl.models.one_stage import require_counts
from cnnctl.models.yolo import SLOPE, Grid, convolution, initialise

HIDDEN = 4096  # features between the two fully connected layers
FIGURE_3 = (  # (kernel, channels, stride) of the 24 convolutions; "max" halves the map
    *((7, 64, 2), "max", (3, 192, 1), "max"),
    *((1, 128, 1), (3, 256, 1), (1, 256, 1), (3, 512, 1), "max"),
    *((1, 256, 1), (3, 512, 1)) * 4,
    *((1, 512, 1), (3, 1024, 1), "max"),
    *((1, 512, 1), (3, 1024, 1)) * 2,
    *((3, 1024, 1), (3, 1024, 2), (3, 1024, 1), (3, 1024, 1)),
)
STRIDE = 64  # of the map that they end with


class YOLOv1(Grid):
    """The paper's: 24 convolutions and two fully connected layers, figure 3.

    Args:
        in_channels: C.
        num_classes: K.
        size: (h, w) of the training input, to which other images are stretched.
        grid: cells along each side.
        boxes, coordinate, no_object, score, overlap, detections: see ``Grid``.
        dropout: after the first fully connected layer.
        norm: batch normalisation after each convolution.

    Raises:
        ValueError: a number is out of range, or the input is smaller than 64 x 64.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        size: tuple[int, int],
        grid: int = 7,
        boxes: int = 2,
        coordinate: float = 5.0,
        no_object: float = 0.5,
        dropout: float = 0.5,
        norm: bool = True,
        score: float = 0.01,
        overlap: float = 0.5,
        detections: int = 100,
    ) -> None:
        super().__init__(num_classes, boxes, coordinate, no_object, score, overlap, detections)
        require_counts(grid=grid)
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be from 0 to below 1, got {dropout:g}")
        if min(size) < STRIDE:
            raise ValueError(
                f"the network needs images of at least {STRIDE} x {STRIDE},"
                f" got {size[0]} x {size[1]}"
            )
        self.grid, self._size = grid, size
        layers: list[nn.Module] = []
        given = in_channels
        for entry in FIGURE_3:
            if isinstance(entry, str):
                layers.append(nn.MaxPool2d(2, ceil_mode=True))
            else:
                kernel, channels, stride = entry
                layers += convolution(kernel, given, channels, stride, norm)
                given = channels
        self.convolutions = nn.Sequential(*layers)
        cells = math.ceil(size[0] / STRIDE) * math.ceil(size[1] / STRIDE)
        self.head = nn.Sequential(
            nn.Flatten(),
            nn.Linear(given * cells, HIDDEN),
            nn.LeakyReLU(SLOPE, inplace=True),
            nn.Dropout(dropout),
            nn.Linear(HIDDEN, grid * grid * self.outputs),
        )
        initialise(self.convolutions, self.head)

    def said(self, pixels: Tensor) -> Tensor:
        said = self.head(self.convolutions(stretched(pixels, self._size)))
        return said.view(len(said), self.grid, self.grid, self.outputs)
