"""The masks of a sample in COCO's format: compressed run lengths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from cnnctl.ops.masks import unpack
from cnnctl.ops.run_lengths import encode

Mask = tuple[Tensor, int, int]  # (h, w) bool, and the column and row of its first pixel


def masks_of(target: Mapping[str, Tensor]) -> list[Mask]:
    """Those of a sample as its data set gives it: frames (R, 4) are of whole pixels."""
    corners = target["frames"][:, :2].long().tolist()
    crops = target["crops"]
    return [
        (unpack(target["bits"], crop), x, y) for crop, (x, y) in zip(crops, corners, strict=True)
    ]


def run_lengths(mask: Mask, size: tuple[int, int]) -> dict[str, Any]:
    """The ``segmentation`` of an annotation, in an image of ``size`` (h, w)."""
    return {"size": list(size), "counts": encode(*mask, size).decode("ascii")}
