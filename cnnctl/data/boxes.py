"""Your own images with boxes: COCO JSON, VOC XML or YOLO text, told by looking.

One folder that is split here, always in the same way; or ``train/``, ``val/`` and ``test/`` in it,
as ``train/images``, ``images/train`` or ``train.json``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from cnnctl.data.base import NoSplit
from cnnctl.data.box_files import BoxFiles, BoxTable, ends
from cnnctl.data.box_layout import Layout, Part, find_layout, image_folder, match
from cnnctl.data.coco_index import Index, read_index
from cnnctl.data.image_file import printable
from cnnctl.data.mask_pairs import Paths, check_share, divide, listed, no_split
from cnnctl.data.own_folder import IMAGENET, OwnFolder, per_channel
from cnnctl.data.palette import voc_palette
from cnnctl.data.voc_lists import read_list
from cnnctl.data.voc_xml import read_xml_files
from cnnctl.data.yolo_text import read_names, read_yolo_files
from cnnctl.errors import Exit, UserError, nearest

_LISTS = "ImageSets/Main"
_KEYS = {"val": "validation", "test": "test"}  # the arguments that hold a part out
_PAST = 0.01  # pixels that a box may reach beyond its image without being counted


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
        wanted = _Wanted(split, {"val": validation, "test": test}, self.root, classes, first_pixel)
        self.format = layout.form
        found = {"coco": _read_coco, "voc": _read_voc, "yolo": _read_yolo}[layout.form](
            layout, wanted
        )
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


@dataclass(frozen=True)
class _Wanted:
    """What is asked for of a folder."""

    split: str
    shares: dict[str, float]
    root: Path
    classes: tuple[str, ...] | None
    first_pixel: int

    def part(self, parts: Sequence[str], no_test: str) -> str:
        """The part that the split is, or is a share of."""
        if "" in parts:
            return ""
        if self.split == "train" or (self.split == "val" and "val" not in parts):
            return "train"
        if self.split not in parts:
            raise NoSplit(
                f"{no_test}, so there is no test split", file=printable(self.root), code=Exit.DATA
            )
        return self.split

    def positions(self, part: str, parts: Sequence[str], count: int) -> list[int]:
        """Of the split among the samples of the part.

        Raises:
            NoSplit: a share of 0 leaves it empty.
        """
        if part not in ("", "train"):
            return list(range(count))
        shares = self.shares
        if part:
            shares = {"val": 0.0 if "val" in parts else shares["val"]}
        if self.split != "train" and not shares[self.split]:
            raise no_split(self.split, _KEYS[self.split])
        return divide(count, shares, self.root)[self.split]


@dataclass(frozen=True)
class _Found:
    """A split's images, a row of the table for each."""

    images: list[Path]
    truths: list[Path]  # a file for each image, or one for all
    table: BoxTable
    classes: tuple[str, ...]
    remarks: list[str] = field(default_factory=list)
    ids: tuple[np.ndarray, tuple[int, ...]] | None = None  # of images and classes


def _read_voc(layout: Layout, wanted: _Wanted) -> _Found:
    """All parts are looked at: the names of the classes are only in the files."""
    alone = _alone(layout)
    pairs = {name: _complete(part, alone) for name, part in layout.parts.items()}
    no_test = layout.no_test
    if "" in pairs and (wanted.root / _LISTS / "train.txt").is_file():
        pairs = _by_lists(pairs[""], wanted.root / _LISTS)
        no_test = f"{_LISTS} has no test.txt"
    part = wanted.part(tuple(pairs), no_test)
    chosen = wanted.positions(part, tuple(pairs), len(pairs[part]))
    classes = wanted.classes
    if classes is None:
        every = [str(xml) for own in pairs.values() for _, xml in own]
        classes = read_xml_files(list(dict.fromkeys(every)), None, wanted.first_pixel)[1]
    own = [pairs[part][position] for position in chosen]
    table, _ = read_xml_files([str(xml) for _, xml in own], classes, wanted.first_pixel)
    remarks = []
    if wanted.first_pixel and table.clipped is not None and (table.clipped & _first(table)).any():
        remarks.append("boxes begin at pixel 0, which VOC counts as 1: data.first_pixel=0?")
    return _Found([image for image, _ in own], [xml for _, xml in own], table, classes, remarks)


def _first(table: BoxTable) -> np.ndarray:
    """(A,) bool: the box begins at an edge of its image."""
    return (table.boxes[:, :2] == 0).any(1)


def _alone(layout: Layout) -> bool:
    """Whether every part has a folder of boxes to itself."""
    return len({part.truth for part in layout.parts.values()}) == len(layout.parts)


def _complete(part: Part, alone: bool) -> list[tuple[Path, Path]]:
    """The images and annotations of a part.

    Raises:
        UserError: an image has none.
    """
    pairs = match(part, "voc", alone=alone)
    if lacking := [image for image, xml in pairs if xml is None]:
        more = f" (and {len(lacking) - 1:,} more)" if len(lacking) > 1 else ""
        raise UserError(
            f"image without an .xml{more} in {printable(part.truth)}",
            file=printable(lacking[0]),
            advice="add the file (without objects, where there are none), or move the image away",
            code=Exit.DATA,
        )
    return [(image, xml) for image, xml in pairs if xml is not None]


def _by_lists(pairs: list[tuple[Path, Path]], folder: Path) -> dict[str, list[tuple[Path, Path]]]:
    """The samples that train.txt, val.txt and test.txt name.

    Raises:
        UserError: a list names what is not there, or an image is in two of them.
    """
    by_name = {image.stem: (image, xml) for image, xml in pairs}
    found, seen = {}, dict[str, str]()
    for part in ("train", "val", "test"):
        file = folder / f"{part}.txt"
        if not file.is_file():
            continue
        names = read_list(file)
        advice = "correct the list, or move the lists away"
        if lacking := [name for name in names if name not in by_name]:
            problem = f"names images that are not there: {listed(lacking)}"
            raise UserError(problem, file=printable(file), advice=advice, code=Exit.DATA)
        if both := [name for name in names if seen.setdefault(name, part) != part]:
            problem = f"names images that are in {seen[both[0]]}.txt too: {listed(both)}"
            raise UserError(problem, file=printable(file), advice=advice, code=Exit.DATA)
        found[part] = [by_name[name] for name in dict.fromkeys(names)]
    return found


def _read_yolo(layout: Layout, wanted: _Wanted) -> _Found:
    parts = tuple(layout.parts)
    name = wanted.part(parts, layout.no_test)
    pairs = match(layout.parts[name], "yolo", alone=_alone(layout))
    own = [pairs[position] for position in wanted.positions(name, parts, len(pairs))]
    classes = wanted.classes
    if classes is None:
        folders = [f for part in layout.parts.values() for f in (part.truth, part.images)]
        classes = read_names([wanted.root, *folders])
    files = [None if text is None else str(text) for _, text in own]
    table, remarks = read_yolo_files(files, classes)
    return _Found([image for image, _ in own], [], table, classes, remarks)


def _read_coco(layout: Layout, wanted: _Wanted) -> _Found:
    parts = tuple(layout.parts)
    name = wanted.part(parts, layout.no_test)
    part = layout.parts[name]
    index = read_index(part.truth, "bbox", "flat")
    train = index
    if name not in ("", "train"):
        train = read_index(layout.parts["train"].truth, "bbox")
        _check_categories(index, part.truth, train, layout.parts["train"].truth)
    names = index.file_names()
    folder = image_folder(wanted.root, part, names)
    chosen = wanted.positions(name, parts, len(index))
    classes, number = _categories(train, part.truth, wanted.classes)
    table = _coco_table(index, number).part(chosen)
    images = [folder / names[position] for position in chosen]
    ids = dict(zip(index.category_names, index.category_ids.tolist(), strict=True))
    named = index.image_ids[chosen], tuple(ids[one] for one in classes)
    return _Found(images, [part.truth], table, classes, ids=named)


def _check_categories(index: Index, file: Path, train: Index, train_file: Path) -> None:
    """Refuse categories that are not train's: the class numbers would differ."""
    ours, theirs = index.category_names, train.category_names
    if ours == theirs:
        return
    raise UserError(
        f"has other categories than {printable(train_file)}: {listed(ours)} there {listed(theirs)}",
        file=printable(file),
        advice="all parts must have the same categories, in the same order of ids",
        code=Exit.DATA,
    )


def _categories(
    train: Index, file: Path, classes: tuple[str, ...] | None
) -> tuple[tuple[str, ...], np.ndarray]:
    """The classes, and (K,) int32: that of each category of the file, -1 for none."""
    known = train.category_names
    if classes is None:  # some tools list a background, which has no boxes
        used = set(np.unique(train.categories).tolist())
        classes = tuple(n for k, n in enumerate(known) if k in used or n != "background")
    for name in classes:
        if name not in known:
            raise UserError(
                f'{file.name} has no category "{name}"',
                field="data.classes",
                advice=nearest(name, known),
            )
    number = {name: position for position, name in enumerate(classes)}
    return classes, np.array([number.get(name, -1) for name in known], np.int32)


def _coco_table(index: Index, number: np.ndarray) -> BoxTable:
    """Of all images of the file."""
    count = len(index)
    image = np.repeat(np.arange(count), np.diff(index.annotation_ends, prepend=0))  # (A,)
    labels = number[index.categories]
    kept = labels >= 0
    h, w = index.sizes[image].T
    past = np.stack([w, h, w, h], 1)
    boxes = index.boxes.clip(0, past)
    none = np.zeros(int(kept.sum()), bool)
    return BoxTable(
        ends=ends(np.bincount(image[kept], minlength=count)),
        sizes=np.asarray(index.sizes),
        boxes=boxes[kept],
        labels=labels[kept],
        difficult=none,
        crowd=np.asarray(index.crowds[kept]),
        truncated=none,
        occluded=none,
        areas=np.asarray(index.areas[kept]),
        clipped=(np.abs(index.boxes - boxes).max(1, initial=0) > _PAST)[kept],
    )


def _size(file: Path) -> int:
    return file.stat().st_size
