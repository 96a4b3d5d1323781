from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import Tensor, nn

from cnnctl.backbones.resnet import ResNet
from cnnctl.backbones.vgg import VGG
from cnnctl.models.detection import Truth
from cnnctl.models.localisation import Localisation, Said
from cnnctl.structures import Images, Targets

BOXES = torch.tensor([[[10.0, 20, 30, 60]], [[5, 5, 15, 19]], [[0, 0, 0, 0]]])
LABELS = torch.tensor([[1], [0], [-1]])


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def images_of(pixels: Tensor) -> Images:
    sizes = [(pixels.shape[2], pixels.shape[3])] * len(pixels)
    return Images(pixels, sizes, list(sizes))


def targets_of(boxes: Tensor, labels: Tensor) -> Targets:
    return Targets(torch.arange(len(boxes)), boxes=boxes, labels=labels)


@pytest.fixture(scope="module")
def small() -> Localisation:
    torch.manual_seed(0)
    return Localisation(ResNet(18), 3, (64, 64), hidden=16)


@pytest.fixture
def by_hand() -> tuple[Localisation, Said]:
    """A model without weights, and what it says of three images of 100 x 200."""
    with torch.device("meta"):
        model = Localisation(ResNet(18), 2, (64, 64), box=10.0)
    logits = torch.tensor([[0.0, math.log(3)], [0.0, 0.0], [5.0, 5.0]])
    place = torch.tensor([[0.5, 0.5, 0.2, 0.4], [0.1, 0.2, 0.5, 0.6], [0.5, 0.5, -1.0, 0.2]])
    return model, Said(logits, place, (100, 200))


def test_exactly_one_detection_of_every_image(by_hand):
    model, said = by_hand
    found = model.detect(said, images_of(torch.zeros(3, 1, 100, 200)))
    assert found.labels.tolist() == [[1], [0], [0]]
    torch.testing.assert_close(found.scores, torch.tensor([[0.75], [0.5], [0.5]]))
    expected = [[80.0, 30, 120, 70], [0, 0, 70, 50], [100, 40, 100, 60]]  # inside the image
    torch.testing.assert_close(found.boxes, torch.tensor(expected)[:, None])


def test_losses_by_hand(by_hand):
    """Of three images one has two objects, of which the larger is learnt, and one has none."""
    model, said = by_hand
    boxes = torch.tensor(
        [
            [[0, 0, 10, 10], [80, 30, 120, 70], [0, 0, 200, 100.0]],
            [[0, 10, 60, 50], [0, 0, 0, 0], [0, 0, 0, 0]],
            [[0, 0, 0, 0]] * 3,
        ]
    )
    labels = torch.tensor([[0, 1, -1], [1, -1, -1], [-1, -1, -1]])
    images = images_of(torch.zeros(3, 1, 100, 200))
    with pytest.warns(UserWarning, match=r"1 of the first 3 objects .* model=yolo"):
        losses = model.losses(said, images, Truth(boxes, labels))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is said once
        model.losses(said, images, Truth(boxes, labels))
    assert losses["class"] == pytest.approx((math.log(4 / 3) + math.log(2)) / 3)
    # The first is where it is said to be; of the second: centre 30, 30, size 60 x 40.
    apart = (0.1 - 0.15) ** 2 + (0.2 - 0.3) ** 2 + (0.5 - 0.3) ** 2 + (0.6 - 0.4) ** 2
    assert losses["box"] == pytest.approx(10 * apart / 3)


@pytest.mark.parametrize("rows", [3, 0])
def test_without_a_box(small, rows):
    small.train().zero_grad()
    targets = targets_of(torch.zeros(2, rows, 4), torch.full((2, rows), -1))
    losses = small.loss(images_of(noise(2, 3, 64, 64)), targets)
    assert losses["class"] == losses["box"] == 0
    torch.stack(list(losses.values())).sum().backward()
    for name, parameter in small.named_parameters():
        assert parameter.grad is not None, name
        assert (parameter.grad == 0).all(), name


def test_every_parameter_learns(small):
    small.train().zero_grad()
    losses = small.loss(images_of(noise(2, 3, 64, 64)), targets_of(BOXES[:2], LABELS[:2]))
    torch.stack(list(losses.values())).sum().backward()
    for name, parameter in small.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_starts_in_the_middle(small):
    found = small.eval().predict(images_of(torch.zeros(1, 3, 64, 64)))
    torch.testing.assert_close(found.boxes, torch.tensor([[[16.0, 16, 48, 48]]]), atol=4.0, rtol=0)


def test_one_image_is_the_batch(small):
    small.eval()
    pixels = noise(3, 3, 50, 90)  # stretched to 64 x 64
    with torch.no_grad():
        losses, found = small.loss_and_predict(images_of(pixels), targets_of(BOXES, LABELS))
        single = [
            small.loss_and_predict(images_of(pixels[i : i + 1]), targets_of(BOXES[i:][:1], label))
            for i, label in enumerate(LABELS[:, None])
        ]
    assert found.boxes is not None
    assert found.scores is not None
    for name, loss in losses.items():
        mean = torch.stack([one[name] for one, _ in single]).mean()
        torch.testing.assert_close(loss, mean, rtol=1e-4, atol=1e-5)
    for row, (_, one) in enumerate(single):
        assert one.boxes is not None
        assert one.scores is not None
        torch.testing.assert_close(found.boxes[row], one.boxes[0], rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(found.scores[row], one.scores[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backbone", [ResNet, VGG])
def test_sees_the_whole_map(backbone):
    """70 x 100 is stretched to 96 x 128: 3 x 4 pixels of the deepest map, whatever the backbone."""
    with torch.device("meta"):
        model = Localisation(backbone(18 if backbone is ResNet else 11), 3, (70, 100), hidden=8)
        for size in ((70, 100), (33, 400)):
            assert model.features(torch.zeros(2, 3, *size)).place.shape == (2, 4)
    assert isinstance(model.placed[-1], nn.Linear)
    assert model.placed[-1].in_features == 8 * 3 * 4


@pytest.mark.parametrize(
    ("size", "options", "message"),
    [
        ((64, 64), {"hidden": 0}, "hidden must be at least 1, got 0"),
        ((64, 64), {"dropout": 1.0}, "dropout must be from 0 to below 1, got 1"),
        ((64, 64), {"box": 0.0}, "box must be above 0, got 0"),
        ((31, 64), {}, "ResNet needs images of at least 32 x 32, got 31 x 64"),
    ],
)
def test_refuses(size, options, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        Localisation(ResNet(18), 3, size, **options)
