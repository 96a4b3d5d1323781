"""What COCO's images are, whatever is to be told of them: one split of an annotation file."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import ClassVar

import numpy as np
from torch import Tensor

from cnnctl.data.base import Dataset, absent, data_root
from cnnctl.data.coco_index import read_index
from cnnctl.data.coco_records import Use
from cnnctl.data.faults import Faults
from cnnctl.data.image_file import printable, read_annotated
from cnnctl.data.mask_pairs import check_share, divide, no_split
from cnnctl.errors import Exit, UserError, nearest


class COCOSplit(Dataset):
    """Images of any size and their annotations in an index; a subclass makes the truth of them.

    The official test annotations are not public. So ``test`` is the official val2017, on which
    papers report; ``val`` is held out of train2017, always the same, for choosing the best epoch.

    Args:
        split: train, val or test.
        root: the folder that holds coco/, or is it; None is $CNNCTL_DATA or a per-user cache
            folder.
        year: of the official files, 2017 or 2014.
        annotations: a file in COCO's format instead of the official two, below ``root`` or
            absolute; train, val and test are shares of its images.
        images: the folder of that file's images, below ``root`` or absolute.
        validation: share of the training images held out as ``val``; 0 is none.
        test: share held out as ``test`` where ``annotations`` is given; 0 is none.

    Attributes:
        undivided: every split is all of the file.

    Raises:
        UserError: files are absent, or records in them are wrong.
    """

    uses: ClassVar[tuple[Use, ...]]  # what each annotation must be fit for
    uses_of_own: ClassVar[tuple[Use, ...]] = ()  # what those of one's own file must be, too
    kind: ClassVar[str] = "instances"  # of the official annotation files
    images_needed: ClassVar[bool] = True  # or are they only scored, and need not be there?
    table: np.ndarray  # (K,) class of each category of the file
    channels = 3
    mean = (0.485, 0.456, 0.406)  # ImageNet's, as published weights expect
    std = (0.229, 0.224, 0.225)

    def __init__(
        self,
        split: str,
        root: str | None,
        year: int,
        annotations: str | None,
        images: str | None,
        validation: float,
        test: float,
    ) -> None:
        own = annotations is not None
        whole = own and images is None and not self.images_needed
        if own != (images is not None) and not whole:
            raise ValueError("annotations and images go together: give both or none")
        shares = {"val": validation, "test": test} if own else {"val": validation}
        check_share(**{"validation": validation} | ({"test": test} if own else {}))
        for part, share in shares.items():
            if split == part and not share and not whole:
                raise no_split(split, {"val": "validation", "test": "test"}[part])
        self.file, self.folder = self._places(data_root(root), split, year, annotations, images)
        self.index = read_index(self.file, *self.uses, *(self.uses_of_own if own else ()))
        self.undivided = whole
        self.official = not own  # annotated as stored, as the COCO API reads images
        if whole or (split == "test" and not own):
            chosen = range(len(self.index))
            if not own:
                self._official_order(year)
        else:
            chosen = divide(len(self.index), shares, self.file)[split]
        self.chosen = np.array(chosen, np.int64)  # (M,) positions in the index, upwards
        if self.images_needed:
            self._check_images()

    def categories(self, chosen: tuple[str, ...] | None) -> list[str]:
        """Names of the file's categories that are to be told apart; None is all of them.

        Raises:
            UserError: there is no such category.
            ValueError: they are not different.
        """
        known = self.index.category_names
        names = list(known if chosen is None else chosen)
        for name in names:
            if name not in known:
                raise UserError(
                    f'{self.file.name} has no category "{name}"',
                    field="data.classes",
                    advice=nearest(name, known),
                )
        if not names or len(set(names)) < len(names):
            raise ValueError(f"classes must be different categories, one at least, got {names}")
        return names

    def image(self, index: int) -> Tensor:
        """The pixels of a sample, (3, h, w) uint8, of the size that the file says.

        Raises:
            UserError: it is damaged, or of another size (code 3).
        """
        h, w = self.image_size(index)
        image = read_annotated(self.path(index), (h, w), self.channels, stored=self.official)
        if image.shape[1:] != (h, w):
            raise UserError(
                f"the image is {image.shape[2]} x {image.shape[1]}, "
                f"{printable(self.file)} says {w} x {h}",
                file=self.sample_name(index),
                advice="was the image resized or turned after it was annotated?",
                code=Exit.DATA,
            )
        return image

    def image_size(self, index: int) -> tuple[int, int]:
        """(h, w) of a sample, as the file says."""
        h, w = self.index.sizes[self.chosen[index]].tolist()
        return h, w

    def images_with(self, labels: np.ndarray) -> np.ndarray:
        """(K,) int64 samples that show each class, by ``labels`` (A,) of all annotations.

        Those of a label that is no class, 0 to K - 1, do not count.
        """
        images, own = self.rows()
        count = len(self.classes)
        shown = own & (labels >= 0) & (labels < count)
        pairs = np.unique(images[shown] * count + labels[shown])
        return np.bincount(pairs % count, minlength=count)

    def rows(self) -> tuple[np.ndarray, np.ndarray]:
        """(A,) int64 image of each annotation in the index, and (A,) bool: is it in this split?"""
        ends = self.index.annotation_ends
        images = np.repeat(np.arange(len(self.index)), np.diff(ends, prepend=0))
        here = np.zeros(len(self.index), bool)
        here[self.chosen] = True
        return images, here[images]

    def __len__(self) -> int:
        return len(self.chosen)

    def path(self, index: int) -> str:
        return os.path.join(self.folder, self.index.name(int(self.chosen[index])))

    def sample_name(self, index: int) -> str:
        return printable(self.path(index))

    def fingerprint(self) -> str:
        """Of the annotation file's bytes, what its categories mean, and which images these are."""
        digest = hashlib.sha256(repr((self.index.digest, self.classes)).encode())
        digest.update(self.table.tobytes())
        digest.update(self.chosen.tobytes())
        return digest.hexdigest()

    @classmethod
    def option(cls) -> str:
        return "coco"

    @classmethod
    def missing(cls, root: str | None) -> list[str]:
        home = data_root(root)
        names = (f"annotations/{cls.kind}_train2017.json", "train2017")
        if any((b / n).exists() for b in (home / "coco", home) for n in names[:1]):
            return []
        return [f"coco/{name}" for name in names]

    @classmethod
    def fetch(cls, root: str | None) -> str:
        raise UserError(
            "data=coco is 19 GB, and is not downloaded for you",
            advice="unpack train2017.zip, val2017.zip and annotations_trainval2017.zip from "
            f"http://images.cocodataset.org into {data_root(root) / 'coco'}",
            code=Exit.DATA,
        )

    @classmethod
    def _places(
        cls, home: Path, split: str, year: int, annotations: str | None, images: str | None
    ) -> tuple[Path, Path]:
        """The annotation file and the folder of images of a split.

        Raises:
            UserError: one of them is absent.
        """
        absent_is_fine = not cls.images_needed
        if annotations is not None:
            file, folder = home / annotations, home / (images or "")
            found = ((file, file.is_file()), (folder, absent_is_fine or folder.is_dir()))
            for place, there in found:
                if not there:
                    raise UserError(
                        "is not there",
                        file=printable(place),
                        advice="data.annotations=<file> and data.images=<folder>, below data.root "
                        "or absolute",
                        code=Exit.DATA,
                    )
            return file, folder
        part = f"{'val' if split == 'test' else 'train'}{year}"
        names = [f"annotations/{cls.kind}_{part}.json", part]
        base = next((b for b in (home / "coco", home) if (b / names[0]).is_file()), home / "coco")
        if not (base / names[0]).is_file() or not (absent_is_fine or (base / part).is_dir()):
            raise absent(home, [f"coco/{name}" for name in names], data=cls.option(), fetch=False)
        return base / names[0], base / part

    def _official_order(self, year: int) -> None:
        """Refuse test categories that are not train's: the class numbers would differ."""
        train = self.file.with_name(f"{self.kind}_train{year}.json")
        if not train.is_file():
            return
        ours, theirs = (
            list(zip(one.category_ids.tolist(), one.category_names, strict=True))
            for one in (self.index, read_index(train))
        )
        if ours != theirs:
            raise UserError(
                f"has other categories than {train.name}: {_first_difference(ours, theirs)}",
                file=printable(self.file),
                advice="both files must have the same categories with the same ids",
                code=Exit.DATA,
            )

    def _check_images(self) -> None:
        """Refuse annotations of images that are not in the folder."""
        try:
            there = set(os.listdir(self.folder))
        except OSError as error:
            problem = f"cannot be listed: {error.strerror}"
            raise UserError(problem, file=printable(self.folder), code=Exit.DATA) from None
        names = self.index.file_names()
        chosen = [names[i] for i in self.chosen.tolist()]
        lacking = [
            name
            for name in chosen
            if name not in there and not (os.sep in name and (self.folder / name).is_file())
        ]
        faults = Faults()
        for name in lacking:
            problem = f"names an image that is not there: {printable(self.folder / name)}"
            faults.add(printable(self.file), problem)
        faults.tell("complete the images, or take their records out of the file")


def _first_difference(ours: list[tuple[int, str]], theirs: list[tuple[int, str]]) -> str:
    if len(ours) != len(theirs):
        return f"{len(ours)} instead of {len(theirs)}"
    number, ((id_a, a), (id_b, b)) = next(
        (place, pair)
        for place, pair in enumerate(zip(ours, theirs, strict=True), 1)
        if len(set(pair)) > 1
    )
    return f'number {number} is "{a}" (id {id_a}), not "{b}" (id {id_b})'
