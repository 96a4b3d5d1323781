"""COCO, object detection: the boxes of its instances, with crowds and the sizes of the objects.

Lin et al., "Microsoft COCO: common objects in context", arXiv:1405.0312. Any file in its format
will do: one's own too, with its own categories, and without outlines.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from cnnctl.data.base import Dataset
from cnnctl.data.coco import COCO
from cnnctl.data.coco_split import COCOSplit
from cnnctl.data.image_file import printable
from cnnctl.errors import Exit, UserError


class COCOBoxes(COCOSplit):
    """Images of any size with the boxes of the categories in them; many have none.

    A box that reaches past the edge of its image is cut off there. One without height or width is
    an error, but for the official files, where it is left out: train2017 has two. See ``COCOSplit``
    for the splits and the other arguments.

    Args:
        classes: names of the categories to be found, in this order; None is all of them, in the
            order of their ids. There is no background among them.
        others: boxes of other categories are background; the void of masks does not exist here.

    Attributes:
        category_ids: of each class in the annotation file.
        image_ids: (M,) int64, of each sample in the annotation file.

    Raises:
        UserError: files are absent, records in them are wrong, or there is no such category.
    """

    fields: ClassVar[tuple[str, ...]] = ("boxes",)
    uses = ("bbox",)
    wanted: ClassVar[str] = "box"  # in the sentence where there is none
    uses_of_own = ("flat",)

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
        if others == "void":
            raise ValueError("others=void is for masks of classes: other categories are left out")
        super().__init__(split, root, year, annotations, images, validation, test)
        known, ids = self.index.category_names, self.index.category_ids.tolist()
        if classes is None:  # some tools list a background, which has no boxes
            used = set(np.unique(self.index.categories).tolist())
            names = enumerate(known)
            classes = tuple(name for k, name in names if k in used or name != "background")
        self.classes = tuple(self.categories(classes))
        self.category_ids = tuple(ids[known.index(name)] for name in self.classes)
        self.image_ids = self.index.image_ids[self.chosen]
        number = {name: position for position, name in enumerate(self.classes)}
        self.table = np.array([number.get(name, -1) for name in known], np.int64)
        if not (self._labels() >= 0).any():
            raise UserError(
                f"holds no {self.wanted} of the classes that are to be found, or only crowds",
                file=printable(self.file),
                advice="data.classes=[...] chooses among its categories",
                code=Exit.DATA,
            )

    @classmethod
    def serving(cls, fields: tuple[str, ...]) -> type[Dataset]:
        return cls if fields == cls.fields else COCO.serving(fields)

    @classmethod
    def truth_alone(cls) -> type[Dataset]:
        return COCOTruth

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        return self.image(index), self.truth(index)

    def truth(self, index: int) -> dict[str, Tensor]:
        """The boxes of a sample in the order of the file; its image is not read.

        Returns:
            boxes (R, 4) float32 xyxy in pixels, labels (R,) int64, crowd and difficult (R,) bool,
            and area (R,) float32 pixels of the object itself.
        """
        own = self.index.annotations(int(self.chosen[index]))
        columns = self._columns(np.arange(own.start, own.stop), np.full(len(own), index))
        del columns["image"]
        truth = {name: torch.from_numpy(column) for name, column in columns.items()}
        return {name: c.float() if c.is_floating_point() else c for name, c in truth.items()}

    def all_truth(self) -> dict[str, np.ndarray]:
        """The boxes of all samples, to score detections by.

        In float64: an overlap of exactly 0.75 must not fall below it by rounding, which moves AP in
        the fourth digit where detections were made from the truth.

        Returns:
            image (R,) int64, the sample of each, in order; and the columns of ``truth``.
        """
        images, own = self.rows()
        return self._columns(own.nonzero()[0], np.searchsorted(self.chosen, images[own]))

    def _columns(self, rows: np.ndarray, image: np.ndarray) -> dict[str, np.ndarray]:
        """Of annotations, ``rows`` (A,) of the index, which are of the samples ``image`` (A,)."""
        h, w = self.index.sizes[self.chosen[image]].T
        corners = self.index.boxes[rows].clip(0)
        boxes = np.minimum(corners, np.stack((w, h, w, h), 1))
        labels = self.table[self.index.categories[rows]]
        kept = (labels >= 0) & self.usable(rows)
        return {
            "image": image[kept],
            "boxes": boxes[kept],
            "labels": labels[kept],
            "crowd": self.index.crowds[rows][kept],
            "difficult": np.zeros(int(kept.sum()), bool),
            "area": self.index.areas[rows][kept],
        }

    def usable(self, rows: np.ndarray | slice) -> np.ndarray:
        """(A,) bool: do annotations have what is to be learned? Others are left out."""
        boxes = self.index.boxes[rows]
        return boxes[:, 2] > boxes[:, 0]

    def class_counts(self) -> list[int]:
        """Images that show each class, more than in a crowd."""
        return self.images_with(self._labels()).tolist()

    def remarks(self) -> list[str]:
        """What was cut off or left out, and areas that cannot be."""
        index, (images, own) = self.index, self.rows()
        own &= self.table[index.categories] >= 0
        x1, y1, x2, y2 = index.boxes.T
        h, w = index.sizes[images].T
        flat = x2 <= x1
        past = np.maximum.reduce([-x1, -y1, x2 - w, y2 - h])
        covered = (x2 - x1) * (y2 - y1)
        odd = (index.areas > 1.01 * covered + 1) | ((index.areas == 0) & (covered > 0))
        found = (
            (own & (past > 0.01), "cut off at the edge of the image"),
            (own & flat, "left out: no height or no width"),
            (own & odd, "with an area larger than the box, or 0 (COCO's small, medium and large)"),
        )
        lines = self.counted(((rows, f"box(es) {what}") for rows, what in found))
        return lines + self.outline_remarks(own)

    def counted(self, found: Iterable[tuple[np.ndarray, str]]) -> list[str]:
        """A sentence on each kind of annotations, (A,) bool, of which there are some."""
        ids = self.index.annotation_ids
        return [
            f"{int(rows.sum()):,} {what}: annotation {ids[rows.argmax()]}"
            for rows, what in found
            if rows.any()
        ]

    def outline_remarks(self, own: np.ndarray) -> list[str]:
        """On the outlines of the annotations ``own`` (A,) bool."""
        outlines = self.index.unfit["segmentation"]
        if not 0 < outlines.count < len(own):  # all: a file of boxes alone
            return []
        record, problem = outlines.rows[0]
        return [
            f"{outlines.count:,} annotation(s) without an outline that can be drawn, which "
            f"boxes do not need: {record}: {problem}"
        ]

    def _labels(self) -> np.ndarray:
        """(A,) class of each annotation of the file; -1 for crowds and what is left out."""
        kept = ~self.index.crowds & self.usable(slice(None))
        return np.where(kept, self.table[self.index.categories], -1)


class COCOTruth(COCOBoxes):
    """The boxes of a file, whose images need not be there: results of any program are scored by it.

    A file that is given without a folder of images is not divided: every split is all of it.
    """

    images_needed = False
