"""A data set whose samples bring proposals along: any data set, and a method or what it found."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from cnnctl.data.base import ArrayDataset, Dataset
from cnnctl.data.proposal_cache import clock_of
from cnnctl.data.proposals.base import ProposalMethod

_FACTS = ("classes", "palette", "channels", "mean", "std", "size", "mirror", "skeleton", "skipped")
_AND = " and proposals "  # between the two fingerprints
_SIZES = 16  # of images whose proposals are held


class Found(Protocol):
    """The proposals of each image of a data set."""

    def of(self, index: int, image: Tensor) -> Tensor:
        """(P, 4) float32 in pixels of that image, the likeliest first."""
        ...

    @property
    def most(self) -> int:
        """Proposals of an image at most."""
        ...


class Computed:
    """Proposals made when they are asked for; those of a method that does not look, once a size.

    Attributes:
        seconds: for a time that they were made, as ``proposal_cache.Kept`` has them.
    """

    def __init__(self, method: ProposalMethod) -> None:
        self.method, self._clock = method, clock_of(method)
        self._of_size: dict[tuple[int, ...], Tensor] = {}
        self._seconds, self._times = 0.0, 0

    @property
    def seconds(self) -> float:
        return self._seconds / max(1, self._times)

    @property
    def most(self) -> int:
        return self.method.count

    def of(self, index: int, image: Tensor) -> Tensor:
        if self.method.looks:
            return self._made(image)
        size = tuple(image.shape[-2:])
        if size not in self._of_size:
            if len(self._of_size) == _SIZES:  # the oldest goes: photos have many sizes
                del self._of_size[next(iter(self._of_size))]
            self._of_size[size] = self._made(image)
        return self._of_size[size]

    def _made(self, image: Tensor) -> Tensor:
        started = self._clock()
        boxes = self.method.propose(image)
        self._seconds += self._clock() - started
        self._times += 1
        return boxes


def proposed(whole: Dataset, method: ProposalMethod, found: Found | None = None) -> Dataset:
    """``whole`` with proposals: in memory where it is, else sample by sample.

    Args:
        found: what the method has made of it already.
    """
    found = found or Computed(method)
    if isinstance(whole, ArrayDataset):
        return ProposedArray(whole, method, found)
    return Proposed(whole, method, found)


class Proposed(Dataset):
    """``whole`` whose targets have ``proposals`` (P, 4); all else about it is the whole's."""

    def __init__(self, whole: Dataset, method: ProposalMethod, found: Found) -> None:
        self.whole, self.method, self.found = whole, method, found
        for name in _FACTS:
            setattr(self, name, getattr(whole, name))

    @property
    def most(self) -> int:
        """Proposals of an image at most."""
        return self.found.most

    def __len__(self) -> int:
        return len(self.whole)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        image, target = self.whole[index]
        return image, {**target, "proposals": self.found.of(index, image)}

    def __getattr__(self, name: str) -> Any:
        """What only some data sets have (``all_truth``, ``image_ids``), where the whole has it."""
        if name.startswith("__") or name == "whole":  # while a copy of it is being made
            raise AttributeError(name)
        return getattr(self.whole, name)

    def fingerprint(self) -> str:
        return digest(self.whole, self.method)

    def class_counts(self) -> list[int]:
        return self.whole.class_counts()

    def remarks(self) -> list[str]:
        return self.whole.remarks()

    def doubts(self) -> list[str]:
        return self.whole.doubts()

    def home(self, root: str | None) -> Path | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Where the whole is; asked of an object, not of the class."""
        return self.whole.home(root)

    def sample_name(self, index: int) -> str:
        return self.whole.sample_name(index)


class ProposedArray(Proposed, ArrayDataset):  # pyright: ignore[reportIncompatibleMethodOverride]
    """The same of a data set in memory: proposals are one more column, (M, P, 4)."""

    whole: ArrayDataset

    def __init__(self, whole: ArrayDataset, method: ProposalMethod, found: Found) -> None:
        super().__init__(whole, method, found)
        self.pixels, self.labels = whole.pixels, whole.labels

    def columns(self) -> dict[str, Tensor]:
        return {**self.whole.columns(), "proposals": self._proposals}

    @property
    def _proposals(self) -> Tensor:
        """(M, P, 4) float32, 0 where an image has fewer."""
        if not self.method.looks and len(self):  # images of one size: one set, which is not copied
            return self.found.of(0, self.pixels[0]).expand(len(self), -1, -1)
        return padded(self.found.of(index, image) for index, image in enumerate(self.pixels))


def padded(boxes: Iterable[Tensor]) -> Tensor:
    """(P, 4) of each image -> (M, P, 4), 0 where an image has fewer."""
    rows = list(boxes)
    return pad_sequence(rows, batch_first=True) if rows else torch.zeros(0, 0, 4)


def digest(whole: Dataset, method: ProposalMethod) -> str:
    """Changes when the data does, or what is proposed in it; ``changed`` tells these apart."""
    said = json.dumps(method.settings(), sort_keys=True)
    return f"{whole.fingerprint()}{_AND}{hashlib.sha256(said.encode()).hexdigest()}"


def changed(before: str | None, now: str | None) -> str:
    """Of two fingerprints that differ: whether it is the data, or the proposals in them alone."""
    wholes = {said and said.rpartition(_AND)[0] for said in (before, now)}
    return "proposals" if len(wholes) == 1 and wholes != {""} else "data"
