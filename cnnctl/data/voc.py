"""Pascal VOC 2007 to 2012, semantic segmentation: 20 classes, background, and void (255).

Everingham et al., "The Pascal Visual Object Classes (VOC) challenge", 2010, and the development
kits. 255 marks the band around objects and what is too hard to tell.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import Tensor

from cnnctl.data.base import NoSplit, absent, data_root, download
from cnnctl.data.image_file import printable
from cnnctl.data.mask_file import read_mask
from cnnctl.data.mask_pairs import MaskPairs, Paths, check_share, divide, files_in, listed, no_split
from cnnctl.data.mask_values import Values
from cnnctl.data.voc_sbd import read_sbd, sbd_files
from cnnctl.errors import Exit, UserError

_LISTS = "ImageSets/Segmentation"
_PLACES = ("VOCdevkit/VOC{}", "VOC{}", "TrainVal/VOCdevkit/VOC{}")  # the last as 2011 unpacks
_YEARS = range(2007, 2013)


@dataclass(frozen=True)
class _Sample:
    image: Path
    mask: Path
    sizes: tuple[int, int]  # bytes of the two files


class VOC(MaskPairs):
    """Images of any size with a class for each pixel.

    The masks of the official test images are not public after 2007. So by default ``test`` is the
    official ``val`` list, on which papers report; ``train`` is the official ``train`` list less a
    share that is held out as ``val``, always the same, for choosing the best epoch. An image that
    two of the lists name is only in the later of train, val, test (``remarks`` counts them); an
    image of 2007 that 2008 and later list again (000032 as 2007_000032) is one image.

    Args:
        split: train, val or test.
        root: the folder that holds VOCdevkit/; None is $CNNCTL_DATA or a per-user cache folder.
        years: the lists of these are united; 2012's hold nearly all of the earlier ones.
        train_list, val_list, test_list: files in ImageSets/Segmentation, without .txt. None for
            ``val_list`` holds ``validation`` out of ``train_list``; None for ``test_list`` is no
            test split.
        validation: share of ``train_list`` held out where there is no ``val_list``; 0 is none.
        sbd: a folder of further training masks, absolute or within VOC<year>: PNGs as in
            SegmentationClassAug, or SBD's own ``benchmark_RELEASE`` (Hariharan et al. 2011). An
            image of any year's ``val`` list below ``root``, used or not, stays out.

    Raises:
        UserError: files are absent, a list is empty or names a missing file, the split is empty.
    """

    classes: tuple[str, ...] = (
        "background",
        *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
        *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
        *("train", "tvmonitor"),
    )
    channels = 3
    mean = (0.485, 0.456, 0.406)  # ImageNet's, as published weights expect
    std = (0.229, 0.224, 0.225)

    values: ClassVar[Values] = Values(range(len(classes)))
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
        lists = {"train": train_list, "val": val_list, "test": test_list}
        if split == "test" and test_list is None:
            raise NoSplit(
                "there is no test split with test_list=null",
                field="data.test_list",
                advice="name a list (data.test_list=val) or take another split",
            )
        if split == "val" and val_list is None and not validation:
            raise no_split("val", "validation")
        folders, home = self._folders(root, years, train_list), data_root(root)
        self._remarks: list[str] = []
        parts = {part: _united(folders, name) for part, name in lists.items() if name is not None}
        self._separate(parts)
        if empty := [lists[part] for part, samples in parts.items() if not samples]:
            raise UserError(
                f"nothing is left of {empty[0]}.txt: other splits have all of its images",
                file=printable(folders[0] / _LISTS),
                advice="train_list, val_list and test_list must differ",
                code=Exit.DATA,
            )
        if val_list is None:
            samples = list(parts["train"].items())
            for part, positions in divide(len(samples), {"val": validation}, folders[0]).items():
                parts[part] = dict(samples[i] for i in positions)
        if sbd is not None:
            known = set().union(*parts.values(), _official_val(home))
            self._add_sbd(parts["train"], sbd, folders, known)
        chosen = parts[split].values()
        self.images = Paths(home, ((s.image, s.sizes[0]) for s in chosen))
        self.masks = Paths(home, ((s.mask, s.sizes[1]) for s in chosen))

    def _separate(self, parts: dict[str, dict[str, _Sample]]) -> None:
        """Take from train what is in val or test, and from val what is in test."""
        for part, later in (("train", ("val", "test")), ("val", ("test",))):
            for other in later:
                both = parts.get(part, {}).keys() & parts.get(other, {}).keys()
                for name in both:
                    del parts[part][name]
                if both:
                    self._remarks.append(f"{len(both):,} left out of {part}: in {other} too")

    def _add_sbd(
        self, train: dict[str, _Sample], sbd: str, folders: list[Path], known: set[str]
    ) -> None:
        """Put SBD's images into ``train``, but those that are known."""
        folder = next((f / sbd for f in folders if (f / sbd).is_dir()), Path(sbd).expanduser())
        found = sbd_files(folder)
        images = {Path(name).stem: (voc, size) for voc in folders[::-1] for name, size in
                  files_in(voc / "JPEGImages").items()}  # fmt: skip
        lacking = 0
        for name, (mask, size) in sorted(found.items()):
            if name in known:
                continue
            if name in images:
                voc, image_size = images[name]
                train[name] = _Sample(voc / f"JPEGImages/{name}.jpg", mask, (image_size, size))
            else:
                lacking += 1
        if lacking:
            self._remarks.append(f"{lacking:,} masks of sbd left out: their images are not there")

    def classes_in(self, path: str) -> Tensor:
        return self.values.classes(read_sbd(path) if path.endswith(".mat") else read_mask(path))

    def remarks(self) -> list[str]:
        return self._remarks

    @classmethod
    def _folders(cls, root: str | None, years: tuple[int, ...], name: str) -> list[Path]:
        """The folder of each year, the last first.

        Raises:
            UserError: one of them is absent.
        """
        home, found = data_root(root), []
        for year in sorted(set(years), reverse=True):
            places = [home / place.format(year) for place in _PLACES]
            folder = next((place for place in places if (place / _LISTS).is_dir()), None)
            if folder is None:
                names = [f"VOCdevkit/VOC{year}/{_LISTS}/{name}.txt"]
                raise absent(home, names, data=cls.option(), fetch=year == 2012)
            found.append(folder)
        return found

    @classmethod
    def missing(cls, root: str | None) -> list[str]:
        home = data_root(root)
        if any((home / p.format(year) / _LISTS).is_dir() for p in _PLACES for year in _YEARS):
            return []
        parts = (_LISTS, "JPEGImages", "SegmentationClass")
        return [f"VOCdevkit/VOC2012/{part}" for part in parts]

    @classmethod
    def fetch(cls, root: str | None) -> str:
        """VOC 2012, by torchvision's downloader."""
        from torchvision.datasets import VOCSegmentation
        from torchvision.datasets.voc import DATASET_YEAR_DICT

        source: Any = DATASET_YEAR_DICT["2012"]
        folder = data_root(root)
        download(
            lambda: VOCSegmentation(str(folder), year="2012", image_set="train", download=True),
            data=cls.option(),
            folder=folder,
            address=source["url"].rpartition("/")[0],
            files=[(source["filename"], source["md5"])],
        )
        return f"data={cls.option()} is in {folder / 'VOCdevkit/VOC2012'}"


def _official_val(home: Path) -> set[str]:
    """What the val lists of all years name: papers report on it, so it is never trained on."""
    places = [home / place.format(year) for place in _PLACES for year in _YEARS]
    lists = [(voc, voc / _LISTS / "val.txt") for voc in places]
    return {_one_name(v, name) for v, file in lists if file.is_file() for name in _read_list(file)}


def _united(folders: list[Path], name: str) -> dict[str, _Sample]:
    """The samples that a list of each year names, each image once, by name."""
    found: dict[str, _Sample] = {}
    for folder in folders:
        for key, sample in _listed_samples(folder, name).items():
            found.setdefault(key, sample)
    return dict(sorted(found.items()))


def _listed_samples(folder: Path, name: str) -> dict[str, _Sample]:
    """Raises UserError where the list is empty or a file that it names is not there."""
    file = folder / _LISTS / f"{name}.txt"
    names = _read_list(file)
    images, masks = (files_in(folder / part) for part in ("JPEGImages", "SegmentationClass"))
    for part, files, end in (("JPEGImages", images, ".jpg"), ("SegmentationClass", masks, ".png")):
        if lacking := [f"{part}/{one}{end}" for one in names if one + end not in files]:
            advice = "complete the data, or take another list: data.train_list, data.test_list"
            if part == "SegmentationClass" and name == "test":
                advice = "the official test masks are not public: data.test_list=val"
            raise UserError(
                f"names files that are not there: {listed(lacking)}",
                file=printable(file),
                advice=advice,
                code=Exit.DATA,
            )
    return {
        _one_name(folder, one): _Sample(
            folder / f"JPEGImages/{one}.jpg",
            folder / f"SegmentationClass/{one}.png",
            (images[f"{one}.jpg"], masks[f"{one}.png"]),
        )
        for one in names
    }


def _read_list(file: Path) -> list[str]:
    """The image names in a list: the first word of each line that is not empty.

    Raises:
        UserError: there is no such list, or nothing is in it.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        there = sorted(path.stem for path in file.parent.glob("*.txt"))
        raise UserError(
            "there is no such list",
            file=printable(file),
            advice=f"those here: {', '.join(there) or 'none'}",
            code=Exit.DATA,
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        problem = f"cannot be read: {error}"
        raise UserError(problem, file=printable(file), code=Exit.DATA) from None
    names = [line.split()[0] for line in text.splitlines() if line.strip()]
    if not names:
        raise UserError("is an empty list", file=printable(file), code=Exit.DATA)
    for name in names:
        if name in (".", "..") or "/" in name or "\0" in name:
            raise UserError(
                f'"{name}" is no name of an image',
                file=printable(file),
                advice="one name a line, without folder and extension: 2007_000032",
                code=Exit.DATA,
            )
    return names


def _one_name(folder: Path, name: str) -> str:
    """What an image is called in every year: 2007's own 000032 is 2007_000032 later."""
    return f"2007_{name}" if folder.name == "VOC2007" else name
