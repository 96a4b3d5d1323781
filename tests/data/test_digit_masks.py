"""Masks of digit scenes: the pixels of each instance, packed; rows aligned with the boxes."""

from __future__ import annotations

import pytest
import torch

from cnnctl.data.digit_boxes import DigitBoxes
from cnnctl.data.digit_masks import DigitMasks
from cnnctl.data.digit_scenes import DigitScenes
from cnnctl.ops.masks import cropped, pack, whole_mask


@pytest.fixture(scope="module")
def data() -> DigitMasks:
    return DigitMasks("train", size=40, digits=(4, 7), scale=(0.4, 0.9), train_images=120)


def test_masks_are_the_pixels_of_each_instance_that_is_seen(data: DigitMasks):
    fewer = 0
    for index, instances in enumerate(data.scenes.instances):
        seen = [own for n in range(1, 8) if (own := instances == n).any()]
        fewer += len(seen) < int((data.scenes.labels[index] >= 0).sum())
        truth = data[index][1]
        bits, crops = pack([cropped(mask)[0] for mask in seen])
        assert torch.equal(truth["bits"], bits)
        assert torch.equal(truth["crops"], crops)
        for mask, crop, frame, area in zip(
            seen, crops, truth["frames"], truth["area"], strict=True
        ):
            assert torch.equal(whole_mask(bits, crop, frame, (40, 40)), mask)
            assert int(area) == int(mask.sum())
    assert fewer, "one is wholly covered somewhere, and has no mask"


def test_rows_are_those_of_the_boxes(data: DigitMasks):
    boxes = DigitBoxes("train", size=40, digits=(4, 7), scale=(0.4, 0.9), train_images=120)
    columns = data.columns()
    for name, column in boxes.columns().items():
        assert torch.equal(column, columns[name]), name
    assert torch.equal(columns["frames"], columns["boxes"])
    assert data.fingerprint() != boxes.fingerprint()
    assert data.classes == boxes.classes == tuple("0123456789")


def test_rows_of_no_mask_are_zeros(data: DigitMasks):
    columns = data.columns()
    none = columns["labels"] < 0
    assert none.any()
    assert not columns["crops"][none].any()
    assert not columns["frames"][none].any()
    assert columns["bits"].shape[1] == max(len(data[index][1]["bits"]) for index in range(120))


def test_it_is_what_digit_scenes_serves_where_masks_of_objects_are_asked_for():
    assert DigitScenes.serving(("boxes", "masks")) is DigitMasks
    assert DigitMasks.serving(("boxes", "masks")) is DigitMasks
    assert DigitScenes.serving(("boxes",)) is DigitMasks.serving(("boxes",)) is DigitBoxes
    assert DigitBoxes.serving(("boxes", "masks")) is DigitMasks
    assert DigitMasks.option() == "digit_scenes"
