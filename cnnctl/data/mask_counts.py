"""How often each class is in the truth of a split: for class weights, and to look at."""

from __future__ import annotations

import os
from collections.abc import Callable
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


def count_masks(
    data: Dataset,
    *,
    at_most: int | None = None,
    watch: Callable[[int, int], None] = lambda done, total: None,
) -> MaskCounts:
    """Read the masks in threads and count.

    A data set that has a method ``mask(index) -> (h, w) uint8`` is asked for that, so that no image
    is decoded; any other for its samples.

    Args:
        at_most: masks that are read, spread evenly over the split; None is all of them.
        watch: called after each mask with how many are read and are to be; it may raise to end it.
    """
    count = len(data.classes)
    read = len(data) if at_most is None else min(len(data), at_most)
    chosen = torch.linspace(0, max(len(data) - 1, 0), read).round().long().tolist()
    only_mask = getattr(data, "mask", None)

    def histogram(index: int) -> Tensor:
        mask = only_mask(index) if only_mask else data[index][1]["mask"]
        return torch.bincount(mask.flatten(), minlength=IGNORE + 1)[:count]

    images, pixels, around = torch.zeros(3, count, dtype=torch.int64)
    pool = ThreadPoolExecutor(os.cpu_count())  # decoding releases the interpreter's lock
    try:
        for start in range(0, read, _CHUNK):
            rows = pool.map(histogram, chosen[start : start + _CHUNK])
            for done, row in enumerate(rows, start + 1):
                images += row > 0
                pixels += row
                around += (row > 0) * row.sum()
                watch(done, read)
    finally:
        pool.shutdown(cancel_futures=True)  # those not begun, where it ends early
    return MaskCounts(read, images, pixels, around)
