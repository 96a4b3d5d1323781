"""Masks as bits: hand-made crops, and RoI align of the dense mask as the oracle."""

from __future__ import annotations

import numpy as np
import torch
from torchvision.ops import roi_align

from cnnctl.ops.masks import Masks, cropped, pack, sampled_masks, unpack, whole_mask


def blobs(count: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, height, width, generator=generator) > 0.6


def held(masks: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """bits, crops, frames of masks (h, w) of one image."""
    crops, frames = zip(*(cropped(mask) for mask in masks), strict=True)
    bits, where = pack(crops)
    return bits, where, torch.stack(frames)


def test_a_crop_by_hand():
    mask = torch.zeros(5, 20, dtype=torch.bool)
    mask[1, 3], mask[3, 12] = True, True
    crop, frame = cropped(mask)
    assert frame.tolist() == [3, 1, 13, 4]
    assert crop.shape == (3, 10)
    bits, where = pack([crop, torch.ones(1, 9, dtype=torch.bool)])
    assert bits.tolist() == [128, 0, 0, 0, 0, 64, 255, 128]
    assert where.tolist() == [[0, 3, 10], [6, 1, 9]]


def test_what_is_packed_comes_back():
    masks = list(blobs(4, 23, 37))
    masks.append(torch.zeros(23, 37, dtype=torch.bool))
    bits, where, frames = held(masks)
    for mask, crop, frame in zip(masks, where, frames, strict=True):
        assert torch.equal(unpack(bits, crop), cropped(mask)[0])
        assert torch.equal(whole_mask(bits, crop, frame, (23, 37)), mask)


def test_no_objects_have_no_bits():
    bits, where = pack([])
    assert bits.shape == (0,)
    assert where.shape == (0, 3)


def test_a_mirrored_frame_mirrors_the_mask():
    (mask,) = blobs(1, 9, 14)
    bits, where, frames = held([mask])
    x1, y1, x2, y2 = frames[0].tolist()
    frame = torch.tensor([14 - x1, y1, 14 - x2, y2])
    assert torch.equal(whole_mask(bits, where[0], frame, (9, 14)), mask.flip(1))


def test_a_frame_twice_as_large_repeats_pixels():
    (mask,) = blobs(1, 6, 7)
    bits, where, frames = held([mask])
    twice = np.repeat(np.repeat(mask.numpy(), 2, 0), 2, 1)
    assert np.array_equal(whole_mask(bits, where[0], frames[0] * 2, (12, 14)).numpy(), twice)


def test_samples_are_roi_align_of_the_dense_mask():
    dense = blobs(6, 40, 50, seed=1)
    dense[:, :2], dense[:, -2:], dense[:, :, :2], dense[:, :, -2:] = 0, 0, 0, 0
    images = [held(list(dense[:4])), held(list(dense[4:]))]
    bits = torch.nn.utils.rnn.pad_sequence([image[0] for image in images], batch_first=True)
    crops = torch.nn.utils.rnn.pad_sequence([image[1] for image in images], batch_first=True)
    frames = torch.nn.utils.rnn.pad_sequence([image[2] for image in images], batch_first=True)
    generator = torch.Generator().manual_seed(2)
    low = torch.rand(12, 2, generator=generator) * 25
    regions = torch.cat([low, low + 1 + torch.rand(12, 2, generator=generator) * 24], 1)
    which = torch.arange(12) % 6
    image, row = (which >= 4).long(), torch.where(which >= 4, which - 4, which)
    shown = sampled_masks(Masks(bits, frames, crops), image, row, regions, 7)
    rows = torch.cat([which[:, None].float(), regions], 1)
    expected = roi_align(dense[:, None].float(), rows, 7, 1.0, 2, aligned=True)[:, 0]
    torch.testing.assert_close(shown, expected, atol=1e-5, rtol=0)


def test_a_mirrored_region_is_the_mirror_image():
    dense = blobs(1, 30, 30, seed=3)
    bits, crops, frames = held(list(dense))
    x1, y1, x2, y2 = frames[0].tolist()
    turned = torch.tensor([[30 - x1, y1, 30 - x2, y2]])
    zero = torch.zeros(1, dtype=torch.long)
    region = torch.tensor([[4.0, 5.0, 21.0, 26.0]])
    other = torch.tensor([[30 - 21.0, 5.0, 30 - 4.0, 26.0]])
    plain = sampled_masks(Masks(bits[None], frames[None], crops[None]), zero, zero, region, 8)
    mirror = sampled_masks(Masks(bits[None], turned[None], crops[None]), zero, zero, other, 8)
    torch.testing.assert_close(mirror, plain.flip(2), atol=1e-5, rtol=0)


def test_nothing_is_shown_beyond_the_box_that_was_cut():
    bits, crops, frames = held([torch.ones(10, 10, dtype=torch.bool)])
    zero = torch.zeros(1, dtype=torch.long)
    region = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    shown = sampled_masks(
        *(Masks(bits[None], frames[None], crops[None]), zero, zero, region, 10),
        within=torch.tensor([[0.0, 0.0, 4.0, 10.0]]),
    )
    assert shown[0, 5].tolist() == [0.875, 1, 1, 1, 0, 0, 0, 0, 0, 0]


def test_a_row_without_a_mask_shows_nothing():
    masks = Masks(torch.zeros(1, 0, dtype=torch.uint8), torch.zeros(1, 1, 4),
                  torch.zeros(1, 1, 3, dtype=torch.long))  # fmt: skip
    zero = torch.zeros(1, dtype=torch.long)
    shown = sampled_masks(masks, zero, zero, torch.tensor([[0.0, 0.0, 5.0, 5.0]]), 4)
    assert shown.shape == (1, 4, 4)
    assert not shown.any()
