"""A classifier that slides: at every place what it says of the image that is cut out there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cnnctl.models.lenet import LeNet
from cnnctl.models.linear import Linear
from cnnctl.models.mlp import MLP
from cnnctl.ops.score_maps import ScoreMaps, map_shape


@pytest.fixture
def pixels() -> Tensor:
    return torch.randn(2, 3, 40, 36, generator=torch.Generator().manual_seed(0))


def at_every_place(model: nn.Module, pixels: Tensor, size: tuple[int, int], stride: int) -> Tensor:
    """Scores of crops, (N, K, h, w)."""
    h, w = size
    rows = []
    for top in range(0, pixels.shape[2] - h + 1, stride):
        places = range(0, pixels.shape[3] - w + 1, stride)
        crops = [model(pixels[:, :, top : top + h, left : left + w]) for left in places]
        rows.append(torch.stack(crops, 2))
    return torch.stack(rows, 2)


@pytest.mark.parametrize(
    ("make", "size", "stride"),
    [
        (lambda: LeNet(3, 5, (32, 32)), (32, 32), 4),  # no padding: its maps move by 4 pixels
        (lambda: LeNet(3, 5, (36, 32)), (36, 32), 4),
        (lambda: MLP(3, 5, (38, 30), [11, 7], batch_norm=True, dropout=0.3), (38, 30), 1),
        (lambda: Linear(3, 5, (40, 36)), (40, 36), 1),
    ],
)
def test_the_score_map_has_the_scores_of_every_crop(make, size, stride, pixels):
    torch.manual_seed(0)
    model = make().eval()
    model.trained_shape = (3, *size)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        found = model.score_map(pixels)
        expected = at_every_place(model, pixels, size, stride)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_the_weights_are_the_classifiers_own(pixels):
    """Its gradients arrive in the dense layers; what they become is seen at once."""
    model = Linear(3, 5, (32, 32))
    model.trained_shape = (3, 32, 32)
    model.score_map(pixels).sum().backward()
    assert model.classifier.weight.grad is not None
    places = pixels.unfold(2, 32, 1).unfold(3, 32, 1).sum((0, 2, 3))  # (C, 32, 32)
    expected = places.reshape(1, -1).expand(5, -1)
    torch.testing.assert_close(model.classifier.weight.grad, expected, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        model.classifier.weight.zero_()
        found = model.score_map(pixels)
    torch.testing.assert_close(found, model.classifier.bias[:, None, None].expand_as(found))


MAP = torch.tensor([[[[1.0, 2, 3], [4, 5, 6], [7, 8, 10]]]])
MEANS = [[3.0, 4.0], [6.0, 7.25]]  # of windows of 2 x 2
LARGEST = [[5.0, 6.0], [8.0, 10.0]]


@pytest.mark.parametrize(
    ("layers", "windows"),
    [
        ([nn.Linear(1, 1)], MEANS),
        ([nn.Dropout(0.5), nn.Flatten(), nn.Linear(1, 1)], MEANS),
        ([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 1)], MEANS),
        ([nn.AdaptiveAvgPool2d((1, 1)), nn.BatchNorm2d(1, eps=0), nn.Linear(1, 1)], MEANS),
        ([nn.AdaptiveMaxPool2d(1), nn.Linear(1, 1)], LARGEST),
        ([nn.AdaptiveAvgPool2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(4, 1)], MEANS),
    ],
)
def test_global_pooling_becomes_pooling_by_windows(layers, windows):
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.constant_(layer.weight, 2 / layer.in_features)
            nn.init.constant_(layer.bias, -1)
    slide = ScoreMaps(nn.Identity(), [layer.eval() for layer in layers], (1, 2, 2))
    expected = 2 * torch.tensor(windows) - 1
    torch.testing.assert_close(slide(MAP)[0, 0], expected)


@pytest.mark.parametrize(
    ("layers", "reason"),
    [
        ([nn.Linear(5, 1)], "4 x 3 x 3 is followed by Linear"),
        ([nn.Flatten(), nn.BatchNorm1d(36), nn.Linear(36, 1)], "followed by BatchNorm1d"),
        ([nn.AdaptiveAvgPool2d(2), nn.Linear(16, 1)], "followed by AdaptiveAvgPool2d"),
        ([nn.Flatten()], "followed by nothing"),
    ],
)
def test_what_has_no_such_form(layers, reason):
    with pytest.raises(ValueError, match=reason):
        ScoreMaps(nn.Identity(), layers, (4, 3, 3))


def test_smaller_images_are_refused():
    slide = ScoreMaps(nn.Identity(), [nn.Linear(4, 1)], (4, 3, 3))
    with pytest.raises(ValueError, match="images of 5 x 2 are smaller"):
        slide(torch.zeros(1, 4, 5, 2))


def test_the_last_maps_shape_is_known_without_a_forward_pass():
    model = LeNet(1, 10, (32, 32)).train()
    seen: list[torch.device] = []
    model.features.register_forward_hook(lambda layer, given, out: seen.append(out.device))
    assert map_shape(model, model.features, (1, 40, 36)) == (16, 7, 6)
    assert seen == [torch.device("meta")]
    assert model.features[0].weight.device.type == "cpu"


def test_the_last_map_may_be_one_pixel_of_a_network_in_training():
    """Batch normalisation that trains has no use for it; the network trains on afterwards."""
    model: Any = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2).eval())
    model.add_module("last", torch.nn.BatchNorm2d(2))
    assert map_shape(model, model.forward, (1, 3, 3)) == (2, 1, 1)
    assert [module.training for module in model.modules()] == [True, True, False, True]
