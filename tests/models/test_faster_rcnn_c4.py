"""Faster R-CNN on one map: its parts, what each of the four steps trains, what it says."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import roi_pool

from cnnctl.backbones.base import Backbone
from cnnctl.backbones.resnet import ResNet
from cnnctl.backbones.vgg import VGG
from cnnctl.models.base import GradientStage
from cnnctl.models.faster_rcnn_c4 import FasterRCNNC4
from cnnctl.structures import Images, Predictions, Targets

BOXES = torch.tensor([[[10, 20, 50, 60], [0, 0, 0, 0]], [[5, 5, 25, 29], [40, 3, 64, 60]]]).float()
LABELS = torch.tensor([[1, -1], [0, 2]])


class Tiny(ResNet):
    """A ResNet-18 of 4 channels and more."""

    def __init__(self) -> None:
        super().__init__(18)
        for name, layer in list(self.named_modules()):
            if isinstance(layer, nn.Conv2d):
                given, made = max(1, layer.in_channels // 16), layer.out_channels // 16
                given = 3 if name == "conv1" else given
                put(self, name, narrow(layer, given, made))
            elif isinstance(layer, nn.BatchNorm2d):
                put(self, name, nn.BatchNorm2d(layer.num_features // 16))
        self.channels = {name: width // 16 for name, width in self.channels.items()}


def narrow(layer: nn.Conv2d, given: int, made: int) -> nn.Conv2d:
    kernel, stride, padding = layer.kernel_size[0], layer.stride[0], layer.padding[0]
    return nn.Conv2d(given, made, kernel, stride, int(padding), bias=False)


def put(network: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(network.get_submodule(parent), last, layer)


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def images_of(pixels: Tensor) -> Images:
    sizes = [(pixels.shape[2], pixels.shape[3])] * len(pixels)
    return Images(pixels, sizes, list(sizes))


def targets_of(boxes: Tensor, labels: Tensor) -> Targets:
    return Targets(torch.arange(len(boxes)), boxes=boxes, labels=labels)


def batch() -> tuple[Images, Targets]:
    return images_of(noise(2, 3, 64, 64)), targets_of(BOXES, LABELS)


def columns(found: Predictions) -> tuple[Tensor, Tensor, Tensor]:
    assert found.boxes is not None
    assert found.scores is not None
    assert found.labels is not None
    return found.boxes, found.scores, found.labels


def small(**options) -> FasterRCNNC4:
    torch.manual_seed(0)
    return FasterRCNNC4(3, Tiny(), (64, 64), **options)


def test_parts_of_a_resnet():
    """What is above c4 makes c5 of a region: all of the map gives the classifier's features."""
    backbone = Tiny()
    whole = copy.deepcopy(backbone).eval()
    model = FasterRCNNC4(3, backbone, (64, 64), map="c4", dense=()).eval()
    pixels = noise(2, 3, 112, 112)  # a map of 7 x 7, as many as a region's bins
    with torch.no_grad():
        maps = whole(pixels)
        seen = model.features(pixels)
        torch.testing.assert_close(seen.map, maps["c4"])
        box = torch.tensor([[0.0, 0, 112 - 16, 112 - 16]] * 2)  # inclusive in pixels of the map
        pooled = roi_pool(seen.map, [box[:1], box[1:]], (7, 7), 1 / 16)
        torch.testing.assert_close(model.head.top(pooled), maps["c5"].mean((2, 3)))
        logits, deltas = model._read(seen.map, box, torch.tensor([0, 1]))
    expected = maps["c5"].mean((2, 3)) @ model.head.cls_score.weight.T
    torch.testing.assert_close(logits, expected)
    assert deltas.shape == (2, 3, 4)


@pytest.mark.parametrize(("depth", "convolutions"), [(11, 8), (16, 13)])
def test_parts_of_a_vgg(depth, convolutions):
    """conv5_3 at stride 16, without the last pooling; fc6 and fc7."""
    with torch.device("meta"):
        model = FasterRCNNC4(20, VGG(depth), (600, 800))
    maps = [layer for layer in model.trunk if isinstance(layer, nn.Conv2d | nn.MaxPool2d)]
    assert sum(isinstance(layer, nn.MaxPool2d) for layer in maps) == 4
    assert len(maps) - 4 == convolutions
    assert isinstance(maps[-1], nn.Conv2d)
    shapes = {name: tuple(value.shape) for name, value in model.head.named_parameters()}
    assert shapes["top.1.weight"] == (4096, 512 * 49)
    assert shapes["top.4.weight"] == (4096, 4096)
    assert shapes["cls_score.weight"] == (21, 4096)
    assert shapes["bbox_pred.weight"] == (80, 4096)
    settings = model.rpn.settings
    assert (settings.inside, settings.anchors, settings.after) == (True, 256, (2000, 300))
    assert (model.regions, model.bins, model.stride) == (128, 7, 16)


def test_nine_anchors():
    """The paper's sides on an image of 600 pixels, and the same shares of a small one."""
    for size, share in (((600, 1000), 1.0), ((150, 150), 0.25)):
        with torch.device("meta"):
            body = Tiny()
        table = FasterRCNNC4(3, body, size).rpn.anchors.bases
        sides = table[:, 2:] - table[:, :2]
        assert len(sides) == 9
        assert sides[3:6].tolist() == [[128 * share] * 2, [256 * share] * 2, [512 * share] * 2]
        assert (sides[0] / sides[0].flip(0)).tolist() == pytest.approx([2, 0.5], rel=0.05)


@pytest.mark.parametrize(
    ("size", "options", "expected"),
    [
        ((256, 400), {}, (14, 16, "layer4", 128)),
        ((255, 400), {}, (4, 8, "1", 32)),  # two dense layers
        ((255, 400), {"map": "c4", "dense": ()}, (7, 16, "layer4", 32)),
        ((255, 400), {"dense": ()}, (7, 8, "layer3", 32)),
        ((256, 400), {"map": "c3", "dense": (5, 6)}, (7, 8, "1", 128)),
    ],
)
def test_small_images(size, options, expected):
    """Below 256 pixels: stride 8, and dense layers in place of c5 of each region."""
    with torch.device("meta"):
        model = FasterRCNNC4(3, Tiny(), size, **options)
    first = next(name for name, part in model.head.top.named_children() if [*part.parameters()])
    assert (model.bins, model.stride, first, model.regions) == expected
    assert next(model.rpn.parameters()).shape[1] == (8 if model.stride == 8 else 16)  # channels


@pytest.mark.parametrize("rows", [2, 0])
def test_without_a_box(rows):
    model = small()
    nn.init.zeros_(model.head.cls_score.weight)  # no class is likelier than another
    images, _ = batch()
    losses = model.loss(images, targets_of(torch.zeros(2, rows, 4), torch.full((2, rows), -1)))
    assert losses["box"] == losses["rpn_box"] == 0
    assert losses["class"].item() == pytest.approx(1.3863, abs=1e-3)  # ln 4
    torch.stack(list(losses.values())).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def trained(model: FasterRCNNC4, stage: GradientStage) -> dict[str, Tensor]:
    """Gradients by name, after one step of a stage as the loop has it."""
    wanted = {id(parameter) for parameter in stage.params()}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in wanted)
    model.zero_grad(set_to_none=True)
    losses = stage.loss(*batch())
    torch.stack(list(losses.values())).sum().backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert {id(p) for name, p in model.named_parameters() if name in found} == wanted
    return found


def test_all_at_once():
    model = small()
    (stage,) = model.stages()
    assert isinstance(stage, GradientStage)
    gradients = trained(model, stage)
    assert gradients.keys() == dict(model.named_parameters()).keys()
    for name, gradient in gradients.items():
        assert gradient.abs().sum() > 0, name


def test_four_steps():
    """Section 3.2: each step trains its own, and the convolutions are fixed from the third on."""
    model = small(alternating=True)
    expected = [
        ("proposals", {"alone", "rpn"}, {"rpn_object", "rpn_box"}, False),
        ("regions", {"trunk", "head"}, {"class", "box"}, False),
        ("proposals_shared", {"rpn"}, {"rpn_object", "rpn_box"}, True),
        ("regions_shared", {"head"}, {"class", "box"}, True),
    ]
    stages = model.stages()
    assert len(stages) == 4
    for stage, (name, parts, terms, evaluated) in zip(stages, expected, strict=True):
        assert isinstance(stage, GradientStage)
        assert (stage.name, stage.evaluate) == (name, evaluated)
        assert stage.loss(*batch()).keys() == terms
        gradients = trained(model, stage)
        names = [key for key in dict(model.named_parameters()) if key.split(".")[0] in parts]
        assert gradients.keys() == set(names)
        for key, gradient in gradients.items():
            assert gradient.abs().sum() > 0, key


def test_backbones_of_the_steps():
    """The same at the start; proposals of the second step come from the first one's alone."""
    model = small(alternating=True)
    assert model.alone is not None
    for ours, theirs in zip(model.trunk.parameters(), model.alone.parameters(), strict=True):
        assert ours is not theirs
        torch.testing.assert_close(ours, theirs)
    images, targets = batch()
    second, fourth = model.stages()[1], model.stages()[3]
    assert isinstance(second, GradientStage)
    assert isinstance(fourth, GradientStage)
    asked: list[str] = []
    model.alone.register_forward_hook(lambda module, *_: asked.append("alone"))
    model.trunk.register_forward_hook(
        lambda module, *_: asked.append("trunk" if module.training else "fixed")
    )
    second.loss(images, targets)
    assert asked == ["trunk", "alone"]
    before = {name: value.clone() for name, value in model.trunk.state_dict().items()}
    fourth.loss(images, targets)
    assert asked[2:] == ["fixed"]
    assert model.trunk.training
    for name, value in model.trunk.state_dict().items():  # statistics of batches too
        assert torch.equal(value, before[name]), name


def test_one_image_is_the_batch():
    model = small(score=0.0, proposals_test=20)
    model.head.cls_score.weight.data.normal_(std=2.0)
    model.head.bbox_pred.weight.data.normal_(std=0.5)
    for _ in range(3):
        model.loss(*batch())  # so that there are statistics
    model.eval()
    pixels = noise(3, 3, 60, 50)  # filled up to 64 x 64
    with torch.no_grad():
        boxes, scores, labels = columns(model.predict(images_of(pixels)))
        single = [columns(model.predict(images_of(pixels[i : i + 1]))) for i in range(3)]
    assert boxes.shape[1] > 10
    assert boxes[..., 2].max() == 50
    assert boxes[..., 3].max() == 60
    for row, (own_boxes, own_scores, own_labels) in enumerate(single):
        count = own_labels.shape[1]
        assert labels[row, :count].tolist() == own_labels[0].tolist()
        torch.testing.assert_close(scores[row, :count], own_scores[0], rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(boxes[row, :count], own_boxes[0], rtol=1e-3, atol=1e-2)


def test_fixed_normalisation():
    model = FasterRCNNC4(3, Tiny(), (64, 64), frozen_norm=True)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in model.modules())


class Other(Backbone):
    channels, strides = {"c4": 8}, {"c4": 16}

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        return {"c4": pixels}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"regions": 0}, "regions must be at least 1, got 0"),
        ({"proposals_test": 0}, "proposals_test must be at least 1, got 0"),
        ({"overlap": 1.5}, "overlap must be from 0 to 1, got 1.5"),
        ({"ratios": ()}, r"must be above 0, got \[.*\] and \[\]"),
        ({"anchor_scales": (-4.0,)}, r"must be above 0, got \[-4.0\]"),
        ({"anchor_scales": (80.0,)}, r"no anchor of anchor_scales \[80.0\] lies in .* 64 x 64"),
    ],
)
def test_refuses(options, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        FasterRCNNC4(3, Tiny(), (64, 64), **options)


def test_refuses_another_backbone():
    with pytest.raises(ValueError, match="needs a VGG, AlexNet or a ResNet, got Other"):
        FasterRCNNC4(3, Other(), (64, 64))
