"""What every classifier must do, as one fixture that a model's own test calls."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from cnnctl.models.base import ClassificationModel
from cnnctl.structures import Images, Targets

Check = Callable[..., None]


def _batch(count: int, channels: int, size: tuple[int, int], classes: int):
    generator = torch.Generator().manual_seed(7)
    pixels = torch.randn(count, channels, *size, generator=generator)
    label = torch.arange(count) % classes
    images = Images(pixels, [size] * count, [size] * count)
    return images, Targets(torch.arange(count), label)


def _check(model: ClassificationModel, channels: int, size: tuple[int, int], classes: int) -> None:
    """Finite losses, a gradient for every parameter, one image = the batch, valid in both modes."""
    images, targets = _batch(4, channels, size, classes)
    model.train()
    losses = model.loss(images, targets)
    assert all(loss.isfinite() and loss.dim() == 0 for loss in losses.values())
    torch.stack(list(losses.values())).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    model.eval()
    with torch.no_grad():
        both, predictions = model.loss_and_predict(images, targets)
        log_probs = predictions.log_probs
        assert log_probs is not None
        assert log_probs.shape == (4, classes)
        torch.testing.assert_close(log_probs.exp().sum(1), torch.ones(4))
        assert targets.label is not None
        nll = -log_probs.gather(1, targets.label[:, None]).mean()
        torch.testing.assert_close(both["cross_entropy"], nll)
        for i in range(4):
            one = model.predict(Images(images.pixels[i : i + 1], [size], [size])).log_probs
            torch.testing.assert_close(one, log_probs[i : i + 1], rtol=1e-4, atol=1e-5)


def _overfit(
    model: ClassificationModel,
    channels: int,
    size: tuple[int, int],
    classes: int,
    steps: int = 40,
    lr: float = 0.01,
) -> None:
    """Eight random images are learnt by heart: loss under 0.1 in training mode."""
    images, targets = _batch(8, channels, size, classes)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    model.train()
    loss = torch.tensor(torch.inf)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model.loss(images, targets)["cross_entropy"]
        loss.backward()
        optimizer.step()
    assert loss < 0.1


@pytest.fixture
def check() -> Check:
    return _check


@pytest.fixture
def overfit() -> Check:
    return _overfit
