"""A backbone in two parts: the map of the one and what the other makes of regions."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from cnnctl.backbones import alexnet
from cnnctl.backbones.alexnet import AlexNet
from cnnctl.backbones.base import Backbone
from cnnctl.backbones.resnet import ResNet
from cnnctl.backbones.vgg import VGG
from cnnctl.engine.receptive_field import FieldTracker
from cnnctl.models.region_head import Parts, centre_of, dense_layers, parts_of

LARGE, LITTLE = (600, 800), (96, 96)


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def counted(layers: nn.Module, kind: type) -> int:
    return sum(isinstance(layer, kind) for layer in layers.modules())


def parts(backbone: Backbone, at, size=LARGE, dense=()) -> Parts:
    return parts_of(backbone, size, "some_model", at, dense)


@pytest.mark.parametrize(
    ("at", "stride", "channels", "below", "above", "bins"),
    [("c4", 16, 512, 13, 0, 7), ("c3", 8, 512, 10, 3, 14)],
)
def test_of_vgg_16(at, stride, channels, below, above, bins):
    """conv5_3 and fc6, fc7; or conv4_3 and pool4 to fc7, which bins twice as fine end at 7 x 7."""
    with torch.device("meta"):
        found = parts(VGG(16), at)
        seen = found.top[:-7](torch.zeros(1, channels, bins, bins))  # all but fc6 and fc7
    assert (found.stride, found.channels, found.bins, found.width) == (stride, channels, bins, 4096)
    assert (counted(found.trunk, nn.Conv2d), counted(found.top, nn.Conv2d)) == (below, above)
    assert counted(found.trunk, nn.MaxPool2d) == {"c4": 4, "c3": 3}[at]
    assert seen.shape == (1, 512, 7, 7)
    assert counted(found.top, nn.Linear) == 2


@pytest.mark.parametrize(
    ("at", "stride", "channels", "bins"), [("c4", 16, 256, 6), ("c3", 8, 192, 12)]
)
def test_of_alexnet(monkeypatch, at, stride, channels, bins):
    """A map has a pixel for each ``stride`` of the image, and weights stay torchvision's."""
    monkeypatch.setattr(alexnet, "_FC", 8)
    torch.manual_seed(0)
    backbone = AlexNet()
    before = copy.deepcopy(backbone.state_dict())
    found = parts(backbone, at)
    assert (found.stride, found.channels, found.bins, found.width) == (stride, channels, bins, 8)
    for sides in ((64, 96), (160, 224)):
        maps = found.trunk(noise(1, 3, *sides))
        assert maps.shape == (1, channels, sides[0] // stride, sides[1] // stride)
    assert found.top(noise(2, channels, bins, bins)).shape == (2, 8)
    assert all(torch.equal(before[name], one) for name, one in backbone.state_dict().items())


@pytest.mark.parametrize(("size", "bins"), [(LARGE, 14), (LITTLE, 7)])
@pytest.mark.parametrize(("at", "stride", "channels"), [("c4", 16, 256), ("c3", 8, 128)])
def test_of_a_resnet(at, stride, channels, size, bins):
    """What is above the map makes of all of it what the backbone does."""
    torch.manual_seed(0)
    backbone = ResNet(18).eval()
    found = parts(backbone, at, size)
    assert (found.stride, found.channels, found.bins, found.width) == (stride, channels, bins, 512)
    pixels = noise(1, 3, 64, 64)
    with torch.no_grad():
        maps = backbone(pixels)
        torch.testing.assert_close(found.trunk(pixels), maps[at])
        torch.testing.assert_close(found.top(maps[at]), maps["c5"].mean((2, 3)))


def test_dense_layers_in_place_of_its_own(monkeypatch):
    monkeypatch.setattr(VGG, "build_top", lambda *_: pytest.fail("the published ones are unused"))
    torch.manual_seed(0)
    found = parts(VGG(11), "c3", dense=(24, 16))
    assert [layer.out_features for layer in found.top if isinstance(layer, nn.Linear)] == [24, 16]
    assert (found.width, found.bins, counted(found.trunk, nn.Conv2d)) == (16, 7, 6)
    assert found.top(noise(2, 512, 7, 7)).shape == (2, 16)
    few = parts(VGG(11), "c3", LITTLE, (24, 16))
    assert few.bins == 4
    assert few.top(noise(2, 512, 4, 4)).shape == (2, 16)


def test_dense_layers_keep_the_variance():
    torch.manual_seed(0)
    layers = dense_layers(4 * 8 * 8, [400, 300], dropout=0.5)
    assert [type(layer).__name__ for layer in layers] == [
        *("Flatten", "Linear", "ReLU", "Dropout", "Linear", "ReLU", "Dropout")
    ]
    with torch.no_grad():
        power = layers.eval()(noise(200, 4, 8, 8)).square().mean().item()
    assert power == pytest.approx(1, rel=0.2)


@pytest.mark.parametrize("at", ["c3", "c4"])
@pytest.mark.parametrize(
    ("backbone", "first"),
    [
        *((lambda: VGG(11), {"c3": 4, "c4": 8}), (lambda: ResNet(50), {"c3": 0.5, "c4": 0.5})),
        *((AlexNet, {"c3": 0.5, "c4": 0.5}), (lambda: ResNet(18, small_input=True), None)),
    ],
)
def test_centres_of_receptive_fields(backbone, first, at):
    """Against the intervals that the network's own operations give."""
    found = parts(backbone(), at, dense=(8,))
    centre = centre_of(found.trunk)
    if first is not None:
        assert centre == first[at]
    pixels = torch.zeros(1, 3, 256, 256)
    with FieldTracker() as tracker, torch.no_grad():
        tracker.start(pixels)
        maps = found.trunk.eval()(pixels)
    axis = tracker.fields[maps].axes[3]
    low, high = axis.sees(3)
    assert axis.step == found.stride
    assert (low + high + 1) / 2 == 3 * found.stride + centre


def test_refuses_another_backbone():
    class Other(Backbone):
        channels, strides = {"c4": 8}, {"c4": 16}

        def forward(self, pixels: Tensor) -> dict[str, Tensor]:
            return {"c4": pixels}

    with pytest.raises(ValueError, match="some_model needs a VGG, AlexNet or a ResNet, got Other"):
        parts(Other(), "c4")
