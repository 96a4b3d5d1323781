"""What data sets of image files with boxes have in common: their truth in arrays."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from cnnctl.data.base import Dataset
from cnnctl.data.image_file import (
    file_bytes,
    open_image,
    orientation,
    printable,
    read_annotated,
    read_image,
)
from cnnctl.data.mask_pairs import Paths, listed
from cnnctl.errors import Exit, UserError

_UPRIGHT = 4  # EXIF orientations above it swap height and width


@dataclass(frozen=True)
class BoxTable:
    """The boxes of M images, A in all: columns that no worker copies by reading them."""

    ends: np.ndarray  # (M,) int64: where an image's boxes end; they begin where the last one's did
    sizes: np.ndarray | None  # (M, 2) int32 (h, w); None: ``boxes`` are shares of the sides
    boxes: np.ndarray  # (A, 4) float64 xyxy, the right and lower side exclusive
    labels: np.ndarray  # (A,) int32
    difficult: np.ndarray  # (A,) bool
    crowd: np.ndarray  # (A,) bool
    truncated: np.ndarray  # (A,) bool
    occluded: np.ndarray  # (A,) bool
    areas: np.ndarray | None = None  # (A,) float64 pixels of the objects; None: of their boxes
    clipped: np.ndarray | None = None  # (A,) bool: reached beyond the image in the file

    def __len__(self) -> int:
        return len(self.ends)

    def own(self, image: int) -> slice:
        """The rows of an image's boxes."""
        image = range(len(self))[image]
        return slice(int(self.ends[image - 1]) if image else 0, int(self.ends[image]))

    def counts(self) -> np.ndarray:
        """(M,) int64 boxes of each image."""
        return np.diff(self.ends, prepend=0)

    def part(self, images: Sequence[int]) -> BoxTable:
        """The table of some images, in their order."""
        chosen = np.asarray(images, np.int64)
        ranges = [np.arange((s := self.own(i)).start, s.stop) for i in chosen.tolist()]
        rows = np.concatenate(ranges) if ranges else np.empty(0, np.int64)
        columns = {
            name: column[rows]
            for name, column in vars(self).items()
            if column is not None and name not in ("ends", "sizes")
        }
        sizes = None if self.sizes is None else self.sizes[chosen]
        return replace(self, ends=np.cumsum(self.counts()[chosen]), sizes=sizes, **columns)

    def digest(self, into: Any) -> None:
        for name in ("ends", "boxes", "labels", "difficult", "crowd", "areas"):
            if (column := getattr(self, name)) is not None:
                into.update(np.ascontiguousarray(column).data)


class BoxFiles(Dataset):
    """Samples of (image (C, h, w) uint8, boxes with what is true of each), decoded when asked for.

    A subclass sets ``images`` and ``table``, a row for each sample, and ``split``.
    """

    fields: ClassVar[tuple[str, ...]] = ("boxes",)
    stored: ClassVar[bool] = False  # the boxes are known to be of images as stored, not as shown
    split: str
    images: Paths
    table: BoxTable

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        path = self.images[index]
        if self.table.sizes is None:
            image = read_image(path, self.channels)
            return image, self._truth(index, (image.shape[1], image.shape[2]))
        h, w = self.image_size(index)
        image = read_annotated(path, (h, w), self.channels, stored=self.stored)
        if image.shape[1:] != (h, w):
            raise UserError(
                f"the image is {image.shape[2]} x {image.shape[1]}, "
                f"{self.truth_name(index)} says {w} x {h}",
                file=printable(path),
                advice="was the image resized or turned after it was annotated?",
                code=Exit.DATA,
            )
        return image, self._truth(index, (h, w))

    def truth(self, index: int) -> dict[str, Tensor]:
        """The target of a sample; its pixels are not read."""
        return self._truth(index, self.image_size(index))

    def _truth(self, index: int, size: tuple[int, int]) -> dict[str, Tensor]:
        own = self.table.own(index)
        count = own.stop - own.start
        columns = self._columns(own, np.array([size] * count, np.int64).reshape(-1, 2))
        truth = {name: torch.from_numpy(column) for name, column in columns.items()}
        return {name: c.float() if c.is_floating_point() else c for name, c in truth.items()}

    def all_truth(self) -> dict[str, np.ndarray]:
        """The boxes of all samples, in float64, to score detections by and to export.

        Returns:
            image (R,) int64, the sample of each, in order; and the columns of ``truth``.
        """
        sizes = self._sizes_looked_up if self.table.sizes is None else self.table.sizes
        image = np.repeat(np.arange(len(self)), self.table.counts())
        return {"image": image, **self._columns(slice(None), sizes[image])}

    @cached_property
    def _sizes_looked_up(self) -> np.ndarray:
        """(M, 2) int64 (h, w), from all image files: once, as every evaluation asks for them."""
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return np.array(list(pool.map(self.image_size, range(len(self)))))

    def _columns(self, rows: slice, sizes: np.ndarray) -> dict[str, np.ndarray]:
        """Of rows of the table, whose images have ``sizes`` (R, 2) of (h, w); copies."""
        table = self.table
        boxes = table.boxes[rows].copy()
        if table.sizes is None:
            boxes *= sizes[:, [1, 0, 1, 0]]
        area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
        return {
            "boxes": boxes,
            "labels": table.labels[rows].astype(np.int64),
            "crowd": table.crowd[rows].copy(),
            "difficult": table.difficult[rows].copy(),
            "area": area if table.areas is None else table.areas[rows].astype(np.float64),
        }

    def attributes(self, index: int) -> dict[str, np.ndarray]:
        """What is known of a sample's boxes and not learned: (R,) bool each."""
        own = self.table.own(index)
        return {name: getattr(self.table, name)[own] for name in ("truncated", "occluded")}

    def image_size(self, index: int) -> tuple[int, int]:
        """(h, w) as the boxes mean it; of shares, of the image as it is shown."""
        if self.table.sizes is not None:
            h, w = self.table.sizes[index].tolist()
            return h, w
        return shown_size(self.images[index])

    def path(self, index: int) -> str:
        return self.images[index]

    def sample_name(self, index: int) -> str:
        return printable(self.images[index])

    def truth_name(self, index: int) -> str:
        """What to call the file that a sample's boxes are from."""
        return "its annotation"

    def class_counts(self) -> list[int]:
        """Images that show each class."""
        image = np.repeat(np.arange(len(self)), self.table.counts())
        pairs = np.unique(np.stack([image, self.table.labels]), axis=1)
        return np.bincount(pairs[1], minlength=len(self.classes)).tolist()

    def fingerprint(self) -> str:
        """Of classes, file names and sizes, and every box."""
        digest = hashlib.sha256(repr(self.classes).encode())
        self.images.digest(digest)
        self.table.digest(digest)
        return digest.hexdigest()

    def remarks(self) -> list[str]:
        found = []
        if self.table.clipped is not None and (count := int(self.table.clipped.sum())):
            found.append(f"{count:,} boxes reached beyond their image: clipped")
        if count := int((self.table.counts() == 0).sum()):
            found.append(f"{count:,} of {len(self):,} images have no box")
        there = np.bincount(self.table.labels, minlength=len(self.classes))
        absent = [name for name, count in zip(self.classes, there, strict=True) if not count]
        if absent and self.split == "train":
            found.append(f"no box of {listed(absent)}")
        return found

    def refuse_boxless(self, where: str) -> None:
        """Raise UserError where no image of the split has a box that counts.

        Args:
            where: the file or folder to name.
        """
        if not (self.table.crowd | self.table.difficult).all():
            return
        none = "not one of them has a box" if len(self) > 1 else "it has no box"
        kinds = " that is not difficult or a crowd" if len(self.table.boxes) else ""
        raise UserError(
            f"{self.split} has {len(self):,} images, and {none}{kinds}",
            file=where,
            advice="nothing can be learned or scored: complete the boxes, or divide otherwise",
            code=Exit.DATA,
        )


def shown_size(path: str) -> tuple[int, int]:
    """(h, w) of an image as it is shown: ``read_image``'s, without decoding it.

    Raises:
        UserError: it cannot be read, or is no image (code 3).
    """
    try:
        image = open_image(file_bytes(path))
        turned = orientation(image) > _UPRIGHT and image.format != "TIFF"
    except ValueError as error:
        raise UserError(str(error), file=printable(path), code=Exit.DATA) from None
    return (image.width, image.height) if turned else (image.height, image.width)


def ends(counts: Iterable[int]) -> np.ndarray:
    """(M,) int64: where each of M lists ends in all of them, one behind the other."""
    return np.cumsum(np.fromiter(counts, np.int64))
