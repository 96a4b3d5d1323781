"""The Semantic Boundaries Dataset: masks and instances for 11,355 images of VOC 2011 and 2012.

Hariharan et al., "Semantic contours from inverse detectors", ICCV 2011. Its own archive
(``benchmark_RELEASE``) holds MATLAB files without void, of classes in cls/, of instances in inst/;
the widespread SegmentationClassAug is the first as PNGs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from cnnctl.data.image_file import printable
from cnnctl.data.mask_pairs import files_in
from cnnctl.errors import Exit, UserError

Kind = Literal["cls", "inst"]  # folders of the archive
_ENDS: dict[Kind, tuple[str, ...]] = {"cls": (".png", ".mat"), "inst": (".mat",)}
_WORDS: dict[Kind, tuple[str, str]] = {
    "cls": (
        "masks (*.png, or cls/*.mat)",
        "data.sbd=SegmentationClassAug, or the path of benchmark_RELEASE",
    ),
    "inst": ("instances (inst/*.mat)", "data.sbd=<the path of benchmark_RELEASE>"),
}


def sbd_files(folder: Path, kind: Kind = "cls") -> dict[str, tuple[Path, int]]:
    """Image name -> (its file of masks or instances, bytes).

    Raises:
        UserError: there is no such folder, or no such files are in it.
    """
    for place in (folder / "dataset" / kind, folder / kind, folder):
        if not place.is_dir():
            continue
        files = files_in(place)
        found = {Path(name).stem: name for name in files if name.endswith(_ENDS[kind])}
        if found:
            return {stem: (place / name, files[name]) for stem, name in found.items()}
    holds, advice = _WORDS[kind]
    raise UserError(
        f"holds no {holds}" if folder.is_dir() else "there is no such folder",
        file=printable(folder),
        field="data.sbd",
        advice=advice,
        code=Exit.DATA,
    )


def read_sbd(path: str) -> Tensor:
    """The classes in a file of SBD's own, (h, w) uint8.

    Raises:
        UserError: it is no such file.
    """
    return _segmentation(_record(path, "GTcls", "mask")["Segmentation"], path)


def read_sbd_objects(path: str) -> tuple[Tensor, list[int]]:
    """The number of the object in each pixel, (h, w) uint8, and the class (1 to 20) of each number.

    Raises:
        UserError: it is no such file.
    """
    record = _record(path, "GTinst", "map of instances")
    numbers, kinds = _segmentation(record["Segmentation"], path), record["Categories"]
    if kinds.size < int(numbers.max()):
        raise UserError(
            f"has objects 1 to {int(numbers.max())}, and classes of {kinds.size}",
            file=printable(path),
            code=Exit.DATA,
        )
    return numbers, [int(kind) for kind in kinds.ravel()]


def _record(path: str, name: str, what: str) -> dict[str, np.ndarray]:
    """The fields of the record of a file."""
    from scipy.io import loadmat

    try:
        record: Any = loadmat(path, variable_names=[name])[name]
        names = ("Segmentation", "Categories") if name == "GTinst" else ("Segmentation",)
        return {field: np.asarray(record[field][0, 0]) for field in names}
    except Exception as error:  # a damaged MATLAB file raises nearly anything
        problem = f"is no {what} of SBD: {' '.join(str(error).split()) or type(error).__name__}"
        raise UserError(problem, file=printable(path), code=Exit.DATA) from None


def _segmentation(mask: np.ndarray, path: str) -> Tensor:
    if mask.ndim != 2 or mask.dtype != np.uint8 or not mask.size:
        problem = f"holds {mask.shape} {mask.dtype}, must be (h, w) uint8"
        raise UserError(problem, file=printable(path), code=Exit.DATA)
    return torch.from_numpy(np.ascontiguousarray(mask))
