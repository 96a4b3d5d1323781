from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet as TorchvisionRetinaNet
from torchvision.models.detection import retinanet_resnet50_fpn
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.image_list import ImageList
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from cnnctl.backbones.resnet import ResNet
from cnnctl.models import published_detectors
from cnnctl.models.retinanet import RetinaNet
from cnnctl.structures import Images, Predictions, Targets

BOXES = torch.tensor(
    [
        [[10, 20, 50, 60], [30.5, 30, 100, 90], [0, 0, 0, 0]],
        [[5, 5, 15, 19], [60, 3, 90, 80], [12, 40, 77, 93]],
        [[0, 0, 0, 0]] * 3,
    ]
)
LABELS = torch.tensor([[1, 4, -1], [0, 6, 3], [-1, -1, -1]])


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
    for layer in head.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
    head.classification_head.cls_logits.weight.data.mul_(0.02)
    head.regression_head.bbox_reg.weight.data.mul_(0.01)
    nn.init.constant_(head.classification_head.cls_logits.bias, -1.0)


@pytest.fixture(scope="module")
def small() -> RetinaNet:
    torch.manual_seed(0)
    return RetinaNet(ResNet(18), 7, (96, 96), width=32)


@pytest.fixture(scope="module")
def pair() -> tuple[RetinaNet, Any]:
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
    theirs = TorchvisionRetinaNet(
        body, 7, min_size=96, max_size=128, image_mean=[0.0] * 3, image_std=[1.0] * 3
    )
    decided(theirs.head)
    options: dict[str, Any] = {"coarse": True, "width": 256, "group_norm": False}
    ours = RetinaNet(ResNet(18), 7, (96, 128), detections=300, **options)
    ours.load_state_dict(theirs.state_dict())  # strictly
    return ours.eval(), theirs.eval()


def test_names_of_weights_are_torchvisions():
    with torch.device("meta"):
        theirs = retinanet_resnet50_fpn(weights_backbone=None, num_classes=9)
        ours = RetinaNet(ResNet(50), 9, (800, 1333))
    shapes = [
        {name: value.shape for name, value in model.state_dict().items()}
        for model in (theirs, ours)
    ]
    assert shapes[0] == shapes[1]


def test_losses_are_torchvisions(pair):
    ours, theirs = pair
    pixels = noise(3, 3, 96, 128)
    truth = [
        {"boxes": boxes[labels >= 0], "labels": labels[labels >= 0]}
        for boxes, labels in zip(BOXES, LABELS, strict=True)
    ]
    features = list(theirs.backbone(pixels).values())
    said = theirs.head(features)
    anchors = theirs.anchor_generator(ImageList(pixels, [(96, 128)] * 3), features)
    expected = theirs.compute_loss(truth, said, anchors)
    losses = ours.loss(images_of(pixels), targets_of(BOXES, LABELS))
    assert losses.keys() == {"class", "box"}
    torch.testing.assert_close(losses["class"], expected["classification"], rtol=1e-4, atol=0)
    torch.testing.assert_close(losses["box"], expected["bbox_regression"], rtol=1e-4, atol=0)


def test_detections_are_torchvisions(pair):
    ours, theirs = pair
    pixels = noise(2, 3, 96, 128)
    with torch.no_grad():
        expected = theirs(list(pixels))
        boxes, scores, labels = columns(ours.predict(images_of(pixels)))
    for row, wanted in enumerate(expected):
        count = len(wanted["labels"])
        assert count > 100
        assert int((labels[row] >= 0).sum()) == count
        assert labels[row, :count].tolist() == wanted["labels"].tolist()
        torch.testing.assert_close(scores[row, :count], wanted["scores"])
        torch.testing.assert_close(boxes[row, :count], wanted["boxes"], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("size", "maps", "coarse", "levels"),
    [
        ((800, 1333), ("c3", "c4", "c5"), None, [3, 4, 5, 6, 7]),
        ((255, 600), ("c3", "c4", "c5"), None, [3, 4, 5]),
        ((96, 96), ("c3", "c4", "c5"), True, [3, 4, 5, 6, 7]),
        ((800, 800), ("c2", "c3"), False, [2, 3]),
    ],
)
def test_levels(size, maps, coarse, levels):
    with torch.device("meta"):
        model = RetinaNet(ResNet(18), 3, size, maps, coarse)
    assert model.backbone.strides == {f"p{level}": 2**level for level in levels}
    assert model.backbone.width == (256 if min(size) >= 256 else 128)
    norms = [layer for layer in model.head.modules() if isinstance(layer, nn.GroupNorm)]
    assert len(norms) == (0 if min(size) >= 256 else 8)


def test_nine_anchors_at_every_position(small):
    """Three sizes an octave, three ratios of the same area; a stride further all are shifted."""
    said = small.eval().features(noise(1, 3, 96, 96))
    assert said.counts == [9 * 144, 9 * 36, 9 * 9]
    assert said.logits.shape == (1, 9 * 189, 7)
    assert said.deltas.shape == said.anchors[None].shape
    table = said.anchors[:9, 2:] - said.anchors[:9, :2]
    assert table.tolist() == [
        *([46, 22], [56, 28], [70, 36]),
        *([32, 32], [40, 40], [50, 50]),
        *([22, 46], [28, 56], [36, 70]),
    ]
    fine, coarse = said.anchors[: 9 * 144], said.anchors[9 * 144 : 9 * 180]
    fine, coarse = fine.view(12, 12, 9, 4), coarse.view(6, 6, 9, 4)
    torch.testing.assert_close(fine[3, 5] - fine[0, 0], torch.tensor([[40.0, 24] * 2] * 9))
    sides = coarse[0, 0, :, 2:] - coarse[0, 0, :, :2]
    assert sides[3:6].tolist() == [[64, 64], [80, 80], [100, 100]]


def test_starts_with_the_prior(small):
    """Section 4.1: every score is 0.01, so that background does not drown the first steps."""
    prior = small.state_dict()["head.classification_head.cls_logits.bias"].sigmoid()
    assert prior.tolist() == pytest.approx([0.01] * 63)
    _, _, labels = columns(small.eval().predict(images_of(noise(1, 3, 96, 96))))
    assert labels.numel() == 0


@pytest.mark.parametrize("rows", [3, 0])
def test_without_a_box(small, rows):
    """Only background: its loss is that of p = 0.01, and nothing is NaN."""
    small.train().zero_grad()
    targets = targets_of(torch.zeros(2, rows, 4), torch.full((2, rows), -1))
    losses = small.loss(images_of(noise(2, 3, 96, 96)), targets)
    assert losses["box"] == 0
    expected = 9 * 189 * 7 * 0.75 * 0.01**2 * -math.log(0.99)
    assert losses["class"].item() == pytest.approx(expected, rel=0.05)
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
    model = RetinaNet(ResNet(18), 7, (96, 96), width=32, score=0.2)
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


@pytest.fixture(scope="module")
def published() -> dict[str, Tensor]:
    """As torchvision's file has them: 91 categories, older names, fixed normalisation."""
    torch.manual_seed(0)
    model = retinanet_resnet50_fpn(weights_backbone=None, num_classes=91)
    state = {}
    for name, value in model.state_dict().items():
        for i in range(4):
            name = name.replace(f".conv.{i}.0.", f".conv.{2 * i}.")
        if not name.endswith("num_batches_tracked"):
            state[name] = value
    return state


@pytest.fixture
def hub(monkeypatch, published):
    monkeypatch.setattr(published_detectors, "published_weights", lambda entry: published)
    return published


def test_published_weights(hub):
    model = RetinaNet(ResNet(50), 91, (800, 800), weights="COCO_V1")
    assert model.rebuilt == ()
    state = model.state_dict()
    for i, name in enumerate(("0.0", "1.0", "2.0", "3.0")):
        torch.testing.assert_close(
            state[f"head.regression_head.conv.{name}.weight"],
            hub[f"head.regression_head.conv.{2 * i}.weight"],
        )
    for name in ("backbone.body.layer4.2.conv3.weight", "backbone.fpn.extra_blocks.p7.weight"):
        torch.testing.assert_close(state[name], hub[name])
    # The published network adds nothing to a variance, ours 1e-5.
    variance = "backbone.body.bn1.running_var"
    torch.testing.assert_close(state[variance] + 1e-5, hub[variance], rtol=0, atol=1e-6)


def test_published_rows_are_found_by_name(hub):
    """Categories 1 and 17 of COCO's 91; at 96 pixels the two coarsest levels are left out."""
    kwargs: dict[str, Any] = {"width": 256, "group_norm": False, "frozen_norm": True}
    kwargs["weights"] = "COCO_V1"
    model = RetinaNet(ResNet(50, 1), 2, (96, 96), classes=("cat", "person"), **kwargs)
    assert model.rebuilt == ()
    whole = hub["head.classification_head.cls_logits.weight"].view(9, 91, 256, 3, 3)
    own = model.head.classification_head.cls_logits.weight.view(9, 2, 256, 3, 3)
    torch.testing.assert_close(own[:, 0], whole[:, 17])
    torch.testing.assert_close(own[:, 1], whole[:, 1])
    stem = hub["backbone.body.conv1.weight"].sum(1, keepdim=True)
    torch.testing.assert_close(model.state_dict()["backbone.body.conv1.weight"], stem)
    other = RetinaNet(ResNet(50), 2, (800, 800), classes=("cat", "comet"), **kwargs)
    assert other.rebuilt == ("head.classification_head.cls_logits",)
    prior = other.state_dict()["head.classification_head.cls_logits.bias"].sigmoid()
    assert prior.tolist() == pytest.approx([0.01] * 18)


@pytest.mark.filterwarnings("ignore:for .* copying from a non-meta")
@pytest.mark.parametrize(
    ("depth", "options"),
    [
        (18, {}),
        (50, {"maps": ("c2", "c3", "c4", "c5")}),
        (50, {"width": 64}),
        (50, {"group_norm": True}),
    ],
)
def test_published_weights_that_do_not_fit(hub, depth, options):
    wanted = r"of backbone=resnet50, maps \[c3, c4, c5\], width 256 and group_norm false"
    with torch.device("meta"), pytest.raises(ValueError, match=wanted):
        RetinaNet(ResNet(depth), 91, (800, 800), weights="COCO_V1", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"width": 48}, "group_norm needs a width that is a multiple of 32, got 48"),
        ({"detections": 0}, "detections must be at least 1, got 0"),
        ({"score": 1.5}, r"score must be from 0 to 1, got 1.5"),
        ({"overlap": -0.1}, r"overlap must be from 0 to 1, got -0.1"),
        ({"low": 0.6}, r"low at most high, got 4, 2, 0.6 and 0.5"),
        ({"anchor_scale": 0.0}, r"anchor_scale must be above 0, .* got 0, 2"),
        ({"maps": ()}, "maps must name at least one map"),
        ({"maps": ("c3", "c9")}, "the backbone has no map c9, only c2, c3, c4, c5"),
        ({"weights": "COCO_V9"}, 'weights must be null or one of COCO_V1, .*got "COCO_V9"'),
    ],
)
def test_refuses(options, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        RetinaNet(ResNet(18), 3, (96, 96), **options)
