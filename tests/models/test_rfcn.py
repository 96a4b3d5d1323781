"""R-FCN: the dilated last layers, votes of bins by hand, hard examples, what it says."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from cnnctl.backbones.resnet import ResNet
from cnnctl.backbones.vgg import VGG
from cnnctl.models.rfcn import RFCN, Features, without_stride
from cnnctl.structures import Images, Predictions, Targets

BOXES = torch.tensor([[[10, 20, 50, 60], [0, 0, 0, 0]], [[5, 5, 25, 29], [40, 3, 64, 60]]]).float()
LABELS = torch.tensor([[1, -1], [0, 2]])


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def images_of(pixels: Tensor) -> Images:
    sizes = [(pixels.shape[2], pixels.shape[3])] * len(pixels)
    return Images(pixels, sizes, list(sizes))


def batch(boxes: Tensor = BOXES, labels: Tensor = LABELS) -> tuple[Images, Targets]:
    targets = Targets(torch.arange(2), boxes=boxes, labels=labels)
    return images_of(noise(2, 3, 64, 64)), targets


def columns(found: Predictions) -> tuple[Tensor, Tensor, Tensor]:
    assert found.boxes is not None
    assert found.scores is not None
    assert found.labels is not None
    return found.boxes, found.scores, found.labels


@pytest.fixture(scope="module")
def small() -> RFCN:
    torch.manual_seed(0)
    return RFCN(3, ResNet(18), (64, 64), width=16, proposals_train=30, proposals_test=20)


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_holes_instead_of_a_stride(block):
    """Every second position is as before; those between are new."""
    torch.manual_seed(0)
    given, made = 6, 4 * block.expansion
    shorter = nn.Sequential(nn.Conv2d(given, made, 1, stride=2, bias=False), nn.BatchNorm2d(made))
    layers = nn.Sequential(block(given, 4, 2, shorter), block(made, 4), block(made, 4)).eval()
    dilated = without_stride(copy.deepcopy(layers))
    pixels = noise(2, given, 10, 14)
    with torch.no_grad():
        coarse, fine = layers(pixels), dilated(pixels)
    assert fine.shape[2:] == pixels.shape[2:]
    torch.testing.assert_close(fine[..., ::2, ::2], coarse)


def test_bins_vote():
    """Bin (i, j) of a region looks at its own map of each class, at its own place."""
    with torch.device("meta"):
        model = RFCN(1, ResNet(18), (96, 96), map="c4", bins=2)
    named = torch.zeros(2, 2 * 4, 6, 6)
    named[1, 0] = 8.0  # the object's upper left bin, everywhere in the second image
    named[:, 4, :2, :2] = 1.0  # the background's bins, each in a corner of its own
    named[:, 5, :2, 4:] = 10.0
    named[:, 6, 4:, :2] = 100.0
    named[:, 7, 4:, 4:] = 1000.0
    placed = torch.arange(16.0).view(1, 16, 1, 1).expand(2, -1, 6, 6)
    boxes = torch.tensor([[0.0, 0, 64, 64], [32, 32, 96, 96], [0, 0, 96, 96]])
    features = Features(named[:, :0], named, placed, (96, 96))
    logits, deltas = model._votes(features, boxes, torch.tensor([0, 1, 0]))
    # Bins of 2 x 2 pixels of the map; of the whole image, of 3 x 3.
    assert logits[0].tolist() == [0, 1 / 4]
    assert logits[1].tolist() == [8 / 4, 1000 / 4]
    assert logits[2].tolist() == pytest.approx([0, 1111 / 4 * 4 / 9])
    assert deltas.tolist() == [[[1.5, 5.5, 9.5, 13.5]]] * 3


@pytest.mark.parametrize(
    ("size", "options", "expected"),
    [
        ((600, 1000), {}, (7, 1024, 49 * 21, 4 * 49)),
        ((255, 600), {}, (3, 256, 9 * 21, 4 * 9)),
        ((96, 96), {"bins": 5, "width": 8}, (5, 8, 25 * 21, 4 * 25)),
    ],
)
def test_score_maps(size, options, expected):
    """k^2 (C + 1) of classes and 4 k^2 of boxes, section 2."""
    with torch.device("meta"):
        model = RFCN(20, ResNet(18), size, **options)
    maps = model.named.out_channels, model.placed.out_channels
    assert (model.bins, model.named.in_channels, *maps) == expected


@pytest.mark.parametrize(
    ("size", "at", "stride", "deep"),
    [((256, 400), None, 16, 512), ((255, 400), None, 8, 256), ((255, 400), "c4", 16, 512)],
)
def test_map(size, at, stride, deep):
    """Proposals and score maps are at one stride; below 256 pixels it is 8, and c5 is left out."""
    with torch.device("meta"):
        model = RFCN(3, ResNet(18), size, at)
        seen = model.features(torch.zeros(1, 3, 96, 80))
    assert seen.size == (96, 80)
    assert seen.map.shape == (1, deep // 2, 96 // stride, 80 // stride)
    assert seen.named.shape[2:] == seen.placed.shape[2:] == seen.map.shape[2:]
    reduced = model.reduced[0]
    assert isinstance(reduced, nn.Conv2d)
    assert reduced.in_channels == deep


@pytest.mark.parametrize("rows", [2, 0])
@pytest.mark.parametrize("hard", [False, True])
def test_without_a_box(small, rows, hard):
    small.train().zero_grad()
    small.hard = hard
    losses = small.loss(*batch(torch.zeros(2, rows, 4), torch.full((2, rows), -1)))
    assert losses["box"] == losses["rpn_box"] == 0
    assert losses["class"].item() == pytest.approx(1.386, abs=0.1)  # ln 4
    torch.stack(list(losses.values())).sum().backward()
    for name, parameter in small.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("hard", [False, True])
def test_every_parameter_learns(small, hard):
    small.train().zero_grad()
    small.hard = hard
    losses = small.loss(*batch())
    assert losses.keys() == {"rpn_object", "rpn_box", "class", "box"}
    torch.stack(list(losses.values())).sum().backward()
    for name, parameter in small.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_hard_examples(small, monkeypatch):
    """Nothing is left to chance, and the fewer count the larger is their mean."""
    small.train().hard = True
    named = {}
    with torch.no_grad():
        for regions in (1, 8, 10**6):
            monkeypatch.setattr(small, "regions", regions)
            sums = []
            for seed in (0, 1):
                torch.manual_seed(seed)
                losses = small.loss(*batch())
                sums.append(losses["class"] + losses["box"])
            assert sums[0] == sums[1]
            named[regions] = sums[0]
    assert named[1] > named[8] > named[10**6]


def test_one_image_is_the_batch(small):
    small.train()
    with torch.no_grad():
        for _ in range(3):
            small.loss(*batch())  # so that there are statistics
        small.named.weight.normal_(std=3.0)
    small.eval()
    small.score = 0.0
    pixels = noise(3, 3, 60, 50)  # filled up to 64 x 64
    with torch.no_grad():
        boxes, scores, labels = columns(small.predict(images_of(pixels)))
        single = [columns(small.predict(images_of(pixels[i : i + 1]))) for i in range(3)]
    assert boxes.shape[1] > 10
    assert boxes[..., 2].max() <= 50
    assert boxes[..., 3].max() <= 60
    for row, (own_boxes, own_scores, own_labels) in enumerate(single):
        count = own_labels.shape[1]
        assert labels[row, :count].tolist() == own_labels[0].tolist()
        torch.testing.assert_close(scores[row, :count], own_scores[0], rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(boxes[row, :count], own_boxes[0], rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bins": 0}, "bins must be at least 1, got 0"),
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"regions": 0}, "regions must be at least 1, got 0"),
        ({"score": -0.5}, r"score must be from 0 to 1, got -0.5"),
        ({"anchor_scales": (200.0,)}, r"no anchor of anchor_scales \[200.0\] lies"),
    ],
)
def test_refuses(options, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        RFCN(3, ResNet(18), (64, 64), **options)


def test_refuses_another_backbone():
    with torch.device("meta"), pytest.raises(ValueError, match="rfcn needs a ResNet, got VGG"):
        RFCN(3, VGG(11), (64, 64))
