"""Local response normalisation against a loop over the paper's formula and torch's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cnnctl.ops.local_response import LocalResponse


def by_the_formula(a: torch.Tensor, n: int, alpha: float, beta: float, k: float) -> torch.Tensor:
    """b^i = a^i / (k + alpha * sum over j of (a^j)^2)^beta, j from i - n/2 to i + n/2."""
    out = torch.empty_like(a)
    count = a.shape[1]
    for i in range(count):
        near = a[:, max(0, i - n // 2) : min(count - 1, i + n // 2) + 1]
        out[:, i] = a[:, i] / (k + alpha * (near**2).sum(1)) ** beta
    return out


@pytest.mark.parametrize(("maps", "channels"), [(5, 7), (5, 3), (3, 8), (1, 4)])
def test_the_papers_formula(maps, channels):
    a = 30 * torch.randn(2, channels, 3, 4, generator=torch.Generator().manual_seed(0))
    found = LocalResponse(maps, alpha=1e-2)(a)
    torch.testing.assert_close(found, by_the_formula(a, maps, 1e-2, 0.75, 2.0))


def test_one_value_by_hand():
    """Maps 3 and 4 at one position: 3 / (2 + 1e-4 * 25) ** 0.75."""
    out = LocalResponse()(torch.tensor([3.0, 4.0]).reshape(1, 2, 1, 1))
    assert out.flatten().tolist() == pytest.approx([3 / 2.0025**0.75, 4 / 2.0025**0.75])


def test_torchs_alpha_is_maps_times_as_large():
    a = 30 * torch.randn(2, 9, 3, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(LocalResponse()(a), nn.LocalResponseNorm(5, 5e-4, 0.75, 2.0)(a))


def test_gradients_and_half_precision():
    a = torch.randn(1, 6, 2, 2, dtype=torch.float64, requires_grad=True)
    a32 = a.detach().float().requires_grad_()
    LocalResponse(alpha=0.1)(a32).sum().backward()
    by_the_formula(a, 5, 0.1, 0.75, 2.0).sum().backward()
    assert a.grad is not None
    torch.testing.assert_close(a32.grad, a.grad.float())
    large = torch.full((1, 2, 1, 1), 300.0, dtype=torch.float16)  # its square is no float16
    out = LocalResponse()(large)
    assert out.dtype == torch.float16
    assert out.float().flatten().tolist() == pytest.approx([300 / 20**0.75] * 2, rel=1e-3)


def test_refuses():
    with pytest.raises(ValueError, match="an odd number of maps, got 4"):
        LocalResponse(4)
    with pytest.raises(ValueError, match="k must be above 0 and alpha at least 0, got 0 and"):
        LocalResponse(k=0)
