"""How published weights of classifiers fit channels and classes; the smallest network stands for
all."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from cnnctl.errors import UserError
from cnnctl.models.published_classifiers import load_classifier

CATEGORIES = ["tench", "goldfish", "shark"]


class Small(nn.Module):
    """Two heads, the last of which names the classes."""

    def __init__(self, channels: int = 3, classes: int = 3) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4))
        self.auxiliary = nn.Linear(4, classes)
        self.classifier = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, classes))


@pytest.fixture
def publish(tmp_path, monkeypatch):
    """Put a network of ``Small``'s shape into torch's hub folder; -> its state dict."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    folder = tmp_path / "checkpoints"
    folder.mkdir()

    def publish(network: nn.Module, categories: list[str]) -> dict[str, Tensor]:
        state = OrderedDict(network.state_dict())
        del state["features.1.num_batches_tracked"]  # as in the files of old networks
        plain = folder / "small.pth"
        torch.save(state, plain)
        digest = hashlib.sha256(plain.read_bytes()).hexdigest()[:8]
        path = plain.rename(folder / f"small-{digest}.pth")
        meta = {"categories": categories}
        found = SimpleNamespace(url=f"https://download.pytorch.org/models/{path.name}", meta=meta)
        fake = SimpleNamespace(__members__={"IMAGENET1K_V1": SimpleNamespace(value=found)})
        monkeypatch.setattr(models, "get_model_weights", lambda name: fake)
        return state

    return publish


@pytest.fixture
def published(publish) -> dict[str, Tensor]:
    torch.manual_seed(1)
    return publish(Small(), CATEGORIES)


@pytest.mark.parametrize("classes", [(), tuple(CATEGORIES)])
def test_all_of_it_loads_for_the_published_classes(published, classes):
    model = Small()
    assert load_classifier(model, "small", "IMAGENET1K_V1", 3, classes) == ()
    own = model.state_dict()
    assert all(torch.equal(own[key], value) for key, value in published.items())


@pytest.mark.parametrize(
    ("count", "classes"), [(7, ()), (3, ("goldfish", "tench", "shark")), (3, ("a", "b", "c"))]
)
def test_other_classes_start_the_last_layer_anew(published, count, classes):
    model = Small(classes=count)
    model.auxiliary = nn.Linear(4, 3)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    rebuilt = load_classifier(model, "small", "IMAGENET1K_V1", count, classes)
    assert rebuilt == ("classifier.1",)
    own = model.state_dict()
    anew = {"classifier.1.weight", "classifier.1.bias"}
    assert all(torch.equal(own[key], before[key]) for key in anew)
    assert all(torch.equal(own[key], published[key]) for key in published.keys() - anew)


def test_several_heads_start_anew(published):
    heads = ("auxiliary", "classifier.1")
    model = Small(classes=2)
    assert load_classifier(model, "small", "IMAGENET1K_V1", 2, heads=heads) == heads
    own = model.state_dict()
    assert torch.equal(own["classifier.0.weight"], published["classifier.0.weight"])


def test_imagenets_folders_are_its_classes(publish):
    """A thousand folders n01440764 to n15075141, in the order of their names."""
    publish(Small(classes=1000), [str(number) for number in range(1000)])
    folders = [f"n{1_440_764 + 7 * number:08d}" for number in range(1000)]
    for names, rebuilt in ((folders, ()), (folders[::-1], ("classifier.1",))):
        model = Small(classes=1000)
        heads = ("classifier.1",)
        found = load_classifier(model, "small", "IMAGENET1K_V1", 1000, names, heads)
        assert found == rebuilt


@pytest.mark.parametrize("channels", [1, 4])
def test_other_channels_share_the_published_filters(published, channels):
    model = Small(channels)
    load_classifier(model, "small", "IMAGENET1K_V1", 3)
    weight = model.state_dict()["features.0.weight"]
    torch.testing.assert_close(weight.sum(1), published["features.0.weight"].sum(1))
    torch.testing.assert_close(weight[:, 0], weight[:, -1])


def test_refuses(published):
    with pytest.raises(ValueError, match="weights must be null or one of IMAGENET1K_V1, got"):
        load_classifier(Small(), "small", "V9", 3)
    model = Small()
    model.classifier[0] = nn.Linear(6, 5)
    with pytest.raises(ValueError, match="published weights are of the whole of small"):
        load_classifier(model, "small", "IMAGENET1K_V1", 3)
    model = Small()
    model.more = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="published weights are of images of 224 x 224"):
        load_classifier(model, "small", "IMAGENET1K_V1", 3, fits="images of 224 x 224")


def test_weights_that_are_not_here(published, tmp_path, monkeypatch):
    for file in (tmp_path / "checkpoints").iterdir():
        file.unlink()

    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(UserError, match="these weights are not on this machine"):
        load_classifier(Small(), "small", "IMAGENET1K_V1", 3)
