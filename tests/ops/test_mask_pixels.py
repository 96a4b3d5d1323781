"""Lists of pixels are those of the dense mask inside of its box, and come back when packed."""

import pytest
import torch

from cnnctl.ops import mask_pixels
from cnnctl.ops.mask_pixels import Extents, Pixels, packed, pixels_of
from cnnctl.ops.masks import Masks, pack, whole_mask

SIZE = (30, 41)


def scene(n: int = 3, rows: int = 4, seed: int = 0) -> tuple[Masks, torch.Tensor]:
    """Random crops under frames of other sizes, some mirrored or reaching out, and their boxes."""
    random = torch.Generator().manual_seed(seed)
    bits, crops, frames = [], [], []
    for _ in range(n):
        sides = torch.randint(1, 20, (rows, 2), generator=random).tolist()
        image, where = pack([torch.rand(h, w, generator=random) > 0.4 for h, w in sides])
        low = torch.rand(rows, 2, generator=random) * 35 - 5
        frame = torch.cat([low, low + 1 + torch.rand(rows, 2, generator=random) * 25], 1)
        frame[0] = frame[0, [2, 1, 0, 3]]
        bits, crops, frames = [*bits, image], [*crops, where], [*frames, frame]
    frames = torch.stack(frames)
    boxes = torch.cat([frames[..., ::2].sort().values, frames[..., 1::2].sort().values], 2)
    boxes = boxes[..., [0, 2, 1, 3]]
    boxes[:, 1, 2] = boxes[:, 1, [0, 2]].mean(1)  # half of it was cut off
    held = torch.nn.utils.rnn.pad_sequence(bits, batch_first=True)
    return Masks(held, frames, torch.stack(crops)), boxes


def dense(masks: Masks, boxes: torch.Tensor, image: int, row: int) -> torch.Tensor:
    whole = whole_mask(masks.bits[image], masks.crops[image, row], masks.frames[image, row], SIZE)
    left, top, right, bottom = boxes[image, row]
    y, x = torch.arange(SIZE[0]) + 0.5, torch.arange(SIZE[1]) + 0.5
    return whole & ((y >= top) & (y < bottom))[:, None] & ((x >= left) & (x < right))


def every(n: int, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.arange(n).repeat_interleave(rows), torch.arange(rows).repeat(n)


@pytest.mark.parametrize("at_once", [1, 300, 1 << 20])
def test_pixels_are_those_of_the_dense_mask(monkeypatch, at_once):
    monkeypatch.setattr(mask_pixels, "AT_ONCE", at_once)
    masks, boxes = scene()
    image, row = every(3, 4)
    found = torch.zeros(12, *SIZE, dtype=torch.int64)
    extents = Extents(12, torch.device("cpu"))
    for pixels in pixels_of(masks, image, row, boxes[image, row], SIZE):
        found[pixels.which, pixels.y, pixels.x] += 1
        assert torch.equal(pixels.image, image[pixels.which])
        extents.add(pixels)
    expected = torch.stack([dense(masks, boxes, n, r) for n in range(3) for r in range(4)])
    assert torch.equal(found, expected.long())
    assert torch.equal(extents.pixels, expected.sum((1, 2)))
    for mask, box in zip(expected, extents.boxes().tolist(), strict=True):
        down, across = mask.any(1).nonzero(), mask.any(0).nonzero()
        tight = [across[0], down[0], across[-1] + 1, down[-1] + 1] if mask.any() else [0] * 4
        assert box == [int(side) for side in tight]


def test_pixels_are_packed_as_crops_are():
    masks, boxes = scene(seed=1)
    image, row = (torch.tensor(v) for v in ([1, 0, 0, 1, 1], [2, 0, 3, 1, 0]))  # in any order
    expected = [
        dense(masks, boxes, n, r) for n, r in zip(image.tolist(), row.tolist(), strict=True)
    ]
    extents, parts = Extents(5, torch.device("cpu")), []
    for pixels in pixels_of(masks, image, row, boxes[image, row], SIZE):
        extents.add(pixels)
        parts.append(pixels)
    bits, crops = packed(parts, image, extents.boxes(), 3)
    frames = extents.boxes().float()
    for mask, n, crop, frame in zip(expected, image, crops, frames, strict=True):
        assert torch.equal(whole_mask(bits[n], crop, frame, SIZE), mask)
    for n in (0, 1):  # byte for byte
        own = [expected[k][b[1] : b[3], b[0] : b[2]] for k, b in enumerate(extents.boxes().tolist())
               if image[k] == n]  # fmt: skip
        together, where = pack(own)
        assert torch.equal(bits[n, : len(together)], together)
        assert torch.equal(crops[image == n], where)


def test_no_masks_at_all():
    masks = Masks(torch.zeros(2, 0, dtype=torch.uint8), torch.zeros(2, 1, 4),
                  torch.zeros(2, 1, 3, dtype=torch.int64))  # fmt: skip
    none = torch.zeros(0, dtype=torch.int64)
    assert list(pixels_of(masks, none, none, torch.zeros(0, 4), SIZE)) == []
    zero = torch.zeros(1, dtype=torch.int64)
    box = torch.tensor([[0.0, 0, 9, 9]])  # a box without a mask
    parts = list(pixels_of(masks, zero, zero, box, SIZE))
    assert [len(part.which) for part in parts] == [0]
    bits, crops = packed(parts, zero, torch.zeros(1, 4, dtype=torch.int64), 2)
    assert bits.shape == (2, 0)
    assert crops.tolist() == [[0, 0, 0]]
    bits, crops = packed([Pixels(none, none, none, none)], none, none.view(0, 1).expand(0, 4), 2)
    assert bits.shape == (2, 0)
    assert crops.shape == (0, 3)
