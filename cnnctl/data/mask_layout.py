"""Find the images and masks in a folder of the user's own; nothing is decoded here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from cnnctl.data.class_folders import has_images, images_below
from cnnctl.data.image_file import EXTENSIONS, printable
from cnnctl.data.mask_pairs import files_in
from cnnctl.data.palette import Colour
from cnnctl.errors import Exit, UserError

IMAGES = ("images", "image", "imgs", "img", "JPEGImages", "PNGImages")
MASKS = ("masks", "mask", "labels", "label", "annotations", "SegmentationClass")
PARTS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
CLASS_LIST = "classes.txt"
_VOID = ("void", "ignore", "unlabeled", "unlabelled")

Pair = tuple[Path, Path]


@dataclass(frozen=True)
class Layout:
    """Where images and masks are."""

    pairs: dict[str, Pair]  # part -> its folders of images and of masks; "" where not divided
    no_test: str = "has no folder test/ beside train/"  # why, where ``pairs`` has none
    remarks: list[str] = field(default_factory=list)  # what is left out


class _Lacking(UserError):
    """Images without a folder of masks, or the reverse."""


def find_folders(root: Path, masks: tuple[str, ...] = MASKS) -> Layout:
    """``root/train/images``, ``root/images/train`` or ``root/images``, with their masks.

    A test part without masks is none: ``no_test`` says so to who asks for it.

    Args:
        masks: what a folder of masks can be called.

    Raises:
        UserError: there are none, a part has only one of the two, or it is not clear which they are
            (code 3).
    """
    parts = {part: f for part, names in PARTS.items() if (f := _below(root, names))}
    if any(part != "test" and _kinds(f, masks) != ([], []) for part, f in parts.items()):
        return _parts_of_pairs(root, parts, masks)
    with suppress(_Lacking):
        if "test" in parts and _pair(parts["test"], masks):
            return _parts_of_pairs(root, parts, masks)
    pair = _pair(root, masks)
    if pair is None:
        raise _error(root, f"has {_NEITHER}", _ADVICE)
    for part in ("train", "val"):
        if part in parts and has_images(parts[part]):
            raise _error(parts[part], f"is beside {pair[0].name}/, and has {_NEITHER}", _ADVICE)
    return _pair_of_parts(root, pair)


_NEITHER = "no folder of images with a folder of masks beside it"
_ADVICE = (
    f"call them images/ and masks/ (or {', '.join(IMAGES[1:])}; {', '.join(MASKS[1:])}), "
    "in data.root or in its train/, val/ and test/"
)


def _parts_of_pairs(root: Path, parts: dict[str, Path], masks: tuple[str, ...]) -> Layout:
    """``root/train/images`` with ``root/train/masks``."""
    pairs, no_test = {}, Layout.no_test
    for part, folder in parts.items():
        try:
            pair = _pair(folder, masks)
            if pair is None:
                raise _lacking(folder, f"has {_NEITHER}")
            pairs[part] = pair
        except _Lacking as lacking:
            if part != "test":
                raise
            no_test = f"{folder.name}/ {lacking.problem}"
    beside = [(folder, len(images_below(folder))) for folder in _kinds(root, masks)[0]]
    return _divided(root, pairs, no_test, beside)


def _pair_of_parts(root: Path, pair: Pair) -> Layout:
    """``root/images/train`` with ``root/masks/train``, or not divided."""
    pairs, no_test, used = {}, Layout.no_test, set[Path]()
    for part, names in PARTS.items():
        there = [folder for above in pair if (folder := _below(above, names))]
        if len(there) == 2:
            pairs[part] = there[0], there[1]
            used.add(there[0])
        elif there:
            other = next(above for above in pair if above != there[0].parent)
            problem = (
                f"has {there[0].parent.name}/{there[0].name}/ but no {other.name}/{there[0].name}/"
            )
            if part != "test":
                raise _error(root, problem, "add the folder, or move the other away")
            no_test = problem
            used.add(there[0])
    if not pairs:
        return Layout({"": pair})
    return _divided(root, pairs, no_test, [(pair[0], _loose(pair[0], used))])


def _divided(
    root: Path, pairs: dict[str, Pair], no_test: str, beside: list[tuple[Path, int]]
) -> Layout:
    if "train" not in pairs:
        raise _error(root, f"has {next(iter(pairs))}/ but no train/", "name a part train")
    remarks = [
        f"{count:,} images left out: in {folder.name}/, but in none of its parts"
        for folder, count in beside
        if count
    ]
    return Layout(pairs, no_test, remarks)


def _loose(folder: Path, used: set[Path]) -> int:
    """Images in a folder and in those of its folders that are not used."""
    own = [name for name in files_in(folder) if Path(name).suffix.lower() in EXTENSIONS]
    others = [path for path in folder.iterdir() if path.is_dir() and path.name[0] != "."]
    return len(own) + sum(len(images_below(path)) for path in others if path not in used)


def _below(folder: Path, names: tuple[str, ...]) -> Path | None:
    found = [folder / name for name in names if (folder / name).is_dir()]
    if len(found) > 1:
        raise _error(folder, f"has {_both(found)}: which of them is {names[0]}?", "rename one")
    return found[0] if found else None


def _kinds(folder: Path, masks: tuple[str, ...]) -> tuple[list[Path], list[Path]]:
    """What can be a folder of images, and what one of masks."""
    found, others = (
        [folder / name for name in names if (folder / name).is_dir()] for names in (IMAGES, masks)
    )
    return found, others


def _both(paths: list[Path]) -> str:
    return " and ".join(f"{path.name}/" for path in paths)


def _pair(folder: Path, names: tuple[str, ...]) -> Pair | None:
    """The folders of images and of masks in ``folder``; None where neither is there."""
    images, masks = _kinds(folder, names)
    for found, kind in ((images, "images"), (masks, "masks")):
        if len(found) > 1:
            problem = f"has {_both(found)}: which of them holds the {kind}?"
            raise _error(folder, problem, "rename one")
    if not images and not masks:
        return None
    if not images or not masks:
        there, lacking = (masks, "images") if masks else (images, "masks")
        problem = f"has {there[0].name}/ but no folder of {lacking} beside it"
        raise _lacking(folder, problem)
    return images[0], masks[0]


def match(folders: Pair, suffix: str | None = "") -> list[Pair]:
    """(image, mask) of every sample, in the order of their names.

    A mask has its image's name (in the same sub-folder), then ``suffix``, then any extension. Where
    that is None, it is what most of the masks have there.

    Raises:
        UserError: an image without a mask or a mask without an image, two files for one name, or no
            images at all (code 3).
    """
    images = _by_name(folders[0], "")
    if suffix is None:
        suffix = _told_suffix(images.keys(), folders[1])
    masks = _by_name(folders[1], suffix)
    if not images:
        raise _error(folders[0], "holds no images", f"names end in {' '.join(EXTENSIONS)}")
    if alone := [images[name] for name in images if name not in masks]:
        expected = folders[1] / f"{next(n for n in images if n not in masks)}{suffix}.png"
        raise _error(alone[0], f"image without a mask{_more(alone)}: {printable(expected)} is not "
                     "there", "add the mask, or move the image away")  # fmt: skip
    if alone := [masks[name] for name in masks if name not in images]:
        raise _error(alone[0], f"mask without an image{_more(alone)} in {printable(folders[0])}",
                     "add the image, or move the mask away")  # fmt: skip
    return [(images[name], masks[name]) for name in images]


def _told_suffix(images: Collection[str], masks: Path) -> str:
    """What most of the masks have behind the longest name of an image that theirs begins with."""
    found = Counter[str]()
    for path in images_below(masks):
        name = str(path.relative_to(masks).with_suffix(""))
        ends = range(len(name), 0, -1)
        if (end := next((end for end in ends if name[:end] in images), None)) is not None:
            found[name[end:]] += 1
    return found.most_common(1)[0][0] if found else ""


def _more(alone: list[Path]) -> str:
    return f" (and {len(alone) - 1:,} more)" if len(alone) > 1 else ""


def _by_name(folder: Path, suffix: str) -> dict[str, Path]:
    """Path below ``folder`` without suffix and extension -> file."""
    found: dict[str, Path] = {}
    for path in images_below(folder):
        name = str(path.relative_to(folder).with_suffix(""))
        if not name.endswith(suffix):
            problem = f"a mask's name must end in {suffix}, as data.mask_suffix says"
            raise _error(
                path, problem, "data.mask_suffix=<what masks have behind the image's name>"
            )
        name = name.removesuffix(suffix)
        if name in found:
            raise _error(path, f"has the same name as {found[name].name}", "keep one of the two")
        found[name] = path
    return found


def read_class_list(file: Path) -> tuple[tuple[str, ...], tuple[Colour, ...], tuple[Colour, ...]]:
    """Names, colours (none, or one for each) and void's colours.

    A line is ``name`` or ``name red green blue``; ``void`` (or ignore, unlabeled) with a colour is
    no class. Empty lines and those that begin with # are left out.

    Raises:
        UserError: the file cannot be read, is empty, or a line is neither (code 3).
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise _error(file, f"cannot be read: {error}", "it must be a text file in UTF-8") from None
    lines = [(n, line.strip()) for n, line in enumerate(text.splitlines(), 1)]
    rows = [(n, *_class_line(line)) for n, line in lines if line and line[0] != "#"]
    void = tuple(colour for _, name, colour in rows if colour and name.lower() in _VOID)
    rows = [(n, name, c) for n, name, c in rows if not (c and name.lower() in _VOID)]
    names = tuple(name for _, name, _ in rows)
    colours = tuple(colour for *_, colour in rows if colour is not None)
    advice = "a line for each class: name, or name red green blue"
    if not names:
        raise _error(file, "names no class", advice)
    if twice := [n for n, name, _ in rows if names.count(name) > 1]:
        raise _error(file, f"line {twice[-1]}: a class of this name is there already", advice)
    if colours and len(colours) < len(names):
        number = next(n for n, _, colour in rows if colour is None)
        raise _error(file, f"line {number}: has no colour, others have", advice)
    return names, colours, void


def _class_line(line: str) -> tuple[str, Colour | None]:
    words = line.replace(",", " ").replace("\t", " ").split()
    levels = words[-3:]
    if len(words) > 3 and all(word.isdecimal() and int(word) < 256 for word in levels):
        red, green, blue = map(int, levels)
        return " ".join(words[:-3]), (red, green, blue)
    return line, None


def _error(file: Path, problem: str, advice: str) -> UserError:
    return UserError(problem, file=printable(file), advice=advice, code=Exit.DATA)


def _lacking(folder: Path, problem: str) -> _Lacking:
    return _Lacking(problem, file=printable(folder), advice=_ADVICE, code=Exit.DATA)
