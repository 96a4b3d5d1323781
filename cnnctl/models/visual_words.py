"""Bag of visual words with a spatial pyramid: Lazebnik, Schmid, Ponce, "Beyond bags of features:
spatial pyramid matching for recognizing natural scene categories", CVPR 2006 (its "strong
features"; 81.1 % on 15 scenes with 200 words and 3 levels, table 1).

Differs from the paper: patches and their spacing are half as large by default, for images of
32 x 32; a patch is described by 4 x 4 cells of 8 signed orientations, cut at 0.2 as SIFT's are, but
without SIFT's Gaussian weight and interpolation; k-means goes by small batches; the intersection
kernel is written out as a product of vectors, which changes nothing, so that a linear SVM of the
squared hinge loss learns from any number of images; probabilities are the softmax of its margins.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cnnctl.models.base import ClassificationModel, FitStage, Stage
from cnnctl.ops.linear_svm import one_against_rest
from cnnctl.ops.oriented_gradients import cell_histograms, normalised_blocks
from cnnctl.ops.raw_pixels import RawPixels
from cnnctl.structures import Batch

_CELLS, _ORIENTATIONS = 4, 8  # of a patch, along each side: Lowe's SIFT
_DESCRIPTOR = _CELLS**2 * _ORIENTATIONS
_SAMPLE = 50_000  # descriptors, of all training images alike, that the words are found among
_AT_ONCE = 1 << 24  # numbers in the largest table of a part of a batch: 64 MB
_OUT_OF_REACH = 1e3  # of descriptors, whose length is 1 at most: for words that are none


class VisualWords(ClassificationModel):
    """Patches on a grid, each the nearest of V words; counts of words in ever finer parts.

    Args:
        in_channels: C.
        num_classes: K.
        size: (h, w) of the input.
        mean, std: of each channel, of pixels scaled to 0..1, which the pixels come normalised by.
        words: V, size of the vocabulary; fewer where the data has fewer patches.
        patch: side in pixels, a multiple of 4.
        spacing: of the grid, in pixels, a multiple of patch / 4.
        levels: the finest level of the pyramid has 2^levels x 2^levels parts; 0 is a bag of words.
        C: weight of the losses against the margin.

    Raises:
        ValueError: an argument is out of range, or the input has fewer patches than parts.
    """

    words: Tensor  # (V, 128)

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        size: tuple[int, int],
        mean: Sequence[float],
        std: Sequence[float],
        words: int = 200,
        patch: int = 8,
        spacing: int = 4,
        levels: int = 2,
        C: float = 1.0,
    ) -> None:
        super().__init__()
        if words < 1:
            raise ValueError(f"words must be at least 1, got {words}")
        if patch < _CELLS or patch % _CELLS:
            raise ValueError(f"patch must be a multiple of {_CELLS} pixels, got {patch}")
        self.cell = patch // _CELLS
        if spacing < 1 or spacing % self.cell:
            raise ValueError(f"spacing must be a multiple of patch / {_CELLS}, got {spacing}")
        if levels < 0 or C <= 0:
            raise ValueError(f"levels must be at least 0 and C positive, got {levels} and {C}")
        self.step = spacing // self.cell
        grid = [(side // self.cell - _CELLS) // self.step + 1 for side in size]
        if min(grid) < 2**levels:
            least = patch + (2**levels - 1) * spacing
            raise ValueError(
                f"{2**levels} x {2**levels} parts of at least a patch each need images of at least"
                f" {least} x {least}, got {size[0]} x {size[1]}"
            )
        self.levels, self.num_classes, self.C = levels, num_classes, C
        self.seed = torch.initial_seed() % 2**31
        self.raw = RawPixels(mean, std)
        self.register_buffer("words", torch.full((words, _DESCRIPTOR), _OUT_OF_REACH))
        self.patches = grid[0] * grid[1]
        ones = sum(4**level * _most(grid, 2**level) for level in range(levels + 1))
        self.classifier = nn.Linear(words * ones, num_classes)
        nn.init.zeros_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    def stages(self) -> Sequence[Stage]:
        return [
            FitStage("vocabulary", self.find_words, evaluate=False),
            FitStage("svm", self.fit),
        ]

    def find_words(self, batches: Iterator[Batch]) -> None:
        """k-means among descriptors that are drawn from all images, each as likely as any other."""
        from sklearn.cluster import MiniBatchKMeans
        from threadpoolctl import threadpool_limits

        generator = torch.Generator().manual_seed(self.seed)
        drawn, lots = torch.empty(0, _DESCRIPTOR), torch.empty(0)
        for batch in batches:  # those with the lowest lots so far are kept
            found = self.descriptors(batch.images.pixels).flatten(0, 2).cpu()
            lots = torch.cat([lots, torch.rand(len(found), generator=generator)])
            lots, kept = lots.topk(min(_SAMPLE, len(lots)), largest=False)
            drawn = torch.cat([drawn, found])[kept]
        count = min(len(self.words), len(drawn))
        means = MiniBatchKMeans(count, batch_size=4096, n_init=1, random_state=self.seed)  # pyright: ignore[reportArgumentType]
        with threadpool_limits(torch.get_num_threads()):  # scikit-learn has its own
            means.fit(drawn.numpy())
        self.words.fill_(_OUT_OF_REACH)
        self.words[:count] = torch.from_numpy(means.cluster_centers_).to(self.words)

    def fit(self, batches: Iterator[Batch]) -> None:
        from scipy.sparse import csr_matrix, vstack

        rows: list[Any] = []
        labels = []
        for batch in batches:
            assert batch.targets.label is not None
            labels.append(batch.targets.label)
            rows += [csr_matrix(part.cpu().numpy()) for part in self._parts(batch.images.pixels)]
        planes = one_against_rest(
            vstack(rows, "csr"), torch.cat(labels), self.num_classes, self.C, self.seed
        )
        self.classifier.weight.copy_(planes[0])
        self.classifier.bias.copy_(planes[1])

    def forward(self, pixels: Tensor) -> Tensor:
        """The margins (N, K)."""
        return torch.cat([self.classifier(part) for part in self._parts(pixels)])

    def descriptors(self, pixels: Tensor) -> Tensor:
        """Normalised pixels (N, C, h, w) -> (N, rows, columns, 128) of the patches on the grid."""
        cells = cell_histograms(self.raw(pixels), self.cell, _ORIENTATIONS, signed=True)
        return normalised_blocks(cells, _CELLS, self.step)

    def _parts(self, pixels: Tensor) -> Iterator[Tensor]:
        """Features (n, D) of some images after the other, as many as memory is meant for."""
        widest = max(self.classifier.in_features, self.patches * max(self.words.shape))
        for part in pixels.split(max(1, _AT_ONCE // widest)):
            yield self.pyramid(part)

    def pyramid(self, pixels: Tensor) -> Tensor:
        """Vectors (N, D) whose products are the pyramid match kernel (equation 3), 1 with itself.

        The smaller of two counts a and b is the product of a ones and b ones, filled up with
        zeros: a count becomes as many numbers as a part has patches. Levels weigh as equation 3
        says: 1 / 2^L the coarsest, 1 / 2^(L - l + 1) the others.
        """
        described = self.descriptors(pixels)  # (N, rows, columns, 128)
        said = torch.cdist(described.flatten(0, 2), self.words).argmin(1)
        said = said.reshape(described.shape[:3])
        levels = []
        for level in range(self.levels + 1):
            counts = _counts(said, 2**level, len(self.words))  # (N, 4^level, V)
            most = torch.arange(_most(said.shape[1:], 2**level), device=counts.device)
            ones = counts[..., None] > most
            weight = 0.5 ** (self.levels - max(level - 1, 0)) / self.patches
            levels.append(ones.flatten(1) * weight**0.5)
        return torch.cat(levels, 1)


def _most(grid: Sequence[int], parts: int) -> int:
    """Patches in the largest of parts x parts of a grid of (rows, columns)."""
    return math.prod(-(-side // parts) for side in grid)


def _counts(said: Tensor, parts: int, words: int) -> Tensor:
    """Words (N, rows, columns) of patches -> (N, parts * parts, V) how often each is in a part."""
    count, rows, columns = said.shape
    down = torch.arange(rows, device=said.device) * parts // rows
    right = torch.arange(columns, device=said.device) * parts // columns
    place = (down[:, None] * parts + right) * words + said  # (N, rows, columns)
    counts = torch.zeros(count, parts**2 * words, dtype=torch.int16, device=said.device)
    ones = torch.ones_like(place, dtype=counts.dtype)
    return counts.scatter_add_(1, place.flatten(1), ones.flatten(1)).unflatten(1, (-1, words))
