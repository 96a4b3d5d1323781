"""What flows through a run: images, targets, predictions, batches.

Shapes use the same letters everywhere: N images, K classes, C channels, H x W pixels, R truth
boxes, D detections, P proposals. Boxes are xyxy in absolute pixels, the right and lower side
exclusive. Labels are 0..K-1, with 255 = ignore. A batch is held in columns (one tensor for all
labels; boxes padded to the largest number of an image), so that a step over small images costs no
Python per image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

IGNORE = 255


@dataclass
class Images:
    """What a model may look at; it never carries labels."""

    pixels: Tensor  # (N, C, H, W) uint8 on the way to the device; float, normalised, after
    sizes: list[tuple[int, int]]  # (h, w) of each image inside the zero padding
    originals: list[tuple[int, int]]  # (h, w) before any resize
    # (N, P, 4) where things may be, the likeliest first, in original pixels; 0 where an image has
    # fewer; None where nothing was proposed
    proposals: Tensor | None = None

    def __len__(self) -> int:
        return len(self.pixels)


@dataclass
class Targets:
    """The truth of a batch; a task names the columns it needs, the others stay empty."""

    image_id: Tensor  # (N,) position in the data set
    label: Tensor | None = None  # (N,) int64, or (N, K) float where labels are soft
    mask: Tensor | None = None  # (N, H, W) uint8 class of each pixel, 255 = ignore
    pixel_weight: Tensor | None = None  # (N, H, W) float, of each pixel's loss
    boxes: Tensor | None = None  # (N, R, 4) in original pixels, 0 where an image has fewer
    labels: Tensor | None = None  # (N, R) int64 class of each box, -1 where there is none
    crowd: Tensor | None = None  # (N, R) bool: a group that is not told apart (COCO)
    difficult: Tensor | None = None  # (N, R) bool: neither demanded nor penalised (VOC)
    area: Tensor | None = None  # (N, R) original pixels of the object, not of its box
    frames: Tensor | None = None  # (N, R, 4) where the crop of a mask lies, see ops/masks.py
    crops: Tensor | None = None  # (N, R, 3) int64 of each mask: first byte, height, width
    bits: Tensor | None = None  # (N, L) uint8 that hold the crops of an image
    keypoints: Tensor | None = None  # (N, R, J, 3) x, y, visibility: 0 none, 1 hidden, 2 seen
    swap: Tensor | None = None  # (N, J) int64 which point each point of a mirror image is
    void_frame: Tensor | None = None  # (N, 4) the frame of what belongs to no object (VOC)
    void_crop: Tensor | None = None  # (N, 3) int64, likewise


@dataclass
class Predictions:
    """What a model says of a batch; a task fills the columns it needs."""

    log_probs: Tensor | None = None  # (N, K) log of the class probabilities
    mask: Tensor | None = None  # (N, H, W) uint8 class of each original pixel, 255 beyond an image
    boxes: Tensor | None = None  # (N, D, 4) in original pixels, the most likely first
    scores: Tensor | None = None  # (N, D) 0..1
    labels: Tensor | None = None  # (N, D) int64 class of each box, -1 where an image has fewer
    keypoints: Tensor | None = None  # (N, D, J, 3) x, y in original pixels, and a score
    masks: list[list[bytes]] | None = None  # of each image's boxes, COCO's compressed run lengths
    sizes: list[tuple[int, int]] | None = None  # (h, w) of each image that the masks are of
    places: list[Tensor] | None = None  # of each image, (K, h, w): log_probs at places of it

    def rows(self, chosen: slice) -> Predictions:
        """A copy of some rows, which does not hold on to the rest."""
        return _columns(_columns(self, chosen), "copy")


@dataclass
class Batch:
    images: Images
    targets: Targets

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device) -> Batch:
        """The same batch on ``device``; pinned memory is copied without waiting."""
        return Batch(_columns(self.images, device), _columns(self.targets, device))

    def pin_memory(self) -> Batch:
        return Batch(_columns(self.images, "pin"), _columns(self.targets, "pin"))

    def rows(self, chosen: slice) -> Batch:
        """A copy of some images, which does not hold on to the rest."""
        part = Batch(_columns(self.images, chosen), _columns(self.targets, chosen))
        return Batch(_columns(part.images, "copy"), _columns(part.targets, "copy"))

    def split(self, parts: int) -> Iterator[Batch]:
        """``parts`` equal slices in order.

        Raises:
            ValueError: the batch cannot be divided equally; no image is left out silently.
        """
        size, rest = divmod(len(self), parts)
        if rest or not size:
            raise ValueError(f"a batch of {len(self)} does not divide into {parts} equal parts")
        for start in range(0, len(self), size):
            chosen = slice(start, start + size)
            yield Batch(_columns(self.images, chosen), _columns(self.targets, chosen))


def _columns(record: Any, what: torch.device | slice | str) -> Any:
    """``record`` with every tensor moved, pinned, copied or sliced."""
    changed = {}
    for name, column in vars(record).items():
        if column is None:
            continue
        if isinstance(what, slice):
            changed[name] = column[what]
        elif isinstance(column, Tensor):
            changed[name] = _move(column, what)
    return replace(record, **changed)


def _move(tensor: Tensor, where: torch.device | str) -> Tensor:
    if where == "copy":
        return tensor.clone()
    return tensor.pin_memory() if where == "pin" else tensor.to(where, non_blocking=True)


def collate(samples: Sequence[tuple[int, Tensor, dict[str, Any]]]) -> Batch:
    """(index, image (C, h, w) uint8, target) of each sample -> a zero-padded batch.

    A target's integers and scalars become one column, and so do its maps of pixels (``mask``,
    ``pixel_weight``), what it has of each box, and its bits, padded. ``original`` in a target is
    the (h, w) before any resize; its ``proposals`` (P, 4) are for the model to see.
    """
    sizes = [(image.shape[-2], image.shape[-1]) for _, image, _ in samples]
    pixels = _stacked([image for _, image, _ in samples], 0)
    columns: dict[str, Any] = {}
    for name in samples[0][2].keys() - {"original"}:
        values = [target[name] for _, _, target in samples]
        if name in _OUTSIDE:
            columns[name] = _stacked(values, _OUTSIDE[name])
        elif name in _ROWS:
            nothing = _ROWS[name]
            columns[name] = pad_sequence(values, batch_first=True, padding_value=nothing)
        elif isinstance(values[0], Tensor) and values[0].ndim:
            columns[name] = torch.stack(values)
        else:
            columns[name] = torch.tensor(values)
    originals = [
        target.get("original", size) for (*_, target), size in zip(samples, sizes, strict=True)
    ]
    image_id = torch.tensor([index for index, *_ in samples])
    proposals = columns.pop("proposals", None)
    return Batch(Images(pixels, sizes, originals, proposals), Targets(image_id, **columns))


# What a column of boxes has in the rows that an image does not fill.
NO_BOX = {
    **{"boxes": 0, "labels": -1, "crowd": False, "difficult": False, "area": 0},
    **{"frames": 0, "crops": 0, "keypoints": 0},
}
_ROWS = {**NO_BOX, "bits": 0, "proposals": 0}  # columns with a row for each of something
_OUTSIDE = {"mask": IGNORE, "pixel_weight": 0}  # what a map has where there is no image


def _stacked(maps: Sequence[Tensor], outside: int) -> Tensor:
    """(..., h, w) of each -> (N, ..., H, W), the smaller ones filled up below and to the right."""
    sizes = {tuple(one.shape[-2:]) for one in maps}
    if len(sizes) == 1:
        return torch.stack(list(maps))
    height, width = (max(side) for side in zip(*sizes, strict=True))
    first = maps[0]
    stacked = first.new_full((len(maps), *first.shape[:-2], height, width), outside)
    for row, one in zip(stacked, maps, strict=True):
        row[..., : one.shape[-2], : one.shape[-1]] = one
    return stacked
