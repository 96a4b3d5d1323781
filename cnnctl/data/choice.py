"""Some classes of a data set, and some images of each: little data, or other data of one kind."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cnnctl.data.base import ArrayDataset, Dataset
from cnnctl.errors import nearest
from cnnctl.randomness import permutation


def choose(data: Dataset, only: Sequence[str | int] | None, per_class: int | None) -> ArrayDataset:
    """``data`` with these alone; mean and deviation stay those of the whole.

    Args:
        only: names of classes, which are counted from 0 in this order; None is all of them.
        per_class: images of each class, fewer where there are not so many; the same in every run,
            and those of a smaller number are among those of a larger one. None is all of them.

    Raises:
        ValueError: a name is unknown or comes twice, there are fewer than two of them, the number
            is below 1, or the data is not held in memory.
    """
    if not isinstance(data, ArrayDataset):
        raise ValueError("only and per_class choose from data that is held in memory")
    if per_class is not None and per_class < 1:
        raise ValueError(f"per_class must be at least 1, got {per_class}")
    names = [str(name) for name in data.classes if only is None] or [str(n) for n in only or ()]
    for place, name in enumerate(names):
        if name not in data.classes:
            raise ValueError(f'only names no class "{name}": {nearest(name, data.classes)}')
        if name in names[:place]:
            raise ValueError(f'only names "{name}" twice')
    if len(names) < 2:
        raise ValueError("only must name at least two classes")
    labels = torch.full((len(data.classes),), -1)
    labels[torch.tensor([data.classes.index(name) for name in names])] = torch.arange(len(names))
    labels = labels[data.labels]  # (M,), -1 where another class is shown
    kept = labels >= 0
    if per_class is not None:
        order = permutation(len(labels), 0, "per_class")
        chosen = [order[labels[order] == label][:per_class] for label in range(len(names))]
        few = torch.zeros_like(kept)
        few[torch.cat(chosen)] = True
        kept &= few
    data.pixels, data.labels = data.pixels[kept], labels[kept]
    data.classes = tuple(names)
    return data
