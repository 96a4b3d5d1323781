"""MNIST: 70,000 grey 28 x 28 handwritten digits.

LeCun, Bottou, Bengio, Haffner, "Gradient-based learning applied to document recognition",
Proceedings of the IEEE 86(11), 1998. The files are idx: a magic number, the count and the sides,
big-endian, then bytes.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import zlib
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch

from cnnctl.data.base import ArrayDataset, absent, data_root, download, part_of_train, take
from cnnctl.errors import Exit, UserError

_SIDE = 28
_PREFIX = {"train": "train", "val": "train", "test": "t10k"}


class MNIST(ArrayDataset):
    """The official training images less ``validation`` of them, those, and the official test ones.

    Args:
        split: train, val or test.
        root: the folder that holds MNIST/raw; None is $CNNCTL_DATA or a per-user cache folder.
        validation: training images held out as ``val``, always the same; 0 is none.
        verify: read the .gz files where they are there, after their md5 was checked. A file that
            is there only without .gz has no published md5 and gets the structural checks alone.

    Raises:
        UserError: a file is absent, or not what it should be.
    """

    classes: tuple[str, ...] = tuple("0123456789")
    channels = 1
    size = (_SIDE, _SIDE)
    mean = (0.1307,)  # of the official training images, pixels scaled to 0..1
    std = (0.3081,)
    mirror = False
    source: ClassVar[str] = "MNIST"  # torchvision's class, and the folder that it downloads into

    def __init__(
        self,
        split: Literal["train", "val", "test"],
        root: str | None = None,
        validation: int = 5000,
        verify: bool = True,
    ) -> None:
        folder = data_root(root)
        if missing := self.missing(root):
            raise absent(folder, missing, data=self.option())
        images, labels = (
            self._read(folder / name, verify) for name in self._names() if _PREFIX[split] in name
        )
        if len(images) != len(labels):
            raise UserError(
                f"holds {len(images)} images, but there are {len(labels)} labels",
                file=folder / self.source / "raw" / f"{_PREFIX[split]}-images-idx3-ubyte",
                advice=f"delete it and type: cnnctl data fetch data={self.option()}",
                code=Exit.DATA,
            )
        pixels = torch.from_numpy(images)[:, None]  # (M, 1, 28, 28)
        truth = torch.from_numpy(labels).long()
        if split != "test":
            chosen = part_of_train(truth, split, validation, data=self.option())
            pixels, truth = take(pixels, chosen), truth[chosen]
        super().__init__(pixels, truth)

    @classmethod
    def _names(cls) -> list[str]:
        parts = [
            (prefix, what)
            for prefix in ("train", "t10k")
            for what in ("images-idx3", "labels-idx1")
        ]
        return [f"{cls.source}/raw/{prefix}-{what}-ubyte" for prefix, what in parts]

    @classmethod
    def missing(cls, root: str | None) -> list[str]:
        folder = data_root(root)
        return [n for n in cls._names() if not any(p.is_file() for p in _either(folder / n))]

    @classmethod
    def _read(cls, path: Path, verify: bool) -> np.ndarray:
        plain, packed = _either(path)
        chosen = packed if packed.is_file() and (verify or not plain.is_file()) else plain
        again = f"delete it and type: cnnctl data fetch data={cls.option()}"
        try:
            raw = chosen.read_bytes()
            if chosen == packed:
                if verify:
                    _check_md5(raw, dict(cls._published())[packed.name])
                raw = gzip.decompress(raw)
            array = read_idx(raw, (_SIDE, _SIDE) if "images" in path.name else ())
            if "labels" in path.name:
                check_labels(array, len(cls.classes))
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            problem = f"is no whole gzip file: {error}"
            raise UserError(problem, file=chosen, advice=again, code=Exit.DATA) from None
        except OSError as error:
            problem = f"cannot be read: {error.strerror}"
            raise UserError(problem, file=chosen, code=Exit.DATA) from None
        except ValueError as error:
            raise UserError(str(error), file=chosen, advice=again, code=Exit.DATA) from None
        return array

    @classmethod
    def _published(cls) -> list[tuple[str, str]]:
        """(name, md5) of the four archives, as torchvision has them."""
        from torchvision import datasets

        return getattr(datasets, cls.source).resources

    @classmethod
    def fetch(cls, root: str | None) -> str:
        from torchvision import datasets

        source, folder = getattr(datasets, cls.source), data_root(root)
        download(
            lambda: source(str(folder), download=True),
            data=cls.option(),
            folder=folder / cls.source / "raw",
            address=source.mirrors[0],
            files=source.resources,
        )
        return f"data={cls.option()} is in {folder / cls.source / 'raw'}"


def _either(path: Path) -> tuple[Path, Path]:
    return path, path.with_name(f"{path.name}.gz")


def _check_md5(raw: bytes, expected: str) -> None:
    found = hashlib.md5(raw, usedforsecurity=False).hexdigest()
    if found != expected:
        raise ValueError(f"has md5 {found}, must be {expected}")


def read_idx(raw: bytes, item: tuple[int, ...]) -> np.ndarray:
    """An idx file of bytes -> (count, *item) uint8, writable.

    Args:
        item: the shape of one item, () for labels, (28, 28) for images.

    Raises:
        ValueError: what is wrong with it, in words.
    """
    magic = bytes([0, 0, 8, 1 + len(item)])  # 8 stands for unsigned bytes, then the dimensions
    if not raw:
        raise ValueError("is empty")
    if raw[:4] != magic:
        start, wanted = raw[:4].hex(" "), magic.hex(" ")
        raise ValueError(f"is no idx file of this kind: it starts with {start}, must be {wanted}")
    header = 4 * (2 + len(item))
    count, *sides = (int.from_bytes(raw[i : i + 4], "big") for i in range(4, header, 4))
    if len(raw) >= header and tuple(sides) != item:
        raise ValueError(f"holds items of {sides} bytes, must be {list(item)}")
    expected = header + count * math.prod(item)
    if len(raw) != expected:
        state = "is truncated" if len(raw) < expected else "is too long"
        raise ValueError(f"{state}: {len(raw):,} bytes, must be {expected:,} for {count:,} items")
    if count == 0:
        raise ValueError("holds no items")
    return np.frombuffer(bytearray(raw), np.uint8, offset=header).reshape(count, *item)


def check_labels(labels: np.ndarray, classes: int) -> None:
    """Raise ValueError naming the first of ``labels`` that is not below ``classes``."""
    wrong = np.flatnonzero(labels >= classes)
    if len(wrong):
        where = int(wrong[0])
        more = f" (and {len(wrong) - 1:,} more)" if len(wrong) > 1 else ""
        raise ValueError(f"label {where} is {labels[where]}, must be 0 to {classes - 1}{more}")
