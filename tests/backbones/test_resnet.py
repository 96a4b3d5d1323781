"""The ResNet backbones against torchvision's own networks."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Literal
from urllib.error import URLError

import pytest
import torch
from torch import Tensor
from torchvision import models

from cnnctl.backbones import base
from cnnctl.backbones.base import published_weights
from cnnctl.backbones.resnet import ResNet
from cnnctl.engine.given_weights import of_published
from cnnctl.errors import Exit, UserError
from cnnctl.models.classifier import Classifier


def pixels(channels: int = 3, side: int = 64) -> Tensor:
    return torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("depth", [18, 34, 50])
def test_is_torchvisions_network_under_its_names(depth):
    torch.manual_seed(0)
    ours, theirs = ResNet(depth).eval(), models.get_model(f"resnet{depth}").eval()
    result = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert (result.missing_keys, result.unexpected_keys) == ([], ["fc.weight", "fc.bias"])
    with torch.no_grad():
        maps = ours(pixels())
        pooled = maps["c5"].mean((2, 3))
        torch.testing.assert_close(theirs.get_submodule("fc")(pooled), theirs(pixels()))
    assert list(maps) == ["c2", "c3", "c4", "c5"]


@pytest.mark.parametrize("small_input", [False, True])
@pytest.mark.parametrize(("depth", "channels"), [(18, 64), (50, 256)])
def test_channels_and_strides_are_those_of_the_maps(depth, channels, small_input):
    backbone = ResNet(depth, small_input=small_input).eval()
    with torch.no_grad():
        maps = backbone(pixels())
    first = 1 if small_input else 4
    assert backbone.strides == {"c2": first, "c3": 2 * first, "c4": 4 * first, "c5": 8 * first}
    assert list(backbone.channels.values()) == [channels, 2 * channels, 4 * channels, 8 * channels]
    for name, found in maps.items():
        side = 64 // backbone.strides[name]
        assert found.shape == (2, backbone.channels[name], side, side)
    assert backbone.deepest == "c5"
    assert backbone.build_top() is None


@pytest.mark.parametrize("channels", [1, 4])
def test_other_channels_get_a_new_stem(channels):
    backbone = ResNet(18, in_channels=channels).eval()
    assert backbone.conv1.weight.shape == (64, channels, 7, 7)
    # torchvision's initialisation: variance 2 / (64 * 49)
    assert backbone.conv1.weight.std().item() == pytest.approx((2 / (64 * 49)) ** 0.5, rel=0.05)


def saved(tmp_path: Path, monkeypatch, network: torch.nn.Module) -> Path:
    """A published file of ``network`` in torch's hub folder, its digest in its name."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    plain = folder / "resnet18.pth"
    torch.save(network.state_dict(), plain)
    digest = hashlib.sha256(plain.read_bytes()).hexdigest()[:8]
    return plain.rename(folder / f"resnet18-{digest}.pth")


@pytest.fixture
def published(tmp_path, monkeypatch):
    torch.manual_seed(1)
    network = models.resnet18()
    path = saved(tmp_path, monkeypatch, network)
    entry = models.ResNet18_Weights.IMAGENET1K_V1.value
    found = SimpleNamespace(url=f"https://download.pytorch.org/models/{path.name}", meta=entry.meta)
    fake = SimpleNamespace(__members__={"IMAGENET1K_V1": SimpleNamespace(value=found)})
    monkeypatch.setattr(models, "get_model_weights", lambda name: fake)
    return network.eval(), path, found


def test_published_weights_load(published):
    network, _, _ = published
    ours = ResNet(18, weights="IMAGENET1K_V1").eval()
    assert all(torch.equal(network.state_dict()[k], v) for k, v in ours.state_dict().items())


def test_a_classifier_of_the_same_classes_has_the_published_head_too(published):
    network, _, entry = published
    names = tuple(entry.meta["categories"])

    def classifier(classes: tuple[str, ...], pool: Literal["avg", "max"] = "avg") -> Classifier:
        backbone = ResNet(18, weights="IMAGENET1K_V1")
        return Classifier(backbone, len(classes), (64, 64), pool, classes=classes).eval()

    folders = tuple(f"n{number:08d}" for number in range(1000))
    for classes in (names, folders):
        whole = classifier(classes)
        with torch.no_grad():
            torch.testing.assert_close(whole(pixels(3)), network(pixels(3)))
        assert of_published(whole, "IMAGENET1K_V1", whole=False).rebuilt == []
    for other in (classifier(names[::-1]), classifier(names[:10]), classifier(names, "max")):
        assert other.published == ()
        said = of_published(other, "IMAGENET1K_V1", whole=False)
        assert said.rebuilt == ["linear.weight", "linear.bias"]


@pytest.mark.parametrize("channels", [1, 4])
def test_other_channels_share_the_published_filters(published, channels):
    network, _, _ = published
    grey = pixels(1)
    ours = ResNet(18, in_channels=channels, weights="IMAGENET1K_V1").eval()
    with torch.no_grad():
        found = ours.conv1(grey.expand(-1, channels, -1, -1))
        torch.testing.assert_close(found, network.conv1(grey.expand(-1, 3, -1, -1)))


def test_small_input_loads_all_but_the_stem(published):
    network, _, _ = published
    ours = ResNet(18, weights="IMAGENET1K_V1", small_input=True).state_dict()
    assert ours.pop("conv1.weight").shape == (64, 3, 3, 3)
    assert all(torch.equal(network.state_dict()[name], value) for name, value in ours.items())


def test_a_damaged_file_is_named(published):
    _, path, entry = published
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="damaged") as caught:
        published_weights(entry)
    assert (caught.value.file, caught.value.code) == (path, Exit.DATA)


@pytest.mark.parametrize("error", [URLError("no network"), base.HTTPException("cut off")])
def test_without_a_network_it_says_which_file_goes_where(tmp_path, monkeypatch, error):
    def refuse(*args, **kwargs):
        raise error

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    with pytest.raises(UserError, match="cannot be downloaded") as caught:
        ResNet(18, weights="IMAGENET1K_V1")
    assert caught.value.code == Exit.DATA
    assert caught.value.file == tmp_path / "checkpoints" / "resnet18-f37072fd.pth"
    assert "https://download.pytorch.org/models/resnet18-f37072fd.pth" in str(caught.value.advice)


def test_refuses():
    with pytest.raises(ValueError, match=r"weights must be null or one of IMAGENET1K_V1, .*DEF"):
        ResNet(50, weights="IMAGENET")
    with pytest.raises(ValueError, match="depth must be 18, 34, 50, 101 or 152, got 19"):
        ResNet(19)  # pyright: ignore[reportArgumentType]
