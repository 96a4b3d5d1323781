"""Scenes of handwritten digits (cnnctl/data/digit_scenes.py) with a box around each digit."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from cnnctl.data.base import Dataset
from cnnctl.data.digit_scenes import DigitScenes


class DigitBoxes(DigitScenes):
    """Scenes with the box of what is to be seen of each digit; one wholly covered has none.

    See ``DigitScenes`` for the arguments. The classes are the ten digits; background is none.
    """

    fields = ("boxes",)
    classes = DigitScenes.classes[1:]
    palette = (DigitScenes.palette or ())[1:]

    def __init__(
        self,
        split: Literal["train", "val", "test"],
        root: str | None = None,
        size: int = 96,
        digits: tuple[int, int] = (3, 7),
        scale: tuple[float, float] = (0.26, 0.46),
        train_images: int = 3200,
        val_images: int = 200,
        test_images: int = 500,
        seed: int = 0,
    ) -> None:
        super().__init__(
            split, root, size, digits, scale, train_images, val_images, test_images, seed
        )
        boxes, visible = self.scenes.boxes()
        labels = self.scenes.labels.masked_fill(visible == 0, -1)
        # Rows of no box last, as a batch has them.
        order = (labels < 0).int().argsort(dim=1, stable=True)
        self._boxes = boxes.gather(1, order[:, :, None].expand(-1, -1, 4))
        self._labels, self._visible = labels.gather(1, order), visible.gather(1, order).float()
        self._numbers = order + 1  # of each row in ``scenes.instances``

    def columns(self) -> dict[str, Tensor]:
        """Padded: boxes (M, D, 4), labels (M, D) with -1 where there is none, and so on."""
        none = torch.zeros_like(self._labels, dtype=torch.bool)
        return {
            "boxes": self._boxes,
            "labels": self._labels,
            "crowd": none,
            "difficult": none,
            "area": self._visible,
        }

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        pixels, truth = super().__getitem__(index)
        count = int((truth["labels"] >= 0).sum())
        return pixels, {name: column[:count] for name, column in truth.items()}

    @classmethod
    def serving(cls, fields: tuple[str, ...]) -> type[Dataset]:
        return cls if fields == cls.fields else DigitScenes.serving(fields)

    @classmethod
    def option(cls) -> str:
        return DigitScenes.option()
