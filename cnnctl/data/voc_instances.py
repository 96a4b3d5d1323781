"""Pascal VOC 2007 to 2012, instance segmentation: a mask for each object of 20 classes.

Everingham et al., "The Pascal Visual Object Classes (VOC) challenge", 2010, and the development
kits. SegmentationObject numbers the objects of an image, SegmentationClass says what they are; 255
marks the band around them and what is too hard to tell: pixels that belong to nobody.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from cnnctl.data.base import absent, data_root
from cnnctl.data.image_file import file_bytes, printable
from cnnctl.data.index_maps import IndexMaps, Objects, columns, find_objects
from cnnctl.data.mask_file import read_mask
from cnnctl.data.mask_pairs import Paths, check_share, check_sizes
from cnnctl.data.voc import VOC, add_sbd
from cnnctl.data.voc_boxes import VOCBoxes
from cnnctl.data.voc_lists import (
    Lists,
    Truth,
    check_split,
    find_parts,
    missing,
    official_val,
    year_folders,
)
from cnnctl.data.voc_sbd import read_sbd_objects
from cnnctl.data.voc_xml import Record, parse_voc_xml
from cnnctl.errors import Exit, UserError
from cnnctl.ops.boxes import iou
from cnnctl.structures import IGNORE

OBJECTS = Truth(
    "ImageSets/Segmentation",
    "SegmentationObject",
    ".png",
    "the official test masks are not public: data.test_list=val",
)
_CLASSES = "SegmentationClass"
_SAME = 0.5  # overlap of a mask's box and an annotated one from which they are of one object
_CLEAR = 0.5  # share of an object's pixels that must be of one class


class VOCInstances(IndexMaps):
    """Images of any size with the masks of their objects; what ``data=voc`` is for instances.

    The class of an object is the one that most of its pixels have in SegmentationClass, its box the
    tight one of its mask. It is difficult where the annotation (Annotations/*.xml, if there is one)
    has a difficult object of its class whose box overlaps by half or more. The splits are those of
    the masks (``VOC``): ``test`` is the official ``val`` list, ``val`` a share of ``train``.

    Args:
        split: train, val or test.
        root: the folder that holds VOCdevkit/; None is $CNNCTL_DATA or a per-user cache folder.
        years: the lists of these are united; 2012's hold nearly all of the earlier ones.
        train_list, val_list, test_list: files in ImageSets/Segmentation, without .txt. None for
            ``val_list`` holds ``validation`` out of ``train_list``; None for ``test_list`` is no
            test split.
        validation: share of ``train_list`` held out where there is no ``val_list``; 0 is none.
        sbd: a folder of further training images, absolute or within VOC<year>: SBD's own
            ``benchmark_RELEASE`` (Hariharan et al. 2011), whose instances have no borders. An image
            of any year's ``val`` list below ``root``, used or not, stays out.

    Raises:
        UserError: files are absent, a list is empty or names a missing file, the split is empty.
    """

    classes = VOCBoxes.classes
    palette = VOCBoxes.palette
    channels = VOC.channels
    mean, std = VOC.mean, VOC.std
    stored: ClassVar[bool] = True  # the development kits read with imread, which does not turn

    def __init__(
        self,
        split: Literal["train", "val", "test"],
        root: str | None = None,
        years: tuple[Literal[2007, 2008, 2009, 2010, 2011, 2012], ...] = (2012,),
        train_list: str = "train",
        val_list: str | None = None,
        test_list: str | None = "val",
        validation: float = 0.1,
        sbd: str | None = None,
    ) -> None:
        check_share(validation=validation)
        if not years:
            raise ValueError("years must name one year at least")
        lists = Lists(train_list, val_list, test_list)
        check_split(split, lists, validation)
        home = data_root(root)
        folders = year_folders(OBJECTS, root, years, train_list, self.option())
        for folder in folders:
            if not (folder / OBJECTS.folder).is_dir():
                name = f"VOCdevkit/{folder.name}/{OBJECTS.folder}"
                fetched = folder.name == "VOC2012"
                raise absent(home, [name], data=self.option(), fetch=fetched)
        parts = find_parts(OBJECTS, folders, lists, validation)
        if sbd is not None:
            known = set().union(*parts.samples.values(), official_val(OBJECTS, home))
            add_sbd(parts, sbd, folders, known, "inst")
        self._remarks = parts.remarks
        chosen = list(parts.samples[split].values())
        self.images = Paths(home, ((s.image, s.sizes[0]) for s in chosen))
        self.maps = Paths(home, ((s.truth, s.sizes[1]) for s in chosen))

    def image_size(self, index: int) -> tuple[int, int]:
        """(h, w), by the map; SBD's is no picture."""
        path = self.maps[index]
        if not path.endswith(".mat"):
            return super().image_size(index)
        numbers, _ = read_sbd_objects(path)
        return numbers.shape[0], numbers.shape[1]

    def objects_in(self, index: int) -> tuple[dict[str, Tensor], Tensor]:
        path = self.maps[index]
        numbers, kinds = read_sbd_objects(path) if path.endswith(".mat") else self._maps(path)
        objects = find_objects(numbers, nobody=(0, IGNORE))
        labels = [self._label(objects, row, kinds, path) for row in range(len(objects.numbers))]
        difficult = self._difficult(objects, labels, Path(self.images[index]))
        void = numbers == IGNORE
        return columns(objects, labels, difficult=difficult, void=void), numbers

    def _maps(self, path: str) -> tuple[Tensor, np.ndarray]:
        """A map of objects, and the class of each pixel, both (h, w) uint8."""
        numbers, file = read_mask(path), _classes_of(path)
        classes = read_mask(file)
        check_sizes(numbers[None], classes, path, str(file))
        return numbers, classes.numpy()

    def _label(self, objects: Objects, row: int, kinds: np.ndarray | list[int], path: str) -> int:
        """The class of an object.

        Args:
            kinds: a map of classes (h, w) with background and void; or those of numbers from 1.

        Raises:
            UserError: it is background or void there, of several classes, or of one unknown.
        """
        number = int(objects.numbers[row])
        if isinstance(kinds, list):
            own, where = np.array([kinds[number - 1]]), "the file"
        else:
            own = kinds[objects.within(row)][objects.crops[row]]
            where = printable(_classes_of(path))
        counts = np.bincount(own, minlength=IGNORE + 1)
        best = int(counts.argmax())
        if 1 <= best <= len(self.classes) and counts[best] > _CLEAR * len(own):
            return best - 1
        if best in (0, IGNORE):
            problem = "background" if not best else "void"
        elif best > len(self.classes):
            problem = f"{best}, which is no class"
        else:
            problem = f"of several classes, {VOC.classes[best]} the first of them"
        raise UserError(
            f"object {number} is {problem} in {where}",
            file=printable(path),
            advice="an object has one class: correct the files, or take the image off the list",
            code=Exit.DATA,
        )

    def _difficult(self, objects: Objects, labels: list[int], image: Path) -> list[bool]:
        """Of each object, by the annotated one of its class whose box is most like its own."""
        annotation = image.parent.with_name("Annotations") / f"{image.stem}.xml"
        record = _read_annotation(annotation) if annotation.is_file() else Record()
        if not record.boxes or not labels:
            return [False] * len(labels)
        theirs = torch.tensor(record.boxes, dtype=torch.float32)
        overlap = iou(torch.from_numpy(objects.boxes).float(), theirs)  # (R, A)
        names = [self.classes[label] for label in labels]
        same = torch.tensor([[own == name for name in record.names] for own in names])
        found, which = (overlap * same).max(1)
        difficult = torch.tensor([flags[0] for flags in record.flags])[which]
        return (difficult & (found >= _SAME)).tolist()

    def remarks(self) -> list[str]:
        return self._remarks

    @classmethod
    def option(cls) -> str:
        return VOC.option()

    @classmethod
    def missing(cls, root: str | None) -> list[str]:
        return missing(OBJECTS, root)

    @classmethod
    def fetch(cls, root: str | None) -> str:
        return VOC.fetch(root)


def _classes_of(path: str) -> Path:
    """The map of classes beside a map of objects."""
    file = Path(path)
    return file.parent.with_name(_CLASSES) / file.name


def _read_annotation(file: Path) -> Record:
    """Raises UserError where it is none, or objects in it are wrong."""
    try:
        record = parse_voc_xml(file_bytes(file))
        if record.faults:
            raise ValueError(": ".join(filter(None, record.faults[0])))
    except ValueError as error:
        raise UserError(str(error), file=printable(file), code=Exit.DATA) from None
    return record
