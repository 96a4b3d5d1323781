"""What every way to propose regions promises: boxes where something may be, of any class.

Hosang, Benenson, Dollar, Schiele, "What makes for effective detection proposals?",
arXiv:1502.05082, compares such methods; R-CNN, SPP-net and Fast R-CNN classify what they propose.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ProposalMethod(ABC):
    """A way to propose regions, and its numbers.

    Where ``forks``, it is of plain values alone, so that it travels to another process as it is.

    Args:
        count: the most boxes of one image.

    Attributes:
        looks: whether the boxes depend on the pixels; else on the size alone, and none are kept.
        forks: whether other processes can do it as well, all cores at once.
    """

    count: int
    looks: ClassVar[bool] = True
    forks: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count must be at least 1, got {self.count}")

    @abstractmethod
    def propose(self, image: Tensor) -> Tensor:
        """(C, h, w) uint8, C 1 or 3 (RGB) -> (P, 4) float32 boxes, P at most ``count``.

        Corners x1 y1 x2 y2 in pixels of the image, the right and the lower side exclusive, all of
        them inside the image, no box twice, the likeliest first. The same image gives the same
        boxes in every process. (0, 4) where nothing is found.
        """

    def require(self) -> None:
        """Say at once what is missing, before anything is computed.

        Raises:
            UserError: a library or a file is absent (the sentence names what to install or to set).
        """
        return None

    def settings(self) -> dict[str, Any]:
        """All that decides which boxes an image has, as plain values: the key of a cache."""
        return {"method": self.name(), **dataclasses.asdict(self)}

    @classmethod
    def name(cls) -> str:
        """Of the class, with its module: a user's own may be called as one of ours."""
        return f"{cls.__module__}.{cls.__qualname__}"

    def remarks(self) -> list[str]:
        """What the user should know of how it works here, a sentence each."""
        return []


def chosen(boxes: np.ndarray, size: tuple[int, int], count: int, smallest: float = 1) -> Tensor:
    """The first ``count`` different boxes, cut at the image.

    Args:
        boxes: (M, 4) corners in pixels, the likeliest first.
        size: (h, w) of the image.
        smallest: side that both sides of a box must have after the cut, pixels.

    Returns:
        (P, 4) float32.
    """
    h, w = size
    cut = np.clip(
        np.asarray(boxes, np.float32).reshape(-1, 4), 0, np.array([w, h, w, h], np.float32)
    )
    cut = cut[((cut[:, 2:] - cut[:, :2]) >= max(smallest, 1)).all(1)]
    _, first = np.unique(cut, axis=0, return_index=True)
    return torch.from_numpy(cut[np.sort(first)[:count]])
