"""COCO, keypoints: the box and the 17 points of each person, and where crowds are.

Lin et al., "Microsoft COCO: common objects in context", arXiv:1405.0312, and its site. Any file in
its format will do: one's own too, with its own points, which its categories name.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from cnnctl.data.base import Dataset
from cnnctl.data.coco_boxes import COCOBoxes
from cnnctl.data.coco_skeletons import skeleton_of
from cnnctl.data.image_file import printable
from cnnctl.errors import Exit, UserError


class COCOPoints(COCOBoxes):
    """Images of any size with the boxes and points of the categories that have points.

    Numbers are the file's: where COCO says a whole number, it is taken as a place in the image and
    not as the middle of a pixel, as torchvision does it. See ``COCOBoxes`` for the arguments.

    Args:
        classes: names of categories that have the same points; None is all that have points.

    Raises:
        UserError: as of boxes; no category has points, or they differ.
    """

    fields: ClassVar[tuple[str, ...]] = ("boxes", "keypoints")
    uses = ("bbox", "keypoints")
    kind = "person_keypoints"

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
        super().__init__(split, root, year, annotations, images, classes, others, validation, test)
        points = dict(zip(self.index.category_names, self.index.points, strict=True))
        if classes is None:  # a file may hold other things beside the figures
            with_points = tuple(name for name in self.classes if points[name][0])
            if with_points and with_points != self.classes:
                super().__init__(
                    split, root, year, annotations, images, with_points, others, validation, test
                )
        wanted = {points[name] for name in self.classes}
        if len(wanted) > 1 or not all(names for names, _ in wanted):
            raise UserError(
                "holds categories with different keypoints, or with none",
                file=printable(self.file),
                advice='"keypoints" of a category lists the names of its points; '
                "data.classes=[...] chooses among the categories",
                code=Exit.DATA,
            )
        self.skeleton = skeleton_of(wanted.pop())

    @classmethod
    def truth_alone(cls) -> type[Dataset]:
        return COCOPointTruth

    def truth(self, index: int) -> dict[str, Tensor]:
        """The figures of a sample in the order of the file; its image is not read.

        Returns:
            The columns of ``COCOBoxes.truth``, keypoints (R, J, 3) float32 and swap (J,) int64.
        """
        assert self.skeleton is not None
        rows = np.array(self.index.annotations(int(self.chosen[index])), np.int64)
        rows = rows[self.usable(rows) & (self.table[self.index.categories[rows]] >= 0)]
        count = len(self.skeleton)
        ends = self.index.keypoint_ends[rows]
        places = ends[:, None] - 3 * count + np.arange(3 * count)  # (R, 3 * J)
        points = torch.from_numpy(self.index.keypoints[places].astype(np.float32))
        return {
            **super().truth(index),
            "keypoints": points.view(len(rows), count, 3),
            "swap": self.skeleton.mirrored(),
        }

    def fingerprint(self) -> str:
        return f"keypoints {super().fingerprint()}"


class COCOPointTruth(COCOPoints):
    """The figures of a file, whose images need not be there: results are scored by it."""

    images_needed = False
