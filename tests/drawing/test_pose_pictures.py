"""Pictures of figures by their pixels, and what task=pose says of a prediction."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cnnctl.drawing.box_marks import WHITE
from cnnctl.drawing.pictures import BLACK
from cnnctl.drawing.pose_pictures import Figure, Seen, annotated, compared, draw_batch, with_figures
from cnnctl.skeleton import Skeleton
from cnnctl.structures import Batch, Images, Predictions, Targets
from cnnctl.tasks.pose import pose

THREE = Skeleton(("head", "hand", "foot"), ((0, 1), (0, 2)), (), (0.1,) * 3, (0, 2))
CYAN, PINK = (0, 200, 255), (255, 0, 255)
GREY = torch.full((3, 100, 200), 90, dtype=torch.uint8)
DATA: Any = SimpleNamespace(
    classes=("cat", "dog"), palette=(CYAN, PINK), mean=(0.5,) * 3, std=(0.25,) * 3, skeleton=THREE
)


def is_colour(picture: torch.Tensor, colour) -> torch.Tensor:
    return (picture == torch.tensor(colour, dtype=torch.uint8)).all(2)


def test_sticks_and_points_are_where_they_are_said_in_a_larger_picture():
    picture = torch.full((200, 400, 3), 90, dtype=torch.uint8)
    figure = Figure([(10, 50, 2), (60, 50, 1), (90, 90, 0)], CYAN)
    drawn = with_figures(picture, GREY, [figure], THREE)
    assert drawn.shape == (200, 400, 3)
    cyan = is_colour(drawn, CYAN)
    assert cyan[100, 26:112].all()  # the stick, twice as far and as long
    assert cyan[100, 20]
    assert is_colour(drawn, BLACK)[100, 120]  # a ring: hidden
    assert not cyan[150:].any()  # no point there, so no stick
    assert is_colour(drawn, BLACK)[95:106, 60].sum() == 2  # an edge each way
    far = Figure([(float("nan"), 0, 2), (float("inf"), 3, 2), (-1e9, 5, 2)], CYAN)
    assert torch.equal(with_figures(picture, GREY, [far], THREE), picture)


def test_later_figures_are_on_top_and_thin_ones_are_thinner():
    figures = [Figure([(10, 50, 2), (90, 50, 2), (0, 0, 0)], c) for c in (CYAN, PINK)]
    drawn = with_figures(GREY.permute(1, 2, 0), GREY, figures, THREE)
    assert is_colour(drawn, PINK)[50, 20:80].all()
    assert not is_colour(drawn, CYAN).any()
    thin = with_figures(
        GREY.permute(1, 2, 0), GREY, [Figure(figures[0].points, CYAN, thin=True)], THREE
    )
    wide = with_figures(GREY.permute(1, 2, 0), GREY, figures[:1], THREE)
    assert is_colour(thin, CYAN).sum() < is_colour(wide, CYAN).sum()


def test_only_sure_figures_are_compared_with_the_truth():
    points = torch.tensor([[[10.0, 20, 2], [50, 20, 2], [10, 60, 2]]])
    found = torch.stack([points[0] + torch.tensor([5.0, 5, 0])] * 2)
    one = Seen(
        GREY,
        points,
        torch.tensor([[10.0, 20, 50, 60]]),
        torch.tensor([0]),
        found,
        torch.tensor([1, 0]),
        torch.tensor([0.9, 0.3]),
    )
    drawn = compared([one], DATA, 0.5)
    assert is_colour(drawn, PINK).sum() > 200
    assert is_colour(drawn, WHITE).any()
    none = Seen(GREY, points[:0], torch.zeros(0, 4), torch.zeros(0).long(), *_nothing())
    assert not is_colour(compared([none], DATA, 0.5), PINK).any()


def _nothing() -> tuple[torch.Tensor, ...]:
    return torch.zeros(0, 3, 3), torch.zeros(0).long(), torch.zeros(0)


def test_a_training_batch():
    keypoints = torch.tensor([[[[5.0, 5, 2], [20, 5, 2], [5, 20, 1]], [[0.0, 0, 0]] * 3]])
    targets = Targets(
        torch.tensor([0]),
        boxes=torch.tensor([[[5.0, 5, 20, 20], [0, 0, 0, 0]]]),
        labels=torch.tensor([[1, -1]]),
        keypoints=keypoints,
    )
    images = Images(torch.zeros(1, 3, 32, 32), [(32, 32)], [(32, 32)])
    drawn = draw_batch(Batch(images, targets), DATA)
    assert list(drawn) == ["train/batch"]
    assert is_colour(drawn["train/batch"], PINK).sum() > 200
    assert not is_colour(drawn["train/batch"], CYAN).any()


def test_a_prediction_names_its_points_and_is_drawn():
    said = Predictions(
        boxes=torch.tensor([[[10.0, 20, 50, 60], [0, 0, 9, 9]]]),
        scores=torch.tensor([[0.9, 0.2]]),
        labels=torch.tensor([[1, 0]]),
        keypoints=torch.tensor([[[[10.0, 20, 0.5], [50, 20, 0.1], [10, 60, 0.9]]] * 2]),
    )
    plain = pose()
    assert plain.knowing is not None
    task = plain.knowing(DATA)
    (description,) = task.describe(said, DATA.classes, 5)
    (row,) = description["detections"]
    assert row["class"] == "dog"
    assert row["keypoints"]["hand"] == [50, 20, pytest.approx(0.1)]
    assert list(row["keypoints"]) == ["head", "hand", "foot"]
    assert task.headline(description) == "dog 90%"
    description["size"] = [200, 400]  # the image is half as large as the points' pixels
    drawn = task.annotate(GREY, description, DATA.classes, DATA.palette)
    again = annotated(GREY, description, DATA.classes, DATA.palette, THREE)
    assert torch.equal(drawn, again)
    assert is_colour(drawn, PINK).sum() > 200
    empty = task.annotate(GREY, {"detections": []}, DATA.classes, DATA.palette)
    assert not is_colour(empty, PINK).any()


def test_what_is_refused():
    with pytest.raises(ValueError, match="shown"):
        pose(shown=1.0)
