"""Scenes of handwritten digits (cnnctl/data/digit_scenes.py) with the mask of each digit."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from cnnctl.data.digit_boxes import DigitBoxes

_CHUNK = 256  # scenes packed at once, so that the work stays small


class DigitMasks(DigitBoxes):
    """Scenes with the box and the mask of what is to be seen of each digit.

    See ``DigitScenes`` for the arguments and ``DigitBoxes`` for the boxes, which are the frames of
    the masks. No pixel is of two digits.
    """

    fields = ("boxes", "masks")

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
        corners = self._boxes.long()
        self._crops = _crops(corners)
        self._bits = _bits(self.scenes.instances, self._numbers, corners, self._crops)

    def columns(self) -> dict[str, Tensor]:
        """Those of the boxes, and padded: frames (M, D, 4), crops (M, D, 3), bits (M, L)."""
        masks = {"frames": self._boxes, "crops": self._crops, "bits": self._bits}
        return {**super().columns(), **masks}

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        pixels, truth = super().__getitem__(index)
        first, height, width = self._crops[index].unbind(1)
        used = int((first + _bytes(height, width)).max())
        return pixels, {**truth, "bits": self._bits[index, :used]}


def _bytes(height: Tensor, width: Tensor) -> Tensor:
    """That crops take, their rows in whole bytes."""
    return height * ((width + 7) // 8)


def _crops(corners: Tensor) -> Tensor:
    """xyxy (M, D, 4) int64 of each mask -> (M, D, 3) int64 where it is in the bits of its scene.

    A box of zeros, which is none, takes no byte and has a crop of zeros.
    """
    size = (corners[:, :, 2:] - corners[:, :, :2]).flip(2)  # h, w
    taken = _bytes(*size.unbind(2))
    first = (taken.cumsum(1) - taken).masked_fill(taken == 0, 0)
    return torch.cat([first[:, :, None], size], 2)


def _bits(instances: Tensor, numbers: Tensor, corners: Tensor, crops: Tensor) -> Tensor:
    """The crops of scenes as bits (M, L) uint8, zero-padded.

    Args:
        instances: (M, S, S) uint8.
        numbers: (M, D) the value in ``instances`` of each mask.
        corners: (M, D, 4) int64 xyxy, tight.
        crops: (M, D, 3) int64.
    """
    taken = _bytes(crops[:, :, 1], crops[:, :, 2])
    bits = torch.zeros(len(crops), int(taken.sum(1).max()), dtype=torch.uint8)
    for chosen in torch.arange(len(crops)).split(_CHUNK):
        # Eight more columns: a byte may reach past the edge. Past its own box it meets nothing.
        padded = F.pad(instances[chosen], (0, 8))
        side, width = padded.shape[1:]
        owner = taken[chosen].flatten()  # of each byte: which mask
        own = torch.arange(len(owner)).repeat_interleave(owner)
        place = torch.arange(len(own)) - (owner.cumsum(0) - owner)[own]  # within its mask
        scene = own // taken.shape[1]
        x1, y1 = corners[chosen].flatten(0, 1)[own, :2].unbind(1)
        first, _, across = crops[chosen].flatten(0, 1)[own].unbind(1)
        stride = (across + 7) // 8
        y, x = y1 + place // stride, x1 + place % stride * 8
        source = (scene * side + y) * width + x
        number, flat = numbers[chosen].flatten()[own], padded.flatten()
        byte = torch.zeros(len(own), dtype=torch.uint8)
        for bit in range(8):
            byte |= (flat[source + bit] == number).byte() << (7 - bit)
        bits[chosen[scene], first + place] = byte
    return bits
