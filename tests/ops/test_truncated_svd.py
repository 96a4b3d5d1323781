"""Truncated weights: the nearest of their rank, worked out once for each state of the layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cnnctl.ops import truncated_svd as module
from cnnctl.ops.truncated_svd import TruncatedLinear, truncated_svd


def layer_of(inputs: int, outputs: int, bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(inputs, outputs, bias=bias)


@pytest.mark.parametrize(("u", "v"), [(5, 9), (9, 5), (6, 6)])
@pytest.mark.parametrize("rank", [1, 3, 5])
def test_the_nearest_of_its_rank(u, v, rank):
    """Eckart and Young: as far away as the singular values that are left out."""
    weight = torch.randn(u, v, generator=torch.Generator().manual_seed(1))
    up, down = truncated_svd(weight, rank)
    assert (up.shape, down.shape) == ((u, rank), (rank, v))
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    nearest = left[:, :rank] * values[:rank] @ right[:rank]
    torch.testing.assert_close(up @ down, nearest, rtol=1e-4, atol=1e-5)
    error = (weight - up @ down).pow(2).sum()
    torch.testing.assert_close(error, values[rank:].pow(2).sum(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("inputs", "outputs"), [(7, 4), (4, 7)])
@pytest.mark.parametrize("bias", [True, False])
def test_full_rank_is_the_layer(inputs, outputs, bias):
    layer = layer_of(inputs, outputs, bias)
    seen = torch.randn(3, inputs, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        torch.testing.assert_close(TruncatedLinear(4)(layer, seen), layer(seen))


def test_a_weight_of_few_singular_values_loses_nothing():
    """Small ones are not divided by: a matrix of rank 2, nearly of rank 1."""
    torch.manual_seed(3)
    weight = torch.randn(8, 1) @ torch.randn(1, 6) + 1e-3 * torch.randn(8, 1) @ torch.randn(1, 6)
    up, down = truncated_svd(weight, 2)
    torch.testing.assert_close(up @ down, weight, rtol=1e-5, atol=1e-6)


def test_worked_out_once_for_each_state_of_the_weights(monkeypatch):
    layer, truncated = layer_of(7, 4), TruncatedLinear(2)
    asked: list[int] = []
    original = module.truncated_svd
    monkeypatch.setattr(
        module, "truncated_svd", lambda weight, rank: asked.append(rank) or original(weight, rank)
    )
    seen = torch.randn(3, 7)
    with torch.no_grad():
        first = truncated(layer, seen)
        for _ in range(3):
            assert torch.equal(truncated(layer, seen), first)
        assert len(asked) == 1
        layer.weight.mul_(2)  # as an optimizer does
        torch.testing.assert_close(
            truncated(layer, seen) - layer.bias, (first - layer.bias) * 2, rtol=1e-4, atol=1e-5
        )
        layer.load_state_dict(layer_of(7, 4).state_dict())
        torch.testing.assert_close(truncated(layer, seen), first)
        layer.double()
        truncated(layer, seen.double())
    assert len(asked) == 4


def test_what_inference_made_is_used_with_gradients():
    layer, truncated = layer_of(7, 4), TruncatedLinear(3)
    seen = torch.randn(3, 7, requires_grad=True)
    with torch.inference_mode():
        first = truncated(layer, seen.detach())
    again = truncated(layer, seen)
    again.sum().backward()
    torch.testing.assert_close(first.clone(), again)
    assert seen.grad is not None


@pytest.mark.parametrize("rank", [0, 5])
def test_refuses(rank):
    with pytest.raises(ValueError, match=f"7 to 4 has a rank from 1 to 4, got {rank}"):
        truncated_svd(layer_of(7, 4).weight, rank)
