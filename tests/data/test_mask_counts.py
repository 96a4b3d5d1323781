"""Counts of classes in masks, worked by hand, of a data set that has no method for masks alone."""

from __future__ import annotations

import pytest
import torch

from cnnctl.data.base import Dataset
from cnnctl.data.mask_counts import count_masks

MASKS = torch.tensor(
    [
        [[0, 0, 0], [0, 1, 255]],
        [[0, 0, 0], [0, 0, 0]],
        [[255, 255, 255], [255, 255, 255]],
        [[2, 2, 1], [1, 1, 255]],
    ],
    dtype=torch.uint8,
)


class Four(Dataset):
    fields = ("mask",)
    classes = ("ground", "cat", "dog", "fox")

    def __len__(self) -> int:
        return len(MASKS)

    def __getitem__(self, index: int):
        return torch.zeros(3, 2, 3, dtype=torch.uint8), {"mask": MASKS[index]}

    def fingerprint(self) -> str:
        return ""


def test_void_is_left_out_of_all_counts():
    counts = count_masks(Four())
    assert counts.masks == 4
    assert counts.images.tolist() == [2, 2, 1, 0]
    assert counts.pixels.tolist() == [10, 4, 2, 0]
    assert counts.around.tolist() == [5 + 6, 5 + 5, 5, 0]
    assert counts.pixels.dtype == torch.int64


@pytest.mark.parametrize(
    ("at_most", "pixels"), [(1, [4, 1, 0, 0]), (2, [4, 4, 2, 0]), (9, [10, 4, 2, 0])]
)
def test_some_of_the_masks_are_spread_over_the_split(at_most, pixels):
    assert count_masks(Four(), at_most=at_most).pixels.tolist() == pixels


def test_every_mask_is_told_of():
    told = []
    counts = count_masks(Four(), watch=lambda done, total: told.append((done, total)))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert counts.pixels.tolist() == [10, 4, 2, 0]


def test_whoever_watches_can_end_it():
    class Many(Four):
        read = 0

        def __len__(self) -> int:
            return 10_000

        def mask(self, index: int):
            self.read += 1
            return MASKS[index % 4]

    def watch(done: int, total: int) -> None:
        assert total == 10_000
        if done == 3:
            raise TimeoutError

    data = Many()
    with pytest.raises(TimeoutError):
        count_masks(data, watch=watch)
    assert 3 <= data.read <= 256, "no more than were handed out at once"
