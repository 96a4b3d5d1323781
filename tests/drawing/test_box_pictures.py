"""Pictures of detection by their pixels: where a line is, in which colour, and what is left out."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cnnctl.drawing import anchor_pictures, box_pictures, chart_pictures, detection_charts
from cnnctl.drawing.box_marks import WHITE, Mark, class_colours, marked, with_legend
from cnnctl.drawing.box_pictures import MISSED, SIDE, Seen, verdict
from cnnctl.drawing.chart_pictures import Detector
from cnnctl.drawing.pictures import BLACK, WRONG
from cnnctl.metrics.detection import DetectionEvaluator
from cnnctl.structures import Batch, Images, Predictions, Targets

CLASSES = ("cat", "dog")
PALETTE = ((0, 200, 255), (255, 0, 255))
CYAN, PINK = PALETTE
PAINT = (51, 102, 153)  # of an image; not grey, as the edges of letters are
MEAN = (0.2, 0.4, 0.6)
CHARTS = detection_charts.draw_charts  # slow: most tests do without


def painted(h: int, w: int) -> Tensor:
    return torch.tensor(PAINT, dtype=torch.uint8)[:, None, None].repeat(1, h, w)


def pixels_of(picture: Tensor, colour) -> Tensor:
    """(H, W) bool: where the picture has exactly that colour."""
    return (picture == torch.as_tensor(colour, dtype=torch.uint8)).all(2)


def extent(found: Tensor) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of what is True, the right and lower side exclusive."""
    rows, columns = found.nonzero().unbind(1)
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


def at(picture: Tensor, x: int, y: int) -> tuple[int, ...]:
    return tuple(picture[y, x].tolist())


def test_a_line_lies_inside_its_box_between_dark_ones():
    picture = marked(painted(100, 200), [Mark((20, 10, 60, 50), CYAN)], 200)
    assert picture.shape == (100, 200, 3)
    expected = torch.zeros(100, 200, dtype=torch.bool)
    expected[10:50, 20:60] = True
    expected[12:48, 22:58] = False
    assert torch.equal(pixels_of(picture, CYAN), expected)
    assert [at(picture, x, 30) for x in (18, 19, 22, 23)] == [PAINT, BLACK, BLACK, PAINT]
    assert [at(picture, 40, y) for y in (8, 9, 12, 13)] == [PAINT, BLACK, BLACK, PAINT]
    assert [at(picture, x, 30) for x in (56, 57, 60, 61)] == [PAINT, BLACK, BLACK, PAINT]


def test_a_thin_line_has_a_dark_one_beside_it_where_it_is_white():
    for colour, beside in ((WHITE, BLACK), (CYAN, PAINT)):
        picture = marked(painted(100, 200), [Mark((20, 10, 60, 50), colour, thin=True)], 200)
        assert [at(picture, x, 30) for x in (18, 19, 20, 21)] == [PAINT, beside, colour, PAINT]


def test_small_images_are_enlarged_by_whole_factors_and_boxes_with_them():
    image = torch.arange(3 * 8 * 8, dtype=torch.uint8).view(3, 8, 8)
    picture = marked(image, [Mark((2, 1, 6, 7), CYAN, thin=True)], 100)
    assert picture.shape == (96, 96, 3)
    assert extent(pixels_of(picture, CYAN)) == (24, 12, 72, 84)
    assert pixels_of(picture, CYAN).sum() == 2 * (48 + 72) - 4
    plain = marked(image, [], 100)
    assert torch.equal(plain[::12, ::12], image.permute(1, 2, 0))


@pytest.mark.parametrize(("h", "w", "side"), [(300, 600, 150), (60, 120, 150)])
def test_other_images_are_brought_to_the_side_and_boxes_with_them(h, w, side):
    box = (w / 4, h / 4, w / 2, h * 3 / 4)
    picture = marked(painted(h, w), [Mark(box, CYAN)], side)
    assert picture.shape == (75, 150, 3)
    assert extent(pixels_of(picture, CYAN)) == (38, 19, 75, 56)


@pytest.mark.parametrize(
    "box",
    [
        (math.nan, 1, 5, 5),
        (1, 1, math.inf, 5),
        (-50, 0, -10, 40),
        (200, 10, 240, 30),
        (10, 100, 20, 130),
    ],
)
def test_a_box_that_is_no_number_or_outside_is_left_out(box):
    picture = marked(painted(100, 200), [Mark(box, CYAN, "cat", hatched=True)], 200)
    assert pixels_of(picture, PAINT).all()


def test_a_box_that_reaches_outside_ends_at_the_edge():
    picture = marked(painted(100, 200), [Mark((-9e30, 40, 30, 1e30), CYAN)], 200)
    assert extent(pixels_of(picture, CYAN)) == (0, 40, 30, 100)
    assert at(picture, 0, 70) == at(picture, 15, 99) == CYAN


@pytest.mark.parametrize("box", [(20, 30, 20, 30), (20, 30, 20, 60), (20, 30, 5, 60)])
@pytest.mark.parametrize("dashed", [False, True])
def test_a_box_without_area_is_drawn_as_a_line(box, dashed):
    picture = marked(painted(100, 200), [Mark(box, CYAN, dashed=dashed)], 200)
    left, top, right, _ = extent(pixels_of(picture, CYAN))
    assert (left, top, right) == (20, 30, 21)


def test_a_dashed_line_has_dark_gaps():
    picture = marked(painted(100, 200), [Mark((20, 20, 180, 90), WRONG, dashed=True)], 200)
    top = [at(picture, x, 20) for x in range(20, 180)]
    period = [WRONG] * 8 + [BLACK] * 6
    assert top[:42] == period * 3
    left = [at(picture, 20, y) for y in range(20, 90)]
    assert left[:42] == period * 3
    assert [at(picture, x, 89) for x in range(20, 60)] == top[:40]  # the lower side alike


def test_a_crowd_is_hatched_inside_its_box_only():
    picture = marked(
        painted(100, 200), [Mark((20, 20, 80, 80), PINK, thin=True, hatched=True)], 200
    )
    found = pixels_of(picture, PINK)
    assert extent(found) == (20, 20, 80, 80)
    inside = found[21:79, 21:79]
    y, x = torch.meshgrid(torch.arange(21, 79), torch.arange(21, 79), indexing="ij")
    assert torch.equal(inside, (x + y) % 10 == 0)


def test_a_text_stands_above_its_box_on_the_boxes_colour():
    picture = marked(painted(100, 200), [Mark((20, 40, 120, 90), CYAN, "cat 0.50")], 200)
    label = pixels_of(picture[25:39], CYAN)
    assert label[:, 20:40].float().mean() > 0.5
    ink = (picture[25:39, 20:90].int().sum(2) < 150).sum()
    assert ink > 30  # black on a light colour
    assert not pixels_of(picture[:20], CYAN).any()


def test_a_text_at_the_upper_edge_is_inside_the_picture():
    picture = marked(painted(100, 200), [Mark((150, 0, 200, 60), CYAN, "a long name 0.50")], 200)
    found = pixels_of(picture, CYAN)
    assert extent(found)[2] == 200
    assert found[5:12, 80:150].float().mean() > 0.3  # moved to the left


def test_texts_do_not_cover_each_other():
    marks = [Mark((20, 40, 190, 90), PINK, "MMMM"), Mark((20, 40, 190, 90), CYAN, "MMMM")]
    picture = marked(painted(100, 200), marks, 200)
    for colour in (PINK, CYAN):  # a whole label of each, of which at least half is not ink
        assert pixels_of(picture, colour).float().sum() > 15 * 40 / 2
    one = marked(painted(100, 200), marks[1:], 200)
    assert torch.equal(picture[:40], one[:40])  # the last, the most important, has its own place


def test_of_a_hundred_tiny_boxes_few_texts_hide_the_image():
    boxes = [(x, y, x + 8, y + 8) for x in range(0, 400, 40) for y in range(0, 400, 40)]
    picture = marked(painted(400, 400), [Mark(box, CYAN, "pigeon 0.50") for box in boxes], 400)
    assert pixels_of(picture, PAINT).float().mean() > 0.8
    assert all(at(picture, x, y + 7) != PAINT for x, y, *_ in boxes)


def test_lines_and_texts_grow_with_a_photograph():
    image = painted(60, 80).repeat_interleave(40, 1).repeat_interleave(40, 2)
    said = {"detections": [{"class": "cat", "score": 0.5, "box": [1000, 800, 2000, 1600]}]}
    picture = box_pictures.annotated(image, said, CLASSES, PALETTE)
    line = pixels_of(picture[1200:1201], CYAN)[0]
    assert line.nonzero().flatten().tolist() == [*range(1000, 1011), *range(1989, 2000)]
    label = pixels_of(picture[700:799], CYAN)
    assert extent(label)[:2] == (1000, 11)  # 89 pixels high


def test_annotated_enlarges_small_images_and_counts_below():
    said = {
        "detections": [
            {"class": "dog", "score": 0.9, "box": [10.0, 20.0, 30.0, 40.0]},
            {"class": "dog", "score": 0.6, "box": [40.0, 20.0, 60.0, 40.0]},
            {"class": "owl", "score": 0.7, "box": [5.0, 50.0, 20.0, 60.0]},  # not of the classes
        ]
    }
    picture = box_pictures.annotated(painted(64, 64), said, CLASSES, PALETTE)
    assert picture.shape[1] == 640
    assert picture.shape[0] > 640
    found = pixels_of(picture[:640], PINK)
    assert at(picture, 100, 300) == at(picture, 299, 399) == PINK
    assert at(picture, 400, 300) == at(picture, 599, 399) == PINK
    assert not found[400:].any()
    assert at(picture, 50, 550) == WHITE
    assert pixels_of(picture[640:], PINK).any()  # the legend


def test_annotated_of_a_shrunk_copy_has_boxes_of_the_original():
    row = {"class": "cat", "score": 0.9, "box": [1000.0, 500.0, 2000.0, 1500.0]}
    said = {"detections": [row], "size": (2000, 4000)}
    picture = box_pictures.annotated(painted(320, 640), said, CLASSES, PALETTE)
    below = pixels_of(picture[:320], CYAN)
    assert extent(below[81:])[0::2] == (160, 320)
    assert extent(below)[3] == 240


@pytest.mark.parametrize("channels", [1, 3])
def test_nothing_found_is_said(channels):
    image = painted(64, 64)[:channels]
    picture = box_pictures.annotated(image, {"detections": []}, CLASSES, None)
    colour = (PAINT[0],) * 3 if channels == 1 else PAINT
    assert pixels_of(picture, colour).sum() == 640 * 640
    assert (picture[-40:] < 100).all(2).any()  # letters


def test_colours_of_classes_are_the_data_sets_or_bright_and_apart():
    assert class_colours(2, PALETTE) == list(PALETTE)
    assert class_colours(3, PALETTE)[:2] == list(PALETTE)
    colours = torch.tensor(class_colours(20)).float()
    apart = torch.cdist(colours, colours) + 1000 * torch.eye(20)
    assert apart.min() > 20
    said = torch.tensor([WRONG, MISSED]).float()
    assert torch.cdist(colours, said).min() > 60
    assert (colours @ torch.tensor([0.299, 0.587, 0.114])).min() > 90
    assert len(set(class_colours(1203))) > 900


def seen(truth: Any, boxes: Any, **more: Any) -> Seen:
    """Rows of (class, box) and of (class, score, box)."""
    plain = torch.tensor(more.get("plain", [True] * len(truth)), dtype=torch.bool)
    crowd = torch.tensor(more.get("crowd", [False] * len(truth)), dtype=torch.bool)
    return Seen(
        painted(100, 100),
        torch.tensor([box for _, box in truth], dtype=torch.float32).reshape(-1, 4),
        torch.tensor([k for k, _ in truth], dtype=torch.int64),
        plain,
        crowd,
        torch.tensor([box for *_, box in boxes], dtype=torch.float32).reshape(-1, 4),
        torch.tensor([k for k, *_ in boxes], dtype=torch.int64),
        torch.tensor([score for _, score, _ in boxes], dtype=torch.float32),
    )


A, B = (0, 0, 20, 20), (50, 50, 90, 90)


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        (seen([(0, A)], [(0, 0.9, A), (0, 0.8, A)]), ([1, 0], [0], [0, 1])),  # a duplicate
        (seen([(0, A)], [(1, 0.9, A)]), ([0], [1], [1])),  # of another class
        (seen([(0, A)], [(0, 0.4, A)]), ([0], [1], [0])),  # too unlikely to be drawn
        (seen([(0, A)], [(0, 0.9, (0, 0, 20, 10))]), ([1], [0], [0])),  # IoU exactly 0.5
        (seen([(0, A)], [(0, 0.9, (0, 0, 20, 9.9))]), ([0], [1], [1])),
        (seen([(0, B), (0, A)], [(0, 0.9, A)]), ([1], [1, 0], [0])),
        (seen([], [(0, 0.9, A)]), ([0], [], [1])),
        (seen([(0, A)], []), ([], [1], [])),
        (seen([], []), ([], [], [])),
        # What falls on a difficult object, or lies inside a crowd, is neither right nor false.
        (seen([(0, A)], [(0, 0.9, A)], plain=[0]), ([0], [0], [0])),
        (seen([(0, A)], [(1, 0.9, A)], plain=[0]), ([0], [0], [1])),
        (
            seen([(0, B)], [(0, 0.9, (60, 60, 65, 65))], plain=[0], crowd=[1]),
            ([0], [0], [0]),
        ),
        (seen([(0, B)], [(0, 0.9, (60, 60, 65, 65))], plain=[0]), ([0], [0], [1])),
    ],
)
def test_verdict(one, expected):
    assert tuple(part.int().tolist() for part in verdict(one, 0.5)) == expected


def test_the_verdict_agrees_with_the_evaluators_errors():
    generator = torch.Generator().manual_seed(3)
    for _ in range(20):
        corner = torch.rand(6, 2, generator=generator) * 60
        truth = torch.cat([corner, corner + 10 + 30 * torch.rand(6, 2, generator=generator)], 1)
        boxes = truth.repeat(2, 1) + torch.randn(12, 4, generator=generator) * 3
        labels = torch.randint(2, (6,), generator=generator)
        scores = torch.rand(12, generator=generator).sort(descending=True).values
        said = Predictions(None, None, boxes[None], scores[None], labels.repeat(2)[None])
        ignored = torch.rand(6, generator=generator) < 0.2
        targets = Targets(
            torch.zeros(1).long(),
            boxes=truth[None],
            labels=labels[None],
            crowd=torch.zeros(1, 6).bool(),
            difficult=ignored[None],
            area=torch.ones(1, 6),
        )
        evaluator = DetectionEvaluator(CLASSES)
        evaluator.update(said, targets)
        one = Seen(
            painted(9, 9), truth, labels, ~ignored, ignored & False, boxes, labels.repeat(2), scores
        )
        right, missed, false = verdict(one, 0.5)
        details = evaluator.details()
        assert int(right.sum()) == details["right"]
        assert int(false.sum()) == sum(details["errors"].values()) - details["errors"]["missed"]
        assert int(missed.sum()) == int((~ignored).sum()) - details["right"]


def a_batch() -> tuple[Batch, Any]:
    """Two images: 64 x 128 seen by the network as 32 x 64, and 32 x 32; padded to one size."""
    data = SimpleNamespace(classes=CLASSES, palette=PALETTE, mean=MEAN, std=(0.25,) * 3)
    images = Images(torch.zeros(2, 3, 32, 64), [(32, 64), (32, 32)], [(64, 128), (32, 32)])
    boxes = torch.zeros(2, 3, 4)
    boxes[0, 0] = torch.tensor([16.0, 16, 48, 48])
    boxes[0, 1] = torch.tensor([64.0, 16, 112, 48])
    labels = torch.tensor([[0, 1, -1], [-1, -1, -1]])
    none = torch.zeros(2, 3, dtype=torch.bool)
    area = boxes[..., 2:].prod(-1)
    targets = Targets(
        torch.arange(2), boxes=boxes, labels=labels, crowd=none, difficult=none, area=area
    )
    return Batch(images, targets), data


def test_a_training_batch_is_drawn_with_its_boxes():
    batch, data = a_batch()
    picture = box_pictures.draw_batch(batch, data)["train/batch"]
    left, top, *_ = extent(pixels_of(picture, PAINT))
    factor, middle = SIDE // 64, 8 + 5 + SIDE // 4  # of the first image; its upper edge
    assert (left, top) == (8 + 5, 8 + 5)  # of the second, which is as high as its cell
    cat = extent(pixels_of(picture[middle + 9 * factor :], CYAN))
    assert cat[0] == 13 + 8 * factor
    assert cat[2] == 13 + 24 * factor
    assert cat[3] == (24 - 9) * factor
    dog = extent(pixels_of(picture[middle + 9 * factor :], PINK))
    assert (dog[0], dog[2]) == (13 + 32 * factor, 13 + 56 * factor)


def test_crowds_are_hatched_and_difficult_boxes_thin_in_a_training_batch():
    batch, data = a_batch()
    plain = box_pictures.draw_batch(batch, data)["train/batch"]
    batch.targets.crowd = torch.tensor([[True, False, False], [False] * 3])
    batch.targets.difficult = torch.tensor([[False, True, False], [False] * 3])
    picture = box_pictures.draw_batch(batch, data)["train/batch"]
    assert pixels_of(picture, CYAN).sum() > 1.5 * pixels_of(plain, CYAN).sum()
    assert pixels_of(picture, PINK).sum() < 0.8 * pixels_of(plain, PINK).sum()
    assert picture.shape[0] > plain.shape[0]  # the legend says what they are


def predictions(*rows: tuple[int, float, tuple[float, ...]]) -> Predictions:
    """Of two images; the second has nothing."""
    count = len(rows)
    boxes, scores = torch.zeros(2, count, 4), torch.zeros(2, count)
    labels = torch.full((2, count), -1)
    for place, (k, score, box) in enumerate(rows):
        boxes[0, place], scores[0, place], labels[0, place] = torch.tensor(box), score, k
    return Predictions(boxes=boxes, scores=scores, labels=labels)


def evaluated(said: Predictions, charts: bool = False) -> dict[str, Tensor]:
    batch, data = a_batch()
    evaluator = DetectionEvaluator(CLASSES)
    evaluator.update(said, batch.targets)
    model: Any = nn.Conv2d(3, 4, 3)
    model.templates = lambda: None
    with mock.patch.object(detection_charts, "draw_charts", CHARTS if charts else lambda *_: {}):
        return box_pictures.draw_evaluation([(batch, said)], evaluator, model, data)


def test_an_evaluation_shows_what_is_found_false_and_missed():
    right, false = (0, 0.9, (16.0, 16, 48, 48)), (0, 0.8, (0.0, 48, 20, 64))
    drawn = evaluated(predictions(right, false, (1, 0.3, (64.0, 16, 112, 48))), charts=True)
    assert set(drawn) == {
        *("val/predictions", "val/mistakes", "val/confusion", "val/errors"),
        *("val/precision_recall", "val/scores", "val/sizes", "weights/first_layer"),
    }
    picture = drawn["val/predictions"][: SIDE + 30]  # without the legend
    factor, middle = SIDE // 64, 13 + SIDE // 4
    below = picture[middle + 9 * factor :]
    cat = extent(pixels_of(below, CYAN))
    assert (cat[0], cat[2], cat[3]) == (13 + 8 * factor, 13 + 24 * factor, 15 * factor)
    wrong = extent(pixels_of(picture[middle + 25 * factor :], WRONG))
    assert (wrong[0], wrong[2]) == (13, 13 + 10 * factor)
    missed = extent(pixels_of(below, MISSED))
    assert (missed[0], missed[2], missed[3]) == (13 + 32 * factor, 13 + 56 * factor, 15 * factor)
    assert not pixels_of(picture, PINK).any()  # below the threshold


def test_without_a_mistake_there_is_no_picture_of_mistakes():
    right = [(0, 0.9, (16.0, 16, 48, 48)), (1, 0.8, (64.0, 16, 112, 48))]
    drawn = evaluated(predictions(*right))
    assert "val/mistakes" not in drawn
    picture = drawn["val/predictions"][: SIDE + 30]
    for colour, there in ((CYAN, True), (PINK, True), (WRONG, False), (MISSED, False)):
        assert pixels_of(picture, colour).any() == there


def test_an_evaluation_without_any_detection_is_drawn():
    drawn = evaluated(predictions(), charts=True)
    both = drawn["val/predictions"][: SIDE + 30]
    assert pixels_of(both, MISSED).sum() > 500
    mistakes = drawn["val/mistakes"][: SIDE + 30]  # of the first image alone
    assert extent(pixels_of(mistakes, PAINT))[2] <= 13 + SIDE < extent(pixels_of(both, PAINT))[2]


def test_a_legend_flows_over_lines_and_shows_every_kind():
    picture = torch.zeros(10, 300, 3, dtype=torch.uint8)
    marks = [Mark((), (n + 1, 200, 255), f"class {n}") for n in range(12)]
    whole = with_legend(picture, marks)
    assert torch.equal(whole[:10], picture)
    for mark in marks:
        assert pixels_of(whole[10:], mark.colour).sum() == 18 * 18 - 12 * 12
    assert (whole[:, -4:][10:] == 255).all()
    assert torch.equal(with_legend(picture, []), picture)


def test_anchors_have_the_colour_of_their_box_and_negatives_are_dark():
    truth = torch.tensor([[10.0, 10, 40, 40], [60.0, 60, 90, 90]])
    anchors = torch.tensor([[12.0, 8, 42, 38], [58.0, 62, 88, 92], [5.0, 60, 25, 80], [0, 0, 9, 9]])
    matches = torch.tensor([0, 1, -2, -1])
    picture = anchor_pictures.draw_anchors(painted(100, 100), anchors, matches, truth)
    first, second = class_colours(2)
    edge, factor, half = 8 + 5 + 20, 6, picture.shape[1] // 2  # 640 holds 6 x 100
    left, right = picture[: edge + 600, :half], picture[: edge + 600, half:]
    own = extent(pixels_of(left, first))
    assert own == (edge + 10 * factor, edge + 8 * factor, edge + 42 * factor, edge + 40 * factor)
    other = extent(pixels_of(left, second))
    assert other[1] == edge + 60 * factor
    assert other[3] == edge + 92 * factor
    undecided = extent(pixels_of(right, anchor_pictures.UNDECIDED))
    assert undecided[2] - undecided[0] == undecided[3] - undecided[1] == 20 * factor
    negative = pixels_of(right, anchor_pictures.NEGATIVE)
    assert negative.sum() == 4 * 9 * factor - 4
    assert not pixels_of(left, anchor_pictures.NEGATIVE).any()


def test_anchors_that_reach_outside_have_a_margin():
    anchors = torch.tensor([[-10.0, 5, 30, 45]])
    truth = torch.tensor([[0.0, 5, 30, 45]])
    picture = anchor_pictures.draw_anchors(
        painted(100, 100), anchors, torch.zeros(1).long(), truth, ["cat"]
    )
    half = picture[:, : picture.shape[1] // 2]
    edge, factor = 8 + 5 + 20, 5  # 640 holds 5 x 120, of which 10 are the margin on each side
    outside = pixels_of(half, anchor_pictures.OUTSIDE)
    assert extent(outside) == (edge, edge, edge + 120 * factor, edge + 120 * factor)
    assert extent(pixels_of(half, class_colours(1)[0]))[0] == edge


@pytest.mark.parametrize("boxes", [0, 1])
def test_anchors_without_truth_or_without_anchors(boxes):
    truth = torch.tensor([[0.0, 0, 9, 9]])[:boxes]
    none = torch.zeros(0).long()
    picture = anchor_pictures.draw_anchors(painted(20, 20), torch.zeros(0, 4), none, truth)
    assert pixels_of(picture, class_colours(1)[0]).any() == bool(boxes)


def test_proposals_are_yellow_where_they_are_likely():
    boxes = torch.tensor([[10.0, 10, 30, 30], [60.0, 60, 90, 90]])
    picture = anchor_pictures.draw_proposals(painted(100, 100), boxes, torch.tensor([0.1, 0.9]))
    edge, factor = 8 + 5 + 20, 6
    likely, unlikely = pixels_of(picture, (255, 230, 30)), pixels_of(picture, (40, 60, 220))
    assert extent(likely[edge + 60 * factor :])[0::2] == (edge + 60 * factor, edge + 90 * factor)
    assert extent(unlikely)[0::2] == (edge + 10 * factor, edge + 30 * factor)
    for count in (0, 1):
        shown = anchor_pictures.draw_proposals(painted(99, 99), boxes[:count], torch.ones(count))
        assert pixels_of(shown, (255, 230, 30)).any() == bool(count)


def test_bars_of_errors_are_as_long_as_their_counts():
    picture = chart_pictures.errors({"localisation": 50, "background": 100, "missed": 0}, 10)
    red = pixels_of(picture, (204, 41, 32)).sum(1)
    lengths = red[red > 0].unique_consecutive()
    lengths = lengths[lengths > 50]
    assert float(lengths.max() / lengths.min()) == pytest.approx(2, rel=0.02)
    assert int(red.argmax()) > int((red > 50).int().argmax()) + 30  # the first kind on top


def test_a_perfect_class_is_a_line_along_the_upper_edge():
    curve = ([0.5, 1.0], [1.0, 1.0])
    picture = chart_pictures.precision_recall({"cat": curve}, {"cat": 1.0}, {"cat": (0, 90, 190)})
    rows = pixels_of(picture, (0, 90, 190)).sum(1)
    assert int(rows.max()) > 500
    assert int(rows.argmax()) < 80
    for few in ({}, {"cat": ([], [])}, {"cat": ([0.0], [0.0])}):
        assert chart_pictures.precision_recall(few, {}, {}).shape[2] == 3


def test_of_many_classes_the_best_and_the_worst_are_named():
    curves = {f"c{n}": ([n / 80], [1.0]) for n in range(80)}
    ap = {f"c{n}": n / 80 for n in range(80)}
    few = chart_pictures.precision_recall(dict(list(curves.items())[:20]), ap, {})
    many = chart_pictures.precision_recall(curves, ap, {})
    grey = (184, 184, 184)
    assert pixels_of(many, grey).sum() > 100 + 10 * pixels_of(few, grey).sum()


@pytest.mark.parametrize("log", [False, True])
def test_a_histogram_has_bars_in_proportion(log):
    picture = chart_pictures.histogram(
        {"right": [0, 80, 0, 0], "false": [0, 0, 0, 40]}, [0, 1, 2, 3, 4], "t", "score", log=log
    )
    body = picture[100:]  # below the legend
    green, red = pixels_of(body, (26, 140, 80)).sum(0), pixels_of(body, (204, 41, 32)).sum(0)
    assert int((green > 50).nonzero().max()) < int((red > 50).nonzero().min())
    assert (green.max() > red.max()) or log


def test_the_front_holds_what_nothing_else_beats():
    rows = [("a", 10, 0.2), ("b", 20, 0.1), ("c", 30, 0.4), ("d", 30, 0.3), ("e", 90, 0.4)]
    detectors = [Detector(name, ms, ap, 1e6) for name, ms, ap in rows]
    assert [one.name for one in chart_pictures.front(detectors)] == ["a", "c"]


def test_speed_and_accuracy_are_points_of_the_size_of_their_networks():
    small, large = Detector("ssdlite", 10, 0.2, 3e6), Detector("yolo_v1", 20, 0.1, 60e6)
    picture = chart_pictures.speed_accuracy([small, large], "COCO AP")
    green = torch.tensor([26, 140, 80]).float() * 0.75 + 255 * 0.25
    blue = torch.tensor([74, 127, 181]).float() * 0.75 + 255 * 0.25
    first, second = ((picture - one).abs().amax(2) < 3 for one in (green, blue))
    assert 5 < int(second.sum()) / int(first.sum()) < 15  # (80 + 900) / (80 + 45), less edges
    (x0, y0), (x1, y1) = (np.mean(found.nonzero().numpy()[:, ::-1], 0) for found in (first, second))
    assert x0 < x1  # faster is on the left
    assert y0 < y1  # better is above
    unknown = Detector("x", 0, math.nan, 0)
    assert chart_pictures.speed_accuracy([unknown]).shape == chart_pictures.speed_accuracy([]).shape
    assert chart_pictures.speed_accuracy([small]).shape == picture.shape


def test_drawing_draws_no_random_number():
    state = torch.get_rng_state()
    nn.Conv2d(3, 4, 3)  # the model of ``evaluated`` draws
    after = torch.get_rng_state()
    torch.set_rng_state(state)
    evaluated(predictions((0, 0.9, (16.0, 16, 48, 48))))
    assert torch.equal(torch.get_rng_state(), after)
