"""AlexNet of one tower against torchvision's."""

from __future__ import annotations

import pytest
import torch
from torchvision.models import AlexNet_Weights, get_model

from cnnctl.models import alexnet2014
from cnnctl.models.alexnet2014 import AlexNet2014


def test_is_torchvisions_network_under_its_names():
    with torch.device("meta"):
        ours, theirs = AlexNet2014(3, 1000, (224, 224)), get_model("alexnet")
    shapes = {name: value.shape for name, value in ours.state_dict().items()}
    assert shapes == {name: value.shape for name, value in theirs.state_dict().items()}
    count = sum(p.numel() for p in ours.parameters())
    assert count == AlexNet_Weights.IMAGENET1K_V1.value.meta["num_params"] == 61_100_840


def test_gives_torchvisions_scores():
    """On one image; its own pooling to 6 x 6 has nothing to do at this size."""
    ours = AlexNet2014(3, 5, (224, 224)).eval()
    with torch.device("meta"):
        theirs = get_model("alexnet", num_classes=5).eval()
    theirs.load_state_dict(ours.state_dict(), assign=True)
    pixels = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours(pixels), theirs(pixels))


@pytest.mark.parametrize(("channels", "size"), [(3, (63, 63)), (1, (70, 96))])
def test_contract(check, monkeypatch, channels, size):
    monkeypatch.setattr(alexnet2014, "_UNITS", 64)
    torch.manual_seed(0)
    check(AlexNet2014(channels, 5, size), channels, size, 5)


def test_published_weights_load(monkeypatch):
    monkeypatch.setattr(alexnet2014, "_UNITS", 64)
    asked = []

    def load(model, name, weights, num_classes, classes, fits):
        asked.append((name, weights, num_classes, classes))
        return ("classifier.6",)

    monkeypatch.setattr(alexnet2014, "load_classifier", load)
    model = AlexNet2014(3, 2, (63, 63), weights="IMAGENET1K_V1", classes=("cat", "dog"))
    assert asked == [("alexnet", "IMAGENET1K_V1", 2, ("cat", "dog"))]
    assert model.rebuilt == ("classifier.6",)
    assert model.get_submodule("classifier.6").out_features == 2


def test_refuses():
    with pytest.raises(ValueError, match=r"\(2014\) needs images of at least 63 x 63, got 62 x 70"):
        AlexNet2014(3, 10, (62, 70))
    with pytest.raises(ValueError, match=r"dropout must be in \[0, 1\), got -0.1"):
        AlexNet2014(3, 10, (224, 224), dropout=-0.1)
