"""Find the images and the boxes in a folder of the user's own, and tell the format by looking."""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cnnctl.data.class_folders import has_images, images_below
from cnnctl.data.coco_json import parse
from cnnctl.data.coco_shapes import kind
from cnnctl.data.image_file import EXTENSIONS, printable
from cnnctl.data.mask_layout import IMAGES, PARTS
from cnnctl.data.mask_pairs import listed
from cnnctl.errors import Exit, UserError

Form = Literal["coco", "voc", "yolo"]

ENDS: dict[Form, str] = {"voc": ".xml", "yolo": ".txt"}  # of a file for each image
_NAMES: dict[Form, str] = {"coco": "COCO JSON", "voc": "VOC XML", "yolo": "YOLO text"}
_TRUTHS = ("labels", "label", "Annotations", "annotations", "xml", "xmls")  # folders
_OWN_PARTS = {"train": "obj_train_data", "val": "obj_valid_data", "test": "obj_test_data"}
_OTHER_JSON = {"captions", "keypoints", "panoptic", "stuff", "info"}  # COCO's, without boxes
ADVICE = (
    "COCO: a .json of images, annotations and categories; VOC: an .xml for each image, beside it "
    "or in Annotations/; YOLO: a .txt for each, beside it or in labels/, and data.yaml or "
    "classes.txt; divided into train/, val/, test/ or not"
)


@dataclass(frozen=True)
class Part:
    """Where the images and the boxes of a part are."""

    images: Path  # a folder
    truth: Path  # a JSON file, or a folder with a file for each image


@dataclass(frozen=True)
class Layout:
    form: Form
    parts: dict[str, Part]  # "" where not divided
    no_test: str = "has no folder test/ beside train/"  # why, where ``parts`` has none
    remarks: list[str] = field(default_factory=list)


def find_layout(root: Path, form: Form | None = None) -> Layout:
    """What is there, and in which format.

    Args:
        form: the format, where it is known; what is there of others is then not looked at.

    Raises:
        UserError: no format is recognised, more than one is, or a part has no boxes (code 3).
    """
    folders = _image_folders(root)
    stems = {part: set(_stems(folder)) for part, folder in folders.items()}
    found: dict[Form, dict[str, Part]] = {}
    for one in _NAMES if form is None else (form,):
        parts = _json_parts(root, folders) if one == "coco" else _parts(root, folders, stems, one)
        if parts:
            found[one] = parts
    if not found and form in (None, "coco"):
        _refuse_json(root, folders, form)
    if len(found) > 1:
        both = " and ".join(
            f"{_NAMES[one]} ({printable(next(iter(parts.values())).truth)})"
            for one, parts in found.items()
        )
        advice = " or ".join(f"data.format={one}" for one in found)
        raise _error(root, f"holds boxes in several formats: {both}", advice)
    if not found:
        wanted = "boxes" if form is None else f"{_NAMES[form]} of them"
        raise _error(root, f"has no {wanted} that can be recognised: {_holds(root)}", ADVICE)
    (only, parts), *_ = found.items()
    return _checked(root, only, parts, folders)


def _checked(root: Path, form: Form, parts: dict[str, Part], folders: dict[str, Path]) -> Layout:
    no_test = Layout.no_test
    if parts.keys() == {""}:
        return Layout(form, parts)
    for part, folder in folders.items():
        if part in parts or not part:
            continue
        problem = f"holds images and no {_NAMES[form]} of them"
        if part != "test":
            raise _error(folder, problem, "add the boxes, or move the folder away")
        no_test = f"{folder.relative_to(root)}/ {problem}"
    if "train" not in parts:
        raise _error(root, f"has {next(iter(parts))}/ but no train/", "name a part train")
    return Layout(form, parts, no_test)


def _image_folders(root: Path) -> dict[str, Path]:
    """The folder of each part's images; "" is of all where they are not divided.

    Raises:
        UserError: there are no images, or two folders can be one part's.
    """
    above = next((root / name for name in IMAGES if (root / name).is_dir()), None)
    for place in (root, above):
        if place is None:
            continue
        parts = _part_folders(place)
        parts = {part: _inner(folder) for part, folder in parts.items()}
        if parts := {part: folder for part, folder in parts.items() if has_images(folder)}:
            return parts
    if above is not None and has_images(above):
        return {"": above}
    if not has_images(root):
        raise _error(root, f"holds no images: {_holds(root)}", ADVICE)
    return {"": root}


def _inner(folder: Path) -> Path:
    """``train/images`` of ``train``, where there is one."""
    return next((folder / name for name in IMAGES if (folder / name).is_dir()), folder)


def _part_folders(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        part = _part_of(path.name) if path.is_dir() else None
        if part is None:
            continue
        if part in found:
            both = f"{found[part].name}/ and {path.name}/"
            raise _error(folder, f"has {both}: which of them is {part}?", "rename one")
        found[part] = path
    return found


def _part_of(name: str) -> str | None:
    """train of train, training, train2017 and obj_train_data."""
    for part, names in PARTS.items():
        if re.fullmatch(rf"({'|'.join(names)})[_-]?\d*", name.lower()) or name == _OWN_PARTS[part]:
            return part
    return None


def _parts(
    root: Path, folders: dict[str, Path], stems: dict[str, set[str]], form: Form
) -> dict[str, Part]:
    """The parts that have a file for an image at least."""
    found = {}
    for part, images in folders.items():
        for place in _truth_folders(root, images):
            if not stems[part].isdisjoint(files_below(place, ENDS[form])):
                found[part] = Part(images, place)
                break
    return found


def _truth_folders(root: Path, images: Path) -> Iterator[Path]:
    """Where the boxes of images in a folder can be: beside them, or in a folder of their own.

    One of an unknown name is the last to be looked into.
    """
    yield images
    above_them = (images, images.parent, images.parent.parent)
    near = [place for place in above_them if place.is_relative_to(root)]
    for above in near:
        for name in _TRUTHS:
            for place in (above / name / images.name, above / name):
                if place.is_dir():
                    yield place
    for above in near[:2]:
        yield from sorted(p for p in above.iterdir() if p.is_dir() and p.name[0] != ".")


def _json_parts(root: Path, folders: dict[str, Path]) -> dict[str, Part]:
    """The annotation file of each part: in its folder, or named after it."""
    parts = {}
    for part, images in folders.items():
        places = [images, images / "annotations"]
        if part and images.parent != root and images.parent.parent == root:
            places += [images.parent, images.parent / "annotations"]  # root/train of train/images
        if part and (files := _json_files(places)):
            parts[part] = Part(images, _only(files))
    if parts:
        return parts
    files = _json_files(_json_places(root, folders))
    named: dict[str, list[Path]] = {}
    for file in files:
        words = re.split(r"[^a-z]+", file.stem.lower())
        part = next((p for word in words if (p := _part_of(word))), None)
        named.setdefault(part or "", []).append(file)
    if "" in named and len(named) > 1:
        del named[""]
    every = folders.get("", root)
    return {part: Part(folders.get(part, every), _only(own)) for part, own in named.items()}


def _json_places(root: Path, folders: dict[str, Path]) -> list[Path]:
    above = {folder.parent for folder in folders.values()} | set(folders.values())
    places = [root, root / "annotations", root / "Annotations", *sorted(above)]
    return [place for place in places if place.is_relative_to(root)]


def _json_files(places: list[Path]) -> list[Path]:
    """Annotation files in COCO's format in some folders, by what they hold."""
    return [file for file in _all_json(places) if _is_coco(file)]


def _refuse_json(root: Path, folders: dict[str, Path], form: Form | None) -> None:
    """Say of a JSON file why it is not in COCO's format, where it was meant to be.

    Raises:
        UserError: it is the only one and looks like it, or ``form`` says so (code 3).
    """
    inner = [folder / "annotations" for folder in folders.values()]
    every = _all_json([*_json_places(root, folders), *inner])
    files = [file for file in every if not _is_another(file)]
    if not files or (form is None and len(files) > 1):
        return
    file, keys = files[0], ("images", "annotations", "categories")
    if not file.stat().st_size:
        raise _error(file, "is empty (0 bytes)", ADVICE)
    content = parse(file, file.read_bytes(), ADVICE)
    if not isinstance(content, dict):
        raise _error(file, f"holds {kind(content)}, must hold an object with images", ADVICE)
    lacking = [f'"{key}"' for key in keys if key not in content]
    if lacking and (form is not None or len(lacking) < len(keys)):
        raise _error(file, f"has no {listed(lacking)}", ADVICE)


def _all_json(places: list[Path]) -> list[Path]:
    files = dict.fromkeys(
        path
        for place in places
        if place.is_dir()
        for path in sorted(place.iterdir())
        if path.suffix.lower() == ".json" and path.name[0] != "." and path.is_file()
    )
    return list(files)


def _is_another(file: Path) -> bool:
    """By its name, COCO's of something else than boxes."""
    return bool(_OTHER_JSON & set(re.split(r"[^a-z]+", file.stem.lower())))


def _is_coco(file: Path) -> bool:
    """Whether it has the keys of COCO's instances, wherever they are in it."""
    if _is_another(file):
        return False
    try:
        with (
            open(file, "rb") as opened,
            mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as m,
        ):
            return all(m.find(key) >= 0 for key in (b'"images"', b'"annotations"'))
    except (OSError, ValueError):  # ValueError: an empty file
        return False


def _only(files: list[Path]) -> Path:
    if len(files) > 1:
        both = " and ".join(file.name for file in files[:2])
        raise _error(files[0].parent, f"has {both}: which of them is meant?", "move one away")
    return files[0]


def _stems(images: Path) -> Iterator[str]:
    """Path below the folder without extension, of each image."""
    start = len(os.path.join(images, ""))
    return (os.path.splitext(str(path)[start:])[0] for path in images_below(images))


def files_below(folder: Path, end: str) -> dict[str, str]:
    """Path below ``folder`` without extension -> file of one kind, hidden ones left out."""
    found = {}
    start = len(os.path.join(folder, ""))
    for here, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name[0] != ".")
        for name in sorted(names):
            if name[0] != "." and name.lower().endswith(end):
                path = os.path.join(here, name)
                found[os.path.splitext(path[start:])[0]] = path
    return found


def _holds(root: Path) -> str:
    """``it holds 12 images, 12 .json, labels/``."""
    counts: dict[str, int] = {}
    for _, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name[0] != "."]
        for name in names:
            end = os.path.splitext(name)[1].lower()
            sort = "images" if end in EXTENSIONS else end or "files without an extension"
            counts[sort] = counts.get(sort, 0) + (name[0] != ".")
        if sum(counts.values()) > 100_000:
            break
    sorts = sorted(((count, sort) for sort, count in counts.items() if count), reverse=True)
    shown = [f"{count:,} {sort}" for count, sort in sorts]
    return f"it holds {listed(shown, 5)}" if shown else "it is empty"


def _error(file: Path, problem: str, advice: str) -> UserError:
    return UserError(problem, file=printable(file), advice=advice, code=Exit.DATA)
