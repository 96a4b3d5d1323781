"""What every data set promises, where data is looked for, and the fixed train/val split."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from cnnctl.errors import Exit, UserError
from cnnctl.randomness import permutation

SPLITS = ("train", "val", "test")


class Dataset(ABC):
    """One split of a data set: samples are (image uint8 (C, H, W), target dict).

    A constructor takes ``split`` and ``root`` and then numbers of its own; facts that depend on
    the data (class names, channels, mean and standard deviation) are attributes, owned here.
    """

    classes: tuple[str, ...]
    channels: int
    mean: tuple[float, ...]  # per channel, of pixels scaled to 0..1
    std: tuple[float, ...]
    size: tuple[int, int] | None = None  # (h, w) where all images agree
    mirror: ClassVar[bool] = True  # does a mirror image keep its class? (digits do not)
    skipped: int = 0  # broken samples left out, where the user asked for that

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]: ...

    @abstractmethod
    def fingerprint(self) -> str:
        """A digest that changes when the data does; a resumed run compares it."""

    def class_counts(self) -> list[int]:
        """Samples of each class, in the order of ``classes``; here from reading every target."""
        counts = [0] * len(self.classes)
        for index in range(len(self)):
            counts[int(self[index][1]["label"])] += 1
        return counts


class ArrayDataset(Dataset):
    """A data set that fits in memory: ``pixels`` (M, C, H, W) uint8, ``labels`` (M,) int64.

    Loaders keep these two tensors on the device and never touch a single sample in Python.
    """

    pixels: Tensor
    labels: Tensor

    def __init__(self, pixels: Tensor, labels: Tensor) -> None:
        self.pixels = pixels
        self.labels = labels
        self.channels = pixels.shape[1]
        self.size = (pixels.shape[2], pixels.shape[3])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        return self.pixels[index], {"label": int(self.labels[index])}

    def fingerprint(self) -> str:
        digest = hashlib.sha256(repr(self.classes).encode())
        digest.update(memoryview(self.pixels.contiguous().numpy()))
        digest.update(memoryview(self.labels.contiguous().numpy()))
        return digest.hexdigest()

    def class_counts(self) -> list[int]:
        return torch.bincount(self.labels, minlength=len(self.classes)).tolist()


def data_root(root: str | None) -> Path:
    """Where data is looked for: ``data.root``, else $CNNCTL_DATA, else a per-user cache folder."""
    if root is not None:
        return Path(root).expanduser().absolute()
    if configured := os.environ.get("CNNCTL_DATA"):
        return Path(configured).expanduser().absolute()
    cache = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return Path(cache).absolute() / "cnnctl" / "data"


def require_files(root: Path, names: list[str], *, data: str, fetch: bool = True) -> list[Path]:
    """``root/name`` for each name, or one sentence naming what is missing and what to type."""
    paths = [root / name for name in names]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        listed = ", ".join(path.name for path in missing)
        get = f"type: cnnctl data fetch data={data}, or " if fetch else ""
        raise UserError(
            f"data={data} needs these files here: {listed}",
            file=missing[0].parent,
            advice=f"{get}point data.root (or $CNNCTL_DATA) at the folder above it",
            code=Exit.DATA,
        )
    return paths


def stratified_split(labels: Tensor, counts: tuple[int, ...], seed: int = 0) -> list[Tensor]:
    """Split positions so that every part has the classes in the same proportion.

    Args:
        labels: (M,) int64.
        counts: the sizes of the parts, with sum M.
        seed: the split is a pure function of labels, counts and seed; it is the same in every run.

    Returns:
        One sorted (counts[i],) int64 tensor of positions for each part.
    """
    if sum(counts) != len(labels):
        raise ValueError(f"parts of {counts} do not add up to {len(labels)} samples")
    shuffled = permutation(len(labels), seed, "split")
    by_class = shuffled[torch.sort(labels[shuffled], stable=True).indices]
    # A sample's rank within its class over the size of that class spreads every class evenly.
    sizes = torch.bincount(labels)
    starts = torch.cumsum(sizes, 0) - sizes
    ranks = torch.arange(len(labels)) - starts[labels[by_class]]
    spread = (ranks.double() + 0.5) / sizes[labels[by_class]].double()
    in_order = by_class[torch.sort(spread, stable=True).indices]
    return [part.sort().values for part in torch.split(in_order, list(counts))]
