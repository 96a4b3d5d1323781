"""Your own images: one sub-folder a class.

Either ``train/<class>/*``, with ``val/`` and ``test/`` beside it where there are any, or
``<class>/*`` alone, which is split here, always in the same way.
"""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from cnnctl.data.base import NoSplit, stratified_split
from cnnctl.data.class_folders import ClassFolders, has_folders, has_images, scan
from cnnctl.data.image_file import printable, read_image
from cnnctl.data.own_folder import IMAGENET, OwnFolder, per_channel
from cnnctl.errors import Exit, UserError

_NAMES = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
_BROKEN_AT_LEAST, _BROKEN_SHARE = 10, 0.01  # more broken files than both are not skipped


class Folder(OwnFolder):
    """Images of any size, decoded when they are asked for.

    Hidden files and folders, other extensions and link loops are left out and counted
    (``remarks``). With the layout ``train/`` alone, ``val`` is split off it, and there is no test.

    Args:
        split: train, val or test.
        root: the folder itself.
        validation: share of the images held out as ``val`` where it has no folder; 0 is none.
        test: share held out as ``test`` where the images are not divided into folders; 0 is none.
        channels: 3 for RGB, 1 for grey.
        mirror: whether a mirror image keeps its class.
        mean, std: per channel, of pixels scaled to 0..1; None is ImageNet's.
        skip_broken: decode every file of the split now, leave out what does not decode, and count
            it in ``skipped``, so that the order of the rest is fixed before the first step. False:
            a broken file is an error when it is reached.

    Raises:
        UserError: there are no images, fewer than two classes, an empty class, a class that has no
            training image, or (``skip_broken``) too many broken files.
    """

    def __init__(
        self,
        split: Literal["train", "val", "test"],
        root: str | None = None,
        validation: float = 0.1,
        test: float = 0.1,
        channels: Literal[1, 3] = 3,
        mirror: bool = True,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        skip_broken: bool = False,
    ) -> None:
        _check_shares(validation, test)
        self.channels = channels
        self.mirror = mirror
        self.mean = per_channel("mean", mean, IMAGENET[channels][0])
        self.std = per_channel("std", std, IMAGENET[channels][1])
        self.root = self.existing(root, "a sub-folder for each class")
        files, chosen = _find(self.root, split, validation, test)
        self.classes = tuple(files.classes)
        self.ignored = files.ignored
        self.broken: list[UserError] = []
        self._keep([files.paths[i] for i in chosen], [files.sizes[i] for i in chosen])
        self.labels = torch.tensor(files.labels)[chosen]  # (M,)
        if skip_broken:
            self._skip_broken()

    def _keep(self, paths: list[bytes], sizes: list[int]) -> None:
        # Two arrays and one string, not a list: they are copied to no worker by being counted.
        self._names = b"".join(paths)
        self._ends = np.cumsum([len(path) for path in paths], dtype=np.int64)
        self._sizes = np.array(sizes, np.int64)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        image = read_image(self.path(index), self.channels)
        return image, {"label": int(self.labels[index])}

    def path(self, index: int) -> str:
        """The file of a sample; bytes that are not UTF-8 as ``os.fsdecode`` has them."""
        return os.path.join(self.root, os.fsdecode(self._relative(range(len(self))[index])))

    def _relative(self, index: int) -> bytes:
        start = self._ends[index - 1] if index else 0
        return self._names[start : self._ends[index]]

    def sample_name(self, index: int) -> str:
        return printable(self.path(index))

    def fingerprint(self) -> str:
        """Of class and file names, sizes and labels; not of times, which copying changes."""
        digest = hashlib.sha256(repr(self.classes).encode())
        for column in (self._ends, self._sizes, self.labels.numpy()):
            digest.update(column.tobytes())
        digest.update(self._names)
        return digest.hexdigest()

    def class_counts(self) -> list[int]:
        return torch.bincount(self.labels, minlength=len(self.classes)).tolist()

    def remarks(self) -> list[str]:
        lines = [f"{count:,} left out: {why}" for why, count in sorted(self.ignored.items())]
        return lines + [f"skipped: {error}" for error in self.broken]

    def _skip_broken(self) -> None:
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # decoding releases the interpreter's lock
            errors = list(pool.map(self._fault, range(len(self))))
        self.broken = [error for error in errors if error is not None]
        self.skipped = len(self.broken)
        if self.skipped > max(_BROKEN_AT_LEAST, _BROKEN_SHARE * len(self)):
            raise UserError(
                f"{self.skipped:,} of {len(self):,} images are broken, first {self.broken[0]}",
                file=printable(self.root),
                advice="too many to skip; data.skip_broken=false and cnnctl data check name them",
                code=Exit.DATA,
            )
        before = self.class_counts()
        good = [index for index, error in enumerate(errors) if error is None]
        self._keep([self._relative(i) for i in good], self._sizes[good].tolist())
        self.labels = self.labels[good]
        for name, had, has in zip(self.classes, before, self.class_counts(), strict=True):
            if had and not has:
                problem = f"no image of class {name} is whole"
                raise UserError(problem, file=printable(self.root), code=Exit.DATA)

    def _fault(self, index: int) -> UserError | None:
        try:
            self[index]
        except UserError as error:
            return error
        return None

    @classmethod
    def fetch(cls, root: str | None) -> str:
        return "nothing to fetch: data=folder is your own, one sub-folder a class at data.root"


def _check_shares(validation: float, test: float) -> None:
    for name, share in (("validation", validation), ("test", test)):
        if not 0 <= share < 1:
            raise ValueError(f"{name} must be a share in [0, 1), got {share}")
    if validation + test >= 1:
        raise ValueError(f"validation + test must be less than 1, got {validation + test:g}")


def _find(root: Path, split: str, validation: float, test: float) -> tuple[ClassFolders, list[int]]:
    """The files that hold ``split``, and which of them it is."""
    if not _is_divided(root):
        files = _trainable(scan(root, root), root)
        return files, _part(root, files, split, {"val": validation, "test": test})
    train = _trainable(scan(root, root / "train"), root / "train")
    folders = {
        part: next((root / n for n in _NAMES[part] if (root / n).is_dir()), None) for part in _NAMES
    }
    for name in _unused(root):
        train.ignored[f"a folder beside train/ that is neither val nor test: {name}"] += 1
    folder = folders[split]
    if split == "train" or (split == "val" and folder is None):
        share = 0.0 if folders["val"] else validation
        return train, _part(root, train, split, {"val": share})
    if folder is None:
        raise NoSplit(
            "has no folder test/ beside train/, so there is no test split",
            file=printable(root),
            code=Exit.DATA,
        )
    return _as_in(train, scan(root, folder), folder)


def _as_in(
    train: ClassFolders, files: ClassFolders, folder: Path
) -> tuple[ClassFolders, list[int]]:
    """``files`` with the class numbers of ``train``."""
    if unknown := sorted(set(files.classes) - set(train.classes)):
        raise UserError(
            f"class {unknown[0]} is in {folder.name}/ but not in train/",
            file=printable(folder),
            advice="the class folders must have the same names, letter for letter",
            code=Exit.DATA,
        )
    number = {name: label for label, name in enumerate(train.classes)}
    files.labels = [number[files.classes[label]] for label in files.labels]
    files.classes = train.classes
    return files, list(range(len(files.paths)))


def _is_divided(root: Path) -> bool:
    """Whether ``train`` is a part of the data, not a class of that name (full of images)."""
    train = root / "train"
    if train.is_dir():
        return has_folders(train) or not has_images(train)
    others = [name for name in (*_NAMES["val"], *_NAMES["test"]) if has_folders(root / name)]
    if others:
        raise UserError(
            f"has {others[0]}/ with class folders in it, but no train/",
            file=printable(root),
            advice="name the training images' folder train, or give data.root its parent",
            code=Exit.DATA,
        )
    return False


def _unused(root: Path) -> list[str]:
    known = {name for names in _NAMES.values() for name in names}
    entries = sorted(path for path in root.iterdir() if path.is_dir())
    return [printable(p.name) for p in entries if p.name not in known and p.name[0] != "."]


def _trainable(files: ClassFolders, folder: Path) -> ClassFolders:
    if len(files.classes) > 1:
        return files
    raise UserError(
        f"there is only one class, {files.classes[0]}",
        file=printable(folder),
        advice="a classifier needs two or more; is data.root the folder above the class folders?",
        code=Exit.DATA,
    )


def _part(root: Path, files: ClassFolders, split: str, shares: dict[str, float]) -> list[int]:
    """Positions of ``split`` in files that are divided here, the classes in proportion."""
    count = len(files.paths)
    held = {name: round(count * share) for name, share in shares.items()}
    held = {name: max(1, held[name]) if shares[name] else 0 for name in held}
    labels = torch.tensor(files.labels)
    sizes = (count - sum(held.values()), *held.values())
    if sizes[0] < 1:
        raise UserError(
            f"{count} images are too few to hold some out",
            file=printable(root),
            advice="add images, or set data.validation=0 and data.test=0",
            code=Exit.DATA,
        )
    parts = dict(zip(("train", *held), stratified_split(labels, sizes), strict=True))
    trained = torch.bincount(labels[parts["train"]], minlength=len(files.classes))
    if empty := [name for name, n in zip(files.classes, trained.tolist(), strict=True) if not n]:
        raise UserError(
            f"class {empty[0]} has too few images to be in val or test and in train too",
            file=printable(root),
            advice="add images, or divide them yourself into train/ and val/",
            code=Exit.DATA,
        )
    if split not in parts or not len(parts[split]):
        name = {"val": "validation", "test": "test"}[split]
        raise NoSplit(
            f"there is no {split} split with {name}=0",
            field=f"data.{name}",
            advice=f"hold some images out: data.{name}=0.1",
        )
    return parts[split].tolist()
