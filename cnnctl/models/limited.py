"""What detectors share that say a fixed number of things, of an image of a fixed shape: images are
stretched to it, and objects that there is no place for are counted."""

from __future__ import annotations

import warnings

import torch.nn.functional as F
from torch import Tensor


def stretched(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, C, h, w) -> (N, C, *size), bilinear; itself where it has that size."""
    if tuple(pixels.shape[2:]) == size:
        return pixels
    return F.interpolate(pixels, size, mode="bilinear", antialias=True)


class LeftOut:
    """A running count that waits for the device only at calls 1, 2, 4, 8 and so on.

    Args:
        why: what is true of the objects that are left out, and what to do.

    Attributes:
        said: whether it was.
    """

    def __init__(self, why: str) -> None:
        self.why = why
        self.said = False
        self._calls = 0
        self._counts: tuple[Tensor, Tensor] | None = None

    def count(self, left: Tensor, of: Tensor) -> None:
        """Add scalars: objects left out, and objects there are; warns as soon as there is one."""
        if self.said:
            return
        self._calls += 1
        if self._counts is not None:
            left, of = left + self._counts[0], of + self._counts[1]
        self._counts = left, of
        if self._calls & (self._calls - 1) == 0 and int(left):
            self.said = True
            counted = f"{int(left):,} of the first {int(of):,} objects"
            warnings.warn(f"{counted} {self.why}", stacklevel=3)
