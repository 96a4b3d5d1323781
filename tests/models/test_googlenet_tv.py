"""torchvision's GoogLeNet against torchvision."""

from __future__ import annotations

import pytest
import torch
from torchvision.models import GoogLeNet_Weights, get_model

from cnnctl.models import published_classifiers
from cnnctl.models.googlenet_tv import GoogLeNetTV

SIZE = (32, 40)


def test_is_torchvisions_network_under_its_names():
    with torch.device("meta"):
        ours, without = GoogLeNetTV(3, 1000, (224, 224)), GoogLeNetTV(3, 1000, (224, 224), 0.0)
        theirs = get_model("googlenet", init_weights=False)
    shapes = {name: value.shape for name, value in ours.state_dict().items()}
    assert shapes == {name: value.shape for name, value in theirs.state_dict().items()}
    published = GoogLeNet_Weights.IMAGENET1K_V1.value.meta["num_params"]
    assert sum(p.numel() for p in without.parameters()) == published == 6_624_904
    assert sum(p.numel() for p in ours.parameters()) == 13_004_888


@pytest.fixture
def theirs():
    torch.manual_seed(0)
    options = {"init_weights": False, "transform_input": True}
    return get_model("googlenet", num_classes=1000, **options).eval()


def test_published_weights_say_the_same(theirs, monkeypatch):
    """All but what the border sees: padding is pixels of the mean there, of one half here."""
    monkeypatch.setattr(published_classifiers, "published_weights", lambda _: theirs.state_dict())
    ours = GoogLeNetTV(3, 1000, SIZE, weights="IMAGENET1K_V1").eval()
    pixels = torch.randn(1, 3, *SIZE)
    with torch.no_grad():
        first = theirs.conv1(theirs._transform_input(pixels))
        inside = (slice(None), slice(None), slice(2, -2), slice(2, -2))
        found = ours.get_submodule("conv1")(pixels)
        torch.testing.assert_close(found[inside], first[inside])
        torch.testing.assert_close(ours(pixels), theirs(pixels), rtol=0.05, atol=0.05)
    assert ours.rebuilt == ()
    other = GoogLeNetTV(3, 5, SIZE, weights="IMAGENET1K_V1")
    assert other.rebuilt == ("fc", "aux1.fc2", "aux2.fc2")
    grey = GoogLeNetTV(1, 5, SIZE, 0.0, weights="IMAGENET1K_V1").eval()
    assert grey.rebuilt == ("fc",)
    one = torch.randn(1, 1, *SIZE)
    with torch.no_grad():
        expected = ours.get_submodule("conv1")(one.expand(-1, 3, -1, -1))
        torch.testing.assert_close(grey.get_submodule("conv1")(one), expected)


@pytest.mark.parametrize(("channels", "share"), [(1, 0.0), (3, 0.3)])
def test_contract(check, channels, share):
    torch.manual_seed(0)
    check(GoogLeNetTV(channels, 5, SIZE, share), channels, SIZE, 5)


def test_refuses():
    with pytest.raises(ValueError, match="GoogLeNet needs images of at least 15 x 15, got 14 x 32"):
        GoogLeNetTV(3, 10, (14, 32))
    with pytest.raises(ValueError, match=r"auxiliary must be at least 0, got -0.3"):
        GoogLeNetTV(3, 10, SIZE, -0.3)
    with pytest.raises(ValueError, match="weights must be null or one of IMAGENET1K_V1, DEFAULT"):
        GoogLeNetTV(3, 10, SIZE, weights="COCO")
