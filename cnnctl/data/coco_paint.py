"""COCO's objects painted to a map of classes."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cnnctl.data.coco_index import Index, between
from cnnctl.data.coco_shapes import decode_counts
from cnnctl.structures import IGNORE


def paint(index: Index, image: int, classes: np.ndarray) -> Tensor:
    """The map of classes of an image, (h, w) uint8: the larger objects first, the smaller on top.

    Size is the number of pixels that an object has without the others; of two equal ones the later
    in the file is on top. Crowds are painted in the same order, as void, but those of a category
    that is background as that; what nothing covers is 0.

    Args:
        classes: (K,) uint8, the class of each category of the index.
    """
    h, w = (int(side) for side in index.sizes[image])
    canvas = np.zeros((w, h), np.uint8)  # columns first, as the runs go
    pixels = canvas.reshape(-1)
    objects = [(runs_of(index, annotation, h, w), annotation) for annotation in
               index.annotations(image)]  # fmt: skip
    objects.sort(key=lambda one: -sum(one[0][1::2]))
    for runs, annotation in objects:
        value = classes[index.categories[annotation]]
        if value and index.crowds[annotation]:
            value = IGNORE
        ends = list(accumulate(runs))
        # A hundred slices an object: a fourth of the time of decoding it to pixels and masking.
        for start, stop in zip(ends[0::2], ends[1::2], strict=False):
            pixels[start:stop] = value
    return torch.from_numpy(np.ascontiguousarray(canvas.T))


def runs_of(index: Index, annotation: int, height: int, width: int) -> list[int]:
    """The lengths of the runs of 0s, 1s, 0s, ... of an object, down the columns.

    Polygons are drawn by the COCO API's own rule, each pixel that one of them covers once.
    """
    from faster_coco_eval.core import mask as native

    runs = index.runs[between(index.run_ends, annotation)]
    if len(runs):
        return runs.tolist()
    parts: Any = native.frPyObjects(index.polygons(annotation), height, width)
    whole = parts[0] if len(parts) == 1 else native.merge(parts)
    return decode_counts(whole["counts"].decode())
