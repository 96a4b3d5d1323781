"""Your own images with a mask for each: a folder of images and a folder of masks.

``images/`` and ``masks/`` side by side (other common names are known), split here, always in the
same way; or a pair of them in each of ``train/``, ``val/`` and ``test/``, or those three in each of
the pair.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from cnnctl.data.base import NoSplit
from cnnctl.data.class_folders import images_below
from cnnctl.data.image_file import printable
from cnnctl.data.mask_file import read_colours, read_mask
from cnnctl.data.mask_layout import CLASS_LIST, Layout, find_folders, match, read_class_list
from cnnctl.data.mask_pairs import MaskPairs, Paths, check_share, divide, no_split
from cnnctl.data.mask_values import Colours, Values
from cnnctl.data.own_folder import IMAGENET, OwnFolder, per_channel
from cnnctl.errors import Exit, UserError
from cnnctl.structures import IGNORE

_LOOKED_AT = 256  # masks at most, while they are of 0 and 255 only


class Masks(MaskPairs, OwnFolder):
    """Images of any size with a class for each pixel.

    A mask is a PNG (or BMP, TIFF) of the same name: a palette or grey one holds the numbers of
    the classes; one of colours needs a class list with colours. With ``train/`` alone, ``val`` is
    held out of it, and there is no test.

    Args:
        split: train, val or test.
        root: the folder itself.
        classes: names of the classes, in the order of their numbers; None reads them from
            ``classes.txt`` in ``root``, a line each: ``name`` or ``name red green blue``. Class 0
            is the background, where there is one.
        values: the number in a mask that stands for each class ([0, 255] for black and white);
            None: 0 to K-1, and masks of nothing but 0 and ``void`` = 255 are refused.
        void: the number that stands for no class; None, or 255 where ``values`` names it: there is
            none. In a mask of colours it is the class list's ``void`` line.
        mask_suffix: what a mask's name has behind its image's (``_mask``).
        validation: share of the images held out as ``val`` where it has no folder; 0 is none.
        test: share held out as ``test`` where the images are not divided into folders; 0 is none.
        channels: 3 for RGB, 1 for grey.
        mirror: whether a mirror image keeps its classes.
        mean, std: per channel, of pixels scaled to 0..1; None is ImageNet's.

    Raises:
        UserError: folders or files are absent, an image has no mask or a mask no image, there is no
            class list, or the masks are not what it says.
    """

    def __init__(
        self,
        split: Literal["train", "val", "test"],
        root: str | None = None,
        classes: tuple[str, ...] | None = None,
        values: tuple[int, ...] | None = None,
        void: int | None = IGNORE,
        mask_suffix: str = "",
        validation: float = 0.1,
        test: float = 0.1,
        channels: Literal[1, 3] = 3,
        mirror: bool = True,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
    ) -> None:
        check_share(validation=validation, test=test)
        self.channels = channels
        self.mirror = mirror
        self.mean = per_channel("mean", mean, IMAGENET[channels][0])
        self.std = per_channel("std", std, IMAGENET[channels][1])
        self.root = self.existing(root, "images/ and masks/")
        self._table = self._read_classes(classes, values, void)
        layout = find_folders(self.root)
        self._remarks = layout.remarks if split == "train" else []
        shares = {"val": validation, "test": test}
        pairs = divided_pairs(self.root, layout, split, shares, mask_suffix)
        self.images = Paths(self.root, ((image, _size(image)) for image, _ in pairs))
        self.masks = Paths(self.root, ((mask, _size(mask)) for _, mask in pairs))
        if values is None and void == IGNORE and isinstance(self._table, Values):
            self._refuse_black_and_white(layout)

    def _read_classes(
        self, classes: tuple[str, ...] | None, values: tuple[int, ...] | None, void: int | None
    ) -> Values | Colours:
        """What the masks hold; sets ``classes`` and ``palette``."""
        colours, void_colours = (), ()
        file = self.root / CLASS_LIST
        if classes is not None:
            self.classes = classes
        elif file.is_file():
            self.classes, colours, void_colours = read_class_list(file)
        else:
            raise UserError(
                f"the classes have no names: there is no {CLASS_LIST} in it",
                file=printable(self.root),
                advice="data.classes=[background,cell], or write that file, a name a line",
                code=Exit.DATA,
            )
        if len(set(self.classes)) < len(self.classes):
            raise ValueError(f"classes must have different names, got {list(self.classes)}")
        if colours and values is None:
            self.palette = colours
            return Colours(colours, void_colours)
        self.palette = colours or None
        values = tuple(range(len(self.classes))) if values is None else values
        if len(values) != len(self.classes):
            raise ValueError(
                f"values must have a number for each of the {len(self.classes)} classes, "
                f"got {len(values)}"
            )
        return Values(values, None if void == IGNORE and IGNORE in values else void)

    def classes_in(self, path: str) -> Tensor:
        if isinstance(self._table, Colours):
            return self._table.classes(read_colours(path))
        return self._table.classes(read_mask(path))

    def advice(self) -> str:
        if isinstance(self._table, Colours):
            return f"correct the mask, or the colours in {CLASS_LIST}"
        return "correct the mask, or name every class: data.classes, data.values, data.void"

    def _refuse_black_and_white(self, layout: Layout) -> None:
        """Masks of 0 and 255 alone, in all of the parts, mean two classes, not one and void."""
        masks = [mask for _, folder in layout.pairs.values() for mask in images_below(folder)]
        chosen = torch.linspace(0, len(masks) - 1, min(len(masks), _LOOKED_AT)).round().long()
        seen = set[int]()
        for index in chosen.tolist():
            try:
                seen |= set(self.classes_in(str(masks[index])).unique().tolist())
            except UserError:
                continue  # it is said when the sample is reached, with the file's name
            except ValueError:
                return
            if not seen <= {0, IGNORE}:
                return
        if len(self.classes) > 1 and seen == {0, IGNORE}:
            count = len(self.classes)
            own = ",".join(map(str, range(count))) if count < 5 else f"0,1,...,{count - 1}"
            raise UserError(
                f"the masks hold nothing but 0 and {IGNORE}, and {IGNORE} is void",
                file=printable(masks[0]),
                advice=f"where {IGNORE} is a class: data.values=[0,{IGNORE}]; where it is void: "
                f"data.values=[{own}]",
                code=Exit.DATA,
            )

    def remarks(self) -> list[str]:
        return self._remarks

    def fingerprint(self) -> str:
        digest = hashlib.sha256(super().fingerprint().encode())
        table = self._table
        known = (table.values, table.void) if isinstance(table, Values) else self.palette
        digest.update(repr(known).encode())
        return digest.hexdigest()

    @classmethod
    def fetch(cls, root: str | None) -> str:
        return "nothing to fetch: data=masks is your own, images/ and masks/ at data.root"


def divided_pairs(
    root: Path, layout: Layout, split: str, shares: dict[str, float], suffix: str | None
) -> list[tuple[Path, Path]]:
    """The images and masks of ``split``: of its own folders, or a share of others'.

    Args:
        shares: of ``val`` and ``test``, where they have no folders.
        suffix: as ``match``.
    """
    folders = layout.pairs
    if "" in folders:
        return _part(root, match(folders[""], suffix), split, shares)
    if split == "train" or (split == "val" and "val" not in folders):
        held = {"val": 0.0 if "val" in folders else shares["val"]}
        return _part(root, match(folders["train"], suffix), split, held)
    if split not in folders:
        raise NoSplit(
            f"{layout.no_test}, so there is no test split",
            file=printable(root),
            code=Exit.DATA,
        )
    return match(folders[split], suffix)


def _part(
    root: Path, pairs: list[tuple[Path, Path]], split: str, shares: dict[str, float]
) -> list[tuple[Path, Path]]:
    if split != "train" and not shares[split]:
        key = {"val": "validation", "test": "test"}[split]
        raise no_split(split, key)
    return [pairs[i] for i in divide(len(pairs), shares, root)[split]]


def _size(file: Path) -> int:
    return file.stat().st_size
