from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cnnctl.backbones.base import Backbone
from cnnctl.backbones.resnet import ResNet
from cnnctl.models.classifier import Classifier


class Tiny(Backbone):
    """Two maps; the deeper has 5 channels at stride 4."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(in_channels, 4, 2, 2), nn.Conv2d(4, 5, 2, 2)
        self.channels, self.strides = {"c1": 4, "c2": 5}, {"c1": 2, "c2": 4}

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        first = self.first(pixels).tanh()
        return {"c1": first, "c2": self.second(first)}


@pytest.mark.parametrize("pool", ["avg", "max"])
def test_contract_with_any_backbone(check, pool):
    torch.manual_seed(0)
    check(Classifier(Tiny(2), 6, (12, 8), pool, dropout=0.2), 2, (12, 8), 6)


@pytest.mark.parametrize("depth", [18, 34, 50])
def test_contract_with_resnet(check, depth):
    torch.manual_seed(0)
    check(Classifier(ResNet(depth), 10, (64, 64)), 3, (64, 64), 10)


def test_overfits_eight_images(overfit):
    torch.manual_seed(0)
    overfit(Classifier(Tiny(1), 4, (8, 8)), 1, (8, 8), 4, steps=200, lr=0.03)


@pytest.mark.parametrize("pool", ["avg", "max"])
def test_pools_the_deepest_map(pool):
    model = Classifier(Tiny(1), 3, (16, 16), pool).eval()
    pixels = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    deepest = model.backbone(pixels)["c2"]
    pooled = deepest.mean((2, 3)) if pool == "avg" else deepest.amax((2, 3))
    torch.testing.assert_close(model(pixels), model.linear(pooled))


def test_refuses():
    with pytest.raises(ValueError, match="ResNet needs images of at least 32 x 32, got 32 x 31"):
        Classifier(ResNet(18), 10, (32, 31))
    with pytest.raises(ValueError, match="at least 8 x 8, got 4 x 8"):
        Classifier(ResNet(18, small_input=True), 10, (4, 8))
    with pytest.raises(ValueError, match=r"dropout must be in \[0, 1\), got 1.0"):
        Classifier(Tiny(1), 10, (8, 8), dropout=1.0)
    with pytest.raises(ValueError, match='pool must be "avg" or "max", got "min"'):
        Classifier(Tiny(1), 10, (8, 8), "min")  # pyright: ignore[reportArgumentType]
