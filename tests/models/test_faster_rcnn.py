"""Faster R-CNN on a pyramid, against torchvision's with the same weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18
from torchvision.models.detection import FasterRCNN as TorchvisionFasterRCNN
from torchvision.models.detection import fasterrcnn_resnet50_fpn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList

from cnnctl.backbones.resnet import ResNet
from cnnctl.models import published_detectors
from cnnctl.models.faster_rcnn import FasterRCNN
from cnnctl.structures import Images, Predictions, Targets

ALL = 10**6  # more than there are: nothing is left to chance
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


def decided(network: Any) -> None:
    """Random weights with which some scores are high, and no two alike."""
    torch.manual_seed(3)
    for layer in network.rpn.head.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
    network.rpn.head.bbox_pred.weight.data.mul_(0.05)
    predictor = network.roi_heads.box_predictor.state_dict()
    predictor["cls_score.weight"].normal_(std=1.0)
    predictor["bbox_pred.weight"].normal_(std=0.3)


@pytest.fixture(scope="module")
def pair() -> tuple[FasterRCNN, Any]:
    """Ours and torchvision's with the same weights."""
    torch.manual_seed(0)
    layers = {f"layer{i + 1}": str(i) for i in range(4)}
    body = BackboneWithFPN(resnet18(), layers, [64, 128, 256, 512], 32)
    theirs = TorchvisionFasterRCNN(
        body,
        min_size=96,
        max_size=128,
        image_mean=[0.0] * 3,
        image_std=[1.0] * 3,
        rpn_anchor_generator=AnchorGenerator(
            tuple((8 * 2**i,) for i in range(2, 7)), ((0.5, 1.0, 2.0),) * 5
        ),
        box_head=TwoMLPHead(32 * 49, 24),
        box_predictor=FastRCNNPredictor(24, 8),
        rpn_batch_size_per_image=ALL,
        box_batch_size_per_image=ALL,
        rpn_pre_nms_top_n_train=400,  # twice those kept, which is what ours compares
        rpn_pre_nms_top_n_test=200,
        rpn_post_nms_top_n_train=200,
        rpn_post_nms_top_n_test=100,
    )
    decided(theirs)
    ours = FasterRCNN(
        7,
        ResNet(18),
        (96, 128),
        width=32,
        hidden=24,
        anchor_scale=8,
        regions=ALL,
        proposals_train=200,
        proposals_test=100,
    )
    ours.rpn.settings = replace(ours.rpn.settings, anchors=ALL)
    ours.load_state_dict(theirs.state_dict())  # strictly
    return ours.eval(), theirs.eval()


@pytest.fixture(scope="module")
def small() -> FasterRCNN:
    torch.manual_seed(0)
    return FasterRCNN(7, ResNet(18), (96, 96), width=16, hidden=24, regions=32)


def test_names_of_weights_are_torchvisions():
    with torch.device("meta"):
        theirs = fasterrcnn_resnet50_fpn(weights_backbone=None, num_classes=10)
        ours = FasterRCNN(9, ResNet(50), (800, 1333))
    shapes = [
        {name: value.shape for name, value in model.state_dict().items()}
        for model in (theirs, ours)
    ]
    assert shapes[0] == shapes[1]


def test_proposals_are_torchvisions(pair):
    ours, theirs = pair
    pixels = noise(2, 3, 96, 128)
    with torch.no_grad():
        maps = theirs.backbone(pixels)
        expected, _ = theirs.rpn(ImageList(pixels, [(96, 128)] * 2), maps)
        features = ours.features(pixels)
        found = ours.rpn.propose(
            ours.rpn(list(features.maps.values()), features.size), images_of(pixels)
        )
    for row, boxes in enumerate(expected):
        assert int(found.there[row].sum()) == len(boxes) > 50
        torch.testing.assert_close(found.boxes[row, : len(boxes)], boxes, rtol=1e-4, atol=1e-3)


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
        assert labels[row, :count].tolist() == (wanted["labels"] - 1).tolist()
        torch.testing.assert_close(scores[row, :count], wanted["scores"], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(boxes[row, :count], wanted["boxes"], rtol=1e-4, atol=1e-3)


def test_losses_are_torchvisions(pair):
    ours, theirs = pair
    pixels = noise(3, 3, 96, 128)
    truth = [
        {"boxes": boxes[labels >= 0], "labels": labels[labels >= 0] + 1}
        for boxes, labels in zip(BOXES, LABELS, strict=True)
    ]
    theirs.rpn.train()
    theirs.roi_heads.train()
    ours.train().backbone.eval()
    with torch.no_grad():
        maps, sizes = theirs.backbone(pixels), [(96, 128)] * 3
        proposals, first = theirs.rpn(ImageList(pixels, sizes), maps, truth)
        _, second = theirs.roi_heads(maps, proposals, sizes, truth)
        losses = ours.loss(images_of(pixels), targets_of(BOXES, LABELS))
    ours.eval()
    theirs.eval()
    expected = {
        "rpn_object": first["loss_objectness"],
        "rpn_box": first["loss_rpn_box_reg"],
        "class": second["loss_classifier"],
        "box": second["loss_box_reg"],
    }
    assert min(expected.values()) > 1e-3
    assert losses.keys() == expected.keys()
    for name, loss in losses.items():
        torch.testing.assert_close(loss, expected[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("size", "options", "expected"),
    [
        ((800, 1333), {}, (256, 1024, 512, (2000, 1000), 32)),
        ((255, 600), {}, (128, 256, 64, (300, 100), 24)),
        ((96, 96), {"hidden": 20, "anchor_scale": 4.0}, (128, 20, 64, (300, 100), 16)),
    ],
)
def test_numbers_of_small_and_of_large_images(size, options, expected):
    with torch.device("meta"):
        body = ResNet(18)
    model = FasterRCNN(3, body, size, **options)
    hidden = model.state_dict()["roi_heads.box_head.fc6.bias"].shape[0]
    square = model.rpn.anchors.bases[1]  # of the finest level
    numbers = (model.backbone.width, hidden, model.regions, model.rpn.settings.after)
    assert (*numbers, float(square[2] - square[0])) == expected


@pytest.mark.parametrize("rows", [3, 0])
def test_without_a_box(small, rows):
    """Only background: all can be learnt of it but where objects are."""
    small.train().zero_grad()
    targets = targets_of(torch.zeros(2, rows, 4), torch.full((2, rows), -1))
    losses = small.loss(images_of(noise(2, 3, 96, 96)), targets)
    assert losses["box"] == 0
    assert losses["rpn_box"] == 0
    assert losses["rpn_object"].item() == pytest.approx(0.693, abs=0.1)
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


def test_one_image_is_the_batch(pair):
    """Filled up from 90 x 120 to 96 x 128; a part of a batch has the same numbers of anchors."""
    ours, _ = pair
    pixels = noise(3, 3, 90, 120)
    with torch.no_grad():
        boxes, scores, labels = columns(ours.predict(images_of(pixels)))
        single = [columns(ours.predict(images_of(pixels[i : i + 1]))) for i in range(3)]
    assert boxes.shape[1] > 20
    assert boxes[..., 2].max() == 120
    assert boxes[..., 3].max() == 90
    for row, (own_boxes, own_scores, own_labels) in enumerate(single):
        count = own_labels.shape[1]
        assert (labels[row, count:] == -1).all()
        assert labels[row, :count].tolist() == own_labels[0].tolist()
        torch.testing.assert_close(scores[row, :count], own_scores[0], rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(boxes[row, :count], own_boxes[0], rtol=1e-3, atol=1e-2)


def test_large_regions_are_read_from_p5(small):
    """And from no other map: p6 is for proposals only."""
    small.eval()
    box, image = torch.tensor([[0.0, 0, 96, 96], [0, 0, 600, 600]]), torch.tensor([0, 0])
    with torch.no_grad():
        features = small.features(noise(1, 3, 96, 96))
        before, _ = small._heads(features, box, image)
        changed = {}
        for name, level in features.maps.items():
            maps = {**features.maps, name: level + 1}
            after, _ = small._heads(replace(features, maps=maps), box, image)
            changed[name] = (after != before).any(1).tolist()
    nothing = [False, False]
    assert changed["p2"] == [True, False]
    assert changed["p5"] == [False, True]
    assert changed["p3"] == changed["p4"] == changed["p6"] == nothing


def test_without_a_proposal(small):
    """Nothing is found where no proposal is left."""
    small.eval()
    bias = small.rpn.head.bbox_pred.bias
    before = bias.detach().clone()
    with torch.no_grad():
        bias.view(-1, 4)[:, 0] = 1e4  # all lie beyond the image
        _, scores, labels = columns(small.predict(images_of(noise(2, 3, 96, 96))))
        bias.copy_(before)
    assert labels.shape == scores.shape == (2, 0)


@pytest.fixture(scope="module")
def published() -> dict[str, Tensor]:
    """As torchvision's file has them: 91 categories, older names, fixed normalisation."""
    torch.manual_seed(0)
    model = fasterrcnn_resnet50_fpn(weights_backbone=None, num_classes=91)
    state = {}
    for name, value in model.state_dict().items():
        name = name.replace("rpn.head.conv.0.0.", "rpn.head.conv.")
        for kind in ("inner", "layer"):
            for i in range(4):
                name = name.replace(f"{kind}_blocks.{i}.0.", f"{kind}_blocks.{i}.")
        if not name.endswith("num_batches_tracked"):
            state[name] = value
    return state


@pytest.fixture
def hub(monkeypatch, published):
    monkeypatch.setattr(published_detectors, "published_weights", lambda entry: published)
    return published


def test_published_rows_are_found_by_name(hub):
    """Person and cat are categories 1 and 17 of COCO's 91; background stays the first."""
    model = FasterRCNN(2, ResNet(50, 1), (96, 96), weights="COCO_V1", classes=("cat", "person"))
    assert model.rebuilt == ()
    assert model.rpn.anchors.bases[1].tolist() == [-16, -16, 16, 16]
    state = model.state_dict()
    name = "roi_heads.box_predictor.cls_score.weight"
    torch.testing.assert_close(state[name], hub[name][[0, 17, 1]])
    name = "roi_heads.box_predictor.bbox_pred.bias"
    torch.testing.assert_close(state[name].view(3, 4), hub[name].view(91, 4)[[0, 17, 1]])
    weight = state["rpn.head.conv.0.0.weight"]
    torch.testing.assert_close(weight, hub["rpn.head.conv.weight"])
    # The published network adds nothing to a variance, ours 1e-5.
    variance = "backbone.body.bn1.running_var"
    torch.testing.assert_close(state[variance] + 1e-5, hub[variance], rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore:for .* copying from a non-meta")
@pytest.mark.parametrize(
    ("k", "classes", "rebuilt"),
    [(90, (), 0), (91, (), 2), (2, ("cat", "comet"), 2), (1, ("__background__",), 2)],
)
def test_layers_that_are_rebuilt(hub, k, classes, rebuilt):
    with torch.device("meta"):
        model = FasterRCNN(k, ResNet(50), (800, 800), weights="COCO_V1", classes=classes)
    layers = tuple(f"roi_heads.box_predictor.{name}" for name in ("cls_score", "bbox_pred"))
    assert model.rebuilt == layers[:rebuilt]


@pytest.mark.filterwarnings("ignore:for .* copying from a non-meta")
@pytest.mark.parametrize(
    ("depth", "options"), [(18, {}), (50, {"width": 64}), (50, {"ratios": (1.0,)})]
)
def test_published_weights_that_do_not_fit(hub, depth, options):
    wanted = r"of backbone=resnet50, width 256, hidden 1024 and three ratios"
    with torch.device("meta"), pytest.raises(ValueError, match=wanted):
        FasterRCNN(90, ResNet(depth), (800, 800), weights="COCO_V1", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"regions": 0}, "regions must be at least 1, got 0"),
        ({"proposals_test": 0}, "proposals_test must be at least 1, got 0"),
        ({"detections": 0}, "detections must be at least 1, got 0"),
        ({"score": 1.5}, r"score must be from 0 to 1, got 1.5"),
        ({"anchor_scale": 0.0}, r"must be above 0, got 0 and \[0.5, 1.0, 2.0\]"),
        ({"ratios": ()}, r"must be above 0, got 6 and \[\]"),
        ({"weights": "COCO_V9"}, 'weights must be null or one of COCO_V1, .*got "COCO_V9"'),
    ],
)
def test_refuses(options, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        FasterRCNN(3, ResNet(18), (96, 96), **options)
