"""Bars of templates, pixel by pixel."""

from __future__ import annotations

import torch

from cnnctl.drawing.template_pictures import draw_templates, edges
from cnnctl.models.base import Templates


def test_a_bar_lies_across_its_gradient():
    """Four orientations of half a turn: the middles are at 22.5, 67.5, 112.5 and 157.5 degrees from
    dark on the left to bright on the right, downwards."""
    bars = edges(4)
    assert bars.shape == (4, 20, 20)
    assert set(bars.unique().tolist()) == {0.0, 1.0}
    y, x = (
        axis - 9.5 for axis in torch.meshgrid(torch.arange(20), torch.arange(20), indexing="ij")
    )
    for bar, steep in zip(bars, (True, False, False, True), strict=True):
        inside = bar > 0
        assert inside.any(1 if steep else 0).sum() == 18, "nearly from side to side"
        assert 30 <= inside.sum() <= 48
    # A gradient to the right and a little down: the edge leans to the left on its way down.
    inside = bars[0] > 0
    assert x[inside & (y > 5)].mean() < 0 < x[inside & (y < -5)].mean()
    torch.testing.assert_close(bars[0].flip(1), bars[3])
    torch.testing.assert_close(edges(8, turn=1.0)[:4], edges(4))


def test_templates_are_drawn_cell_by_cell():
    weights = torch.zeros(2, 9, 3, 2)
    weights[0, 4, 1, 0] = 2.0  # of nine the middle one: a gradient downwards, an edge across
    weights[0, 2, 2, 1] = -1.0  # speaks against it
    picture = draw_templates(Templates(weights), ["one", "none"])
    assert picture is not None
    assert picture.dtype == torch.uint8
    drawn = picture[..., 0] == 255
    black = (picture == 0).all(2)
    rows, columns = black.nonzero().unbind(1)
    top, left = int(rows.min()), int(columns.min())
    scale = 3  # 60 x 40 pixels in a square of 200: three times as large
    cell = 20 * scale
    inside = drawn[top : top + 3 * cell, left : left + 2 * cell]
    assert inside[cell : 2 * cell, :cell].any(1).nonzero().flatten().tolist() == [*range(27, 33)]
    inside = inside.clone()
    inside[cell : 2 * cell, :cell] = False
    assert not inside.any()
    assert draw_templates(None, []) is None
