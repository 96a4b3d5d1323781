"""Boxes of the partner are pasted with what they show; what they hide goes."""

from typing import Any

import pytest
import torch
from scipy import stats

from cnnctl.data.augmentations.copy_paste import CopyPaste, covered, share_covered
from cnnctl.randomness import Draw
from cnnctl.structures import Images, Targets

STILL: dict[str, Any] = {"jitter": 0.0, "exposure": 1.0, "saturation": 1.0, "flip": False}


def pipeline(native=(64, 80), mirror=True, **options: Any) -> CopyPaste:
    return CopyPaste(9, mirror, native, (0.5, 0.5, 0.5), **{"probability": 1.0, **options})


def pair(first: list[list[float]], second: list[list[float]]) -> tuple[Images, Targets]:
    """Two images of 20 x 20, of 10 and of 20 everywhere, with these boxes."""
    boxes = torch.zeros(2, 3, 4)
    labels = torch.full((2, 3), -1)
    for n, rows in enumerate((first, second)):
        for row, box in enumerate(rows):
            boxes[n, row], labels[n, row] = torch.tensor(box), 3 * n + row
    pixels = torch.tensor([10, 20], dtype=torch.uint8)[:, None, None, None].repeat(1, 3, 20, 20)
    there = labels >= 0
    targets = Targets(
        torch.arange(2), boxes=boxes, labels=labels, crowd=there & (labels % 2 == 0),
        difficult=there & (labels > 2), area=there * (labels + 1.0),
    )  # fmt: skip
    return Images(pixels, [(20, 20)] * 2, [(20, 20)] * 2), targets


def pasted(images: Images, targets: Targets, **options: Any) -> tuple[Images, Targets]:
    made = pipeline((20, 20), **{**STILL, "share": 1.0, **options})
    return made.batch(images, targets, Draw(0, 0, targets.image_id))


def test_by_hand(painted):
    """The second image's boxes hide all of one box of the first, and half of another."""
    images, targets = pasted(
        *pair([[2, 2, 6, 6], [8, 8, 12, 12], [14, 14, 18, 18]], [[1, 1, 7, 7], [10, 8, 14, 12]])
    )
    one, other = painted.truths(targets)
    assert one["labels"].tolist() == [1, 2, 3, 4]
    assert one["boxes"].tolist() == [
        [8, 8, 12, 12], [14, 14, 18, 18], [1, 1, 7, 7], [10, 8, 14, 12]
    ]  # fmt: skip
    assert one["crowd"].tolist() == [False, True, False, True]
    assert one["difficult"].tolist() == [False, False, True, True]
    assert one["area"].tolist() == [2, 3, 4, 5]
    expected = torch.full((20, 20), 10.0)
    expected[1:7, 1:7] = expected[8:12, 10:14] = 20
    assert torch.equal(images.pixels[0, 0].float(), expected)
    # 16 of 36 pixels of one are hidden, 8 of 16 of the other
    assert other["labels"].tolist() == [3, 4, 0, 1, 2]


def test_what_is_in_a_pasted_box_comes_with_it():
    """One of two boxes is chosen: the other comes if more than half of it lies in that one."""
    for inner, comes in (([2.0, 2, 8, 8], True), ([6.0, 6, 14, 14], False)):
        seen = set()
        for seed in range(20):
            images, targets = pair([], [[0, 0, 10, 10], inner])
            made = pipeline((20, 20), **STILL, share=0.5)
            images, targets = made.batch(images, targets, Draw(seed, 0, targets.image_id))
            assert targets.labels is not None
            labels = set(targets.labels[0].tolist()) - {-1}
            if labels and int((images.pixels[0, 0] == 20).sum()) == 100:  # the outer one alone
                seen.add(frozenset(labels))
        assert seen == {frozenset({3, 4} if comes else {3})}


@pytest.mark.parametrize("rows", [0, 1, 9])
def test_boxes_keep_their_classes(painted, rows):
    images, targets = painted.many(16, 64, 80, rows)
    before = images.pixels.clone()
    images, targets = pipeline(**STILL).batch(images, targets, Draw(0, 0, targets.image_id))
    changed = (images.pixels != before).flatten(1).any(1).double().mean()
    assert changed > (0.8 if rows == 9 else -1)
    for image, moved in zip(images.pixels, painted.truths(targets), strict=True):
        painted.check_rows(image, moved)
        for label, (left, top, right, bottom) in zip(
            moved["labels"].tolist(), moved["boxes"].int().tolist(), strict=True
        ):
            inside = image[:, top:bottom, left:right].flatten(1).float()
            own = (inside - painted.colour(label)[:, None]).abs().amax(0) < 1
            assert own.double().mean() >= 0.19  # a fifth of it is to be seen


def test_pixels_of_boxes_and_shares():
    boxes = torch.tensor([[[0.0, 0, 2, 2], [1, 1, 3, 3], [3.6, 0, 4, 1], [0, 0, 0, 0]]])
    region = covered(boxes, torch.tensor([[True, False, True, True]]), (4, 4))
    expected = torch.zeros(1, 4, 4, dtype=torch.bool)
    expected[0, :2, :2] = True  # no centre of a pixel lies in the third
    assert torch.equal(region, expected)
    assert share_covered(boxes, region).tolist() == [[1.0, 0.25, 0.0, 0.0]]
    assert covered(boxes[:, :0], torch.zeros(1, 0).bool(), (4, 4)).sum() == 0


def test_the_probability_is_of_pasting_at_all(painted):
    images, targets = painted.many(200, 16, 16)
    pixels, boxes = images.pixels.clone(), targets.boxes.clone()
    made = pipeline((16, 16), probability=0.0, **STILL)
    images, targets = made.batch(images, targets, Draw(0, 0, targets.image_id))
    assert torch.equal(images.pixels, pixels.float())
    assert targets.boxes is not None
    assert torch.equal(targets.boxes[:, :10], boxes)
    made = pipeline((16, 16), probability=0.5, share=1.0, **STILL)
    images, targets = painted.many(200, 16, 16)
    images, _ = made.batch(images, targets, Draw(0, 0, targets.image_id))
    mixed = (images.pixels != pixels).flatten(1).any(1)
    assert stats.binomtest(int(mixed.sum()), 200).pvalue > 1e-3


def test_it_is_repeatable_and_new_in_every_epoch(painted):
    found = []
    for epoch in (0, 0, 1):
        images, targets = painted.many(6, 64, 80)
        draw = Draw(3, epoch, targets.image_id)
        found.append(pipeline().batch(images, targets, draw)[0].pixels)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@pytest.mark.parametrize("name", ["probability", "share"])
@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_bad_numbers_are_named(name, value):
    with pytest.raises(ValueError, match=f"{name} must be from 0 to 1, got {value}"):
        pipeline(**{name: value})
