"""Boxes by hand and against torchvision's, one image at a time."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import batched_nms, box_iou, clip_boxes_to_image, nms

from cnnctl.ops.boxes import (
    SCALES,
    Detections,
    area,
    best_of_classes,
    centred,
    clip,
    cornered,
    decode,
    encode,
    intersection,
    iou,
    sides_of,
    suppressed,
    together,
)


def some(*shape: int, side: float = 100.0, seed: int = 0) -> Tensor:
    """(*shape, 4) boxes of 1 to about ``side`` pixels."""
    generator = torch.Generator().manual_seed(seed)
    low = side * torch.rand(*shape, 2, generator=generator)
    return torch.cat([low, low + 1 + side * torch.rand(*shape, 2, generator=generator)], -1)


@pytest.mark.parametrize(
    ("other", "shared", "expected"),
    [
        ([0, 0, 10, 10], 100, 1.0),
        ([5, 0, 15, 10], 50, 1 / 3),
        ([2, 3, 7, 9], 30, 0.3),  # within
        ([10, 0, 20, 10], 0, 0.0),  # side by side: the right side is exclusive
        ([9, 9, 10, 10], 1, 0.01),  # one pixel
        ([20, 20, 30, 30], 0, 0.0),
        ([5, 5, 5, 5], 0, 0.0),  # empty
        ([8, 8, 2, 2], 0, 0.0),  # inside out
    ],
)
def test_overlap_by_hand(other, shared, expected):
    a, b = torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([other]).float()
    assert intersection(a, b).item() == shared
    assert iou(a, b).item() == pytest.approx(expected)
    assert iou(b, a).item() == pytest.approx(expected)


def test_two_empty_boxes_do_not_overlap():
    empty = torch.zeros(2, 3, 4)
    assert not iou(empty, empty).any()
    assert area(torch.tensor([[0.0, 0, 4, 3], [4, 3, 0, 0]])).tolist() == [12, 0]


def test_overlap_of_a_batch_is_that_of_its_images():
    a, b = some(3, 5), some(3, 7, seed=1)
    together_ = iou(a, b)
    for image in range(3):
        torch.testing.assert_close(together_[image], box_iou(a[image], b[image]))
    torch.testing.assert_close(iou(a, b[0][None])[2], box_iou(a[2], b[0]))


def test_forms_of_a_box():
    box = torch.tensor([2.0, 4.0, 8.0, 6.0])
    assert centred(box).tolist() == [5, 5, 6, 2]
    boxes = some(2, 9)
    torch.testing.assert_close(cornered(centred(boxes)), boxes)


def test_code_by_hand():
    """A box twice as wide, its centre half an anchor to the right (R-CNN, appendix C)."""
    anchor, box = torch.tensor([0.0, 0, 10, 20]), torch.tensor([0.0, 0, 20, 20])
    expected = [0.5, 0, math.log(2), 0]
    assert encode(box, anchor).tolist() == pytest.approx(expected)
    assert encode(box, anchor, SCALES).tolist() == pytest.approx([5, 0, 5 * math.log(2), 0])
    assert decode(torch.tensor(expected), anchor).tolist() == pytest.approx([0, 0, 20, 20])


@pytest.mark.parametrize("scales", [(1.0, 1.0), SCALES])
def test_code_is_torchvisions_and_comes_back(scales):
    boxes, anchors = some(3, 50), some(3, 50, seed=1)
    code = encode(boxes, anchors, scales)
    theirs = BoxCoder((scales[0], scales[0], scales[1], scales[1]))
    expected = theirs.encode_single(boxes.flatten(0, 1), anchors.flatten(0, 1))
    torch.testing.assert_close(code.flatten(0, 1), expected)
    torch.testing.assert_close(decode(code, anchors, scales), boxes, rtol=0, atol=1e-3)
    deltas = 3 * torch.randn(50, 4, generator=torch.Generator().manual_seed(2))
    expected = theirs.decode_single(deltas, anchors[0])
    torch.testing.assert_close(decode(deltas, anchors[0], scales), expected)


def test_code_stays_a_number():
    anchor = torch.tensor([0.0, 0, 16, 16])
    grown = decode(torch.tensor([0, 0, 1e4, 1e4]), anchor)
    assert grown.tolist() == pytest.approx([-492, -492, 508, 508])  # 62.5 times 16
    assert encode(torch.zeros(4), anchor).isfinite().all()  # a row of no box
    assert encode(anchor, torch.zeros(4)).isfinite().all()


def test_clip_is_of_each_image():
    boxes = torch.tensor([[-5.0, -5, 200, 200], [10, 20, 30, 40]]).expand(2, 2, 4)
    clipped = clip(boxes, torch.tensor([[100, 50], [30, 25]]))
    assert clipped[0].tolist() == [[0, 0, 50, 100], [10, 20, 30, 40]]
    assert clipped[1].tolist() == [[0, 0, 25, 30], [10, 20, 25, 30]]
    torch.testing.assert_close(clipped[0], clip_boxes_to_image(boxes[0], (100, 50)))


@pytest.mark.parametrize("count", [200, 3000])  # torchvision shifts few boxes, and loops over many
def test_suppression_is_torchvisions(count):
    boxes = some(count)
    generator = torch.Generator().manual_seed(3)
    scores = torch.rand(count, generator=generator)
    groups = torch.randint(7, (count,), generator=generator)
    expected = batched_nms(boxes, scores, groups, 0.5)
    assert suppressed(boxes, scores, groups, 0.5).tolist() == expected.tolist()


def test_suppression_does_not_depend_on_how_many_groups_there_are():
    """Groups are told apart by a shift, whose rounding must not change an overlap: small boxes of
    the 1,456th group of images of 1,333 pixels, as of sixteen images of COCO's 91 classes."""
    small = some(300, side=12.0) + 1300
    scores = torch.rand(300, generator=torch.Generator().manual_seed(4))
    expected = nms(small, scores, 0.5).tolist()
    assert suppressed(small, scores, torch.full((300,), 1456), 0.5).tolist() == expected


def found_one_by_one(
    boxes: Tensor, scores: Tensor, score: float, overlap: float, most: int
) -> list[tuple[float, int, list[float]]]:
    """Of one image, in plain loops: boxes (B, K, 4), scores (B, K)."""
    kept = []
    for label in range(scores.shape[1]):
        rows = (scores[:, label] > score).nonzero()[:, 0]
        own = rows[nms(boxes[rows, label], scores[rows, label], overlap)]
        kept += [(scores[row, label].item(), label, boxes[row, label].tolist()) for row in own]
    return sorted(kept, reverse=True)[:most]


@pytest.mark.parametrize("own_boxes", [False, True])
def test_best_of_classes_is_a_loop_over_images_and_classes(own_boxes):
    n, b, k = 3, 40, 4
    scores = torch.rand(n, b, k, generator=torch.Generator().manual_seed(5))
    scores[1] = 0.0  # an image without any
    boxes = some(n, b, k) if own_boxes else some(n, b)
    found = best_of_classes(boxes, scores, score=0.4, overlap=0.3, most=12)
    assert isinstance(found, Detections)
    each = boxes if own_boxes else boxes[:, :, None].expand(n, b, k, 4)
    for image in range(n):
        expected = found_one_by_one(each[image], scores[image], 0.4, 0.3, 12)
        there = found.labels[image] >= 0
        assert there.sum() == len(expected) == (0 if image == 1 else 12)
        assert found.labels[image][there].tolist() == [label for _, label, _ in expected]
        assert found.scores[image][there].tolist() == [value for value, _, _ in expected]
        assert found.boxes[image][there].tolist() == [box for _, _, box in expected]


def test_best_of_classes_with_one_class_a_box():
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [0, 0, 10, 10], [50, 50, 60, 60]])
    labels = torch.tensor([[2, 2, 0, -1]])
    scores = torch.tensor([[0.6, 0.9, 0.5, 0.8]])
    found = best_of_classes(boxes[None], scores, labels=labels, score=0.1, overlap=0.5, most=9)
    assert found.labels.tolist() == [[2, 0]]  # of two the likelier; -1 is none
    assert found.scores.tolist() == [[pytest.approx(0.9), 0.5]]
    assert found.boxes.tolist() == [[[1, 0, 11, 10], [0, 0, 10, 10]]]


def test_best_of_classes_looks_at_the_likeliest_only():
    boxes = torch.arange(6.0)[:, None] * 20 + torch.tensor([0.0, 0, 10, 10])
    scores = torch.tensor([0.1, 0.6, 0.3, 0.5, 0.2, 0.4])[None, :, None]
    found = best_of_classes(boxes[None], scores, score=0.0, overlap=0.5, most=9, candidates=3)
    assert found.boxes[0, :, 0].tolist() == [20, 60, 100]


def test_no_detection_at_all():
    found = best_of_classes(some(2, 5), torch.zeros(2, 5, 3), score=0.5, overlap=0.5, most=9)
    assert found.boxes.shape == (2, 0, 4)
    assert found.scores.shape == found.labels.shape == (2, 0)


def test_together():
    """Rows of images 0 and 2 of three, cut off after two."""
    image = torch.tensor([0, 2, 2, 2])
    boxes = torch.arange(16.0).view(4, 4)
    found = together(3, image, boxes, torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.arange(4), 2)
    assert found.labels.tolist() == [[0, -1], [-1, -1], [1, 2]]
    torch.testing.assert_close(found.scores, torch.tensor([[0.9, 0.0], [0.0, 0.0], [0.8, 0.7]]))
    assert found.boxes[:, 0, 0].tolist() == [0, 0, 4]


def test_sides_of_an_image():
    sides = sides_of((3, 5), torch.zeros(1, dtype=torch.float64))
    assert sides.tolist() == [5, 3, 5, 3]
    assert sides.dtype == torch.float64
