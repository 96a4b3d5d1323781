"""CIFAR-10: 60,000 colour 32 x 32 images of ten classes.

Krizhevsky, "Learning multiple layers of features from tiny images", 2009. The binary archive is
records of a label and 3 x 32 x 32 bytes. The Python archive is pickle, which can run code: a file
of it is opened only after its md5 was found in torchvision's own list.
"""

from __future__ import annotations

import hashlib
import pickle
import tarfile
import zlib
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch

from cnnctl.data.base import ArrayDataset, absent, data_root, download, one_off, part_of_train, take
from cnnctl.data.mnist import check_labels
from cnnctl.errors import Exit, UserError

_PIXELS = 3 * 32 * 32


class CIFAR10(ArrayDataset):
    """45,000 / 5,000 of the official training images, and the official test images.

    The sizes of the split are those on which He et al. (arXiv:1512.03385, section 4.2) determined
    their schedule; which images are held out they do not say: here every class in proportion.

    Looked for under ``root``, the first that is there: with ``verify`` the Python batches (md5 of
    each file), then the binary archive (md5 of the .tar.gz, read from within); without it the
    extracted binary files, then those two.

    Args:
        split: train, val or test.
        root: the folder that holds the archive's own folder; None is $CNNCTL_DATA or a per-user
            cache folder.
        validation: training images held out as ``val``, always the same; 0 is none.
        verify: take only what a published md5 vouches for; False takes any pixels in the official
            binary layout (sizes and labels are still checked).

    Raises:
        UserError: files are absent, cannot be verified, or are not what they should be.
    """

    classes: tuple[str, ...] = (
        *("airplane", "automobile", "bird", "cat", "deer"),
        *("dog", "frog", "horse", "ship", "truck"),
    )
    channels = 3
    size = (32, 32)
    mean = (0.4914, 0.4822, 0.4465)  # of the official training images, pixels scaled to 0..1
    std = (0.2470, 0.2435, 0.2616)

    source: ClassVar[str] = "CIFAR10"  # torchvision's class
    binary: ClassVar[str] = "cifar-10-batches-bin"
    train_files: ClassVar[tuple[str, ...]] = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
    test_files: ClassVar[tuple[str, ...]] = ("test_batch.bin",)
    images_in_file: ClassVar[dict[str, int]] = {"train": 10_000, "test": 10_000}
    label_bytes: ClassVar[int] = 1  # the last of them is the class
    label_key: ClassVar[str] = "labels"  # of the Python batches
    archive: ClassVar[str] = "cifar-10-binary.tar.gz"
    archive_md5: ClassVar[str] = "c32a1d4ab5d03f1284b67883e8d87530"  # www.cs.toronto.edu/~kriz

    def __init__(
        self,
        split: Literal["train", "val", "test"],
        root: str | None = None,
        validation: int = 5000,
        verify: bool = True,
    ) -> None:
        part = "test" if split == "test" else "train"
        images, labels = self._load(data_root(root), part, verify)
        pixels = torch.from_numpy(images)  # (M, 3, 32, 32)
        truth = torch.from_numpy(labels).long()
        if split != "test":
            chosen = part_of_train(truth, split, validation, data=self.option())
            pixels, truth = take(pixels, chosen), truth[chosen]
        super().__init__(pixels, truth)

    @classmethod
    def _load(cls, root: Path, part: str, verify: bool) -> tuple[np.ndarray, np.ndarray]:
        """Images (M, 3, 32, 32) uint8 and labels (M,) uint8 of one official part."""
        readers = {
            cls._python_files: cls._read_python,
            cls._archive_files: cls._read_archive,
            cls._binary_files: cls._read_binary,
        }
        order = (
            list(readers) if verify else [cls._binary_files, cls._archive_files, cls._python_files]
        )
        there = next((files for files in order if _all_there(root, files())), None)
        if there is None:
            kinds = (files() for files in order)
            names = next((n for n in kinds if one_off(root, n)), cls.missing(str(root)))
            raise absent(root, names, data=cls.option(), instead=cls.archive)
        if verify and there == cls._binary_files:
            raise UserError(
                f"cannot be verified: no md5 is published for extracted files, and {cls.archive} "
                "is not beside them",
                file=root / cls.binary,
                advice=f"put {cls.archive} there, or take the files as they are: data.verify=false",
                code=Exit.DATA,
            )
        return readers[there](root, part, verify)

    @classmethod
    def _binary_files(cls) -> list[str]:
        return [f"{cls.binary}/{name}" for name in (*cls.train_files, *cls.test_files)]

    @classmethod
    def _archive_files(cls) -> list[str]:
        return [cls.archive]

    @classmethod
    def _python_files(cls) -> list[str]:
        source = cls._torchvision()
        return [f"{source.base_folder}/{n}" for n, _ in (*source.train_list, *source.test_list)]

    @classmethod
    def _torchvision(cls):
        from torchvision import datasets

        return getattr(datasets, cls.source)

    @classmethod
    def _read_binary(cls, root: Path, part: str, verify: bool) -> tuple[np.ndarray, np.ndarray]:
        names = cls.train_files if part == "train" else cls.test_files
        paths = [root / cls.binary / name for name in names]
        return cls._join([cls._parse(_read(path), part, path) for path in paths])

    @classmethod
    def _read_archive(cls, root: Path, part: str, verify: bool) -> tuple[np.ndarray, np.ndarray]:
        path = root / cls.archive
        if verify:
            _check_md5(path, _read(path), cls.archive_md5, cls.option())
        names = cls.train_files if part == "train" else cls.test_files
        found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        try:
            with tarfile.open(path, "r|gz") as tar:  # a stream: each member is unpacked once
                for member in tar:
                    folder, _, name = member.name.rpartition("/")
                    if folder.endswith(cls.binary) and name in names and member.isfile():
                        stream = tar.extractfile(member)
                        assert stream is not None
                        raw = stream.read(cls._bytes_in_file(part) + 1)
                        found[name] = cls._parse(raw, part, path, f"{folder}/{name}")
        except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
            problem = f"is no whole tar.gz archive: {error}"
            raise UserError(problem, file=path, code=Exit.DATA) from None
        if lacking := [name for name in names if name not in found]:
            problem = f"does not hold {cls.binary}/{', '.join(lacking)}"
            raise UserError(problem, file=path, code=Exit.DATA)
        return cls._join([found[name] for name in names])

    @classmethod
    def _read_python(cls, root: Path, part: str, verify: bool) -> tuple[np.ndarray, np.ndarray]:
        source = cls._torchvision()
        pieces = []
        for name, md5 in source.train_list if part == "train" else source.test_list:
            path = root / source.base_folder / name
            raw = _read(path)
            _check_md5(path, raw, md5, cls.option())
            batch = pickle.loads(raw, encoding="latin1")  # these very bytes are torchvision's
            labels = np.asarray(batch[cls.label_key], np.uint8)
            pieces.append((np.asarray(batch["data"], np.uint8).reshape(-1, 3, 32, 32), labels))
        return cls._join(pieces)

    @classmethod
    def _bytes_in_file(cls, part: str) -> int:
        return cls.images_in_file[part] * (cls.label_bytes + _PIXELS)

    @classmethod
    def _parse(
        cls, raw: bytes, part: str, path: Path, member: str | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Records of one binary file -> images (M, 3, 32, 32) and labels (M,), views of ``raw``."""
        expected = cls._bytes_in_file(part)
        try:
            if len(raw) != expected:
                state = "is truncated" if len(raw) < expected else "is too long"
                raise ValueError(
                    f"{state}: {len(raw):,} bytes, must be {expected:,} "
                    f"for {cls.images_in_file[part]:,} images"
                )
            records = np.frombuffer(raw, np.uint8).reshape(-1, cls.label_bytes + _PIXELS)
            labels = records[:, cls.label_bytes - 1]
            check_labels(labels, len(cls.classes))
        except ValueError as error:
            raise UserError(
                str(error),
                file=path,
                record=member,
                advice=f"get it again, or type: cnnctl data fetch data={cls.option()}",
                code=Exit.DATA,
            ) from None
        return records[:, cls.label_bytes :].reshape(-1, 3, 32, 32), labels

    @staticmethod
    def _join(pieces: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
        images, labels = zip(*pieces, strict=True)
        return np.concatenate(images), np.concatenate(labels)

    @classmethod
    def missing(cls, root: str | None) -> list[str]:
        folder = data_root(root)
        kinds = (cls._binary_files(), cls._archive_files(), cls._python_files())
        if any(_all_there(folder, names) for names in kinds):
            return []
        # Where one form is begun, what completes it; else the form that can be verified.
        begun = next((names for names in kinds if any((folder / n).is_file() for n in names)), None)
        wanted = begun or cls._python_files()
        return [name for name in wanted if not (folder / name).is_file()]

    @classmethod
    def fetch(cls, root: str | None) -> str:
        source, folder = cls._torchvision(), data_root(root)
        download(
            lambda: source(str(folder), download=True),
            data=cls.option(),
            folder=folder,
            address=source.url.rpartition("/")[0],
            files=[(source.filename, source.tgz_md5)],
        )
        return f"data={cls.option()} is in {folder / source.base_folder}"


def _all_there(root: Path, names: list[str]) -> bool:
    return all((root / name).is_file() for name in names)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        problem = f"cannot be read: {error.strerror}"
        raise UserError(problem, file=path, code=Exit.DATA) from None


def _check_md5(path: Path, raw: bytes, expected: str, data: str) -> None:
    found = hashlib.md5(raw, usedforsecurity=False).hexdigest()
    if found != expected:
        raise UserError(
            f"has md5 {found}, must be {expected}: it is not opened",
            file=path,
            advice=f"delete it and type: cnnctl data fetch data={data}",
            code=Exit.DATA,
        )
