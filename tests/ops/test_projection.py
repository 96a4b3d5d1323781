"""Windows of an image on its map, by the centres of receptive fields."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cnnctl.ops.projection import projected
from cnnctl.ops.regions import roi_pool

SIZE = (40, 60)


def cells(box: list[float], **options) -> list[int]:
    return projected(torch.tensor([box]), options.pop("stride", 16), SIZE, **options)[0].tolist()


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        # floor(100/16) + 1 = 7 at 112, ceil(300/16) - 1 = 18 at 288; 96 and 304 are outside
        (100.0, 300.0, (7, 18)),
        (96.0, 304.0, (7, 18)),  # a centre on a side of the window is not within
        (95.9, 304.1, (6, 19)),
        (0.0, 17.0, (1, 1)),
        (-0.5, 17.0, (0, 1)),
        (20.0, 30.0, (2, 2)),  # none within: 25 is nearer to 32 than to 16
        (17.0, 20.0, (1, 1)),
        (900.0, 2000.0, (57, 59)),  # the map ends
        (1000.0, 2000.0, (59, 59)),
        (-90.0, -20.0, (0, 0)),
    ],
)
def test_worked_example(low, high, expected):
    """Appendix A: x' = floor(x / S) + 1 and ceil(x / S) - 1, S = 16."""
    assert cells([low, 100.0, high, 300.0]) == [expected[0], 7, expected[1], 18]
    rows = [min(39, number) for number in expected]
    assert cells([100.0, low, 300.0, high]) == [7, rows[0], 18, rows[1]]


def test_is_the_pixels_whose_centres_are_within():
    generator = torch.Generator().manual_seed(0)
    low = torch.rand(200, 2, generator=generator) * 300
    boxes = torch.cat([low, low + 9 + torch.rand(200, 2, generator=generator) * 200], 1)
    for stride, centre in ((8, 0.5), (8, 4.0), (4, 2.0)):
        found = projected(boxes, stride, (200, 200), centre)
        places = centre + stride * torch.arange(200)
        for axis in range(2):
            inside = (places > boxes[:, axis, None]) & (places < boxes[:, axis + 2, None])
            assert inside.any(1).all()
            assert found[:, axis].tolist() == inside.int().argmax(1).tolist()
            assert (found[:, axis + 2] - found[:, axis] + 1).tolist() == inside.sum(1).tolist()


def test_offset_of_each_axis():
    """Where the padding is not half a layer's side the centres are moved (appendix A's end)."""
    assert cells([100, 100, 300, 300], centre=7.5) == [6, 6, 18, 18]  # 103.5 to 295.5
    assert cells([100, 100, 300, 300], centre=(7.5, 0.0)) == [6, 7, 18, 18]


def pooled_columns(box: list[float], whole: bool) -> list[int]:
    """Which columns of a map RoI pooling looks at, by a map of ones at one column at a time."""
    columns = torch.eye(60)[:, None, None, :].expand(-1, 1, 40, -1).contiguous()  # (60, 1, 40, 60)
    boxes, image = torch.tensor([box]).expand(60, -1), torch.arange(60)
    scale = 1.0 if whole else 1 / 16
    return roi_pool(columns, boxes, image, (1, 1), scale).flatten().nonzero().flatten().tolist()


def test_roi_pooling_rounds_otherwise():
    """One window: 12 columns by their centres, 14 of RoI pooling, which rounds both sides."""
    box = [100.0, 100.0, 300.0, 300.0]
    assert pooled_columns(box, whole=False) == list(range(6, 20))
    own: Tensor = projected(torch.tensor([box]), 16, SIZE)[0]
    assert pooled_columns(own.tolist(), whole=True) == list(range(7, 19))


def test_no_box():
    assert projected(torch.zeros(0, 4), 16, SIZE).shape == (0, 4)
