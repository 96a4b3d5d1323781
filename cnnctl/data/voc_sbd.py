"""The Semantic Boundaries Dataset: masks for 11,355 images of VOC 2011 and 2012.

Hariharan et al., "Semantic contours from inverse detectors", ICCV 2011. Its own archive
(``benchmark_RELEASE``) holds MATLAB files without void; the widespread SegmentationClassAug is the
same as PNGs.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cnnctl.data.image_file import printable
from cnnctl.data.mask_pairs import files_in
from cnnctl.errors import Exit, UserError


def sbd_files(folder: Path) -> dict[str, tuple[Path, int]]:
    """Image name -> (its mask file, bytes).

    Raises:
        UserError: there is no such folder, or no masks are in it.
    """
    for place in (folder / "dataset/cls", folder / "cls", folder):
        if not place.is_dir():
            continue
        files = files_in(place)
        found = {Path(name).stem: name for name in files if name.endswith((".png", ".mat"))}
        if found:
            return {stem: (place / name, files[name]) for stem, name in found.items()}
    raise UserError(
        "holds no masks (*.png, or cls/*.mat)" if folder.is_dir() else "there is no such folder",
        file=printable(folder),
        field="data.sbd",
        advice="data.sbd=SegmentationClassAug, or the path of benchmark_RELEASE",
        code=Exit.DATA,
    )


def read_sbd(path: str) -> Tensor:
    """The classes in a file of SBD's own, (h, w) uint8.

    Raises:
        UserError: it is no such file.
    """
    from scipy.io import loadmat

    try:
        record = loadmat(path, variable_names=["GTcls"])["GTcls"]
        mask = np.asarray(record["Segmentation"][0, 0])
    except Exception as error:  # a damaged MATLAB file raises nearly anything
        problem = f"is no mask of SBD: {' '.join(str(error).split()) or type(error).__name__}"
        raise UserError(problem, file=printable(path), code=Exit.DATA) from None
    if mask.ndim != 2 or mask.dtype != np.uint8:
        problem = f"holds {mask.shape} {mask.dtype}, must be (h, w) uint8"
        raise UserError(problem, file=printable(path), code=Exit.DATA)
    return torch.from_numpy(np.ascontiguousarray(mask))
