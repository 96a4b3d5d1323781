"""AlexNet against section 3 of the paper, its figure 2 and its ablations."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cnnctl.models import alexnet
from cnnctl.models.alexnet import AlexNet

# Weights and biases of each layer, with two groups in the second, fourth and fifth.
PARAMETERS = [34_944, 307_456, 885_120, 663_936, 442_624, 37_752_832, 16_781_312, 4_097_000]
# After each convolution and pooling: figure 2 has 55, 27, 13 and 13 pixels a side.
SIDES = [55, 27, 27, 13, 13, 13, 13, 6]


def on_meta(**settings) -> AlexNet:
    with torch.device("meta"):
        return AlexNet(3, 1000, (227, 227), **settings)


def test_sixty_million_parameters_as_published():
    layers = [m for m in on_meta().modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    counts = [sum(p.numel() for p in layer.parameters()) for layer in layers]
    assert counts == PARAMETERS
    assert sum(counts) == 60_965_224  # "60 million parameters" (abstract)


@pytest.mark.parametrize("pool", [3, 2])
def test_maps_of_figure_2(pool):
    """Windows that do not overlap give maps of the same sizes (section 3.4)."""
    sides, out = [], torch.empty(1, 3, 227, 227, device="meta")
    for layer in on_meta(pool=pool).features:
        out = layer(out)
        if isinstance(layer, (nn.Conv2d, nn.MaxPool2d)):
            assert out.shape[2] == out.shape[3]
            sides.append(out.shape[2])
    assert sides == SIDES
    assert out.shape == (1, 256, 6, 6)


def test_neurons_of_each_layer():
    """Section 3.5 and figure 2: 253,440 of the first layer is a slip for 55 x 55 x 96."""
    neurons, out = [], torch.empty(1, 3, 227, 227, device="meta")
    for layer in on_meta().features:
        out = layer(out)
        neurons += [out.numel()] * isinstance(layer, nn.Conv2d)
    assert neurons == [290_400, 186_624, 64_896, 64_896, 43_264]
    assert sum([*neurons, 4096, 4096, 1000]) == 659_272  # "650,000 neurons" (abstract)


def test_groups_do_not_see_each_other():
    """The second half of what goes in changes nothing in the first half of what comes out."""
    torch.manual_seed(0)
    conv = AlexNet(1, 2, (67, 67)).features[4]
    assert isinstance(conv, nn.Conv2d)
    pixels = torch.randn(2, 96, 5, 5)
    pixels[1, :48] = pixels[0, :48]
    with torch.no_grad():
        first, second = conv(pixels)
    assert torch.equal(first[:128], second[:128])
    assert not torch.equal(first[128:], second[128:])
    joined = sum(p.numel() for p in on_meta(groups=1).parameters())
    assert joined - 60_965_224 == 25 * 48 * 256 + 9 * 192 * 384 + 9 * 192 * 256


def test_initial_weights_of_section_5(monkeypatch):
    monkeypatch.setattr(alexnet, "_UNITS", 64)
    torch.manual_seed(0)
    model = AlexNet(3, 10, (67, 67))
    state = model.state_dict()
    biases = [value.unique().tolist() for name, value in state.items() if "bias" in name]
    assert biases == [[0.0], [1.0], [0.0], [1.0], [1.0], [1.0], [1.0], [0.0]]
    for value in (state["features.0.weight"], state["classifier.1.weight"]):
        assert value.std().item() == pytest.approx(0.01, rel=0.03)


def test_dropout_is_on_the_two_hidden_dense_layers():
    kinds = [type(layer).__name__ for layer in on_meta(dropout=0.25).classifier]
    assert kinds == ["Flatten", *["Linear", "ReLU", "Dropout"] * 2, "Linear"]


@pytest.mark.parametrize(
    ("channels", "size", "settings"),
    [(3, (67, 67), {}), (1, (40, 57), {"groups": 1, "pool": 2, "normalise": False})],
)
def test_contract(check, monkeypatch, channels, size, settings):
    monkeypatch.setattr(alexnet, "_UNITS", 64)
    torch.manual_seed(0)
    check(AlexNet(channels, 5, size, **settings), channels, size, 5)


def test_refuses():
    with pytest.raises(ValueError, match="AlexNet needs images of at least 67 x 67, got 66 x 227"):
        AlexNet(3, 10, (66, 227))
    with pytest.raises(ValueError, match="groups must divide the 96, 256 and 384 maps, got 3"):
        AlexNet(3, 10, (227, 227), groups=3)
    with pytest.raises(ValueError, match="pool must be 2 or 3, got 4"):
        AlexNet(3, 10, (227, 227), pool=4)
    with pytest.raises(ValueError, match=r"dropout must be in \[0, 1\), got 1"):
        AlexNet(3, 10, (227, 227), dropout=1.0)
