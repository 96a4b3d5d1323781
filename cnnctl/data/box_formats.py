"""Read the images and boxes of one split of a user's folder, in each of the formats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cnnctl.data.base import NoSplit
from cnnctl.data.box_files import BoxTable, ends
from cnnctl.data.box_layout import Layout
from cnnctl.data.box_pairs import Pair, image_folder, match
from cnnctl.data.coco_index import Index, read_index
from cnnctl.data.faults import Faults
from cnnctl.data.image_file import printable
from cnnctl.data.mask_pairs import divide, listed, no_split
from cnnctl.data.voc_lists import read_list
from cnnctl.data.voc_xml import read_xml_files
from cnnctl.data.yolo_text import read_names, read_yolo_files
from cnnctl.errors import Exit, UserError, nearest

_LISTS = "ImageSets/Main"
_KEYS = {"val": "validation", "test": "test"}  # the arguments that hold a part out
_PAST = 0.01  # pixels that a box may reach beyond its image without being counted


@dataclass(frozen=True)
class Wanted:
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
class Found:
    """A split's images, a row of the table for each."""

    images: list[Path]
    truths: list[Path]  # a file for each image, or one for all
    table: BoxTable
    classes: tuple[str, ...]
    remarks: list[str] = field(default_factory=list)
    ids: tuple[np.ndarray, tuple[int, ...]] | None = None  # of images and classes


def read_voc(layout: Layout, wanted: Wanted) -> Found:
    """All parts are looked at: the names of the classes are only in the files."""
    alone = _alone(layout)
    found = {name: match(part, "voc", alone=alone) for name, part in layout.parts.items()}
    no_test = layout.no_test
    if "" in found and (wanted.root / _LISTS / "train.txt").is_file():
        found = _by_lists(found[""], wanted.root / _LISTS)
        no_test = f"{_LISTS} has no test.txt"
    pairs = {name: _complete(own) for name, own in found.items()}
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
    return Found([image for image, _ in own], [xml for _, xml in own], table, classes, remarks)


def _first(table: BoxTable) -> np.ndarray:
    """(A,) bool: the box begins at an edge of its image."""
    return (table.boxes[:, :2] == 0).any(1)


def _alone(layout: Layout) -> bool:
    """Whether every part has a folder of boxes to itself."""
    return len({part.truth for part in layout.parts.values()}) == len(layout.parts)


def _complete(pairs: list[Pair]) -> list[tuple[Path, Path]]:
    """The same, each image with its annotation.

    Raises:
        UserError: an image has none.
    """
    faults = Faults()
    for image, xml in pairs:
        if xml is None:
            faults.add(printable(image), "image without an .xml")
    faults.tell("add the file (without objects, where there are none), or move the image away")
    return [(image, xml) for image, xml in pairs if xml is not None]


def _by_lists(pairs: list[Pair], folder: Path) -> dict[str, list[Pair]]:
    """The samples that train.txt, val.txt and test.txt name.

    Raises:
        UserError: a list names what is not there or is there twice, or an image is in two lists.
    """
    by_name: dict[str, list[Pair]] = {}
    for pair in pairs:
        by_name.setdefault(pair[0].stem, []).append(pair)
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
        if several := [name for name in names if len(by_name[name]) > 1]:
            problem = f"names images that are in several folders: {listed(several)}"
            raise UserError(problem, file=printable(file), advice=advice, code=Exit.DATA)
        if both := [name for name in names if seen.setdefault(name, part) != part]:
            problem = f"names images that are in {seen[both[0]]}.txt too: {listed(both)}"
            raise UserError(problem, file=printable(file), advice=advice, code=Exit.DATA)
        found[part] = [by_name[name][0] for name in dict.fromkeys(names)]
    return found


def read_yolo(layout: Layout, wanted: Wanted) -> Found:
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
    return Found([image for image, _ in own], [], table, classes, remarks)


def read_coco(layout: Layout, wanted: Wanted) -> Found:
    parts = tuple(layout.parts)
    name = wanted.part(parts, layout.no_test)
    part = layout.parts[name]
    index = read_index(part.truth, "bbox", "flat")
    train = index
    if name not in ("", "train"):
        train = read_index(layout.parts["train"].truth, "bbox")
        check_categories(index, part.truth, train, layout.parts["train"].truth)
    names = index.file_names()
    folder = image_folder(wanted.root, part, names)
    chosen = wanted.positions(name, parts, len(index))
    classes, number = chosen_categories(train, part.truth, wanted.classes)
    table = _coco_table(index, number).part(chosen)
    images = [folder / names[position] for position in chosen]
    ids = dict(zip(index.category_names, index.category_ids.tolist(), strict=True))
    named = index.image_ids[chosen], tuple(ids[one] for one in classes)
    return Found(images, [part.truth], table, classes, ids=named)


def check_categories(index: Index, file: Path, train: Index, train_file: Path) -> None:
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


def chosen_categories(
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
