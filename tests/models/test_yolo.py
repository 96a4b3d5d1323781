from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cnnctl.backbones.resnet import ResNet
from cnnctl.backbones.vgg import VGG
from cnnctl.models.detection import Truth
from cnnctl.models.yolo import YOLO, Grid, Said, decode, encode, stride_for
from cnnctl.structures import Images, Targets

BOXES = torch.tensor(
    [
        [[10, 20, 30, 60], [30.5, 30, 60, 50], [0, 0, 0, 0]],
        [[5, 5, 15, 19], [40, 3, 62, 60], [12, 40, 57, 63]],
        [[0, 0, 0, 0]] * 3,
    ]
)
LABELS = torch.tensor([[1, 4, -1], [0, 6, 3], [-1, -1, -1]])


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def images_of(pixels: Tensor) -> Images:
    sizes = [(pixels.shape[2], pixels.shape[3])] * len(pixels)
    return Images(pixels, sizes, list(sizes))


def frames(count: int, h: int, w: int) -> Images:
    return images_of(torch.zeros(count, 1, h, w))


def targets_of(boxes: Tensor, labels: Tensor) -> Targets:
    return Targets(torch.arange(len(boxes)), boxes=boxes, labels=labels)


def rules(num_classes: int = 2, **options: Any) -> Grid:
    """A model without weights: what it learns from and detects is given by hand."""
    with torch.device("meta"):
        return YOLO(ResNet(18), num_classes, (96, 96), **options)


@pytest.fixture(scope="module")
def small() -> YOLO:
    torch.manual_seed(0)
    return YOLO(ResNet(18), 7, (64, 64), width=16)


@pytest.mark.parametrize(
    ("size", "grid", "stride", "cells"),
    [
        ((448, 448), None, 64, (7, 7)),  # the paper's
        ((448, 448), 7, 64, (7, 7)),
        ((447, 600), None, 32, (14, 19)),
        ((224, 320), None, 32, (7, 10)),
        ((128, 128), None, 16, (8, 8)),
        ((96, 96), None, 8, (12, 12)),
        ((40, 60), None, 8, (5, 8)),
        ((96, 96), 7, 16, (7, 7)),  # stretched to 112 x 112
        ((96, 96), 12, 8, (12, 12)),
        ((96, 192), 6, 16, (6, 6)),
        ((64, 64), 2, 32, (2, 2)),
        ((16, 16), 2, 16, (2, 2)),  # a cell of 8 would leave nothing of the last map
    ],
)
@pytest.mark.parametrize("backbone", [ResNet, VGG])
def test_cells(size, grid, stride, cells, backbone):
    with torch.device("meta"):
        model = YOLO(backbone(18 if backbone is ResNet else 11), 4, size, grid).eval()
        said = model.said(torch.zeros(1, 3, *size))
    assert model.stride == stride
    assert said.shape == (1, *cells, 14)


def test_cells_keep_their_size_on_other_images():
    with torch.device("meta"):
        free, fixed = (YOLO(ResNet(18), 4, (96, 96), grid).eval() for grid in (None, 12))
        assert free.said(torch.zeros(1, 3, 90, 203)).shape == (1, 12, 26, 14)
        assert fixed.said(torch.zeros(1, 3, 90, 203)).shape == (1, 12, 12, 14)
    assert stride_for((96, 96), None) == stride_for((96, 96), 12) == 8


def test_code_by_hand():
    """Three columns and two rows over 120 x 100: cells of 40 x 50."""
    code, cell = encode(torch.tensor([[50.0, 55, 62, 80], [90, 75, 150, 125]]), (2, 3), (100, 120))
    # Centre (56, 67.5) is in column 1, row 1; (120, 100) is the corner, still of the last cell.
    assert cell.tolist() == [4, 5]
    expected = [[0.4, 0.35, math.sqrt(0.1), 0.5], [1.0, 1.0, math.sqrt(0.5), math.sqrt(0.5)]]
    torch.testing.assert_close(code, torch.tensor(expected))


def test_what_was_encoded_is_detected():
    """Of each box exactly one detection, in its place, of its class and with score 1."""
    grid, frame = (3, 4), (90, 120)
    boxes = torch.tensor(
        [
            [[2.0, 3, 20, 25], [40, 31, 55, 77], [0, 0, 0, 0]],
            [[61, 62, 119, 88], [5, 70, 9, 75], [0, 0, 120, 90]],
        ]
    )
    labels = torch.tensor([[1, 0, -1], [2, 2, 1]])
    code, cell = encode(boxes, grid, frame)
    said = Said(torch.zeros(2, 12, 2, 4), torch.zeros(2, 12, 2), torch.zeros(2, 12, 3), grid, frame)
    for image, row in (labels >= 0).nonzero().tolist():
        at = cell[image, row]
        said.code[image, at, row % 2] = code[image, row]
        said.confidence[image, at, row % 2] = 1
        said.classes[image, at, labels[image, row]] = 1
    model = rules(3)
    found = model.detect(said, frames(2, *frame))
    assert found.scores.tolist() == [[1, 1, 0], [1, 1, 1]]
    for image in range(2):
        wanted = [
            (label, [round(side) for side in box])
            for label, box in zip(labels[image].tolist(), boxes[image].tolist(), strict=True)
            if label >= 0
        ]
        seen = [
            (label, [round(side, 3) for side in box])
            for label, box in zip(
                found.labels[image].tolist(), found.boxes[image].tolist(), strict=True
            )
            if label >= 0
        ]
        assert sorted(seen) == sorted(wanted)
    losses = model.losses(said, frames(2, *frame), Truth(boxes, labels))
    assert {name: round(loss.item(), 6) for name, loss in losses.items()} == dict.fromkeys(
        ("box", "object", "background", "class"), 0.0
    )


def test_loss_of_one_cell_by_hand():
    """Equation 3: the first predictor overlaps the object by 1/2, the second by 1/100."""
    code = [[0.4, 0.5, math.sqrt(0.4), math.sqrt(0.2)], [0.5, 0.5, 0.2, 0.2]]
    said = Said(
        torch.tensor([[code]]),
        torch.tensor([[[0.9, 0.3]]]),
        torch.tensor([[[0.25, 0.5]]]),
        (1, 1),
        (100, 100),
    )
    truth = Truth(torch.tensor([[[20.0, 30, 60, 70]]]), torch.tensor([[1]]))
    assert decode(said.code, (1, 1), (100, 100))[0, 0].tolist() == [
        pytest.approx([20, 40, 60, 60]),
        pytest.approx([48, 48, 52, 52]),
    ]
    losses = rules().losses(said, frames(1, 100, 100), truth)
    assert {name: loss.item() for name, loss in losses.items()} == {
        "box": pytest.approx(5 * (math.sqrt(0.4) - math.sqrt(0.2)) ** 2),
        "object": pytest.approx((0.9 - 0.5) ** 2),
        "background": pytest.approx(0.5 * 0.3**2),
        "class": pytest.approx(0.25**2 + 0.5**2),
    }
    other = rules(coordinate=1.0, no_object=2.0).losses(said, frames(1, 100, 100), truth)
    assert other["box"] * 5 == pytest.approx(losses["box"].item())
    assert other["background"] == pytest.approx(2 * 0.3**2)


def test_the_nearest_is_responsible_where_none_overlaps():
    said = Said(
        torch.tensor([[[[0.9, 0.9, 0.1, 0.1], [0.5, 0.5, 0.1, 0.1]]]]),
        torch.tensor([[[0.5, 0.2]]]),
        torch.zeros(1, 1, 2),
        (1, 1),
        (100, 100),
    )
    truth = Truth(torch.tensor([[[0.0, 0, 10, 10]]]), torch.tensor([[0]]))
    losses = rules().losses(said, frames(1, 100, 100), truth)
    assert losses["object"] == pytest.approx(0.2**2)
    assert losses["background"] == pytest.approx(0.5 * 0.5**2)
    size = (0.1 - math.sqrt(0.1)) ** 2
    assert losses["box"] == pytest.approx(5 * (2 * 0.45**2 + 2 * size))


def test_a_cell_holds_one_object():
    """Of two with their centre in one cell the first is learnt; the others are counted, once."""
    model = rules()
    cell = torch.tensor([[3, 0, 3, 3], [0, 0, 3, 0]])
    labels = torch.tensor([[0, 1, 1, -1], [-1, 1, 0, 1]])
    with pytest.warns(UserWarning, match=r"2 of the first 6 objects .* model\.grid"):
        owners = model._owners(cell, labels, 4)
    assert owners.tolist() == [[1, -1, -1, 0], [1, -1, -1, 2]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model._owners(cell, labels, 4)
        fresh = rules().eval()
        fresh._owners(cell, labels, 4)  # validation is not counted
    assert not fresh.left_out.said


def test_scores_are_class_times_confidence():
    said = Said(
        torch.tensor([[[[0.5, 0.5, 0.5, 0.5], [0.2, 0.2, 0.1, 0.1]]]]),
        torch.tensor([[[0.5, -0.5]]]),
        torch.tensor([[[0.8, -0.7, 0.1]]]),
        (1, 1),
        (80, 80),
    )
    found = rules(3).detect(said, frames(1, 80, 80))
    assert found.labels.tolist() == [[0, 2]]  # not the second class, of which both are below 0
    torch.testing.assert_close(found.scores, torch.tensor([[0.4, 0.05]]))
    assert found.boxes[0].tolist() == [pytest.approx([30, 30, 50, 50])] * 2
    assert rules(3, score=0.1).detect(said, frames(1, 80, 80)).labels.tolist() == [[0]]


@pytest.mark.parametrize("rows", [3, 0])
def test_without_a_box(small, rows):
    """Only confidence is learnt, and nothing is NaN."""
    small.train().zero_grad()
    pixels = noise(2, 3, 64, 64)
    targets = targets_of(torch.zeros(2, rows, 4), torch.full((2, rows), -1))
    losses = small.loss(images_of(pixels), targets)
    assert losses["box"] == losses["object"] == losses["class"] == 0
    confidence = small.features(pixels).confidence
    torch.testing.assert_close(losses["background"], 0.5 * confidence.square().sum() / 2)
    torch.stack(list(losses.values())).sum().backward()
    for name, parameter in small.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_every_parameter_learns(small):
    small.train().zero_grad()
    losses = small.loss(images_of(noise(2, 3, 64, 64)), targets_of(BOXES[:2], LABELS[:2]))
    torch.stack(list(losses.values())).sum().backward()
    for name, parameter in small.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_one_image_is_the_batch():
    torch.manual_seed(0)
    model = YOLO(ResNet(18), 7, (64, 64), width=16, score=0.1)
    nn.init.normal_(model.head[-1].weight, std=0.05)  # pyright: ignore[reportArgumentType]
    model.eval()
    pixels = noise(3, 3, 60, 75)  # stretched to 64 x 80
    with torch.no_grad():
        losses, found = model.loss_and_predict(images_of(pixels), targets_of(BOXES, LABELS))
        single = [
            model.loss_and_predict(images_of(pixels[i : i + 1]), targets_of(BOXES[i:][:1], label))
            for i, label in enumerate(LABELS[:, None])
        ]
    assert found.boxes is not None
    assert found.labels is not None
    assert found.boxes.shape[1] > 3
    assert found.boxes[..., 2].max() <= 75
    assert found.boxes[..., 3].max() <= 60
    for name, loss in losses.items():
        mean = torch.stack([one[name] for one, _ in single]).mean()
        torch.testing.assert_close(loss, mean, rtol=1e-4, atol=1e-5)
    for row, (_, one) in enumerate(single):
        assert one.boxes is not None
        assert one.labels is not None
        count = one.labels.shape[1]
        assert found.labels[row, :count].tolist() == one.labels[0].tolist()
        torch.testing.assert_close(found.boxes[row, :count], one.boxes[0], rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grid": 0}, "grid must be at least 1, got 0"),
        ({"boxes": 0}, "boxes must be at least 1, got 0"),
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"detections": 0}, "detections must be at least 1, got 0"),
        ({"score": 1.5}, r"score must be from 0 to 1, got 1.5"),
        ({"overlap": -0.1}, r"overlap must be from 0 to 1, got -0.1"),
        ({"coordinate": 0.0}, "coordinate must be above 0 .* got 0 and 0.5"),
        ({"no_object": -1.0}, "no_object at least 0, got 5 and -1"),
    ],
)
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        rules(**options)
