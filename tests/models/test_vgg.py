"""VGG against the paper's tables 1 and 2 and torchvision's networks."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.models import get_model, get_model_weights

from cnnctl.models import vgg
from cnnctl.models.vgg import VGG, Column
from cnnctl.ops.local_response import LocalResponse

# Table 2 has 133, 133, 133, 134, 138 and 144 million.
PARAMETERS: dict[Column, int] = {
    "A": 132_863_336,
    "A-LRN": 132_863_336,
    "B": 133_047_848,
    "C": 133_638_952,
    "D": 138_357_544,
    "E": 143_667_240,
}
LAYERS = {"A": 11, "A-LRN": 11, "B": 13, "C": 16, "D": 16, "E": 19}  # with weights
NAMES: dict[Column, str] = {"A": "vgg11", "B": "vgg13", "D": "vgg16", "E": "vgg19"}


def on_meta(column, **settings) -> VGG:
    with torch.device("meta"):
        return VGG(3, 1000, (224, 224), column, **settings)


@pytest.mark.parametrize("column", PARAMETERS)
def test_parameters_and_layers_of_each_column(column):
    model = on_meta(column)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[column]
    weighted = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert len(weighted) == LAYERS[column]
    out = model.features(torch.empty(1, 3, 224, 224, device="meta"))
    assert out.shape == (1, 512, 7, 7)


def test_what_a_lrn_and_c_have_of_their_own():
    kinds = [type(layer) for layer in on_meta("A-LRN").features]
    assert kinds[:4] == [nn.Conv2d, nn.ReLU, LocalResponse, nn.MaxPool2d]
    del kinds[2]
    assert kinds == [type(layer) for layer in on_meta("A").features]
    sides = [m.kernel_size[0] for m in on_meta("C").features if isinstance(m, nn.Conv2d)]
    assert sides == [3, 3, 3, 3, *[3, 3, 1] * 3]


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("column", NAMES)
def test_is_torchvisions_network_under_its_names(column, norm):
    name = f"{NAMES[column]}{'_bn' if norm else ''}"
    with torch.device("meta"):
        theirs = get_model(name).state_dict()
    ours = on_meta(column, norm=norm)
    shapes = {key: value.shape for key, value in ours.state_dict().items()}
    assert shapes == {key: value.shape for key, value in theirs.items()}
    meta = get_model_weights(name).__members__["IMAGENET1K_V1"].value.meta
    assert sum(p.numel() for p in ours.parameters()) == meta["num_params"]


@pytest.mark.parametrize("norm", [False, True])
def test_features_are_torchvisions(norm):
    torch.manual_seed(0)
    ours = VGG(3, 2, (32, 32), "A", norm, units=8).eval()
    with torch.device("meta"):
        theirs = get_model(f"vgg11{'_bn' if norm else ''}").get_submodule("features").eval()
    theirs.load_state_dict(ours.features.state_dict(), assign=True)
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(ours.features(pixels), theirs(pixels))


def test_dense_layers_follow_the_last_map():
    """512 for 32 x 32; torchvision would repeat the one position to 7 x 7."""
    with torch.device("meta"):
        small, wide = VGG(3, 10, (32, 32)), VGG(1, 10, (64, 96), units=7)
    assert small.get_submodule("classifier.0").in_features == 512
    assert wide.get_submodule("classifier.0").in_features == 512 * 2 * 3
    assert sum(p.numel() for p in small.parameters()) == 14_714_688 + 513 * 4096 + 4097 * 4106


@pytest.mark.parametrize(("channels", "column", "norm"), [(1, "A-LRN", False), (3, "A", True)])
def test_contract(check, channels, column, norm):
    torch.manual_seed(0)
    check(VGG(channels, 5, (32, 32), column, norm, units=64), channels, (32, 32), 5)


def test_published_weights_load(monkeypatch):
    asked = []

    def load(model, name, weights, num_classes, classes, fits):
        asked.append((name, weights, num_classes, classes))
        return ("classifier.6",)

    monkeypatch.setattr(vgg, "load_classifier", load)
    chosen: list[tuple[Column, bool]] = [("A", True), ("D", False)]
    with torch.device("meta"):
        for column, norm in chosen:
            model = VGG(3, 2, (224, 224), column, norm, weights="V1", classes=("cat", "dog"))
            assert model.rebuilt == ("classifier.6",)
    assert asked == [("vgg11_bn", "V1", 2, ("cat", "dog")), ("vgg16", "V1", 2, ("cat", "dog"))]


def test_refuses():
    with pytest.raises(ValueError, match="VGG needs images of at least 32 x 32, got 31 x 40"):
        VGG(3, 10, (31, 40))
    with pytest.raises(ValueError, match='column must be one of A, A-LRN, B, C, D, E, got "F"'):
        VGG(3, 10, (32, 32), "F")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="no published weights of VGG C, only of A, B, D, E"):
        VGG(3, 10, (32, 32), "C", weights="IMAGENET1K_V1")
    with pytest.raises(ValueError, match='_FEATURES" have no dense layers: take IMAGENET1K_V1'):
        VGG(3, 1000, (224, 224), weights="IMAGENET1K_FEATURES")
    with pytest.raises(ValueError, match="units must be at least 1, got 0"):
        VGG(3, 10, (32, 32), units=0)
