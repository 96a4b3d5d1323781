"""Curves of several runs: what is drawn where."""

from __future__ import annotations

import matplotlib.figure
import pytest
import torch

from cnnctl.drawing import curve_pictures
from cnnctl.drawing.curve_pictures import Curves, error_curves, highest

DEEP = Curves("depth 56", "plain", [1, 2, 3], [0.9, 0.5, 0.4], [0.95, 0.6, 0.5], test=0.52)
FLAT = Curves("depth 20", "plain", [1, 2, 3], [0.8, 0.3, 0.2], [0.85, 0.4, 0.3])
SKIP = Curves("depth 56", "residual", [1, 2, 3], [0.7, 0.2, 0.1], [0.75, 0.3, 0.2])


def test_the_axis_ends_above_all_but_the_first_third():
    assert highest([DEEP, FLAT, SKIP]) == pytest.approx(1.1 * 0.6)
    assert highest([SKIP]) == pytest.approx(1.1 * 0.3)
    assert highest([Curves("x", "", [1, 2], [0.999, 0.98], [1.0, 0.97])]) == 1.0
    nothing = Curves("x", "", [1, 2], [0.0, 0.0], [0.0, float("nan")])
    assert highest([nothing]) == pytest.approx(0.011)


def test_a_panel_for_each_kind_and_a_colour_for_each_name(monkeypatch):
    drawn: list[matplotlib.figure.Figure] = []
    original = curve_pictures.pictures._drawn

    def keep(axes):
        drawn.append(axes.get_figure(root=True))
        return original(axes)

    monkeypatch.setattr(curve_pictures.pictures, "_drawn", keep)
    picture = error_curves([FLAT, DEEP, SKIP])
    assert picture.dtype == torch.uint8
    assert picture.shape == (460, 1180, 3)
    plain, residual = drawn[0].axes
    assert [axes.get_title() for axes in (plain, residual)] == ["plain", "residual"]
    assert [len(axes.lines) for axes in (plain, residual)] == [5, 2]  # the dot is a line too
    dashed, solid, *_ = plain.lines[2:]
    assert (dashed.get_linestyle(), solid.get_linestyle()) == ("--", "-")
    assert list(dashed.get_ydata()) == pytest.approx([90, 50, 40])  # pyright: ignore
    assert list(solid.get_ydata()) == pytest.approx([95, 60, 50])  # pyright: ignore
    assert list(plain.lines[4].get_ydata()) == [52.0]  # pyright: ignore
    assert {line.get_color() for line in plain.lines[2:]} == {"C1"}
    assert {line.get_color() for line in residual.lines} == {"C1"}  # the same depth
    assert plain.get_ylim() == residual.get_ylim() == pytest.approx((0, 66))
