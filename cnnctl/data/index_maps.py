"""Images with a map of instances each: what number is in a pixel says whose the pixel is.

What is made of a map: the mask of each instance as bits in its own box (cnnctl/ops/masks.py), and
the box itself, whose right and lower side are exclusive.
"""

from __future__ import annotations

import hashlib
import os
from abc import abstractmethod
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from cnnctl.data.base import Dataset
from cnnctl.data.box_files import shown_size
from cnnctl.data.image_file import printable, read_annotated
from cnnctl.data.mask_pairs import Paths, check_sizes
from cnnctl.ops.masks import cropped, pack

_LOOKED_AT = 256  # maps at most that remarks are made of: every run says them when it starts
_CHUNK = 256  # maps handed to the threads at once


@dataclass(frozen=True)
class Objects:
    """The R instances of a map, by their numbers.

    Args:
        numbers: (R,) int64 what stands in their pixels.
        boxes: (R, 4) int64 xyxy, tight.
        areas: (R,) int64 pixels.
        crops: the mask of each in its box, (h, w) bool.
    """

    numbers: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    crops: list[np.ndarray]

    def within(self, row: int) -> tuple[slice, slice]:
        """Rows and columns of an instance's box."""
        left, top, right, bottom = self.boxes[row].tolist()
        return slice(top, bottom), slice(left, right)


_MOST = 1 << 31  # pixels of the boxes of all instances of a map: their crops take a byte each


def find_objects(numbers: Tensor, nobody: Collection[int] = (0,)) -> Objects:
    """The instances of a map.

    Args:
        numbers: (h, w) of whole numbers from 0 up.
        nobody: those that stand for no instance.

    Raises:
        ValueError: their boxes cover so much that it is no map of instances.
    """
    from scipy import ndimage

    values, positions = _found(numbers.numpy())
    places = ndimage.find_objects(positions)
    areas = np.bincount(positions.ravel(), minlength=len(values) + 1)[1:]
    kept = [row for row, value in enumerate(values.tolist()) if value not in nobody]
    corners = [(x.start, y.start, x.stop, y.stop) for y, x in (places[row] for row in kept)]
    boxes = np.array(corners, np.int64).reshape(-1, 4)
    if (boxes[:, 2:] - boxes[:, :2]).prod(1).sum() > _MOST:
        raise ValueError(
            f"has {len(kept):,} numbers all over the image, as a photograph or a depth map has"
        )
    return Objects(
        numbers=values[kept],
        boxes=boxes,
        areas=areas[kept],
        crops=[positions[places[row]] == row + 1 for row in kept],
    )


def _found(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The V numbers of a map, and (h, w) int32: which of them each pixel has, from 1."""
    if numbers.max(initial=0) < 1 << 20:  # a table, a tenth of the time of sorting all pixels
        values = np.bincount(numbers.ravel()).nonzero()[0]
        table = np.zeros(int(values[-1]) + 1, np.int32)
        table[values] = np.arange(1, len(values) + 1)
        return values.astype(np.int64), table[numbers]
    values, positions = np.unique(numbers, return_inverse=True)
    return values.astype(np.int64), positions.reshape(numbers.shape).astype(np.int32) + 1


def columns(
    objects: Objects,
    labels: Sequence[int],
    *,
    crowd: Sequence[bool] | None = None,
    difficult: Sequence[bool] | None = None,
    void: Tensor | None = None,
) -> dict[str, Tensor]:
    """The truth of a sample: the boxes' columns, and frames, crops and bits of the masks.

    Args:
        labels, crowd, difficult: of each of the R instances; None: of none of them.
        void: (h, w) bool, pixels that belong to nobody and are not judged.
    """
    none = [False] * len(labels)
    boxes = torch.from_numpy(objects.boxes).float()
    crops, frame = [torch.from_numpy(crop) for crop in objects.crops], None
    if void is not None:
        crop, frame = cropped(void)
        crops.append(crop)
    bits, where = pack(crops)
    truth = {
        "boxes": boxes,
        "labels": torch.tensor(labels, dtype=torch.int64),
        "crowd": torch.tensor(none if crowd is None else crowd, dtype=torch.bool),
        "difficult": torch.tensor(none if difficult is None else difficult, dtype=torch.bool),
        "area": torch.from_numpy(objects.areas).float(),
        "frames": boxes.clone(),
        "crops": where[: len(labels)],
        "bits": bits,
    }
    return truth if frame is None else {**truth, "void_frame": frame, "void_crop": where[-1]}


class IndexMaps(Dataset):
    """Samples of (image (C, h, w) uint8, its instances), decoded when asked for.

    A subclass sets ``images`` and ``maps`` (paths, a row for each sample), and says in
    ``objects_in`` what is in a map.
    """

    fields: ClassVar[tuple[str, ...]] = ("boxes", "masks")
    stored: ClassVar[bool] = False  # the maps are known to be of images as stored, not as shown
    images: Paths
    maps: Paths

    @abstractmethod
    def objects_in(self, index: int) -> tuple[dict[str, Tensor], Tensor]:
        """The truth of a sample and its map, (h, w); its image is not read.

        Raises:
            UserError: a file is damaged, or does not hold what it should.
        """

    def truth(self, index: int) -> dict[str, Tensor]:
        """The target of a sample; its image is not read."""
        return self.objects_in(index)[0]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        truth, numbers = self.objects_in(index)
        size = (numbers.shape[0], numbers.shape[1])
        image = read_annotated(self.images[index], size, self.channels, stored=self.stored)
        check_sizes(image, numbers, self.images[index], self.maps[index])
        return image, truth

    def image_size(self, index: int) -> tuple[int, int]:
        """(h, w), by the map."""
        return shown_size(self.maps[index])

    def path(self, index: int) -> str:
        return self.images[index]

    def sample_name(self, index: int) -> str:
        return printable(self.images[index])

    def class_counts(self) -> list[int]:
        """Images that show each class, more than in a crowd."""

        def shown(index: int) -> Tensor:
            truth = self.truth(index)
            return truth["labels"][~truth["crowd"]].unique()

        every = in_threads(shown, range(len(self)))
        return torch.bincount(torch.cat(every), minlength=len(self.classes)).tolist()

    @cached_property
    def looked_at(self) -> list[int]:
        """Samples that remarks are made of, spread evenly over the split: all of a few hundred."""
        count = min(len(self), _LOOKED_AT)
        return torch.linspace(0, len(self) - 1, count).round().long().tolist()

    def fingerprint(self) -> str:
        """Of classes, file names and sizes."""
        digest = hashlib.sha256(repr(self.classes).encode())
        self.images.digest(digest)
        self.maps.digest(digest)
        return digest.hexdigest()


def in_threads(act: Callable[[int], Any], indices: Sequence[int]) -> list[Any]:
    """``act`` of each; decoding a file releases the interpreter's lock."""
    found = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(indices), _CHUNK):
            found += pool.map(act, indices[start : start + _CHUNK])
    return found
