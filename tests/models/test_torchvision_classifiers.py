from __future__ import annotations

import pytest
import torch
from torch import nn

from cnnctl.models import torchvision_classifiers
from cnnctl.models.convnext import ConvNeXt
from cnnctl.models.efficientnet import EfficientNet
from cnnctl.models.mobilenet_v2 import MobileNetV2
from cnnctl.models.mobilenet_v3 import MobileNetV3
from cnnctl.models.torchvision_classifiers import adopt, require, torchvision_classifier


@pytest.mark.parametrize("channels", [1, 5])
def test_a_stem_for_other_channels_answers_as_strongly(channels):
    """The deviation of its filters makes up for their number; shape and bias are torchvision's."""
    torch.manual_seed(0)
    conv = torchvision_classifier("mobilenet_v2", 3, 5, None, ()).features[0][0]
    stem = torchvision_classifier("mobilenet_v2", channels, 5, None, ()).features[0][0]
    assert (stem.in_channels, stem.out_channels, stem.stride) == (channels, 32, (2, 2))
    ratio = stem.weight.var() * channels / (conv.weight.var() * 3)
    assert ratio.item() == pytest.approx(1, abs=0.2)
    assert stem.bias is None


def test_published_weights_are_asked_for_by_torchvisions_name(monkeypatch):
    asked = []

    def load(network, name, weights, num_classes, classes, **rest):
        asked.append((name, weights, num_classes, classes))
        return ("classifier.1",)

    monkeypatch.setattr(torchvision_classifiers, "load_classifier", load)
    args, options = (3, 2, (224, 224)), {"weights": "V1", "classes": ("cat", "dog")}
    with torch.device("meta"):
        models = [
            MobileNetV2(*args, **options),
            MobileNetV3(*args, "small", **options),
            EfficientNet(*args, "b1", **options),
            ConvNeXt(*args, "small", **options),
        ]
    names = ["mobilenet_v2", "mobilenet_v3_small", "efficientnet_b1", "convnext_small"]
    assert asked == [(name, "V1", 2, ("cat", "dog")) for name in names]
    assert all(model.rebuilt == ("classifier.1",) for model in models)


def test_adopted_layers_keep_their_names():
    network = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    model = nn.Module()
    adopt(model, network)
    assert list(model.state_dict()) == list(network.state_dict())
    assert model.get_submodule("2") is network[2]


def test_says_which_size_is_needed():
    require("X", (32, 32))
    with pytest.raises(ValueError, match="X needs images of at least 48 x 48, got 64 x 47"):
        require("X", (64, 47), 48)
