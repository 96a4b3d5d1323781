"""Nearest neighbours on raw pixels: Cover, Hart, "Nearest neighbor pattern classification", IEEE
Trans. Information Theory 13(1), 1967. Aims at the 5 % test error on MNIST of LeCun, Bottou, Bengio,
Haffner, "Gradient-based learning applied to document recognition", Proc. IEEE 86(11), 1998, section
III.C.2 (k = 3, Euclidean distance, pixels as they are).

Differs from the paper: nothing is rejected; equal votes and equal distances are decided as said
below, which the paper leaves open; what is returned as probabilities are shares of the votes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from cnnctl.errors import UserError
from cnnctl.models.base import ClassificationModel, FitStage, Stage
from cnnctl.ops.raw_pixels import RawPixels
from cnnctl.structures import Batch

_AT_ONCE = 1 << 23  # numbers in the largest table of a part of the comparison: 64 MB
_EXACT = 1024  # products of -128..127 whose sum has at most 24 bits: exact in float32


class NearestNeighbour(ClassificationModel):
    """Remembers all training images; an image is of the class that most of its k nearest are of.

    Equal votes go to the class whose nearest image is nearer. Of images equally near the first in
    the training data counts as nearer. Distances are exact, so that neither depends on how many
    images are compared at once.

    Args:
        in_channels: C.
        num_classes: K.
        size: (h, w) of the input.
        mean, std: of each channel, of pixels scaled to 0..1, which the pixels come normalised by.
        k: neighbours that vote.
        distance: "L1" is the sum of absolute differences of pixels, "L2" Euclidean.

    Raises:
        ValueError: k or the distance is out of range.
    """

    examples: Tensor  # (M, C * h * w) uint8
    labels: Tensor  # (M,) int64

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        size: tuple[int, int],
        mean: Sequence[float],
        std: Sequence[float],
        k: int = 1,
        distance: Literal["L1", "L2"] = "L2",
    ) -> None:
        super().__init__()
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        if distance not in ("L1", "L2"):
            raise ValueError(f'distance must be "L1" or "L2", got "{distance}"')
        self.k = k
        self.num_classes = num_classes
        self.far = _absolute if distance == "L1" else _squared
        self.raw = RawPixels(mean, std)
        pixels = in_channels * math.prod(size)
        self.register_buffer("examples", torch.empty(0, pixels, dtype=torch.uint8))
        self.register_buffer("labels", torch.empty(0, dtype=torch.int64))

    def stages(self) -> Sequence[Stage]:
        return [FitStage("remember", self.remember)]

    def remember(self, batches: Iterator[Batch]) -> None:
        """Keep every image, a byte for each pixel.

        Raises:
            UserError: k is larger than the data.
        """
        examples, labels = [], []
        for batch in batches:
            assert batch.targets.label is not None
            examples.append(self._bytes(batch.images.pixels))
            labels.append(batch.targets.label)
        count = sum(map(len, labels))
        if self.k > count:
            raise UserError(
                f"is {self.k}, and there are only {count} training images",
                field="model.k",
                advice=f"take at most model.k={count}",
            )
        self.examples, self.labels = torch.cat(examples), torch.cat(labels)

    def forward(self, pixels: Tensor) -> Tensor:
        """Log-probabilities (N, K); before the fit all classes are alike."""
        if not len(self.examples):
            return pixels.new_zeros(len(pixels), self.num_classes)
        with torch.autocast(pixels.device.type, enabled=False):
            return voted(self.labels[self.nearest(self._bytes(pixels))], self.num_classes)

    def nearest(self, queries: Tensor) -> Tensor:
        """Which training images are nearest to each of (N, D) uint8 -> (N, k), the nearest first.

        All distances are never there at once: parts of the training images are compared one after
        another, and the k nearest so far are kept as distance * M + position, one whole number.
        """
        count = len(self.examples)
        best = queries.new_empty((len(queries), 0), dtype=torch.int64)
        rows = max(1, _AT_ONCE // max(queries.shape))
        for start, part in enumerate(self.examples.split(rows)):
            place = torch.arange(len(part), device=part.device) + start * rows
            keys = self.far(queries, part).mul_(count).add_(place)  # (N, rows)
            best = torch.cat([best, keys], 1)
            best = best.topk(min(self.k, best.shape[1]), largest=False).values
        return best % count

    def _bytes(self, pixels: Tensor) -> Tensor:
        """Normalised (N, C, h, w) -> (N, C * h * w) uint8, the bytes that they were."""
        return self.raw(pixels).round().to(torch.uint8).flatten(1)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """How many images there are is known only by what is loaded."""
        for name in ("examples", "labels"):
            given, own = state_dict.get(prefix + name), getattr(self, name)
            if isinstance(given, Tensor) and given.shape[1:] == own.shape[1:]:
                setattr(self, name, own.new_empty(given.shape))
        super()._load_from_state_dict(state_dict, prefix, *args)


def voted(labels: Tensor, num_classes: int) -> Tensor:
    """Classes (N, k) of the neighbours, nearest first -> log-probabilities (N, K).

    A class has its share of k + 1 votes. The one more is divided among all classes, those of nearer
    neighbours getting more of it: no probability is 0, and equal votes are decided by nearness.
    """
    k = labels.shape[1]
    votes = torch.zeros(len(labels), num_classes, dtype=torch.float64, device=labels.device)
    near = votes.clone()
    votes.scatter_add_(1, labels, torch.ones_like(labels, dtype=votes.dtype))
    for place in reversed(range(k)):  # the nearest of a class is written last
        near.scatter_(1, labels[:, place : place + 1], (k - place) / k)
    more = (1 + near) / (1 + near).sum(1, keepdim=True)
    return ((votes + more) / (k + 1)).log().float()


def _squared(queries: Tensor, examples: Tensor) -> Tensor:
    """(N, D), (B, D) uint8 -> (N, B) int64 |a - b|^2 - |a - 128|^2, which ranks like |a - b|^2.

    By a matrix product of pixels less 128, in slices whose sums are whole numbers without loss.
    """
    far = torch.zeros(len(queries), len(examples), dtype=torch.int64, device=queries.device)
    for one, other in zip(queries.split(_EXACT, 1), examples.split(_EXACT, 1), strict=True):
        one, other = one.float() - 128, other.float() - 128
        far += other.square().sum(1).long()
        far.sub_((one @ other.T).long(), alpha=2)
    return far


def _absolute(queries: Tensor, examples: Tensor) -> Tensor:
    """(N, D), (B, D) uint8 -> (N, B) int64 sums of |a - b|, exact up to D = 65,793."""
    return torch.cdist(queries.float(), examples.float(), p=1.0).long()
