"""Hand-made boxes through every step that moves truth with an image."""

import pytest
import torch

from cnnctl.data.augmentations.boxes import (
    carried,
    centre_inside,
    cut,
    mirrored,
    set_boxes,
    share_left,
    sides,
    with_boxes,
)
from cnnctl.structures import Targets


def rows(*boxes) -> torch.Tensor:
    return torch.tensor(boxes, dtype=torch.float32).view(-1, 4)


def truth() -> dict[str, torch.Tensor]:
    return {
        "boxes": rows([10, 20, 30, 60], [0, 0, 4, 2], [50, 50, 60, 70]),
        "labels": torch.tensor([3, 1, 2]),
        "crowd": torch.tensor([False, True, False]),
        "difficult": torch.tensor([True, False, False]),
        "area": torch.tensor([400.0, 8.0, 50.0]),
    }


def test_a_window_by_hand():
    """(10, 10) - (50, 50) becomes (5, 0) - (15, 80): a quarter as wide, twice as high."""
    boxes = rows([10, 20, 30, 60], [0, 0, 4, 2], [30, 10, 40, 15], [10, 10, 50, 50])
    moved = carried(boxes, torch.tensor([10.0, 10, 50, 50]), torch.tensor([5.0, 0, 15, 80]))
    expected = rows([5, 20, 10, 80], [5, 0, 5, 0], [10, 0, 12.5, 10], [5, 0, 15, 80])
    assert torch.equal(moved, expected)


def test_each_image_of_a_batch_has_its_own_window():
    boxes = rows([10, 20, 30, 60], [0, 0, 4, 2]).expand(3, 2, 4)
    source = rows([0, 0, 64, 64], [10, 10, 50, 50], [-64, 0, 64, 64])
    into = rows([0, 0, 64, 64], [5, 0, 15, 80], [0, 0, 64, 64])
    together = carried(boxes, source, into)
    assert torch.equal(together[0], boxes[0])
    assert torch.equal(together[2, 0], torch.tensor([37.0, 20, 47, 60]))
    for one, rectangle, place, found in zip(boxes, source, into, together, strict=True):
        assert torch.equal(carried(one, rectangle, place), found)


def test_mirrored_by_hand_and_twice():
    boxes = rows([10, 20, 30, 60], [0, 0, 4, 2])
    assert torch.equal(mirrored(boxes, 100), rows([70, 20, 90, 60], [96, 0, 100, 2]))
    assert torch.equal(mirrored(mirrored(boxes, 100), 100), boxes)


def test_what_is_left_of_a_box():
    boxes = rows([0, 0, 10, 10], [5, 5, 15, 10], [20, 20, 30, 30], [10, 0, 20, 10], [3, 3, 3, 3])
    window = torch.tensor([5.0, 0, 10, 100])
    found = [50 / 100, 25 / 50, 0, 0, 0]
    assert torch.equal(share_left(boxes, window), torch.tensor(found))
    assert torch.equal(sides(cut(boxes, window))[:2], torch.tensor([[5.0, 10], [5, 5]]))
    # centres (5, 5) and (10, 7.5) are on its edge, which is not inside
    assert not centre_inside(boxes, window).any()
    inside = centre_inside(boxes, torch.tensor([4.0, 4, 26, 26]))
    assert inside.tolist() == [True, True, True, True, False]


def test_rows_stay_aligned_where_some_go():
    before, kept = truth(), torch.tensor([True, False, True])
    moved = with_boxes({**before, "image": 7}, before["boxes"] / 2, kept)
    assert torch.equal(moved["boxes"], rows([5, 10, 15, 30], [25, 25, 30, 35]))
    assert moved["labels"].tolist() == [3, 2]
    assert moved["crowd"].tolist() == [False, False]
    assert moved["difficult"].tolist() == [True, False]
    assert moved["area"].tolist() == [100.0, 12.5]  # the object's, not the box's
    assert moved["image"] == 7
    assert len(before["labels"]) == 3  # which stays as it was


def test_columns_keep_their_rows_and_empty_some():
    before, kept = truth(), torch.tensor([[True, False, True]])
    targets = Targets(torch.zeros(1), **{name: row[None] for name, row in before.items()})
    set_boxes(targets, before["boxes"][None] / 2, kept)
    assert targets.boxes is not None
    assert torch.equal(targets.boxes[0], rows([5, 10, 15, 30], [0, 0, 0, 0], [25, 25, 30, 35]))
    found = {name: getattr(targets, name)[0].tolist() for name in before if name != "boxes"}
    assert found == {
        "labels": [3, -1, 2],
        "crowd": [False, False, False],
        "difficult": [True, False, False],
        "area": [100.0, 0.0, 12.5],
    }


@pytest.mark.parametrize("shape", [(0,), (2, 0)])
def test_no_boxes_at_all(shape):
    boxes, window = torch.zeros(*shape, 4), torch.ones(*shape[:-1], 4)
    assert carried(boxes, window, window).shape == (*shape, 4)
    assert mirrored(boxes, 10).shape == (*shape, 4)
    assert share_left(boxes, window).shape == shape
