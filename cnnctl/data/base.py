"""What every data set promises, where data is looked for, and the fixed train/val split."""

from __future__ import annotations

import errno
import hashlib
import os
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from cnnctl.errors import Exit, UserError
from cnnctl.randomness import permutation
from cnnctl.skeleton import Skeleton
from cnnctl.structures import IGNORE
from cnnctl.user_cache import user_cache

SPLITS = ("train", "val", "test")
STALLED = 30.0  # seconds without a byte after which a download is given up


class NoSplit(UserError):
    """The data is there, but not divided so that it has the split that was asked for."""


class Dataset(ABC):
    """One split of a data set: samples are (image uint8 (C, H, W), target dict).

    A constructor takes ``split`` and ``root`` and then numbers of its own; facts that depend on
    the data (class names, channels, mean and standard deviation) are attributes, owned here.
    It raises ``NoSplit`` where its settings leave that split empty.
    """

    fields: ClassVar[tuple[str, ...]] = ("label",)  # columns of the truth that its samples can have
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...] | None = None  # of the classes; None: VOC's colours
    channels: int
    mean: tuple[float, ...]  # per channel, of pixels scaled to 0..1
    std: tuple[float, ...]
    size: tuple[int, int] | None = None  # (h, w) where all images agree
    mirror: bool = True  # does a mirror image keep its class? (digits do not)
    skeleton: Skeleton | None = None  # what its keypoints are, where it has any
    shared_root: ClassVar[bool] = True  # may other data sets lie in the same ``data.root``?
    skipped: int = 0  # broken samples left out, where the user asked for that

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]: ...

    @abstractmethod
    def fingerprint(self) -> str:
        """A digest that changes when the data does; a resumed run compares it."""

    def class_counts(self) -> list[int]:
        """Samples that show each class, in the order of ``classes``."""
        counts = [0] * len(self.classes)
        for index in range(len(self)):
            for label in classes_in(self[index][1]):
                counts[label] += 1
        return counts

    def sample_name(self, index: int) -> str:
        """What to call a sample in a message; its file where it has one."""
        return f"sample {index}"

    def remarks(self) -> list[str]:
        """Sentences on what was left out on reading; empty where nothing was."""
        return []

    def doubts(self) -> list[str]:
        """A sentence on each record that looks wrong and is used all the same."""
        return []

    @classmethod
    def serving(cls, fields: tuple[str, ...]) -> type[Dataset]:
        """The class that has these columns: itself, where nothing else is under its name.

        Raises:
            UserError: it has none of them.
        """
        if absent := set(fields) - set(cls.fields):
            raise UserError(
                f"data={cls.option()} has no {', '.join(sorted(absent))}, which the task needs",
                field="data",
                advice="cnnctl data list shows all data sets",
            )
        return cls

    @classmethod
    def truth_alone(cls) -> type[Dataset]:
        """The class to score predictions by, of which no image is read."""
        return cls

    @classmethod
    def option(cls) -> str:
        """Its name on the command line: file, YAML and option share one stem."""
        return cls.__module__.rpartition(".")[2]

    @classmethod
    def home(cls, root: str | None) -> Path | None:
        """The folder that its files are looked for in; None where they come with a package."""
        return data_root(root)

    @classmethod
    def missing(cls, root: str | None) -> list[str]:
        """The files that are absent from ``home``; empty where it can be read."""
        return []

    @classmethod
    def fetch(cls, root: str | None) -> str:
        """Download what is missing, with its checksums, and say what was done.

        Raises:
            UserError: the data cannot be had by downloading, or the download failed.
        """
        raise UserError(
            f"data={cls.option()} has no download",
            advice=f"put it into {cls.home(root)}",
            code=Exit.DATA,
        )


class ArrayDataset(Dataset):
    """A data set that fits in memory: ``pixels`` (M, C, H, W) uint8, ``labels`` (M,) int64.

    Loaders keep the pixels and ``columns`` on the device and never touch a single sample in Python.
    """

    pixels: Tensor
    labels: Tensor

    def __init__(self, pixels: Tensor, labels: Tensor) -> None:
        self.pixels = pixels
        self.labels = labels
        self.channels = pixels.shape[1]
        self.size = (pixels.shape[2], pixels.shape[3])

    def columns(self) -> dict[str, Tensor]:
        """The truth of all samples, a row for each."""
        return {"label": self.labels}

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        rows = {name: column[index] for name, column in self.columns().items()}
        truth = {name: row if row.ndim else int(row) for name, row in rows.items()}
        return self.pixels[index], truth

    def fingerprint(self) -> str:
        digest = hashlib.sha256(repr(self.classes).encode())
        for column in (self.pixels, *self.columns().values()):
            digest.update(column.contiguous().numpy().data)
        return digest.hexdigest()

    def class_counts(self) -> list[int]:
        if "label" not in self.columns():
            return super().class_counts()
        return torch.bincount(self.labels, minlength=len(self.classes)).tolist()


def classes_in(target: Mapping[str, Any]) -> set[int]:
    """The classes that one sample shows."""
    if "label" in target:
        return {int(target["label"])}
    if "labels" in target:
        return set(target["labels"].tolist())
    counts = torch.bincount(target["mask"].flatten().int(), minlength=IGNORE + 1)
    return set(counts[:IGNORE].nonzero().flatten().tolist())


def data_root(root: str | None) -> Path:
    """Where data is looked for: ``data.root``, else $CNNCTL_DATA, else a per-user cache folder."""
    if root is not None:
        return Path(root).expanduser().absolute()
    if configured := os.environ.get("CNNCTL_DATA"):
        return Path(configured).expanduser().absolute()
    return user_cache("data")


def absent(
    root: Path, names: Sequence[str], *, data: str, fetch: bool = True, instead: str = ""
) -> UserError:
    """The one sentence on data that is not where it was looked for.

    Args:
        root: the folder that ``data.root`` stands for.
        names: the files that are missing, relative to it.
        instead: a file that would do as well.
    """
    found = "" if root.is_dir() else ", which does not exist"
    get = f"type: cnnctl data fetch data={data}; or " if fetch else ""
    point = "point data.root (or $CNNCTL_DATA) at the folder that holds them"
    other = f" (or {instead})" if instead else ""
    if above := one_off(root, names):
        get, point = "", f"they are there if you type: data.root={above}"
    return UserError(
        f"data={data} was looked for in this folder{found}; it needs {', '.join(names)}{other}",
        file=root,
        advice=get + point,
        code=Exit.DATA,
    )


def one_off(root: Path, names: Sequence[str]) -> Path | None:
    """The folder to name where ``root`` is one of those below it (MNIST/raw for MNIST's)."""
    parts = [Path(name).parts for name in names]
    for depth in range(1, min(map(len, parts))):
        if all(root.joinpath(*part[depth:]).is_file() for part in parts):
            return root.parents[depth - 1]
    return None


def download(
    act: Callable[[], object],
    *,
    data: str,
    folder: Path,
    address: str,
    files: Sequence[tuple[str, str]],
) -> None:
    """Run torchvision's own download, and turn its failure into one sentence.

    Args:
        act: calls torchvision, which checks the md5 of what it gets.
        folder: where it puts the files.
        address: the web folder of the archives, and
        files: (name, md5) of each, for doing it by hand.
    """
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(STALLED)  # torchvision sets none: a silent server would hang for ever
    try:
        folder.mkdir(parents=True, exist_ok=True)
        act()
    except (RuntimeError, OSError, HTTPException, EOFError) as error:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise UserError(
                f"cannot be written: {error}", file=folder, advice="data.root=<another folder>",
                code=Exit.MACHINE,
            ) from None  # fmt: skip
        listed = ", ".join(f"{name} (md5 {md5})" for name, md5 in files)
        reason = " ".join(str(error).split())
        raise UserError(
            f"data={data} could not be downloaded: {reason}",
            advice=f"put {listed} from {address} into {folder} and type the same again",
            code=Exit.DATA,
        ) from None
    finally:
        socket.setdefaulttimeout(before)


def part_of_train(labels: Tensor, split: str, validation: int, *, data: str) -> Tensor:
    """Positions of the official training images that are ``train`` or ``val``, always the same.

    Args:
        labels: (M,) int64 of the official training images.
        validation: how many of them are held out as ``val``, the classes in proportion.

    Raises:
        NoSplit: ``val`` is asked for and ``validation`` is 0.
        ValueError: ``validation`` leaves nothing to train on.
    """
    if not 0 <= validation < len(labels):
        raise ValueError(f"validation must be from 0 to {len(labels) - 1}, got {validation}")
    if validation == 0 and split == "val":
        raise NoSplit(
            f"data={data} has no val split with validation=0",
            field="data.validation",
            advice="hold some images out (data.validation=5000) or take another split",
        )
    parts = stratified_split(labels, (len(labels) - validation, validation))
    return parts[SPLITS.index(split)]


def take(pixels: Tensor, chosen: Tensor) -> Tensor:
    """Rows of (M, C, H, W) uint8; a view of all of them where all are chosen."""
    return pixels if len(chosen) == len(pixels) else pixels[chosen]


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
