"""Recall of proposals, drawn: what lies where."""

from __future__ import annotations

import matplotlib.figure
import pytest
import torch

from cnnctl.drawing import recall_pictures
from cnnctl.metrics.proposal_recall import IOUS, Recall


def recall(counts: tuple[int, ...], best: float) -> Recall:
    """More proposals find more, up to ``best``; a higher IoU less."""
    rows = [
        [best * (place + 1) / len(counts) * (1.3 - iou) for iou in IOUS]
        for place in range(len(counts))
    ]
    return Recall(counts, IOUS, torch.tensor(rows), torch.zeros(len(counts)), 1, 1, counts[-1])


@pytest.fixture
def drawn(monkeypatch) -> list[matplotlib.figure.Figure]:
    kept: list[matplotlib.figure.Figure] = []
    original = recall_pictures.pictures._drawn

    def keep(axes):
        kept.append(axes.get_figure(root=True))
        return original(axes)

    monkeypatch.setattr(recall_pictures.pictures, "_drawn", keep)
    return kept


def test_a_colour_for_each_method_and_a_style_for_each_number(drawn):
    methods = {
        "selective search": recall((1, 10, 100, 1000, 1700), 1.0),
        "edge boxes": recall((1, 10, 60), 0.9),
    }
    picture = recall_pictures.recall_curves(methods)
    assert picture.dtype == torch.uint8
    assert picture.shape == (460, 1180, 3)
    left, right = drawn[0].axes
    assert left.get_xscale() == "log"
    first, second = left.lines
    assert list(first.get_xdata()) == [1, 10, 100, 1000, 1700]  # pyright: ignore
    assert list(first.get_ydata()) == pytest.approx([16, 32, 48, 64, 80])  # pyright: ignore
    assert (first.get_color(), second.get_color()) == ("C0", "C1")
    shown = [(line.get_color(), line.get_linestyle()) for line in right.lines]
    assert shown == [
        ("C0", "-"),
        ("C0", "-."),
        ("C0", ":"),
        ("C0", "--"),
        ("C1", "-"),
        ("C1", "-."),
    ]
    assert list(right.lines[0].get_xdata()) == list(IOUS)  # pyright: ignore
    assert right.lines[0].get_ydata()[0] == pytest.approx(80)  # pyright: ignore
    names = [text.get_text() for text in left.get_legend().get_texts()]  # pyright: ignore
    assert names == ["selective search", "edge boxes"]


def test_nothing_and_no_proposal_are_drawn_too():
    assert recall_pictures.recall_curves({}).shape == (460, 1180, 3)
    none = Recall((0,), IOUS, torch.zeros(1, 9), torch.zeros(1), 1, 0, 0)
    assert recall_pictures.recall_curves({"none": none}).shape == (460, 1180, 3)
