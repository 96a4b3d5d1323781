from __future__ import annotations

import pytest
import torch

from cnnctl.engine.layers import layer_table
from cnnctl.models.full_resolution import FullResolution
from cnnctl.structures import Images, Targets


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 4), (16, 33)])
def test_every_size_is_kept(size):
    torch.manual_seed(0)
    assert FullResolution(2, 5, 3, 4).eval()(torch.randn(2, 2, *size)).shape == (2, 5, *size)


@pytest.mark.parametrize(("depth", "kernel"), [(1, 3), (8, 3), (3, 5)])
def test_a_position_sees_what_the_docstring_says(depth, kernel):
    """By the gradient of one score: exactly 1 + depth * (kernel - 1) pixels a side."""
    model = FullResolution(1, 2, depth, 4, kernel, norm=False).double()
    for parameter in model.parameters():  # nothing cancels, nothing is cut off
        torch.nn.init.constant_(parameter, 0.5)
    pixels = torch.rand(1, 1, 33, 33, dtype=torch.float64).requires_grad_()
    model(pixels)[0, 0, 16, 16].backward()
    assert pixels.grad is not None
    reach = depth * (kernel - 1) // 2
    seen = torch.zeros(33, 33, dtype=torch.bool)
    seen[16 - reach : 17 + reach, 16 - reach : 17 + reach] = True
    assert torch.equal(pixels.grad[0, 0] != 0, seen)


def test_parameters_and_cost_of_a_pixel():
    model = FullResolution(3, 21, 8, 64)
    expected = 3 * 9 * 64 + 7 * 9 * 64 * 64 + 8 * 2 * 64 + 64 * 21 + 21
    assert sum(p.numel() for p in model.parameters()) == expected
    model.to("meta")
    table = layer_table(model, 3, (10, 10))
    inner = [row.flops for row in table.rows if row.name == "layers.3"]
    assert inner == [100 * 73728]  # 2 * 9 * 64 * 64 at every pixel
    assert table.rows[-1].field == (17, 17)


def test_learns_a_class_for_every_pixel():
    """Bright or dark, to the exact pixel, in training and in evaluation mode."""
    torch.manual_seed(0)
    model = FullResolution(1, 2, 2, 8)
    mask = torch.rand(4, 9, 9) < 0.5
    images = Images(torch.randn(4, 1, 9, 9) * 0.1 + mask[:, None], [(9, 9)] * 4, [(9, 9)] * 4)
    targets = Targets(torch.arange(4), mask=mask.byte())
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    for _ in range(60):
        optimizer.zero_grad()
        model.loss(images, targets)["cross_entropy"].backward()
        optimizer.step()
    with torch.no_grad():
        losses, predictions = model.eval().loss_and_predict(images, targets)
    assert predictions.mask is not None
    assert torch.equal(predictions.mask, mask.byte())
    assert losses["cross_entropy"] < 0.1


def test_refuses():
    with pytest.raises(ValueError, match="kernel must be odd, so that the size is kept, got 4"):
        FullResolution(1, 2, kernel=4)
    with pytest.raises(ValueError, match="depth and width must be at least 1, got 0 and 32"):
        FullResolution(1, 2, depth=0)
