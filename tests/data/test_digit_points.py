"""Points of digit scenes: corners and centre of each digit's own rectangle."""

from __future__ import annotations

import math

import pytest
import torch

from cnnctl.data.digit_points import SKELETON, DigitPoints, corners_of, points_of
from cnnctl.data.digit_rectangles import rectangles, turned
from cnnctl.data.digit_scenes import DigitScenes


@pytest.fixture(scope="module")
def data() -> DigitPoints:
    return DigitPoints("train", size=64, digits=(2, 4), scale=(0.3, 0.6), train_images=60)


def test_corners_of_a_rectangle_by_hand():
    placed = torch.tensor([[[10.0, 20.0, 4.0, 8.0, 0.0], [10.0, 20.0, 4.0, 8.0, math.pi / 2]]])
    upright, lying = corners_of(placed)[0]
    assert upright.tolist() == [[8, 16], [12, 16], [12, 24], [8, 24], [10, 20]]
    # A quarter turn clockwise: what was the top left is the top right.
    expected = torch.tensor([[14.0, 18], [14, 22], [6, 22], [6, 18], [10, 20]])
    torch.testing.assert_close(lying, expected)


def test_points_are_hidden_by_later_digits_and_none_outside():
    placed = torch.tensor([[[2.0, 5.0, 6.0, 4.0, 0.0], [4.5, 4.5, 1.0, 5.0, 0.0]]])
    instances = torch.zeros(1, 10, 10, dtype=torch.uint8)
    instances[0, 4:7, 4:6] = 2
    instances[0, 5, 2] = 1
    first, second = points_of(placed, instances)[0]
    assert first[:, 2].tolist() == [0, 2, 2, 0, 2]  # the left is 1 pixel outside
    assert first[0].tolist() == [0, 0, 0]
    assert second[:, 2].tolist() == [2] * 5  # its own ink hides nothing
    instances[0, 3, 5] = 2
    placed[0, 0, 3] = 3  # the top right is at (5, 3.5) now
    assert points_of(placed, instances)[0, 0, 1].tolist() == [5, 3.5, 1]


def test_the_rectangle_is_tight_around_the_ink_as_it_is_drawn():
    """Of digits that nothing covers, turned back by the angle that they were drawn with."""
    data = DigitPoints("train", size=96, digits=(1, 1), scale=(0.4, 0.7), train_images=40)
    instances, placed = data.scenes.instances, data.scenes.placed
    for scene in range(40):
        y, x = (line + 0.5 for line in torch.nonzero(instances[scene], as_tuple=True))
        cx, cy, width, height, angle = placed[scene, 0].tolist()
        across = (x - cx) * math.cos(angle) + (y - cy) * math.sin(angle)
        down = (y - cy) * math.cos(angle) - (x - cx) * math.sin(angle)
        # Within a pixel: its half, its turned half, and the step at which ink was looked for.
        for found, side in ((across, width), (down, height)):
            assert abs(float(found.min()) + side / 2) < 1.5
            assert abs(float(found.max()) - side / 2) < 1.5


def test_rectangles_of_glyphs():
    glyph = torch.zeros(1, 1, 8, 8)
    glyph[0, 0, 2:6, 3:5] = 1.0  # a quarter of the width, half of the height, in the middle
    torch.testing.assert_close(
        rectangles(glyph), torch.tensor([[-0.25, -0.5, 0.25, 0.5]]), atol=0.03, rtol=0
    )
    inked = torch.tensor([[[-0.5, -1.0, 1.0, 1.0]]])
    place, size = torch.tensor([[[50.0, 50.0]]]), torch.tensor([[[8.0, 16.0]]])
    found = turned(inked, place, size, torch.zeros(1, 1))
    assert found.tolist() == [[[51, 50, 6, 16, 0]]]
    found = turned(inked, place, size, torch.full((1, 1), math.pi / 2))
    torch.testing.assert_close(found[0, 0, :4], torch.tensor([50.0, 51, 6, 16]))


def test_rows_are_those_that_are_seen_and_points_lie_in_their_boxes(data: DigitPoints):
    fewer = 0
    for index in range(len(data)):
        truth = data[index][1]
        points, boxes = truth["keypoints"], truth["boxes"]
        assert points.shape == (len(boxes), 5, 3)
        numbers = data.scenes.instances[index].unique()
        numbers = numbers[numbers > 0] - 1
        assert truth["labels"].tolist() == data.scenes.labels[index][numbers.long()].tolist()
        fewer += len(numbers) < int((data.scenes.labels[index] >= 0).sum())
        expected = points_of(data.scenes.placed[index][None], data.scenes.instances[index][None])
        assert torch.equal(points, expected[0, numbers.long()])
        inside = (points[..., :2] >= boxes[:, None, :2]) & (points[..., :2] <= boxes[:, None, 2:])
        assert (inside.all(2) | (points[..., 2] == 0)).all()
        assert truth["swap"].tolist() == [1, 0, 3, 2, 4] == SKELETON.mirrored().tolist()
    columns = data.columns()
    assert not columns["keypoints"][columns["labels"] < 0].any()
    assert not columns["boxes"][columns["labels"] < 0].any()


def test_it_is_what_digit_scenes_serves_and_pixels_are_the_same(data: DigitPoints):
    assert DigitScenes.serving(("boxes", "keypoints")) is DigitPoints
    assert DigitPoints.serving(("boxes", "keypoints")) is DigitPoints
    assert DigitPoints.option() == "digit_scenes"
    scenes = DigitScenes("train", size=64, digits=(2, 4), scale=(0.3, 0.6), train_images=60)
    assert torch.equal(data.pixels, scenes.pixels)
