"""Recall of proposals: a table worked by hand, a brute-force oracle, images added up."""

from __future__ import annotations

import math

import pytest
import torch
from torchvision.ops import box_iou

from cnnctl.metrics.proposal_recall import COUNTS, IOUS, ProposalRecall

BOXES = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 40]])
# IoU with the first: 1/2, none, 1; with the second: none, 0.7, none.
PROPOSALS = torch.tensor([[0.0, 0, 10, 5], [20, 20, 30, 34], [0, 0, 10, 10]])


def scored(proposals, boxes, ignored=None, **settings):
    recall = ProposalRecall(**settings)
    recall.update(proposals, boxes, ignored)
    return recall.compute()


def test_a_table_worked_by_hand():
    found = scored(PROPOSALS, BOXES, ious=(0.5, 0.7, 0.9), counts=(1, 2, 10))
    assert found.counts == (1, 2, 3)
    assert found.recall.tolist() == [[0.5, 0, 0], [1, 0.5, 0], [1, 1 / 2 + 1 / 2, 0.5]]
    # 2 (IoU - 0.5), at least 0, mean over both: of one proposal 0 and 0, and so on.
    assert found.average.tolist() == pytest.approx([0, 0.2, 0.7])
    assert (found.images, found.objects, found.proposals) == (1, 2, 3)
    assert found.at(0.5) == [0.5, 1, 1]


def test_rows_of_a_table():
    rows = scored(PROPOSALS, BOXES).rows(shown=(1, 100))
    assert [row["proposals"] for row in rows] == [1, 3]
    assert rows[1] == {
        "proposals": 3,
        "recall50": 1.0,
        "recall70": 1.0,
        "recall90": 0.5,
        "average_recall": pytest.approx(0.7),
    }


def test_an_overlap_of_exactly_the_threshold_counts():
    boxes = torch.tensor([[0.0, 0, 20, 1]]).expand(9, -1)
    proposals = torch.tensor([[0.0, 0, 20 * iou, 1] for iou in IOUS])
    for place, iou in enumerate(IOUS):
        found = scored(proposals[place : place + 1].round(decimals=4), boxes)
        assert found.recall[-1].tolist() == [float(other <= iou) for other in IOUS]


def test_difficult_objects_are_left_out_and_rows_without_area_are_no_proposals():
    padded = torch.cat([PROPOSALS, torch.zeros(4, 4)])
    found = scored(padded, BOXES, torch.tensor([True, False]), ious=(0.5, 0.9))
    assert found.recall[-1].tolist() == [1, 0]
    assert (found.objects, found.proposals) == (1, 3)


def test_the_brute_force_oracle_over_images_in_two_parts():
    drawn = torch.Generator().manual_seed(0)

    def rows(count, spread):
        corner = torch.rand(count, 2, generator=drawn) * 20
        return torch.cat([corner, corner + 1 + torch.rand(count, 2, generator=drawn) * spread], 1)

    images = [(rows(p, 30), rows(r, 30)) for p, r in [(40, 3), (0, 2), (5, 0), (333, 7), (1, 1)]]
    parts = ProposalRecall(), ProposalRecall()
    for place, (proposals, boxes) in enumerate(images):
        parts[place % 2].update(proposals, boxes)
    parts[0].merge(parts[1])
    found = parts[0].compute()
    assert found.counts == (*(count for count in COUNTS if count < 333), 333)
    assert (found.images, found.objects) == (5, 13)
    for place, count in enumerate(found.counts):
        best = []
        for proposals, boxes in images:
            for box in boxes:
                overlaps = box_iou(box[None], proposals[:count])[0].tolist()
                best.append(max(overlaps, default=0.0))
        for column, iou in enumerate(IOUS):
            assert found.recall[place, column] == sum(one >= iou for one in best) / 13
        average = sum(2 * max(one - 0.5, 0) for one in best) / 13
        assert float(found.average[place]) == pytest.approx(average, abs=1e-6)


def test_many_objects_are_taken_in_parts(monkeypatch):
    whole = scored(PROPOSALS, BOXES.repeat(50, 1))
    monkeypatch.setattr("cnnctl.metrics.proposal_recall._AT_A_TIME", 7)
    part = scored(PROPOSALS, BOXES.repeat(50, 1))
    assert torch.equal(part.recall, whole.recall)
    assert part.average.tolist() == pytest.approx(whole.average.tolist())


def test_without_an_object_or_a_proposal():
    nothing = scored(torch.zeros(0, 4), torch.zeros(0, 4))
    assert nothing.counts == (0,)
    assert math.isnan(nothing.at(0.5)[0])
    assert scored(torch.zeros(0, 4), BOXES).at(0.5) == [0]
    assert math.isnan(ProposalRecall().compute().rows()[0]["average_recall"])


@pytest.mark.parametrize("wrong", [{"ious": (0.9, 0.5)}, {"ious": ()}, {"counts": (0, 1)}])
def test_numbers_out_of_range(wrong):
    with pytest.raises(ValueError, match="must rise"):
        ProposalRecall(**wrong)


def test_recalls_of_other_numbers_are_not_added_up():
    with pytest.raises(ValueError, match="same ious and counts"):
        ProposalRecall().merge(ProposalRecall(counts=(1,)))
