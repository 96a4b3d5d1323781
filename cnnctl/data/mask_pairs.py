"""What data sets of an image file and a mask file for each sample have in common."""

from __future__ import annotations

import hashlib
import os
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from cnnctl.data.base import Dataset, NoSplit, stratified_split
from cnnctl.data.image_file import printable, read_annotated
from cnnctl.data.mask_counts import count_masks
from cnnctl.errors import Exit, UserError


class Paths:
    """Many files in one string and one array: copied to no worker by being counted.

    Args:
        base: a folder; names below it are kept, and digested, without it.
        files: (path, its size in bytes) of each.
    """

    def __init__(self, base: Path, files: Iterable[tuple[Path, int]]) -> None:
        files = list(files)
        self._base = str(base)
        encoded = [os.fsencode(_below(path, base)) for path, _ in files]
        self._joined = b"".join(encoded)
        self._ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        self._sizes = np.array([size for _, size in files], np.int64)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        index = range(len(self))[index]
        start = self._ends[index - 1] if index else 0
        return os.path.join(self._base, os.fsdecode(self._joined[start : self._ends[index]]))

    def digest(self, into: Any) -> None:
        """Feed names and sizes to a hash; not times, which copying changes."""
        for part in (self._joined, self._ends.tobytes(), self._sizes.tobytes()):
            into.update(part)


def _below(path: Path, base: Path) -> Path:
    return path.relative_to(base) if path.is_relative_to(base) else path


class MaskPairs(Dataset):
    """Samples of (image (C, h, w) uint8, {"mask": (h, w) uint8}), decoded when asked for.

    A subclass sets ``images`` and ``masks`` (paths, a row for each sample), and says in
    ``classes_in`` how a mask file is read.
    """

    fields: ClassVar[tuple[str, ...]] = ("mask",)
    stored: ClassVar[bool] = False  # the masks are known to be of images as stored, not as shown
    images: Paths
    masks: Paths

    @abstractmethod
    def classes_in(self, path: str) -> Tensor:
        """The class of each pixel of a mask file, (h, w) uint8 with 255 = void.

        Raises:
            UserError: it is damaged.
            ValueError: a pixel's value is no class.
        """

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        mask = self.mask(index)
        size = (mask.shape[0], mask.shape[1])
        image = read_annotated(self.images[index], size, self.channels, stored=self.stored)
        check_sizes(image, mask, self.images[index], self.masks[index])
        return image, {"mask": mask}

    def mask(self, index: int) -> Tensor:
        """The mask of a sample alone, (h, w) uint8; its image is not read."""
        path = self.masks[index]
        try:
            return self.classes_in(path)
        except ValueError as error:
            raise UserError(
                str(error), file=printable(path), advice=self.advice(), code=Exit.DATA
            ) from None

    def advice(self) -> str:
        """What to do about a value that is no class."""
        return "correct the mask"

    def sample_name(self, index: int) -> str:
        return printable(self.images[index])

    def class_counts(self) -> list[int]:
        """Images that contain each class."""
        return count_masks(self).images.tolist()

    def fingerprint(self) -> str:
        """Of classes, file names and sizes."""
        digest = hashlib.sha256(repr(self.classes).encode())
        self.images.digest(digest)
        self.masks.digest(digest)
        return digest.hexdigest()


def check_sizes(image: Tensor, mask: Tensor, image_file: str, mask_file: str) -> None:
    """Raise UserError, naming both, where image (C, h, w) and mask (h, w) differ in size."""
    if image.shape[1:] == mask.shape:
        return
    (h, w), (mask_h, mask_w) = image.shape[1:], mask.shape
    raise UserError(
        f"the image is {w} x {h}, its mask {printable(mask_file)} is {mask_w} x {mask_h}",
        file=printable(image_file),
        advice="a mask has a pixel for each of its image's; was one resized or turned (EXIF)?",
        code=Exit.DATA,
    )


def divide(count: int, shares: dict[str, float], where: Path | str) -> dict[str, list[int]]:
    """Positions of ``train`` and of each held-out part, the same in every run.

    Args:
        shares: part -> its share of the samples; 0 leaves it out, any other is one at least.

    Raises:
        UserError: nothing would be left to train on.
    """
    held = {name: max(1, round(count * share)) if share else 0 for name, share in shares.items()}
    rest = count - sum(held.values())
    if rest < 1:
        raise UserError(
            f"{count} images are too few to hold some out",
            file=printable(where),
            advice="add images, or set data.validation=0",
            code=Exit.DATA,
        )
    parts = stratified_split(torch.zeros(count, dtype=torch.int64), (rest, *held.values()))
    return {name: part.tolist() for name, part in zip(("train", *held), parts, strict=True)}


def check_share(**shares: float) -> None:
    """Raise ValueError where a share is not in [0, 1), or all of them leave nothing."""
    for name, share in shares.items():
        if not 0 <= share < 1:
            raise ValueError(f"{name} must be a share in [0, 1), got {share}")
    if sum(shares.values()) >= 1:
        raise ValueError(f"{' + '.join(shares)} must be less than 1, got {sum(shares.values()):g}")


def no_split(split: str, key: str) -> NoSplit:
    """The error for a split that a share of 0 leaves empty."""
    return NoSplit(
        f"there is no {split} split with {key}=0",
        field=f"data.{key}",
        advice=f"hold some images out (data.{key}=0.1) or take another split",
    )


def files_in(folder: Path) -> dict[str, int]:
    """Name -> size in bytes of every file in a folder, hidden ones left out.

    Raises:
        UserError: the folder cannot be listed.
    """
    try:
        with os.scandir(folder) as entries:
            return {e.name: e.stat().st_size for e in entries if e.name[0] != "." and e.is_file()}
    except OSError as error:
        problem = f"cannot be listed: {error.strerror}"
        raise UserError(problem, file=printable(folder), code=Exit.DATA) from None


def listed(names: Sequence[str], shown: int = 3) -> str:
    """``a, b, c and 9 more``."""
    more = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {more:,} more" if more > 0 else "")
