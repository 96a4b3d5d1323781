"""Histograms of oriented gradients and linear SVMs: Dalal, Triggs, "Histograms of oriented
gradients for human detection", CVPR 2005, here to tell classes apart, which the paper does not do.

Differs from the paper: one SVM for each class against the rest instead of one for people; cells and
blocks as scikit-image has them (cnnctl/ops/oriented_gradients.py); the squared hinge loss; what is
returned as probabilities is the softmax of the margins, which are not calibrated.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from cnnctl.models.base import ClassificationModel, FitStage, Stage
from cnnctl.ops.linear_svm import one_against_rest
from cnnctl.ops.oriented_gradients import cell_histograms, normalised_blocks
from cnnctl.ops.raw_pixels import RawPixels
from cnnctl.structures import Batch


class HogSvm(ClassificationModel):
    """Gradients, cells, blocks, and a plane for each class; nothing has a gradient to train by.

    The descriptors of all training images are held in memory while the SVMs are solved, four bytes
    a number here and more within LIBLINEAR: D = 324 by default, 1764 with cells of 4 pixels.

    Args:
        in_channels: C.
        num_classes: K.
        size: (h, w) of the input.
        mean, std: of each channel, of pixels scaled to 0..1, which the pixels come normalised by.
        orientations: bins of half a turn.
        cell: side in pixels.
        block: side in cells; blocks overlap, one begins at each cell.
        C: weight of the losses against the margin.

    Raises:
        ValueError: an argument is out of range, or the input has no whole block.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        size: tuple[int, int],
        mean: Sequence[float],
        std: Sequence[float],
        orientations: int = 9,
        cell: int = 8,
        block: int = 2,
        C: float = 1.0,
    ) -> None:
        super().__init__()
        for name, value in (("orientations", orientations), ("cell", cell), ("block", block)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if C <= 0:
            raise ValueError(f"C must be positive, got {C}")
        down, right = (side // cell - block + 1 for side in size)
        if min(down, right) < 1:
            raise ValueError(
                f"a block of {block} x {block} cells of {cell} x {cell} pixels needs images of at"
                f" least {block * cell} x {block * cell}, got {size[0]} x {size[1]}"
            )
        self.orientations, self.cell, self.block, self.C = orientations, cell, block, C
        self.num_classes = num_classes
        self.seed = torch.initial_seed() % 2**31
        self.raw = RawPixels(mean, std)
        self.classifier = nn.Linear(down * right * block**2 * orientations, num_classes)
        nn.init.zeros_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    def stages(self) -> Sequence[Stage]:
        return [FitStage("svm", self.fit)]

    def fit(self, batches: Iterator[Batch]) -> None:
        import numpy as np

        rows, labels = [], []
        for batch in batches:
            assert batch.targets.label is not None
            rows.append(self.descriptors(batch.images.pixels).cpu().numpy())
            labels.append(batch.targets.label)
        planes = one_against_rest(
            np.concatenate(rows), torch.cat(labels), self.num_classes, self.C, self.seed
        )
        self.classifier.weight.copy_(planes[0])
        self.classifier.bias.copy_(planes[1])

    def descriptors(self, pixels: Tensor) -> Tensor:
        """Normalised pixels (N, C, h, w) -> (N, D)."""
        cells = cell_histograms(self.raw(pixels), self.cell, self.orientations)
        return normalised_blocks(cells, self.block).flatten(1)

    def forward(self, pixels: Tensor) -> Tensor:
        """The margins (N, K)."""
        return self.classifier(self.descriptors(pixels))
