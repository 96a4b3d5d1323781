"""Matching by hand and against torchvision's matchers, one image at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.models.detection._utils import Matcher, SSDMatcher
from torchvision.ops import box_iou

from cnnctl.ops.anchors import shapes, tiled
from cnnctl.ops.matching import IGNORED, NEGATIVE, match, sample, taken

# Of one true box of 10 x 100 each covers a part; what is right of it is another image's business.
PARTS = (0.71, 0.69, 0.31, 0.29, 0.0)
TRUTH = torch.tensor([[[0.0, 0, 10, 100]]])
ANCHORS = torch.tensor([[0.0, 0, 10, 100 * part] for part in PARTS])
ONE = torch.tensor([[0]])


def batch(n: int = 4, r: int = 6, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Padded boxes (n, r, 4), labels, and anchors of an image of 128 pixels."""
    generator = torch.Generator().manual_seed(seed)
    low = 80 * torch.rand(n, r, 2, generator=generator)
    boxes = torch.cat([low, low + 4 + 60 * torch.rand(n, r, 2, generator=generator)], 2)
    labels = torch.randint(5, (n, r), generator=generator)
    labels = labels.masked_fill(torch.arange(r) >= torch.tensor([6, 1, 0, 3])[:n, None], -1)
    boxes = boxes * (labels >= 0)[:, :, None]
    return boxes, labels, tiled(shapes((16, 32, 48), (0.5, 1, 2)), (8, 8), (16, 16), 0.5)


def test_positive_above_and_negative_below():
    """Faster R-CNN, section 3.1.2: positive above 0.7, negative below 0.3, between neither."""
    found = match(TRUTH, ONE, ANCHORS, 0.7, 0.3)
    assert found.tolist() == [[0, IGNORED, IGNORED, NEGATIVE, NEGATIVE]]


def test_the_best_is_positive_however_little_it_overlaps():
    assert match(TRUTH, ONE, ANCHORS[3:], 0.7, 0.3, best=True).tolist() == [[0, NEGATIVE]]
    assert match(TRUTH, ONE, ANCHORS[4:], 0.7, 0.3, best=True).tolist() == [[NEGATIVE]]  # 0


@pytest.mark.parametrize(("ties", "expected"), [(True, [0, 0, -1]), (False, [0, -1, -1])])
def test_equally_good_anchors(ties, expected):
    anchors = ANCHORS[[3, 3, 4]]
    assert match(TRUTH, ONE, anchors, 0.7, 0.3, best=True, ties=ties)[0].tolist() == expected


def test_each_truth_to_its_closest_and_then_above_a_half():
    """SSD, section 2.2: the first box has two above 0.5; the second none, but its closest."""
    boxes = torch.tensor([[[0.0, 0, 10, 10], [100, 0, 110, 100]]])
    anchors = torch.tensor(
        [[0.0, 0, 10, 9], [0, 0, 10, 6], [0, 0, 10, 4], [100, 0, 110, 30], [100, 0, 110, 20]]
    )
    labels = torch.tensor([[3, 3]])
    found = match(boxes, labels, anchors, 0.5, 0.5, best=True, ties=False)
    assert found.tolist() == [[0, 0, -1, 1, -1]]


def test_an_anchor_that_is_closest_to_two_goes_to_the_later():
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 8]]])
    anchors = torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60]])
    labels = torch.tensor([[0, 1]])
    found = match(boxes, labels, anchors, 0.5, 0.5, best=True, ties=False)
    assert found.tolist() == [[1, -1]]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("best", [False, True])
def test_is_torchvisions_matcher(best, seed):
    boxes, labels, anchors = batch(seed=seed)
    found = match(boxes, labels, anchors, 0.7, 0.3, best=best)
    for image, own in enumerate(labels):
        if not (own >= 0).any():
            assert (found[image] == NEGATIVE).all()
            continue
        overlap = box_iou(boxes[image][own >= 0], anchors)
        assert torch.equal(found[image], Matcher(0.7, 0.3, best)(overlap))


@pytest.mark.parametrize("seed", range(3))
def test_is_torchvisions_matcher_of_ssd(seed):
    boxes, labels, anchors = batch(seed=seed)
    found = match(boxes, labels, anchors, 0.5, 0.5, best=True, ties=False)
    for image, own in enumerate(labels):
        if (own >= 0).any():
            overlap = box_iou(boxes[image][own >= 0], anchors)
            assert torch.equal(found[image], SSDMatcher(0.5)(overlap))
            assert set(found[image].tolist()) >= set(range(int((own >= 0).sum())))
        else:
            assert (found[image] == NEGATIVE).all()


def test_rows_of_no_box_match_nothing_wherever_they_are():
    boxes, labels, anchors = batch()
    order = torch.tensor([5, 0, 3, 1, 4, 2])
    labels[0, 2:4] = -1  # such as crowds and difficult boxes, whose boxes are still there
    expected = match(boxes, labels, anchors, 0.7, 0.3, best=True)
    found = match(boxes[:, order], labels[:, order], anchors, 0.7, 0.3, best=True)
    there = found >= 0
    assert torch.equal(there, expected >= 0)
    assert torch.equal(order[found[there]], expected[there])
    assert not torch.isin(expected[0], torch.tensor([2, 3])).any()


@pytest.mark.parametrize("ties", [True, False])
def test_no_box_at_all(ties):
    anchors = ANCHORS
    empty = match(torch.zeros(2, 0, 4), torch.zeros(2, 0).long(), anchors, 0.7, 0.3, best=True)
    padded = match(torch.zeros(2, 3, 4), torch.full((2, 3), -1), anchors, 0.7, 0.3, True, ties)
    assert (empty == NEGATIVE).all()
    assert torch.equal(empty, padded)


def test_each_image_may_have_its_own_anchors():
    boxes, labels, anchors = batch()
    own = anchors + 3 * torch.arange(4)[:, None, None]
    found = match(boxes, labels, own, 0.5, 0.4, best=True)
    for image in range(4):
        one = match(boxes[image][None], labels[image][None], own[image], 0.5, 0.4, best=True)
        assert torch.equal(found[image], one[0])


def test_a_shift_by_a_stride_shifts_the_matches():
    """What makes anchors translation-invariant (Faster R-CNN, section 3.1.1)."""
    anchors = tiled(shapes((16, 32), (0.5, 1, 2)), (8, 8), (16, 16), 0.5)
    boxes, labels = torch.tensor([[[26.0, 22, 58, 56], [34, 16, 50, 32]]]), torch.tensor([[0, 1]])
    shifted = boxes + torch.tensor([32.0, 16, 32, 16])
    before = match(boxes, labels, anchors, 0.5, 0.5).view(8, 8, 6)
    after = match(shifted, labels, anchors, 0.5, 0.5).view(8, 8, 6)
    assert set(before.unique().tolist()) == {-1, 0, 1}
    assert torch.equal(after[1:, 2:], before[:-1, :-2])


def test_taken():
    columns = torch.arange(6).view(2, 3)
    rows = torch.tensor([[2, 0, -1, 1], [0, 0, -2, 2]])
    assert taken(columns, rows).tolist() == [[2, 0, 0, 1], [3, 3, 3, 5]]
    boxes = columns[:, :, None].expand(2, 3, 4)
    assert torch.equal(taken(boxes, rows), taken(columns, rows)[:, :, None].expand(2, 4, 4))
    assert taken(torch.zeros(2, 0, 4), rows).tolist() == torch.zeros(2, 4, 4).tolist()


def test_sample_has_so_many_and_no_more_positives_than_its_share():
    """Of 20, 3 and 0 positives among 60, half of 16 at most; the rest is background."""
    torch.manual_seed(0)
    matched = torch.full((3, 60), NEGATIVE)
    matched[0, :20] = 4
    matched[1, 10:13] = 0
    matched[:, 50:] = IGNORED
    positive, negative = sample(matched, 16, 0.5)
    assert positive.sum(1).tolist() == [8, 3, 0]
    assert negative.sum(1).tolist() == [8, 13, 16]
    assert (matched[positive] >= 0).all()
    assert (matched[negative] == NEGATIVE).all()
    few, rest = sample(torch.tensor([[0, NEGATIVE, NEGATIVE, IGNORED]]), 16, 0.5)
    assert few.tolist() == [[True, False, False, False]]
    assert rest.tolist() == [[False, True, True, False]]


def test_sample_is_even_and_drawn_anew():
    torch.manual_seed(0)
    matched = torch.tensor([0, NEGATIVE]).repeat_interleave(20).expand(2000, 40)
    positive, negative = sample(matched, 10, 0.5)
    assert (positive.sum(1) == 5).all()
    share = torch.cat([positive[:, :20], negative[:, 20:]], 1).float().mean(0)
    torch.testing.assert_close(share, torch.full((40,), 0.25), rtol=0, atol=0.05)
    again, _ = sample(matched, 10, 0.5)
    assert not torch.equal(again, positive)
