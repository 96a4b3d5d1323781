"""How often each class is in the truth of a split: for class weights, and to look at."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from cnnctl.data.base import Dataset
from cnnctl.structures import IGNORE

_CHUNK = 256  # masks handed to the threads at once


@dataclass(frozen=True)
class MaskCounts:
    """Of the masks that were read; void is left out everywhere.

    Median frequency balancing (Eigen and Fergus, arXiv:1411.4734, section 6.3.2) takes the
    frequency of a class as ``pixels / around``: its pixels over all those of the images it is in.
    """

    masks: int
    images: Tensor  # (K,) int64 masks that contain the class
    pixels: Tensor  # (K,) int64 pixels of the class
    around: Tensor  # (K,) int64 pixels, of any class, of the masks that contain it


def count_masks(data: Dataset, *, at_most: int | None = None) -> MaskCounts:
    """Read the masks in threads and count.

    A data set that has a method ``mask(index) -> (h, w) uint8`` is asked for that, so that no image
    is decoded; any other for its samples.

    Args:
        at_most: masks that are read, spread evenly over the split; None is all of them.
    """
    count = len(data.classes)
    read = len(data) if at_most is None else min(len(data), at_most)
    chosen = torch.linspace(0, max(len(data) - 1, 0), read).round().long().tolist()
    only_mask = getattr(data, "mask", None)

    def histogram(index: int) -> Tensor:
        mask = only_mask(index) if only_mask else data[index][1]["mask"]
        return torch.bincount(mask.flatten(), minlength=IGNORE + 1)[:count]

    images, pixels, around = torch.zeros(3, count, dtype=torch.int64)
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # decoding releases the interpreter's lock
        for start in range(0, read, _CHUNK):
            for row in pool.map(histogram, chosen[start : start + _CHUNK]):
                images += row > 0
                pixels += row
                around += (row > 0) * row.sum()
    return MaskCounts(read, images, pixels, around)
