"""COCO, semantic segmentation: the instances of 80 categories painted to a class for each pixel.

Lin et al., "Microsoft COCO: common objects in context", arXiv:1405.0312. Any file in its format
will do: one's own too, with its own categories.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from torch import Tensor

from cnnctl.data.base import Dataset, absent, data_root
from cnnctl.data.coco_index import Index, read_index
from cnnctl.data.coco_paint import paint
from cnnctl.data.image_file import printable, read_annotated
from cnnctl.data.mask_pairs import check_share, divide, no_split
from cnnctl.data.mask_values import MOST_CLASSES
from cnnctl.errors import Exit, UserError, nearest
from cnnctl.structures import IGNORE

_BACKGROUND = "background"


class COCO(Dataset):
    """Images of any size with a class for each pixel: 0 is background, 255 (void) a class's crowd.

    Where objects overlap the smaller is on top (COCO does not say which is in front). The masks of
    the official test images are not public. So ``test`` is the official val2017, on which papers
    report; ``val`` is held out of train2017, always the same, for choosing the best epoch.

    Args:
        split: train, val or test.
        root: the folder that holds coco/, or is it; None is $CNNCTL_DATA or a per-user cache
            folder.
        year: of the official files, 2017 or 2014.
        annotations: a file in COCO's format instead of the official two, below ``root`` or
            absolute; train, val and test are shares of its images.
        images: the folder of that file's images, below ``root`` or absolute.
        classes: names of the categories to be told apart, in this order; None is all of them, in
            the order of their ids. Background is not named.
        others: what the pixels of other categories are, of their crowds too.
        validation: share of the training images held out as ``val``; 0 is none.
        test: share held out as ``test`` where ``annotations`` is given; 0 is none.

    Raises:
        UserError: files are absent, records in them are wrong, or there is no such category.
    """

    fields: ClassVar[tuple[str, ...]] = ("mask",)
    channels = 3
    mean = (0.485, 0.456, 0.406)  # ImageNet's, as published weights expect
    std = (0.229, 0.224, 0.225)

    def __init__(
        self,
        split: Literal["train", "val", "test"],
        root: str | None = None,
        year: Literal[2014, 2017] = 2017,
        annotations: str | None = None,
        images: str | None = None,
        classes: tuple[str, ...] | None = None,
        others: Literal["background", "void"] = "background",
        validation: float = 0.05,
        test: float = 0.1,
    ) -> None:
        if (annotations is None) != (images is None):
            raise ValueError("annotations and images go together: give both or none")
        own = annotations is not None
        shares = {"val": validation, "test": test} if own else {"val": validation}
        check_share(**{"validation": validation} | ({"test": test} if own else {}))
        for part, share in shares.items():
            if split == part and not share:
                raise no_split(split, {"val": "validation", "test": "test"}[part])
        self.file, self.folder = self._places(data_root(root), split, year, annotations, images)
        self.index = read_index(self.file)
        self.official = not own  # outlines of images as stored, as the COCO API reads them
        self.classes, self._table = _class_table(self.index, self.file, classes, others)
        if split == "test" and not own:
            self._official_order(data_root(root), year)
            chosen = range(len(self.index))
        else:
            chosen = divide(len(self.index), shares, self.file)[split]
        self.chosen = np.array(chosen, np.int64)  # (M,) positions in the index
        self._check_images()

    @classmethod
    def _places(
        cls, home: Path, split: str, year: int, annotations: str | None, images: str | None
    ) -> tuple[Path, Path]:
        """The annotation file and the folder of images of a split.

        Raises:
            UserError: one of them is absent.
        """
        if annotations is not None and images is not None:
            file, folder = home / annotations, home / images
            for place, there in ((file, file.is_file()), (folder, folder.is_dir())):
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
        names = [f"annotations/instances_{part}.json", part]
        base = next((b for b in (home / "coco", home) if (b / names[0]).is_file()), home / "coco")
        if not (base / names[0]).is_file() or not (base / part).is_dir():
            raise absent(home, [f"coco/{name}" for name in names], data=cls.option(), fetch=False)
        return base / names[0], base / part

    def _official_order(self, home: Path, year: int) -> None:
        """Refuse test categories that are not train's: the class numbers would differ."""
        train = self.file.with_name(f"instances_train{year}.json")
        if not train.is_file():
            return
        ours, theirs = self.index, read_index(train)
        if ours.category_names != theirs.category_names:
            raise UserError(
                f"has other categories than {train.name}: "
                f"{_first_difference(ours.category_names, theirs.category_names)}",
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
        if lacking:
            more = f" (and {len(lacking) - 1:,} more)" if len(lacking) > 1 else ""
            raise UserError(
                f"names an image that is not there: {printable(self.folder / lacking[0])}{more}",
                file=printable(self.file),
                advice="complete the images, or take their records out of the file",
                code=Exit.DATA,
            )

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        h, w = (int(side) for side in self.index.sizes[self.chosen[index]])
        image = read_annotated(self.path(index), (h, w), self.channels, stored=self.official)
        if image.shape[1:] != (h, w):
            raise UserError(
                f"the image is {image.shape[2]} x {image.shape[1]}, "
                f"{printable(self.file)} says {w} x {h}",
                file=self.sample_name(index),
                advice="was the image resized or turned after it was annotated?",
                code=Exit.DATA,
            )
        return image, {"mask": self.mask(index)}

    def mask(self, index: int) -> Tensor:
        """The class of each pixel of a sample, (h, w) uint8; its image is not read."""
        return paint(self.index, int(self.chosen[index]), self._table)

    def path(self, index: int) -> str:
        return os.path.join(self.folder, self.index.name(int(self.chosen[index])))

    def sample_name(self, index: int) -> str:
        return printable(self.path(index))

    def class_counts(self) -> list[int]:
        """Images that contain each class by their annotations; background is in all of them."""
        counts = np.zeros(len(self.classes), np.int64)
        for image in self.chosen:
            own = self.index.annotations(int(image))
            categories = self.index.categories[own.start : own.stop]
            present = np.unique(self._table[categories[~self.index.crowds[own.start : own.stop]]])
            counts[present[(present > 0) & (present < IGNORE)]] += 1
        counts[0] = len(self)
        return counts.tolist()

    def fingerprint(self) -> str:
        """Of the annotation file's bytes, what its categories mean, and which images these are."""
        digest = hashlib.sha256(repr((self.index.digest, self.classes)).encode())
        digest.update(self._table.tobytes())
        digest.update(self.chosen.tobytes())
        return digest.hexdigest()

    @classmethod
    def missing(cls, root: str | None) -> list[str]:
        home = data_root(root)
        names = ("annotations/instances_train2017.json", "train2017")
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


def _class_table(
    index: Index, file: Path, chosen: tuple[str, ...] | None, others: str
) -> tuple[tuple[str, ...], np.ndarray]:
    """The names of the classes, and (K,) uint8: the class of each category of the file."""
    known = index.category_names
    names = [name for name in (known if chosen is None else chosen) if name != _BACKGROUND]
    for name in names:
        if name not in known:
            raise UserError(
                f'{file.name} has no category "{name}"',
                field="data.classes",
                advice=nearest(name, known),
            )
    if not names or len(set(names)) < len(names):
        raise ValueError(f"classes must be different categories, one at least, got {list(names)}")
    if len(names) >= MOST_CLASSES:
        raise UserError(
            f"has {len(names):,} categories, with background at most {MOST_CLASSES} can be classes",
            file=printable(file),
            advice="choose some of them: data.classes=[...]",
            code=Exit.DATA,
        )
    number = {name: position for position, name in enumerate((_BACKGROUND, *names))}
    other = IGNORE if others == "void" else 0
    table = np.array([number.get(name, other) for name in known], np.uint8)
    return tuple(number), table


def _first_difference(ours: tuple[str, ...], theirs: tuple[str, ...]) -> str:
    if len(ours) != len(theirs):
        return f"{len(ours)} instead of {len(theirs)}"
    number = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
    return f'number {number + 1} is "{ours[number]}", not "{theirs[number]}"'
