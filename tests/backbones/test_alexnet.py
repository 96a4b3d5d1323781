"""The AlexNet backbone against torchvision's own network."""

from __future__ import annotations

import hashlib
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models

from cnnctl.backbones import alexnet
from cnnctl.backbones.alexnet import AlexNet


def pixels(channels: int = 3, side: int = 64) -> Tensor:
    return torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(0))


def test_is_torchvisions_network_under_its_names():
    with torch.device("meta"):
        ours, theirs = AlexNet(), models.alexnet()
        top = ours.build_top()
    published = theirs.state_dict()
    shapes = {name: value.shape for name, value in published.items() if "features" in name}
    assert {name: value.shape for name, value in ours.state_dict().items()} == shapes
    dense = [
        published[f"classifier.{i}.{part}"].shape for i in (1, 4) for part in ("weight", "bias")
    ]
    assert [value.shape for value in top.state_dict().values()] == dense
    count = sum(p.numel() for part in (ours, top) for p in part.parameters())
    assert count + 4096 * 1000 + 1000 == 61_100_840  # torchvision's
    assert [str(layer) for layer in ours.features] == [str(layer) for layer in theirs.features]
    assert [str(layer) for layer in top][1:] == [str(layer) for layer in theirs.classifier][:6]


@pytest.mark.parametrize(("side", "sides"), [(224, (55, 27, 13, 6)), (63, (15, 7, 3, 1))])
def test_maps(side, sides):
    """The sides of figure 2, and the smallest image that leaves a pixel of pool5."""
    torch.manual_seed(0)
    ours = AlexNet().eval()
    with torch.no_grad():
        maps = ours(pixels(side=side)[:1])
        out, expected = pixels(side=side)[:1], []
        for place, layer in enumerate(ours.features):
            out = layer(out)
            if place in (1, 4, 11, 12):  # relu1, relu2, relu5, pool5
                expected.append(out.clone())
    names = ["c2", "c3", "c4", "c5"]
    assert list(maps) == list(ours.channels) == list(ours.strides) == names
    assert list(ours.strides.values()) == [4, 8, 16, 32]
    for (name, found), own, one in zip(maps.items(), sides, expected, strict=True):
        assert found.shape == (1, ours.channels[name], own, own)
        assert torch.equal(found, one)
    ours.require((side, side))


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A published file in torch's hub folder, with narrow dense layers."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(alexnet, "_FC", 6)
    torch.manual_seed(1)
    narrow = nn.Sequential(
        *(nn.Dropout(), nn.Linear(256 * 6 * 6, 6), nn.ReLU()),
        *(nn.Dropout(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 5)),
    )
    network = nn.ModuleDict({"features": AlexNet().features, "classifier": narrow})
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    plain = folder / "alexnet.pth"
    torch.save(network.state_dict(), plain)
    digest = hashlib.sha256(plain.read_bytes()).hexdigest()[:8]
    path = plain.rename(folder / f"alexnet-owt-{digest}.pth")
    found = SimpleNamespace(url=f"https://download.pytorch.org/models/{path.name}")
    fake = SimpleNamespace(__members__={"IMAGENET1K_V1": SimpleNamespace(value=found)})
    monkeypatch.setattr(models, "get_model_weights", lambda name: fake)
    return network.eval()


def test_published_weights_load_and_give_the_published_scores(published):
    ours = AlexNet(weights="IMAGENET1K_V1").eval()
    own = published.state_dict()
    assert all(torch.equal(own[name], value) for name, value in ours.state_dict().items())
    top = ours.build_top().eval()
    features = torch.randn(2, 256, 6, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = published["classifier"](features.flatten(1))
        last = published["classifier"][6]
        torch.testing.assert_close(F.linear(top(features), last.weight, last.bias), expected)


@pytest.mark.parametrize("channels", [1, 4])
def test_other_channels_share_the_published_filters(published, channels):
    ours = AlexNet(in_channels=channels, weights="IMAGENET1K_V1").eval()
    grey = pixels(1)
    with torch.no_grad():
        found = ours.features[0](grey.expand(-1, channels, -1, -1))
        torch.testing.assert_close(found, published["features"][0](grey.expand(-1, 3, -1, -1)))


def test_top_starts_as_the_paper_says(monkeypatch):
    monkeypatch.setattr(alexnet, "_FC", 64)
    torch.manual_seed(0)
    top = AlexNet().build_top()
    weight, bias = top.state_dict()["2.weight"], top.state_dict()["2.bias"]
    assert weight.std().item() == pytest.approx(0.01, rel=0.01)
    assert not bias.any()


def test_refuses():
    with pytest.raises(ValueError, match='null or one of IMAGENET1K_V1, DEFAULT, got "X"'):
        AlexNet(weights="X")
    with pytest.raises(ValueError, match="AlexNet needs images of at least 63 x 63, got 62 x 80"):
        AlexNet().require((62, 80))
