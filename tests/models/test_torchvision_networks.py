"""How torchvision's networks take channels, classes and published weights; the smallest stands for
all."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.models import get_model, get_model_weights
from torchvision.models.segmentation import LRASPP_MobileNet_V3_Large_Weights as Weights

from cnnctl.models import torchvision_networks
from cnnctl.models.deeplabv3 import DeepLabV3
from cnnctl.models.lraspp import LRASPP
from cnnctl.models.torchvision_networks import torchvision_network

NAMES = {
    "deeplabv3_resnet50": "resnet50",
    "deeplabv3_resnet101": "resnet101",
    "deeplabv3_mobilenet_v3_large": "mobilenet_v3_large",
    "fcn_resnet50": "resnet50",
    "fcn_resnet101": "resnet101",
    "lraspp_mobilenet_v3_large": "mobilenet_v3_large",
}


def filled(name: str, seed: int, **keys) -> dict[str, Tensor]:
    """A state dict of torchvision's network with numbers of its own."""
    with torch.device("meta"):
        shapes = get_model(name, **keys).state_dict()
    generator = torch.Generator().manual_seed(seed)
    return {
        key: torch.rand(value.shape, generator=generator).to(value.dtype)
        for key, value in shapes.items()
    }


def whole(auxiliary: bool = False) -> dict[str, Tensor]:
    name = "deeplabv3_mobilenet_v3_large" if auxiliary else "lraspp_mobilenet_v3_large"
    return filled(name, 1, num_classes=21, aux_loss=auxiliary, weights_backbone=None)


@pytest.fixture
def publish(monkeypatch):
    """Make ``published_weights`` give a state dict; -> the entries that were asked for."""

    def publish(state: dict[str, Tensor]) -> list:
        asked = []

        def published(entry):
            asked.append(entry)
            return dict(state)

        monkeypatch.setattr(torchvision_networks, "published_weights", published)
        return asked

    return publish


@pytest.mark.parametrize("name", NAMES)
def test_every_network_has_the_published_parameters(name):
    auxiliary = not name.startswith("lraspp")
    with torch.device("meta"):
        network = torchvision_network(name, 3, 21, auxiliary, None, NAMES[name], None)
    entry = get_model_weights(name).__members__["COCO_WITH_VOC_LABELS_V1"].value
    assert sum(p.numel() for p in network.parameters()) == entry.meta["num_params"]


def test_published_weights_load(publish):
    state = whole()
    asked = publish(state)
    model = LRASPP(3, 21, weights="COCO_WITH_VOC_LABELS_V1")
    assert asked == [Weights.COCO_WITH_VOC_LABELS_V1.value]
    assert model.rebuilt == ()
    own = model.network.state_dict()
    assert own.keys() == state.keys()
    assert all(torch.equal(own[key], value) for key, value in state.items())


def test_other_classes_start_the_last_layers_anew(publish):
    state = whole()
    publish(state)
    model = LRASPP(3, 5, weights="COCO_WITH_VOC_LABELS_V1")
    own = model.network.state_dict()
    heads = ("classifier.low_classifier", "classifier.high_classifier")
    assert model.rebuilt == heads
    anew = {f"{head}.{part}" for head in heads for part in ("weight", "bias")}
    assert {key for key in own if own[key].shape != state[key].shape} == anew
    assert all(torch.equal(own[key], state[key]) for key in own.keys() - anew)


@pytest.mark.parametrize("auxiliary", [False, True])
def test_both_heads_of_deeplab_start_anew(publish, auxiliary):
    """A network without its auxiliary head leaves the published one out."""
    state = whole(auxiliary=True)
    publish(state)
    model = DeepLabV3(3, 5, "mobilenet_v3_large", auxiliary, weights="COCO_WITH_VOC_LABELS_V1")
    own = model.network.state_dict()
    assert any(key.startswith("aux_classifier") for key in own) == auxiliary
    anew = {key for key in own if not torch.equal(own[key], state[key])}
    heads = ("classifier.4", "aux_classifier.4")[: 1 + auxiliary]
    assert model.rebuilt == heads
    assert anew == {f"{head}.{part}" for head in heads for part in ("weight", "bias")}


def test_backbone_weights_load(publish):
    state = filled("mobilenet_v3_large", 2)
    asked = publish(state)
    torch.manual_seed(0)
    network = LRASPP(3, 5, backbone_weights="IMAGENET1K_V2").network
    assert [entry.url.rsplit("/")[-1] for entry in asked] == ["mobilenet_v3_large-5c1a4163.pth"]
    own = network.backbone.state_dict()
    assert len(own) > 250
    assert all(torch.equal(value, state[f"features.{key}"]) for key, value in own.items())


def test_a_resnets_backbone_loads(publish):
    state = filled("resnet50", 2)
    publish(state)
    network = torchvision_network("fcn_resnet50", 3, 2, True, None, "resnet50", "IMAGENET1K_V1")
    own = network.backbone.state_dict()
    assert own.keys() == state.keys() - {"fc.weight", "fc.bias"}
    assert all(torch.equal(value, state[key]) for key, value in own.items())


@pytest.mark.parametrize("channels", [1, 4])
def test_other_channels_share_the_published_filters(publish, channels):
    state = whole()
    publish(state)
    own = LRASPP(channels, 21, weights="COCO_WITH_VOC_LABELS_V1").network.state_dict()
    key = "backbone.0.0.weight"
    assert own[key].shape == (16, channels, 3, 3)
    torch.testing.assert_close(own[key].sum(1), state[key].sum(1))
    torch.testing.assert_close(own[key][:, 0], own[key][:, -1])
    assert all(torch.equal(own[name], state[name]) for name in own.keys() - {key})


def test_other_channels_start_as_torchvisions_do():
    torch.manual_seed(0)
    with torch.device("meta"):
        conv = torchvision_network(
            "fcn_resnet50", 5, 2, False, None, "resnet50", None
        ).backbone.conv1
    assert (conv.weight.shape, conv.stride, conv.padding) == ((64, 5, 7, 7), (2, 2), (3, 3))
    conv = LRASPP(1, 2).network.backbone["0"][0]
    # Variance 2 / (16 * 9) of 144 numbers.
    assert conv.weight.std().item() == pytest.approx((2 / 144) ** 0.5, rel=0.2)
    assert (conv.stride, conv.padding, conv.bias) == ((2, 2), (1, 1), None)


def test_refuses():
    with pytest.raises(ValueError, match=r"weights must be null or one of COCO_WITH_VOC_LABELS_V1"):
        LRASPP(3, 21, weights="IMAGENET1K_V1")
    with pytest.raises(ValueError, match=r"^backbone_weights must be null or one of IMAGENET1K_V1"):
        LRASPP(3, 21, backbone_weights="COCO_WITH_VOC_LABELS_V1")
    with pytest.raises(ValueError, match="set backbone_weights to null"):
        LRASPP(3, 21, "COCO_WITH_VOC_LABELS_V1", "IMAGENET1K_V1")
