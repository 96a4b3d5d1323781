"""Your own images with instances: masks that number them, or COCO JSON, told by looking.

``images/`` and ``masks/`` side by side (``PNGImages/`` and ``PedMasks/`` of Penn-Fudan, and other
names), split here, always in the same way, or a pair of them in each of ``train/``, ``val/`` and
``test/``, or those three in each of the pair. A JSON in COCO's format is looked for as for boxes.
"""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from cnnctl.data import box_layout, mask_layout
from cnnctl.data.box_formats import Wanted, check_categories, chosen_categories
from cnnctl.data.box_pairs import image_folder
from cnnctl.data.coco_index import read_index
from cnnctl.data.coco_masks import COCOMasks
from cnnctl.data.image_file import printable
from cnnctl.data.index_maps import IndexMaps, columns, in_threads
from cnnctl.data.instance_layout import find_instance_layout
from cnnctl.data.instance_numbers import Found, Numbers
from cnnctl.data.mask_file import read_numbers
from cnnctl.data.mask_layout import CLASS_LIST, read_class_list
from cnnctl.data.mask_pairs import Paths, check_share
from cnnctl.data.masks import divided_pairs
from cnnctl.data.own_folder import IMAGENET, OwnFolder, per_channel
from cnnctl.data.palette import voc_palette
from cnnctl.errors import Exit, UserError

_OBJECT = ("object",)


class Instances(OwnFolder):
    """Images of any size with the masks of their objects.

    In an index mask (PNG, BMP or TIFF, of 8 or 16 bits) 0 is the background and every other number
    an instance, whose box is the tight one; gaps between the numbers do not matter. Of COCO JSON
    boxes are what the file says, see ``COCOMasks``. With ``train/`` alone, ``val`` is held out of
    it, and there is no test.

    Args:
        split: train, val or test.
        root: the folder itself.
        format: where it cannot be told: masks or coco.
        classes: their names. None: COCO's categories by id; of masks ``object``, or with
            ``per_class`` those in ``classes.txt`` in ``root``, a line each. Of COCO's categories
            these can be some; instances of others are left out.
        per_class, values, void: what the numbers in masks mean, see ``Numbers``.
        mask_suffix: what a mask's name has behind its image's (``_mask``); None: what most have.
        validation: share of the images held out as ``val`` where it has no folder; 0 is none.
        test: share held out as ``test`` where the images are not divided; 0 is none.
        channels: 3 for RGB, 1 for grey.
        mirror: whether a mirror image keeps its classes.
        mean, std: per channel, of pixels scaled to 0..1; None is ImageNet's.

    Attributes:
        image_ids, category_ids: of COCO JSON alone: of each sample (M,) and each class.

    Raises:
        UserError: the folder or its format is not told, files are wrong, or the split has no
            instance.
    """

    fields = ("boxes", "masks")
    image_ids: np.ndarray  # (M,) int64
    category_ids: tuple[int, ...]

    def __init__(
        self,
        split: Literal["train", "val", "test"],
        root: str | None = None,
        format: Literal["masks", "coco"] | None = None,
        classes: tuple[str, ...] | None = None,
        per_class: int | None = None,
        values: tuple[int, ...] | None = None,
        void: int | None = None,
        mask_suffix: str | None = None,
        validation: float = 0.1,
        test: float = 0.1,
        channels: Literal[1, 3] = 3,
        mirror: bool = True,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
    ) -> None:
        check_share(validation=validation, test=test)
        if classes is not None and (not classes or len(set(classes)) < len(classes)):
            raise ValueError(f"classes must be different names, one at least, got {list(classes)}")
        self.channels, self.mirror = channels, mirror
        self.mean = per_channel("mean", mean, IMAGENET[channels][0])
        self.std = per_channel("std", std, IMAGENET[channels][1])
        self.root = self.existing(root, "images and their masks")
        layout = find_instance_layout(self.root, format)
        shares = {"val": validation, "test": test}
        if isinstance(layout, mask_layout.Layout):
            classes = classes or _class_names(self.root, per_class)
            numbers = Numbers(classes, per_class, values, void)
            pairs = divided_pairs(self.root, layout, split, shares, mask_suffix)
            self.own = _Maps(self.root, pairs, numbers)
            self._made = layout.remarks if split == "train" else []
            self.own.refuse_empty(split)
        else:
            of_masks = {"per_class": per_class, "values": values, "void": void}
            _refuse_of_masks({**of_masks, "mask_suffix": mask_suffix}, layout)
            wanted = Wanted(split, shares, self.root, classes, first_pixel=0)
            self.own, self._made = _coco(layout, wanted), []
            self.image_ids, self.category_ids = self.own.image_ids, self.own.category_ids
        self.own.channels, self.classes = channels, self.own.classes
        colours = voc_palette(min(len(self.classes) + 1, 255))[1:]  # the first is background
        self.palette = tuple(colours[k % len(colours)] for k in range(len(self.classes)))

    def __len__(self) -> int:
        return len(self.own)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        return self.own[index]

    def truth(self, index: int) -> dict[str, Tensor]:
        """The target of a sample; its image is not read."""
        return self.own.truth(index)

    def all_truth(self) -> dict[str, np.ndarray] | None:
        """As ``COCOBoxes.all_truth``; None of index masks, whose boxes are whole numbers."""
        return self.own.all_truth() if isinstance(self.own, COCOMasks) else None

    def image_size(self, index: int) -> tuple[int, int]:
        """(h, w), by the mask or the JSON."""
        if isinstance(self.own, COCOMasks):
            h, w = self.own.index.sizes[self.own.chosen[index]].tolist()
            return h, w
        return self.own.image_size(index)

    def path(self, index: int) -> str:
        return self.own.path(index)

    def sample_name(self, index: int) -> str:
        return self.own.sample_name(index)

    def class_counts(self) -> list[int]:
        """Images that show each class, more than in a crowd."""
        return self.own.class_counts()

    def fingerprint(self) -> str:
        return self.own.fingerprint()

    def remarks(self) -> list[str]:
        return [*self._made, *self.own.remarks()]

    def doubts(self) -> list[str]:
        return self.own.doubts()

    @classmethod
    def fetch(cls, root: str | None) -> str:
        return "nothing to fetch: data=instances is your own, images and their masks at data.root"


class _Maps(IndexMaps):
    """The index masks of a split.

    Args:
        pairs: (image, mask) of each sample.
    """

    def __init__(self, root: Path, pairs: list[tuple[Path, Path]], numbers: Numbers) -> None:
        self.root, self.numbers, self.classes = root, numbers, tuple(numbers.classes)
        self.images = Paths(root, ((image, image.stat().st_size) for image, _ in pairs))
        self.maps = Paths(root, ((mask, mask.stat().st_size) for _, mask in pairs))

    def _read(self, index: int) -> tuple[Found, Tensor]:
        path = self.maps[index]
        numbers = read_numbers(path)
        try:
            return self.numbers.read(numbers), numbers
        except ValueError as error:
            raise UserError(
                str(error), file=printable(path), advice=self.numbers.advice(), code=Exit.DATA
            ) from None

    def objects_in(self, index: int) -> tuple[dict[str, Tensor], Tensor]:
        found, numbers = self._read(index)
        truth = columns(found.objects, found.labels, crowd=found.crowd, void=found.void)
        return truth, numbers

    def refuse_empty(self, split: str) -> None:
        """Raise UserError where no mask of the split has an instance."""
        for index in range(len(self)):
            try:
                if not all(self._read(index)[0].crowd):
                    return
            except UserError:
                return  # it is said when the sample is reached, or checked
        raise UserError(
            f"{split} has {len(self):,} images, and no mask of them has an instance",
            file=printable(self.root),
            advice="nothing can be learned or scored: complete the masks, or divide otherwise",
            code=Exit.DATA,
        )

    @cached_property
    def _kinds(self) -> tuple[int, int, int]:
        """Of the masks that are looked at: how many are sound, without instance, with gaps."""

        def look(index: int) -> tuple[int, int, int]:
            try:
                found, _ = self._read(index)
            except UserError:
                return 0, 0, 0
            return 1, not found.labels, found.gaps

        sound, empty, gaps = zip(*in_threads(look, self.looked_at), strict=True)
        return sum(sound), sum(empty), sum(gaps)

    def remarks(self) -> list[str]:
        sound, empty, gaps = self._kinds
        every = f"{sound:,} masks" + (" looked at" if len(self.looked_at) < len(self) else "")
        found = []
        if empty:
            found.append(f"{empty:,} of {every} have no instance")
        if gaps:
            found.append(f"{gaps:,} of {every} leave numbers out (1, 2, 5), which does not matter")
        return found

    def fingerprint(self) -> str:
        own = self.numbers
        known = (super().fingerprint(), own.per_class, own.values, own.void)
        return hashlib.sha256(repr(known).encode()).hexdigest()


def _class_names(root: Path, per_class: int | None) -> tuple[str, ...]:
    """Those of masks, where none are given."""
    if per_class is None:
        return _OBJECT
    if (root / CLASS_LIST).is_file():
        return read_class_list(root / CLASS_LIST)[0]
    raise UserError(
        f"the classes have no names: there is no {CLASS_LIST} in it",
        file=printable(root),
        advice="data.classes=[person,car], or write that file, a name a line",
        code=Exit.DATA,
    )


def _refuse_of_masks(given: dict[str, Any], layout: box_layout.Layout) -> None:
    for key, value in given.items():
        if value is not None:
            file = next(iter(layout.parts.values())).truth
            raise UserError(
                f"is of index masks, and the instances are in {printable(file)}",
                field=f"data.{key}",
                advice="leave it out, or data.format=masks",
            )


def _coco(layout: box_layout.Layout, wanted: Wanted) -> COCOMasks:
    """The instances of a split in COCO JSON."""
    parts, split = tuple(layout.parts), wanted.split
    name = wanted.part(parts, layout.no_test)
    part = layout.parts[name]
    index = read_index(part.truth)
    train, train_file = index, part.truth
    shares = {"validation": 0.0, "test": 0.0}
    if name == "":
        shares = {"validation": wanted.shares["val"], "test": wanted.shares["test"]}
    elif name == "train":
        shares["validation"] = 0.0 if "val" in parts else wanted.shares["val"]
    else:
        train_file, split = layout.parts["train"].truth, "train"  # all of the part's own file
        train = read_index(train_file)
        check_categories(index, part.truth, train, train_file)
    classes, _ = chosen_categories(train, train_file, wanted.classes)
    folder = image_folder(wanted.root, part, index.file_names())
    files = {"annotations": str(part.truth), "images": str(folder)}
    settings: dict[str, Any] = {"split": split, **files, "classes": classes, **shares}
    return COCOMasks(root=str(wanted.root), **settings)
