from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS as TorchvisionFCOS
from torchvision.models.detection import fcos_resnet50_fpn
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import generalized_box_iou_loss
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from cnnctl.backbones.resnet import ResNet
from cnnctl.models import published_detectors
from cnnctl.models.detection import Truth
from cnnctl.models.fcos import FCOS, Said, centreness, giou_loss
from cnnctl.structures import Images, Predictions, Targets

BOXES = torch.tensor(
    [
        [[10, 20, 50, 60], [30.5, 30, 100, 90], [0, 0, 0, 0]],
        [[5, 5, 15, 19], [60, 3, 90, 80], [12, 40, 77, 93]],
        [[0, 0, 0, 0]] * 3,
    ]
)
LABELS = torch.tensor([[1, 4, -1], [0, 6, 3], [-1, -1, -1]])
HEAD = "head.classification_head.cls_logits"


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def images_of(pixels: Tensor) -> Images:
    sizes = [(pixels.shape[2], pixels.shape[3])] * len(pixels)
    return Images(pixels, sizes, list(sizes))


def targets_of(boxes: Tensor, labels: Tensor) -> Targets:
    return Targets(torch.arange(len(boxes)), boxes=boxes, labels=labels)


def columns(found: Predictions) -> tuple[Tensor, Tensor, Tensor]:
    assert found.boxes is not None
    assert found.scores is not None
    assert found.labels is not None
    return found.boxes, found.scores, found.labels


def decided(head: Any) -> None:
    """Random weights with which some scores are high, and no two alike."""
    torch.manual_seed(3)
    nn.init.normal_(head.classification_head.cls_logits.weight, std=0.05)
    nn.init.normal_(head.regression_head.bbox_reg.weight, std=0.05)
    nn.init.constant_(head.classification_head.cls_logits.bias, -2.0)


@pytest.fixture(scope="module")
def small() -> FCOS:
    torch.manual_seed(0)
    return FCOS(ResNet(18), 7, (96, 96), width=32)


@pytest.fixture(scope="module")
def pair() -> tuple[FCOS, Any]:
    """Ours and torchvision's with the same weights, at all five levels."""
    torch.manual_seed(0)
    body = resnet_fpn_backbone(
        backbone_name="resnet18",
        weights=None,
        norm_layer=nn.BatchNorm2d,
        trainable_layers=5,
        returned_layers=[2, 3, 4],
        extra_blocks=LastLevelP6P7(256, 256),
    )
    theirs = TorchvisionFCOS(
        body, 7, min_size=96, max_size=128, image_mean=[0.0] * 3, image_std=[1.0] * 3
    )
    decided(theirs.head)
    ours = FCOS(ResNet(18), 7, (96, 128), coarse=True, width=256)
    ours.load_state_dict(theirs.state_dict())  # strictly
    return ours.eval(), theirs.eval()


def test_names_of_weights_are_torchvisions():
    with torch.device("meta"):
        theirs = fcos_resnet50_fpn(weights_backbone=None, num_classes=9)
        ours = FCOS(ResNet(50), 9, (800, 1333))
    shapes = [
        {name: value.shape for name, value in model.state_dict().items()}
        for model in (theirs, ours)
    ]
    assert shapes[0] == shapes[1]


def test_losses_are_torchvisions(pair):
    """Which divides by the positions of the batch: here image by image, and then the mean."""
    ours, theirs = pair
    pixels = noise(3, 3, 96, 128)
    features = list(theirs.backbone(pixels).values())
    said = theirs.head(features)
    anchors = theirs.anchor_generator(ImageList(pixels, [(96, 128)] * 3), features)
    counts = [level.shape[2] * level.shape[3] for level in features]
    each = []
    for i, labels in enumerate(LABELS):
        truth = {"boxes": BOXES[i][labels >= 0], "labels": labels[labels >= 0]}
        own = {name: value[i : i + 1] for name, value in said.items()}
        each.append(theirs.compute_loss([truth], own, anchors[i : i + 1], counts))
    losses = ours.loss(images_of(pixels), targets_of(BOXES, LABELS))
    assert losses.keys() == {"class", "box", "centreness"}
    for name, own in zip(
        ("classification", "bbox_regression", "bbox_ctrness"), losses.values(), strict=True
    ):
        expected = torch.stack([one[name] for one in each]).mean()
        torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-6)


def test_detections_are_torchvisions(pair):
    ours, theirs = pair
    pixels = noise(2, 3, 96, 128)
    with torch.no_grad():
        expected = theirs(list(pixels))
        boxes, scores, labels = columns(ours.predict(images_of(pixels)))
    for row, wanted in enumerate(expected):
        count = len(wanted["labels"])
        assert count > 20
        assert int((labels[row] >= 0).sum()) == count
        assert labels[row, :count].tolist() == wanted["labels"].tolist()
        torch.testing.assert_close(scores[row, :count], wanted["scores"])
        torch.testing.assert_close(boxes[row, :count], wanted["boxes"], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("size", "maps", "coarse", "levels"),
    [
        ((800, 1333), ("c3", "c4", "c5"), None, [3, 4, 5, 6, 7]),
        ((255, 600), ("c3", "c4", "c5"), None, [3, 4, 5]),
        ((96, 96), ("c2", "c3"), True, [2, 3, 4, 5]),
    ],
)
def test_levels(size, maps, coarse, levels):
    with torch.device("meta"):
        model = FCOS(ResNet(18), 3, size, maps, coarse)
    assert model.backbone.strides == {f"p{level}": 2**level for level in levels}
    assert model.backbone.width == (256 if min(size) >= 256 else 128)


def grid(counts: tuple[tuple[int, int], ...]) -> Said:
    """Positions of square maps: (side, stride) of each."""
    cells = []
    for side, stride in counts:
        for y in range(side):
            for x in range(side):
                middle = torch.tensor([x * stride, y * stride] * 2)
                cells.append(middle + torch.tensor([-1, -1, 1, 1]) * stride / 2)
    none = torch.zeros(0)
    return Said(none, none, none, torch.stack(cells), [side**2 for side, _ in counts])


def test_matches_by_hand():
    """Positions (4i, 4j) of stride 4 for sides up to 16 pixels off, (8i, 8j) of stride 8 for more.

    A box of 20 x 20 around (10, 10) has those less than 1.5 * 4 pixels off: 8 and 12, both ways. A
    smaller box takes (8, 8) from it. A box of 40 x 40 around (20, 20) is for stride 8, and has
    those less than 12 off: 16 and 24. The last row is no box.
    """
    model = small_model(radius=1.5, reach=4.0)
    features = grid(((10, 4), (5, 8)))
    truth = Truth(
        torch.tensor([[[0, 0, 20, 20], [6, 6, 11, 11], [0, 0, 40, 40], [0, 0, 9, 9]]]).float(),
        torch.tensor([[5, 2, 1, -1]]),
    )
    matched = model._match(features, truth)[0]
    fine, coarse = matched[:100].view(10, 10), matched[100:].view(5, 5)
    expected = torch.full((10, 10), -1)
    expected[2:4, 2:4] = 0
    expected[2, 2] = 1
    assert fine.tolist() == expected.tolist()
    expected = torch.full((5, 5), -1)
    expected[2:4, 2:4] = 2
    assert coarse.tolist() == expected.tolist()


def small_model(**options: Any) -> FCOS:
    with torch.device("meta"):
        return FCOS(ResNet(18), 7, (96, 96), width=32, **options)


def test_centreness_by_hand():
    """A box of 10 x 20: 1 in its middle; sqrt(2/8 * 5/15) at (2, 5); 0 at its side."""
    boxes = torch.tensor([[0.0, 0, 10, 20]] * 3)
    middle = torch.tensor([[5.0, 10], [2, 5], [0, 5]])
    found = centreness(torch.cat([middle - 2, middle + 2], 1), boxes)
    assert found.tolist() == pytest.approx([1, math.sqrt(2 / 8 * 5 / 15), 0])


def test_giou_loss():
    """By hand: half of a box of 2 x 1; apart, with 2 of a hull of 4 empty; and torchvision's."""
    a = torch.tensor([[0.0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 1, 1]])
    b = torch.tensor([[0.0, 0, 2, 1], [3, 0, 4, 1], [0, 0, 1, 1]])
    assert giou_loss(a, b).tolist() == pytest.approx([0.5, 1.5, 0])
    low = noise(50, 2) * 5
    a, b = (torch.cat([low + i, low + i + noise(50, 2).abs() * 9 + i], 1) for i in (0, 1))
    torch.testing.assert_close(giou_loss(a, b), generalized_box_iou_loss(a, b))
    empty = torch.zeros(1, 4, requires_grad=True)
    giou_loss(empty, torch.zeros(1, 4)).sum().backward()
    assert empty.grad is not None
    assert empty.grad.isfinite().all()


@pytest.mark.parametrize("rows", [3, 0])
def test_without_a_box(small, rows):
    """Only background: its loss is that of p = 0.01, and nothing is NaN."""
    small.train().zero_grad()
    targets = targets_of(torch.zeros(2, rows, 4), torch.full((2, rows), -1))
    losses = small.loss(images_of(noise(2, 3, 96, 96)), targets)
    assert losses["box"] == losses["centreness"] == 0
    expected = 189 * 7 * 0.75 * 0.01**2 * -math.log(0.99)
    assert losses["class"].item() == pytest.approx(expected, rel=0.2)
    torch.stack(list(losses.values())).sum().backward()
    for name, parameter in small.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_every_parameter_learns(small):
    small.train().zero_grad()
    losses = small.loss(images_of(noise(2, 3, 96, 96)), targets_of(BOXES[:2], LABELS[:2]))
    torch.stack(list(losses.values())).sum().backward()
    for name, parameter in small.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_one_image_is_the_batch():
    torch.manual_seed(0)
    model = FCOS(ResNet(18), 7, (96, 96), width=32)
    decided(model.head)
    model.eval()
    pixels = noise(3, 3, 70, 90)  # filled up to 96 x 96
    with torch.no_grad():
        losses, found = model.loss_and_predict(images_of(pixels), targets_of(BOXES, LABELS))
        single = [
            model.loss_and_predict(images_of(pixels[i : i + 1]), targets_of(BOXES[i:][:1], label))
            for i, label in enumerate(LABELS[:, None])
        ]
    boxes, _, labels = columns(found)
    assert boxes.shape[1] > 3
    assert boxes[..., 2].max() <= 90
    assert boxes[..., 3].max() <= 70
    for name, loss in losses.items():
        mean = torch.stack([one[name] for one, _ in single]).mean()
        torch.testing.assert_close(loss, mean, rtol=1e-4, atol=1e-5)
    for row, (_, one) in enumerate(single):
        own_boxes, _, own_labels = columns(one)
        count = own_labels.shape[1]
        assert labels[row, :count].tolist() == own_labels[0].tolist()
        torch.testing.assert_close(boxes[row, :count], own_boxes[0], rtol=1e-3, atol=1e-2)


def test_published_weights(monkeypatch):
    """Rows of the head by the names of the classes; variances as they are; what does not fit."""
    torch.manual_seed(0)
    whole = fcos_resnet50_fpn(weights_backbone=None, num_classes=91).state_dict()
    monkeypatch.setattr(published_detectors, "published_weights", lambda entry: whole)
    model = FCOS(ResNet(50), 2, (800, 800), weights="COCO_V1", classes=("cat", "person"))
    assert model.rebuilt == ()
    state = model.state_dict()
    for name, value in whole.items():
        wanted = value[[17, 1]] if name.startswith(HEAD) else value
        torch.testing.assert_close(state[name], wanted, rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"of backbone=resnet50, maps \[c3, c4, c5\]"):
        FCOS(ResNet(18), 91, (800, 800), weights="COCO_V1")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 48}, "width must be a multiple of 32, got 48"),
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"score": 1.5}, r"score must be from 0 to 1, got 1.5"),
        ({"reach": 0.0}, r"reach and radius must be above 0 .* got 0, 1.5 and 2"),
        ({"radius": -1.0}, r"reach and radius must be above 0 .* got 8, -1 and 2"),
        ({"maps": ()}, "maps must name at least one map"),
        ({"weights": "COCO_V9"}, 'weights must be null or one of COCO_V1, .*got "COCO_V9"'),
    ],
)
def test_refuses(options, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        FCOS(ResNet(18), 3, (96, 96), **options)
