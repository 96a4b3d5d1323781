"""The VGG backbones against torchvision's own networks."""

from __future__ import annotations

import hashlib
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models

from cnnctl.backbones import vgg
from cnnctl.backbones.vgg import VGG

NAMES = ["c1", "c2", "c3", "c4", "c5"]
COLUMNS = {11: 8, 13: 10, 16: 13, 19: 16}  # convolutions of A, B, D, E in the paper's table 1


def pixels(channels: int = 3, side: int = 32) -> Tensor:
    return torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(0))


def theirs(name: str) -> nn.Module:
    """torchvision's network without the seconds that its dense layers take to start."""
    with torch.device("meta"):
        return models.get_model(name)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("depth", [11, 13, 16, 19])
def test_is_torchvisions_network_under_its_names(depth, norm):
    with torch.device("meta"):
        ours = VGG(depth, norm=norm)
        top = ours.build_top()
    published = theirs(f"vgg{depth}{'_bn' if norm else ''}").state_dict()
    shapes = {name: value.shape for name, value in published.items() if "features" in name}
    assert {n: v.shape for n, v in ours.state_dict().items() if "features" in n} == shapes
    named = [f"classifier.{i}.{part}" for i in (0, 3) for part in ("weight", "bias")]
    dense = [published[name].shape for name in named]
    assert [value.shape for value in top.state_dict().values()] == dense
    assert sum(isinstance(layer, nn.Conv2d) for layer in ours.modules()) == COLUMNS[depth]


def test_parameters_of_the_paper():
    """Table 2: 133, 133, 138, 144 million, with the last layer for a thousand classes."""
    counts = []
    for depth in COLUMNS:
        with torch.device("meta"):
            ours = VGG(depth)  # pyright: ignore[reportArgumentType]
            both = nn.ModuleList([ours, ours.build_top()])
        counts.append(sum(p.numel() for p in both.parameters()) + 4096 * 1000 + 1000)
    assert counts == [132_863_336, 133_047_848, 138_357_544, 143_667_240]


@pytest.mark.parametrize("norm", [False, True])
def test_the_maps_are_torchvisions_after_each_pooling(norm):
    torch.manual_seed(0)
    ours = VGG(11, norm=norm).eval()
    layers = models.vgg.make_layers(models.vgg.cfgs["A"], batch_norm=norm).eval()
    layers.load_state_dict(ours.features.state_dict())
    with torch.no_grad():
        maps = ours(pixels())
        torch.testing.assert_close(maps["c5"], layers(pixels()))
        torch.testing.assert_close(maps["c1"], layers[: 4 if norm else 3](pixels()))
    assert list(maps) == list(ours.channels) == list(ours.strides) == NAMES
    assert ours.strides == dict(zip(NAMES, (2, 4, 8, 16, 32), strict=True))
    for name, found in maps.items():
        side = 32 // ours.strides[name]
        assert found.shape == (2, ours.channels[name], side, side)
    assert ours.deepest == "c5"


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A published file of VGG-11 in torch's hub folder, with narrow dense layers."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(vgg, "_FC", 6)
    torch.manual_seed(1)
    narrow = nn.Sequential(
        *(nn.Linear(512 * 7 * 7, 6), nn.ReLU(), nn.Dropout()),
        *(nn.Linear(6, 6), nn.ReLU(), nn.Dropout(), nn.Linear(6, 5)),
    )
    features = models.vgg.make_layers(models.vgg.cfgs["A"])
    network = nn.ModuleDict({"features": features, "classifier": narrow})
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    plain = folder / "vgg11.pth"
    torch.save(network.state_dict(), plain)
    digest = hashlib.sha256(plain.read_bytes()).hexdigest()[:8]
    path = plain.rename(folder / f"vgg11-{digest}.pth")
    found = SimpleNamespace(url=f"https://download.pytorch.org/models/{path.name}")
    fake = SimpleNamespace(__members__={"IMAGENET1K_V1": SimpleNamespace(value=found)})
    monkeypatch.setattr(models, "get_model_weights", lambda name: fake)
    return network.eval()


def test_published_weights_load_and_give_the_published_scores(published):
    ours = VGG(11, weights="IMAGENET1K_V1").eval()
    own = published.state_dict()
    assert all(torch.equal(own[name], value) for name, value in ours.state_dict().items())
    top = ours.build_top().eval()
    features = torch.randn(2, 512, 7, 7, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = published["classifier"](features.flatten(1))
        last = published["classifier"][6]
        torch.testing.assert_close(F.linear(top(features), last.weight, last.bias), expected)


@pytest.mark.parametrize("channels", [1, 4])
def test_other_channels_share_the_published_filters(published, channels):
    ours = VGG(11, in_channels=channels, weights="IMAGENET1K_V1").eval()
    grey = pixels(1)
    with torch.no_grad():
        found = ours.features[0](grey.expand(-1, channels, -1, -1))
        torch.testing.assert_close(found, published["features"][0](grey.expand(-1, 3, -1, -1)))


def test_top_starts_as_the_paper_says(monkeypatch):
    """Normal of variance 1e-4, zero biases (section 3.1)."""
    monkeypatch.setattr(vgg, "_FC", 64)
    torch.manual_seed(0)
    top = VGG(11).build_top()
    weight, bias = top.state_dict()["1.weight"], top.state_dict()["1.bias"]
    assert weight.std().item() == pytest.approx(0.01, rel=0.01)
    assert not bias.any()


def test_refuses():
    with pytest.raises(ValueError, match="depth must be 11, 13, 16 or 19, got 12"):
        VGG(12)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"or one of IMAGENET1K_V1, DEFAULT, got .*_FEATURES"):
        VGG(16, weights="IMAGENET1K_FEATURES")
    with pytest.raises(ValueError, match="VGG needs images of at least 32 x 32, got 31 x 40"):
        VGG(11).require((31, 40))
