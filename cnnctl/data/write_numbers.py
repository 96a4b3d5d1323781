"""The number of the object at each pixel -> a PNG that keeps those numbers."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from torch import Tensor

from cnnctl.data.mask_file import write_mask
from cnnctl.structures import IGNORE


def write_numbers(path: str | os.PathLike[str], numbers: Tensor) -> None:
    """Indices in VOC's colours, or from 255 on, which many programs take for void, 16 bits of grey.

    Args:
        numbers: (h, w) integers from 0 (none) to 65,535.

    Raises:
        OSError: it cannot be written.
        ValueError: a number is out of range.
    """
    from PIL import Image

    values = numbers.cpu().numpy()
    if values.min(initial=0) < 0 or values.max(initial=0) > 65535:
        raise ValueError(f"numbers must be 0 to 65535, got {values.min()} to {values.max()}")
    if values.max(initial=0) < IGNORE:
        write_mask(path, numbers.byte())
        return
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        Image.fromarray(values.astype(np.uint16)).save(temporary, format="PNG")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
