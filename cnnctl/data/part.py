"""A few samples of a data set, as a data set: to see whether a network can learn them by heart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from cnnctl.data.base import Dataset


class Part(Dataset):
    """``count`` samples spread evenly over ``whole``, in their order; its facts are the whole's.

    Raises:
        ValueError: there are not that many.
    """

    def __init__(self, whole: Dataset, count: int) -> None:
        if not 1 <= count <= len(whole):
            raise ValueError(f"{count} images are wanted of {len(whole)}")
        self.whole = whole
        self.chosen = [index * len(whole) // count for index in range(count)]
        self.classes, self.channels, self.palette = whole.classes, whole.channels, whole.palette
        self.mean, self.std = whole.mean, whole.std
        self.size, self.mirror, self.skeleton = whole.size, whole.mirror, whole.skeleton

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        return self.whole[self.chosen[index]]

    def all_truth(self) -> dict[str, np.ndarray] | None:
        """The whole's own of these samples (``COCOBoxes.all_truth``); None where it has none."""
        every = getattr(self.whole, "all_truth", lambda: None)()
        if every is None:
            return None
        kept = np.isin(every["image"], self.chosen)
        own = {name: column[kept] for name, column in every.items()}
        return {**own, "image": np.searchsorted(self.chosen, own["image"])}

    def fingerprint(self) -> str:
        return f"{len(self)} of {self.whole.fingerprint()}"

    def remarks(self) -> list[str]:
        return self.whole.remarks()

    def home(self, root: str | None) -> Path | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Where the whole is; asked of an object, not of the class."""
        return self.whole.home(root)

    def sample_name(self, index: int) -> str:
        return self.whole.sample_name(self.chosen[index])
