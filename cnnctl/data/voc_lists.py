"""Which images a split of Pascal VOC has: the development kit's folders and lists.

The masks and the boxes are listed apart (ImageSets/Segmentation, ImageSets/Main), by the same
rules: an image that two lists name is only in the later of train, val, test; the years' lists are
united, and an image that 2008 and later list again (000032 as 2007_000032) is one image.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from cnnctl.data.base import NoSplit, absent, data_root
from cnnctl.data.image_file import printable
from cnnctl.data.mask_pairs import divide, files_in, listed, no_split
from cnnctl.errors import Exit, UserError

YEARS = range(2007, 2013)
_PLACES = ("VOCdevkit/VOC{}", "VOC{}", "TrainVal/VOCdevkit/VOC{}")  # the last as 2011 unpacks


@dataclass(frozen=True)
class Truth:
    """Where a kind of truth is, below the folder of a year."""

    lists: str
    folder: str
    end: str  # of a file's name
    no_test: str  # what to do where the files of the official test list are not there


MASKS = Truth(
    "ImageSets/Segmentation",
    "SegmentationClass",
    ".png",
    "the official test masks are not public: data.test_list=val",
)
BOXES = Truth(
    "ImageSets/Main",
    "Annotations",
    ".xml",
    "the official test boxes are not public after 2007: data.test_list=val, or data.years=[2007]",
)


@dataclass(frozen=True)
class Sample:
    image: Path
    truth: Path
    sizes: tuple[int, int]  # bytes of the two files


@dataclass(frozen=True)
class Lists:
    """Names of files in the folder of lists, without .txt.

    None for ``val`` holds a share out of ``train``; None for ``test`` is no test split.
    """

    train: str
    val: str | None
    test: str | None

    def named(self) -> dict[str, str]:
        return {part: name for part, name in vars(self).items() if name is not None}


@dataclass
class Parts:
    """The samples of each split by the image's name, and sentences on what was left out."""

    samples: dict[str, dict[str, Sample]]
    remarks: list[str] = field(default_factory=list)


def check_split(split: str, lists: Lists, validation: float) -> None:
    """Raise NoSplit where the settings leave a split empty."""
    if split == "test" and lists.test is None:
        raise NoSplit(
            "there is no test split with test_list=null",
            field="data.test_list",
            advice="name a list (data.test_list=val) or take another split",
        )
    if split == "val" and lists.val is None and not validation:
        raise no_split("val", "validation")


def year_folders(
    truth: Truth, root: str | None, years: tuple[int, ...], name: str, data: str
) -> list[Path]:
    """The folder of each year, the last first.

    Args:
        name: the list to speak of where a year is absent.

    Raises:
        UserError: one of them is absent.
    """
    home, found = data_root(root), []
    for year in sorted(set(years), reverse=True):
        folder = next((f for f in _places(home, year) if (f / truth.lists).is_dir()), None)
        if folder is None:
            names = [f"VOCdevkit/VOC{year}/{truth.lists}/{name}.txt"]
            raise absent(home, names, data=data, fetch=year == 2012)
        found.append(folder)
    return found


def missing(truth: Truth, root: str | None) -> list[str]:
    """The folders of 2012 to get, where no year is there."""
    home = data_root(root)
    if any((f / truth.lists).is_dir() for year in YEARS for f in _places(home, year)):
        return []
    return [f"VOCdevkit/VOC2012/{part}" for part in (truth.lists, "JPEGImages", truth.folder)]


def find_parts(truth: Truth, folders: list[Path], lists: Lists, validation: float) -> Parts:
    """The samples of every split.

    Raises:
        UserError: a list is absent, empty, or names a missing file; a split has nothing left.
    """
    parts = Parts({})
    for part, name in lists.named().items():
        known = _having(folders, truth, name, parts.remarks) if part == "test" else folders
        parts.samples[part] = _united(truth, known, name)
    _separate(parts)
    if empty := [name for part, name in lists.named().items() if not parts.samples[part]]:
        raise UserError(
            f"nothing is left of {empty[0]}.txt: other splits have all of its images",
            file=printable(folders[0] / truth.lists),
            advice="train_list, val_list and test_list must differ",
            code=Exit.DATA,
        )
    if lists.val is None:
        samples = list(parts.samples["train"].items())
        for part, positions in divide(len(samples), {"val": validation}, folders[0]).items():
            parts.samples[part] = dict(samples[i] for i in positions)
    return parts


def official_val(truth: Truth, home: Path) -> set[str]:
    """What the val lists of all years name: papers report on it, so it is never trained on."""
    places = [folder for year in YEARS for folder in _places(home, year)]
    lists = [(voc, voc / truth.lists / "val.txt") for voc in places]
    return {_one_name(v, name) for v, file in lists if file.is_file() for name in read_list(file)}


def _places(home: Path, year: int) -> list[Path]:
    return [home / place.format(year) for place in _PLACES]


def _having(folders: list[Path], truth: Truth, name: str, remarks: list[str]) -> list[Path]:
    """The years with a public test: of 2007 and 2012 together that is 2007's alone.

    All of them where none has, for the error that says so.
    """
    having = []
    for folder in folders:
        file = folder / truth.lists / f"{name}.txt"
        if file.is_file():
            there = files_in(folder / truth.folder)
            if any(one + truth.end in there for one in read_list(file)):
                having.append(folder)
    if not having:
        return folders
    without = [folder.name for folder in folders if folder not in having]
    if without:
        remarks.append(f"test is without {', '.join(without)}: its {name}.txt is not public")
    return having


def _separate(parts: Parts) -> None:
    """Take from train what is in val or test, and from val what is in test."""
    for part, later in (("train", ("val", "test")), ("val", ("test",))):
        for other in later:
            own, others = (parts.samples.get(name, {}) for name in (part, other))
            both = own.keys() & others.keys()
            for name in both:
                del own[name]
            if both:
                parts.remarks.append(f"{len(both):,} left out of {part}: in {other} too")


def _united(truth: Truth, folders: list[Path], name: str) -> dict[str, Sample]:
    """The samples that a list of each year names, each image once, by name."""
    found: dict[str, Sample] = {}
    for folder in folders:
        for key, sample in _listed_samples(truth, folder, name).items():
            found.setdefault(key, sample)
    return dict(sorted(found.items()))


def _listed_samples(truth: Truth, folder: Path, name: str) -> dict[str, Sample]:
    """Raises UserError where the list is empty or a file that it names is not there."""
    file = folder / truth.lists / f"{name}.txt"
    names = read_list(file)
    images, truths = (files_in(folder / part) for part in ("JPEGImages", truth.folder))
    for part, files, end in (("JPEGImages", images, ".jpg"), (truth.folder, truths, truth.end)):
        if lacking := [f"{part}/{one}{end}" for one in names if one + end not in files]:
            advice = "complete the data, or take another list: data.train_list, data.test_list"
            if part == truth.folder and name == "test":
                advice = truth.no_test
            raise UserError(
                f"names files that are not there: {listed(lacking)}",
                file=printable(file),
                advice=advice,
                code=Exit.DATA,
            )
    return {
        _one_name(folder, one): Sample(
            folder / f"JPEGImages/{one}.jpg",
            folder / f"{truth.folder}/{one}{truth.end}",
            (images[f"{one}.jpg"], truths[f"{one}{truth.end}"]),
        )
        for one in names
    }


def read_list(file: Path) -> list[str]:
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
