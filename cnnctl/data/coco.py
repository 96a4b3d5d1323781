"""COCO, semantic segmentation: the instances of 80 categories painted to a class for each pixel.

Lin et al., "Microsoft COCO: common objects in context", arXiv:1405.0312. Any file in its format
will do: one's own too, with its own categories.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
from torch import Tensor

from cnnctl.data.base import Dataset
from cnnctl.data.coco_paint import paint
from cnnctl.data.coco_split import COCOSplit
from cnnctl.data.image_file import printable
from cnnctl.data.mask_values import MOST_CLASSES
from cnnctl.errors import Exit, UserError
from cnnctl.structures import IGNORE

_BACKGROUND = "background"


class COCO(COCOSplit):
    """Images of any size with a class for each pixel: 0 is background, 255 (void) a class's crowd.

    Where objects overlap the smaller is on top (COCO does not say which is in front). See
    ``COCOSplit`` for the splits and the other arguments.

    Args:
        classes: names of the categories to be told apart, in this order; None is all of them, in
            the order of their ids. Background is not named.
        others: what the pixels of other categories are, of their crowds too.

    Raises:
        UserError: files are absent, records in them are wrong, or there is no such category.
    """

    fields: ClassVar[tuple[str, ...]] = ("mask",)
    uses = ("segmentation",)

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
        super().__init__(split, root, year, annotations, images, validation, test)
        if classes is None:
            classes = self.index.category_names
        names = self.categories(tuple(name for name in classes if name != _BACKGROUND))
        if len(names) >= MOST_CLASSES:
            raise UserError(
                f"has {len(names):,} categories, with background at most {MOST_CLASSES} can be "
                "classes",
                file=printable(self.file),
                advice="choose some of them: data.classes=[...]",
                code=Exit.DATA,
            )
        number = {name: position for position, name in enumerate((_BACKGROUND, *names))}
        other = IGNORE if others == "void" else 0
        self.classes = tuple(number)
        known = self.index.category_names
        self.table = np.array([number.get(name, other) for name in known], np.uint8)

    @classmethod
    def serving(cls, fields: tuple[str, ...]) -> type[Dataset]:
        """Maps of classes, boxes, or boxes with masks; all are made of the same file."""
        if fields == ("boxes",):
            from cnnctl.data.coco_boxes import COCOBoxes

            return COCOBoxes
        if fields == ("boxes", "masks"):
            from cnnctl.data.coco_masks import COCOMasks

            return COCOMasks
        if fields == ("boxes", "keypoints"):
            from cnnctl.data.coco_points import COCOPoints

            return COCOPoints
        return super().serving(fields)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        return self.image(index), {"mask": self.mask(index)}

    def mask(self, index: int) -> Tensor:
        """The class of each pixel of a sample, (h, w) uint8; its image is not read."""
        return paint(self.index, int(self.chosen[index]), self.table)

    def class_counts(self) -> list[int]:
        """Images that contain each class by their annotations; background is in all of them."""
        labels = self.table[self.index.categories].astype(np.int64)
        counts = self.images_with(np.where(self.index.crowds, -1, labels)).tolist()
        return [len(self), *counts[1:]]
