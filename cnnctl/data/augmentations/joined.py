"""The truth of several images of a batch in one: rows side by side, masks that hide others.

On the device, and with lists of pixels of bounded length instead of a map for each mask.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cnnctl.data.augmentations.boxes import keep_rows
from cnnctl.ops.mask_pixels import Extents, Pixels, packed, pixels_of
from cnnctl.ops.masks import Masks
from cnnctl.structures import NO_BOX, Images, Targets


def join(targets: Targets, turns: int) -> None:
    """Each image's rows, and then those of the ``turns - 1`` images before it in the batch.

    Columns become ``turns`` times as wide, and so do bits; what belongs to no object stays out.
    """
    for name in NO_BOX:
        if (column := getattr(targets, name)) is not None:
            parts = [column.roll(turn, 0) for turn in range(turns)]
            if name == "crops" and targets.bits is not None:
                parts = [_later(part, n * targets.bits.shape[1]) for n, part in enumerate(parts)]
            setattr(targets, name, torch.cat(parts, 1))
    if targets.bits is not None:
        targets.bits = torch.cat([targets.bits.roll(turn, 0) for turn in range(turns)], 1)


def _later(crops: Tensor, by: int) -> Tensor:
    """Crops (..., 3) of bits that have ``by`` bytes before them now."""
    return torch.cat([crops[..., :1] + by, crops[..., 1:]], -1)


def join_void(
    targets: Targets, frames: list[Tensor], into: list[Tensor], size: tuple[int, int]
) -> None:
    """What belongs to no object, of all images that were joined: one crop as large as the image.

    Args:
        frames: where those of each turn (N, 4) lie now.
        into: (N, 4) the part of the image that each turn shows.
        size: (h, w) of the image.
    """
    assert targets.bits is not None
    assert targets.void_crop is not None
    n, turns = len(targets.bits), len(frames)
    length = targets.bits.shape[1] // turns
    crops = [_later(targets.void_crop.roll(turn, 0), turn * length) for turn in range(turns)]
    masks = Masks(targets.bits, torch.stack(frames, 1), torch.stack(crops, 1))
    every = torch.arange(n, device=targets.bits.device)
    image, row = every.repeat_interleave(turns), torch.arange(turns, device=every.device).repeat(n)
    boxes = torch.stack(into, 1).flatten(0, 1)
    parts = (Pixels(p.image, p.image, p.y, p.x) for p in pixels_of(masks, image, row, boxes, size))
    whole = torch.tensor([[0, 0, *size[::-1]]], device=every.device).expand(n, 4)
    bits, void = packed(parts, every, whole, n)
    targets.void_frame = whole.float()
    targets.void_crop = _later(void, targets.bits.shape[1])
    targets.bits = torch.cat([targets.bits, bits], 1)


def paste_masks(
    images: Images, targets: Targets, chosen: Tensor, least: float, most: float
) -> None:
    """Objects ``chosen`` (N, R) of the image before each one pasted into it, pixel by pixel.

    The pixels of an older object that are covered leave its mask, and its box becomes that of
    what is left. Only masks that change are packed anew, in the pixels of the image.

    Args:
        least: an older object goes where less than this share of it is left.
        most: an object beside the chosen ones comes too where more than this share of it was
            pasted with them, and only that part.
    """
    size, (n, rows) = (images.pixels.shape[2], images.pixels.shape[3]), chosen.shape
    masks, boxes, there = _both(targets, size)
    of_new = F.pad(chosen, (rows, there.shape[1] - 2 * rows))  # rows: older, partner's, void
    image, row = (there & chosen.any(1, keepdim=True)).nonzero().unbind(1)
    own = boxes[image, row]
    new, older = of_new[image, row], (row < rows) | (row == 2 * rows)
    pasted = torch.zeros(n, *size, dtype=torch.bool, device=row.device)
    for pixels in pixels_of(masks, image[new], row[new], own[new], size):
        pasted[pixels.image, pixels.y, pixels.x] = True
    images.pixels = torch.where(pasted[:, None], images.pixels.roll(1, 0), images.pixels)

    def left(pixels: Pixels, older: Tensor) -> Pixels:
        hidden = pasted[pixels.image, pixels.y, pixels.x]
        return pixels.chosen(hidden != older[pixels.which])

    seen, extents = torch.zeros_like(image), Extents(len(image), image.device)
    for pixels in pixels_of(masks, image, row, own, size):
        seen += torch.bincount(pixels.which, minlength=len(seen))
        extents.add(left(pixels, older))
    share = extents.pixels / seen.clamp(min=1)
    stays = torch.where(older, (share >= least) | (seen == 0), share > most) | (row == 2 * rows)
    changed = stays & (extents.pixels < seen)
    at, tight = (image[changed], row[changed]), extents.boxes()[changed]
    parts = (left(pixels, older[changed]) for pixels in pixels_of(masks, *at, own[changed], size))
    bits, crops = packed(parts, at[0], tight, n)
    masks.crops[at] = _later(crops, masks.bits.shape[1])
    masks.frames[at] = boxes[at] = tight.float()
    factor = torch.ones_like(boxes[..., 0])
    factor[at] = share[changed]
    kept = there & (torch.arange(there.shape[1], device=row.device) < rows)
    kept[image, row] = stays
    targets.bits = torch.cat([masks.bits, bits], 1)
    _set_rows(targets, masks, boxes, factor, kept)


def _both(targets: Targets, size: tuple[int, int]) -> tuple[Masks, Tensor, Tensor]:
    """An image's rows (N, R), those of the image before it, and a row of what is no object's.

    Returns:
        Masks, boxes (N, 2 R + 1, 4), and which of the rows hold something; without the last row
        where the data knows nothing of that kind.
    """
    join(targets, 2)
    assert targets.boxes is not None
    assert targets.labels is not None
    assert targets.bits is not None
    assert targets.frames is not None
    assert targets.crops is not None
    masks = Masks(targets.bits, targets.frames, targets.crops)
    boxes, there = targets.boxes, targets.labels >= 0
    if targets.void_frame is not None and targets.void_crop is not None:
        masks.frames = torch.cat([masks.frames, targets.void_frame[:, None]], 1)
        masks.crops = torch.cat([masks.crops, targets.void_crop[:, None]], 1)
        whole = boxes.new_tensor([0, 0, *size[::-1]]).expand(len(boxes), 1, 4)
        boxes = torch.cat([boxes, whole], 1)
        there = F.pad(there, (0, 1), value=True)
    return masks, boxes, there


def _set_rows(targets: Targets, masks: Masks, boxes: Tensor, factor: Tensor, kept: Tensor) -> None:
    """The truth as ``_both`` made it, with areas by a factor; rows not ``kept`` hold nothing."""
    assert targets.labels is not None
    width = targets.labels.shape[1]
    if targets.void_frame is not None:
        targets.void_frame, targets.void_crop = masks.frames[:, width], masks.crops[:, width]
    targets.frames, targets.crops = masks.frames[:, :width], masks.crops[:, :width]
    targets.boxes = boxes[:, :width]
    if targets.area is not None:
        targets.area = targets.area * factor[:, :width]
    keep_rows(targets, kept[:, :width])
