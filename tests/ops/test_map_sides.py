"""Sides of maps against the layers themselves."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cnnctl.ops.map_sides import map_side, map_size, smallest_side

CHAINS = {
    "the course's 7x7 with 3x3": [nn.Conv2d(1, 1, 3)],
    "strided": [nn.Conv2d(1, 1, 7, 2, 1), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True)],
    "padded pooling": [nn.MaxPool2d(3, 2, padding=1, ceil_mode=True), nn.AvgPool2d(2)],
    "dilated": [nn.Conv2d(1, 1, 3, dilation=2), nn.Conv2d(1, 1, 5, 3, 2), nn.MaxPool2d(2)],
    "a window in a last half": [nn.MaxPool2d(2, 3, ceil_mode=True)],
}


@pytest.mark.parametrize("name", CHAINS)
def test_what_the_layers_make(name):
    layers = nn.Sequential(*CHAINS[name]).to("meta")
    smallest = smallest_side(layers)
    for side in range(smallest, smallest + 20):
        assert layers(torch.empty(1, 1, side, side, device="meta")).shape[2] == map_side(
            layers, side
        )
    assert map_side(layers, smallest - 1) == 0
    with pytest.raises(RuntimeError):
        layers(torch.empty(1, 1, smallest - 1, smallest - 1, device="meta"))


def test_by_hand():
    assert map_side([nn.Conv2d(1, 1, 3)], 7) == 5
    assert map_side([nn.Conv2d(1, 1, 5)], 32) == 28
    assert map_side([nn.MaxPool2d(3, 2, ceil_mode=True)], 110) == 55
    assert map_size([nn.Conv2d(1, 1, 5, 2)], (32, 33), "It") == (14, 15)


def test_says_which_size_is_needed():
    with pytest.raises(ValueError, match="It needs images of at least 7 x 7, got 6 x 40"):
        map_size([nn.Conv2d(1, 1, 3, 2), nn.MaxPool2d(3)], (6, 40), "It")
