"""Masks of whole images as COCO's compressed run lengths: bytes, and no pixel.

Runs go down each column, column by column, and the first is of what is not set (the COCO API's
maskApi.c). faster-coco-eval's native code compresses and reads them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Size = tuple[int, int]


def paste(probabilities: Tensor, boxes: Tensor, size: Size, threshold: float = 0.5) -> list[bytes]:
    """Each mask resized into its own box and cut at the image's border, as its run lengths.

    Interpolated linearly between the centres of the mask's values, with 0 around the mask, at the
    centres of the image's pixels: the same pixels as torchvision's ``paste_masks_in_image`` sets,
    but for the box, which that rounds to whole pixels. Nothing is set beyond the box. No more than
    the box of one mask is dense at a time.

    Args:
        probabilities: (D, m, m), on any device.
        boxes: (D, 4) xyxy in pixels of the image; one that is not finite has no pixels.
        size: (h, w) of the image.
        threshold: from which a pixel is the object's.
    """
    values = probabilities.detach().float().cpu().numpy()
    corners = boxes.detach().double().cpu().numpy()
    corners = np.where(np.isfinite(corners).all(1, keepdims=True), corners, 0.0)
    limit = np.array([size[1], size[0]])
    # Pixels whose centres lie in the box, at least none.
    first = np.ceil(corners[:, :2] - 0.5).clip(0, limit).astype(np.int64)
    last = (np.floor(corners[:, 2:] - 0.5) + 1).clip(first, limit).astype(np.int64)
    edges = []
    for value, box, (x, y), (right, bottom) in zip(
        values, corners, first.tolist(), last.tolist(), strict=True
    ):
        across = _shares(x, right, box[0], box[2], value.shape[1])  # (w, m)
        down = _shares(y, bottom, box[1], box[3], value.shape[0])  # (h, m)
        edges.append(_edges(across @ (value.T @ down.T) >= threshold, x, y, size))
    return _compressed(edges, size)


def encode(crop: Tensor | NDArray[np.bool_], x: int, y: int, size: Size) -> bytes:
    """A part (h, w) bool of an image of ``size``, whose first pixel lies at x, y, nothing around
    it -> its run lengths.

    Raises:
        ValueError: the part reaches beyond the image.
    """
    part = np.asarray(crop, dtype=bool)
    h, w = part.shape
    if x < 0 or y < 0 or x + w > size[1] or y + h > size[0]:
        raise ValueError(
            f"a crop of {h} x {w} at x {x}, y {y} reaches beyond {size[0]} x {size[1]}"
        )
    return _compressed([_edges(part.T, x, y, size)], size)[0]


def decode(counts: bytes, size: Size) -> Tensor:
    """Run lengths -> (h, w) bool."""
    from faster_coco_eval.core import mask

    pixels = mask.decode({"size": list(size), "counts": counts})
    return torch.from_numpy(np.ascontiguousarray(pixels).astype(bool))


def decode_cropped(counts: bytes, size: Size) -> tuple[Tensor, int, int]:
    """Run lengths -> the smallest part (h, w) bool with all that is set, and its first x and y.

    Of a large image ``decode`` takes some fifty times as long. Nothing set: (0, 0), 0, 0.
    """
    ends = np.cumsum(_runs(counts))
    first, last = ends[0:-1:2], ends[1::2]  # of each run that is set, down the columns
    first, last = first[: len(last)][last > first[: len(last)]], last[last > first[: len(last)]]
    if not len(first):
        return torch.zeros(0, 0, dtype=torch.bool), 0, 0
    h = size[0]
    left, right = int(first[0]) // h, int(last[-1] - 1) // h + 1
    edges = np.stack([first, last], 1).ravel() - left * h
    lengths = np.diff(edges, prepend=0, append=(right - left) * h)
    pixels = np.repeat(np.arange(len(lengths)) % 2 > 0, lengths).reshape(right - left, h)
    rows = np.flatnonzero(pixels.any(0))
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    return torch.from_numpy(np.ascontiguousarray(pixels[:, top:bottom].T)), left, top


def _runs(counts: bytes) -> NDArray[np.int64]:
    """What maskApi.c's rleFrString reads: groups of five bits, the lowest first, of which bit 5
    says that more follow and bit 4 of the last is the sign; from the fourth on, each is said as
    what it is more than the one two before it."""
    values = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    last = np.flatnonzero(values & 32 == 0)
    begin = np.concatenate([[0], last[:-1] + 1])
    place = np.arange(len(values)) - np.repeat(begin, last - begin + 1)
    runs = np.add.reduceat((values & 31) << (5 * place), begin)
    runs -= np.where(values[last] & 16, 1 << (5 * (last - begin + 1)), 0)
    for start in (1, 2):
        runs[start::2] = np.cumsum(runs[start::2])
    return runs


def _shares(first: int, last: int, low: float, high: float, m: int) -> NDArray[np.float32]:
    """(last - first, m): how much of each value each pixel has, m values being from low to high."""
    scale = m / max(high - low, 1e-6)
    place = np.arange(first, last) * scale + ((0.5 - low) * scale - 0.5)
    near = place.astype(np.float32)[:, None] - np.arange(m, dtype=np.float32)
    np.subtract(1, np.abs(near, out=near), out=near)
    return np.maximum(near, 0, out=near)


def _edges(columns: NDArray[np.bool_], x: int, y: int, size: Size) -> NDArray[np.int64]:
    """Where in the image, column by column, what is set begins and ends by turns.

    Args:
        columns: (w, h), a part of the image whose first pixel lies at x, y.
    """
    w, h = columns.shape
    apart = np.zeros(w * (h + 1) + 1, bool)  # a pixel that is not set before each column
    apart[1:].reshape(w, h + 1)[:, :h] = columns
    column, row = np.divmod((apart[1:] != apart[:-1]).nonzero()[0], h + 1)
    edges = (column + x) * size[0] + (row + y)
    if h == size[0]:  # the end of a column is where the next begins
        same = (edges[1:] == edges[:-1]).nonzero()[0]
        edges = np.delete(edges, np.concatenate([same, same + 1]))
    return edges


def _compressed(edges: Sequence[NDArray[np.int64]], size: Size) -> list[bytes]:
    """The edges of each mask -> its run lengths."""
    from faster_coco_eval.core import mask

    if not edges:
        return []
    total = size[0] * size[1]
    rows = [each[:-1] if len(each) and each[-1] == total else each for each in edges]
    framed = [part for row in rows for part in ([0], row, [total])]
    lengths = np.diff(np.concatenate(framed)).tolist()
    objects, start = [], 0
    for row in rows:
        objects.append({"size": list(size), "counts": lengths[start : start + len(row) + 1]})
        start += len(row) + 2  # one between two masks
    return [each["counts"] for each in mask.frPyObjects(objects, *size)]
