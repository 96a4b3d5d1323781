"""Run lengths against pycocotools, and pasted masks against torchvision's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pycocotools import mask as reference
from torch import Tensor
from torchvision.models.detection.roi_heads import (
    expand_boxes,
    expand_masks,
    paste_masks_in_image,
)

from cnnctl.ops.masks import cropped
from cnnctl.ops.run_lengths import decode, decode_cropped, encode, paste

SIZE = (37, 53)


def blobs(count: int, side: int, seed: int = 0) -> Tensor:
    """(count, side, side) of 0..1, smooth."""
    noise = torch.randn(count, 1, 5, 5, generator=torch.Generator().manual_seed(seed))
    return (2 * F.interpolate(noise, (side, side), mode="bicubic")[:, 0]).sigmoid()


def counts_of(mask: Tensor) -> str | bytes:
    return reference.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))["counts"]


def test_a_crop_by_hand():
    """3 x 4: columns down, nothing first. Lengths 4, 2, 2, 1, 3 as characters from 48 on; from the
    fourth on less the one before the last, so -1 (31 of 5 bits) and 1."""
    crop = torch.tensor([[1, 0], [1, 1]], dtype=torch.bool)
    assert encode(crop, 1, 1, (3, 4)) == b"422O1"
    assert decode(b"422O1", (3, 4)).int().tolist() == [[0, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0]]


@pytest.mark.parametrize(
    ("x", "y", "h", "w"),
    [(0, 0, 37, 53), (5, 3, 20, 11), (5, 0, 37, 9), (0, 36, 1, 53), (52, 0, 37, 1), (9, 9, 0, 0)],
)
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_crops_are_pycocotools(x, y, h, w, share):
    """Whole columns too, where the end of one is the beginning of the next."""
    crop = torch.rand(h, w, generator=torch.Generator().manual_seed(h)) < share
    whole = torch.zeros(SIZE, dtype=torch.bool)
    whole[y : y + h, x : x + w] = crop
    counts = encode(crop, x, y, SIZE)
    assert counts == encode(crop.numpy(), x, y, SIZE) == counts_of(whole)
    assert torch.equal(decode(counts, SIZE), whole)
    expected, frame = cropped(whole)
    found, left, top = decode_cropped(counts, SIZE)
    assert torch.equal(found, expected)
    assert [left, top] == frame[:2].tolist()


def test_a_crop_of_a_large_image():
    """Runs of more than one character, and shorter ones than before."""
    whole = torch.zeros(3000, 4000, dtype=torch.bool)
    y, x = torch.meshgrid(torch.arange(900), torch.arange(700), indexing="ij")
    whole[2000:2900, 3000:3700] = (y - 450) ** 2 + (x - 350) ** 2 < 340**2
    found, left, top = decode_cropped(encode(whole, 0, 0, (3000, 4000)), (3000, 4000))
    expected, frame = cropped(whole)
    assert torch.equal(found, expected)
    assert [left, top] == frame[:2].tolist() == [3011, 2111]


def test_refuses_a_crop_beyond_the_image():
    with pytest.raises(ValueError, match="a crop of 2 x 3 at x 51, y 0 reaches beyond 37 x 53"):
        encode(torch.ones(2, 3, dtype=torch.bool), 51, 0, SIZE)


def test_a_mask_by_hand():
    """Twice as large: a pixel has 3/4 of its own value and 1/4 of its neighbour, each way."""
    values = torch.tensor([[[1.0, 0.0], [1.0, 1.0]]])
    (counts,) = paste(values, torch.tensor([[1.0, 0, 5, 4]]), (4, 6))
    assert decode(counts, (4, 6)).int().tolist() == [
        [0, 1, 1, 0, 0, 0],
        [0, 1, 1, 0, 0, 0],
        [0, 1, 1, 1, 1, 0],
        [0, 1, 1, 1, 1, 0],
    ]


@pytest.mark.parametrize("side", [14, 28])
def test_pixels_are_torchvisions(side):
    """With boxes whose frames torchvision need not round, some past the edge of the image."""
    generator = torch.Generator().manual_seed(2)
    low = torch.rand(40, 2, generator=generator) * 45 - 10
    boxes = torch.cat([low, low + 12 + 40 * torch.rand(40, 2, generator=generator)], 1)
    values = blobs(40, side)
    expected = paste_masks_in_image(values[:, None], boxes, SIZE)[:, 0] >= 0.5
    # Where torchvision has put them: it adds a value on each side, rounds, and takes a pixel more.
    padded, scale = expand_masks(values[:, None], 1)
    frames = expand_boxes(boxes, scale).long().double()
    frames[:, 2:] += 1
    inner = expand_boxes(frames, 1 / scale)
    assert padded.shape[-1] == side + 2
    found = [decode(counts, SIZE) for counts in paste(values, inner, SIZE)]
    assert expected.flatten(1).any(1).sum() > 20
    assert torch.equal(torch.stack(found), expected)
    assert [counts_of(mask) for mask in expected] == paste(values, inner, SIZE)


def test_a_box_between_pixels():
    """A pixel is set where its centre is in the box: nothing is rounded to whole pixels."""
    ones = torch.ones(1, 28, 28)
    for left, expected in ((10.0, (10, 15)), (10.49, (10, 15)), (10.51, (11, 16)), (-3.2, (0, 2))):
        (counts,) = paste(ones, torch.tensor([[left, 2.0, left + 5, 4]]), SIZE)
        across = decode(counts, SIZE).any(0).nonzero()
        assert (int(across.min()), int(across.max()) + 1) == expected


def test_boxes_without_pixels():
    """Between two centres, beyond the image, inside out, and not numbers."""
    inf, nan = float("inf"), float("nan")
    boxes = torch.tensor(
        [
            [3.6, 4, 4.4, 9],
            [60, 0, 70, 9],
            [-9, -9, -2, -2],
            [9, 9, 2, 2],
            [nan] * 4,
            [0, 0, inf, 3],
        ]
    )
    nothing = counts_of(torch.zeros(SIZE, dtype=torch.bool))
    assert paste(torch.ones(6, 28, 28), boxes, SIZE) == [nothing] * 6
    broken = torch.full((1, 28, 28), nan)
    assert paste(broken, torch.tensor([[3.0, 4, 9, 9]]), SIZE) == [nothing]
    assert paste(torch.ones(0, 28, 28), torch.zeros(0, 4), SIZE) == []


def test_a_mask_as_large_as_the_image():
    size = (40, 30)
    (counts,) = paste(torch.ones(1, 28, 28), torch.tensor([[0.0, 0, 30, 40]]), size)
    assert counts == counts_of(torch.ones(size))
