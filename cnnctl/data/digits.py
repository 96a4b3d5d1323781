"""The 1,797 handwritten digits that come inside scikit-learn: nothing is downloaded.

Alpaydin and Kaynak, "Optical recognition of handwritten digits", UCI repository, 1998: the test
part, 8 x 8 counts of 0..16 from 43 writers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from cnnctl.data.base import SPLITS, ArrayDataset, Dataset, stratified_split


class Digits(ArrayDataset):
    """Grey 8 x 8 digits, split 1,078 / 359 / 360 with all ten classes in each in proportion.

    Args:
        split: train, val or test.
        root: unused; the images are inside scikit-learn.
    """

    classes = tuple("0123456789")
    channels = 1
    size = (8, 8)
    mean = (0.3041,)  # of the train split, pixels scaled to 0..1
    std = (0.3751,)
    mirror = False

    def __init__(self, split: Literal["train", "val", "test"], root: str | None = None) -> None:
        from sklearn.datasets import load_digits

        images, truth = load_digits(return_X_y=True)
        pixels = torch.from_numpy(images).reshape(-1, 1, 8, 8)  # (1797, 1, 8, 8) float64, 0..16
        labels = torch.from_numpy(truth).long()
        parts = stratified_split(labels, (1078, 359, 360))
        chosen = parts[SPLITS.index(split)]
        super().__init__((pixels[chosen] * (255 / 16)).round().to(torch.uint8), labels[chosen])

    @classmethod
    def serving(cls, fields: tuple[str, ...]) -> type[Dataset]:
        """One digit is one label; tasks with more to find get scenes of several digits."""
        if set(fields) <= set(cls.fields):
            return cls
        from cnnctl.data.digit_scenes import DigitScenes

        return DigitScenes.serving(fields)

    @classmethod
    def home(cls, root: str | None) -> Path | None:
        return None

    @classmethod
    def fetch(cls, root: str | None) -> str:
        return "nothing to fetch: the images are inside scikit-learn"
