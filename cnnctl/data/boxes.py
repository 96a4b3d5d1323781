"""Your own images with boxes: COCO JSON, VOC XML or YOLO text, told by looking.

One folder that is split here, always in the same way; or ``train/``, ``val/`` and ``test/`` in it,
as ``train/images``, ``images/train`` or ``train.json``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from cnnctl.data.box_files import BoxFiles
from cnnctl.data.box_formats import Wanted, read_coco, read_voc, read_yolo
from cnnctl.data.box_layout import find_layout
from cnnctl.data.image_file import printable
from cnnctl.data.mask_pairs import Paths, check_share
from cnnctl.data.own_folder import IMAGENET, OwnFolder, per_channel
from cnnctl.data.palette import voc_palette


class Boxes(BoxFiles, OwnFolder):
    """Images of any size with the boxes of their objects.

    An image of which YOLO's text or COCO's JSON has no box shows nothing that is looked for; one
    without VOC's XML is an error. With ``train/`` alone, ``val`` is held out of it, and there is no
    test. Images are turned as their EXIF orientation says, where the sizes do not say otherwise.

    Args:
        split: train, val or test.
        root: the folder itself.
        format: of the boxes, where it cannot be told: coco, voc or yolo.
        classes: names of the classes in the order of their numbers; None is those of the data:
            COCO's categories by id, the names in VOC's XML by the alphabet, YOLO's from data.yaml,
            classes.txt or obj.names. Of COCO's categories these can be some; the boxes of others
            are left out.
        first_pixel: of VOC XML: 1 as VOC itself counts, 0 where a tool counted from 0.
        validation: share of the images held out as ``val`` where it has no folder; 0 is none.
        test: share held out as ``test`` where the images are not divided; 0 is none.
        channels: 3 for RGB, 1 for grey.
        mirror: whether a mirror image keeps its classes.
        mean, std: per channel, of pixels scaled to 0..1; None is ImageNet's.

    Attributes:
        image_ids, category_ids: of COCO JSON alone: of each sample (M,) and each class.

    Raises:
        UserError: the folder or its format is not told, files are wrong, or the split has no box.
    """

    image_ids: np.ndarray  # (M,) int64
    category_ids: tuple[int, ...]

    def __init__(
        self,
        split: Literal["train", "val", "test"],
        root: str | None = None,
        format: Literal["coco", "voc", "yolo"] | None = None,
        classes: tuple[str, ...] | None = None,
        first_pixel: Literal[0, 1] = 1,
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
        self.split, self.channels, self.mirror = split, channels, mirror
        self.mean = per_channel("mean", mean, IMAGENET[channels][0])
        self.std = per_channel("std", std, IMAGENET[channels][1])
        self.root = self.existing(root, "images and their boxes")
        layout = find_layout(self.root, format)
        wanted = Wanted(split, {"val": validation, "test": test}, self.root, classes, first_pixel)
        self.format = layout.form
        found = {"coco": read_coco, "voc": read_voc, "yolo": read_yolo}[layout.form](layout, wanted)
        self.classes, self.table, self._made = found.classes, found.table, found.remarks
        self.images = Paths(self.root, ((path, _size(path)) for path in found.images))
        self._truths = Paths(self.root, ((path, 0) for path in found.truths))
        if found.ids is not None:
            self.image_ids, self.category_ids = found.ids
        colours = voc_palette(min(len(self.classes) + 1, 255))[1:]  # the first is background
        self.palette = tuple(colours[k % len(colours)] for k in range(len(self.classes)))
        self.refuse_boxless(printable(self.root))

    def truth_name(self, index: int) -> str:
        return printable(self._truths[min(index, len(self._truths) - 1)])

    def remarks(self) -> list[str]:
        return [*self._made, *super().remarks()]

    @classmethod
    def fetch(cls, root: str | None) -> str:
        return "nothing to fetch: data=boxes is your own, images and their boxes at data.root"


def _size(file: Path) -> int:
    return file.stat().st_size
