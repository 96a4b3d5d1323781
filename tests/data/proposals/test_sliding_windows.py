"""Windows of a grid: where they lie, how they are spread, and what is refused."""

from __future__ import annotations

import pytest
import torch

from cnnctl.data.proposals.sliding_windows import SlidingWindows, evenly
from cnnctl.ops.boxes import iou


def blank(h: int, w: int) -> torch.Tensor:
    return torch.zeros(3, h, w, dtype=torch.uint8)


def test_a_grid_worked_by_hand():
    """Windows of 4 x 4 every 3 pixels in 10 x 7: x at 0, 3, 6 and y at 0, 3 (both end flush)."""
    method = SlidingWindows(scales=(4.0,), ratios=(1.0,), strides=(3.0,))
    boxes = method.propose(blank(7, 10))
    expected = {(x, y, x + 4, y + 4) for x in (0, 3, 6) for y in (0, 3)}
    assert {tuple(map(int, row)) for row in boxes.tolist()} == expected
    assert len(boxes) == 6
    assert boxes.dtype == torch.float32


def test_scales_are_shares_or_pixels_and_ratios_keep_the_area():
    share = SlidingWindows(scales=(0.5,), ratios=(4.0,), strides=(1000.0,)).propose(blank(80, 160))
    sides = (share[:, 2:] - share[:, :2]).unique(dim=0)
    assert sides.tolist() == [[20, 80]]  # half of 80 pixels is 40: 20 wide, 80 high
    pixels = SlidingWindows(scales=(16.0,), ratios=(1.0,)).propose(blank(32, 32))
    assert (pixels[:, 2:] - pixels[:, :2]).unique().tolist() == [16]
    assert pixels[:, 0].unique().tolist() == [0, 4, 8, 12, 16]  # a quarter of the window


def test_a_stride_for_each_scale():
    method = SlidingWindows(scales=(8.0, 16.0), ratios=(1.0,), strides=(8.0, 0.5))
    boxes = method.propose(blank(32, 32))
    small = boxes[boxes[:, 2] - boxes[:, 0] == 8]
    large = boxes[boxes[:, 2] - boxes[:, 0] == 16]
    assert (len(small), len(large)) == (16, 9)


def test_a_window_larger_than_the_image_is_the_image():
    boxes = SlidingWindows(scales=(300.0,), ratios=(0.5, 1.0, 2.0)).propose(blank(20, 30))
    assert boxes.tolist() == [[0, 0, 30, 20]]
    assert SlidingWindows().propose(blank(1, 1)).tolist() == [[0, 0, 1, 1]]


@pytest.mark.parametrize("total", [1, 2, 3, 10, 64, 855, 2000])
def test_every_beginning_of_the_order_is_spread(total):
    order = evenly(total)
    assert sorted(order.tolist()) == list(range(total))
    for first in (2, 10, 100):
        if first * 4 <= total:  # no gap is more than three times as wide as with even steps
            places = torch.tensor(order[:first]).sort().values
            gaps = torch.cat([places.diff(), places[:1] + total - places[-1:]])
            assert int(gaps.max()) <= 3 * total / first


def test_where_there_are_more_than_count_the_first_are_taken():
    few, all_of_them = SlidingWindows(count=50), SlidingWindows(count=10**6)
    image = blank(96, 96)
    assert torch.equal(few.propose(image), all_of_them.propose(image)[:50])
    sides = few.propose(image)[:, 2:] - few.propose(image)[:, :2]
    assert len(sides.unique(dim=0)) >= 8  # of 14 sizes and shapes; the largest have one place


def test_the_default_covers_an_object_of_any_place():
    boxes = SlidingWindows().propose(blank(96, 96))
    objects = torch.tensor([[3.0, 5, 30, 33], [60, 11, 95, 45], [40, 40, 60, 80]])
    assert float(iou(objects, boxes).amax(1).min()) > 0.5


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"scales": ()}, "scales must be numbers above 0"),
        ({"ratios": (1.0, -1.0)}, "ratios must be numbers above 0"),
        ({"strides": (0.0,)}, "strides must be numbers above 0"),
        ({"strides": (float("nan"),)}, "strides must be numbers above 0"),
        ({"strides": (0.5, 0.5)}, "strides must be one number or 5"),
        ({"count": 0}, "count must be at least 1"),
    ],
)
def test_numbers_out_of_range(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        SlidingWindows(**wrong)
