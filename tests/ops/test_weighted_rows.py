"""Sums of rows and their gradient, against a matrix product and against differences."""

import pytest
import torch
from torch import Tensor

from cnnctl.ops.weighted_rows import _transpose, _transpose_on_cpu, weighted_rows


@pytest.fixture
def taps() -> tuple[Tensor, Tensor]:
    """50 sums of 4 of 30 rows; row 7 is in none, and the first sum has one row twice."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(30, (50, 4), generator=generator, dtype=torch.int32)
    rows = torch.where(rows == 7, 8, rows)
    rows[0] = torch.tensor([3, 29, 3, 0])
    return rows, torch.randn(50, 4, generator=generator)


@pytest.fixture
def table() -> Tensor:
    return torch.randn(30, 6, generator=torch.Generator().manual_seed(1))


def matrix(rows: Tensor, weights: Tensor) -> Tensor:
    """(50, 30): the same sums as a product."""
    return torch.zeros(50, 30).scatter_add(1, rows.long(), weights)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_product_with_a_matrix(table, taps, device):
    rows, weights = (one.to(device) for one in taps)
    moved = table.to(device).requires_grad_()
    found = weighted_rows(moved, rows, weights)
    torch.testing.assert_close(found.detach().cpu(), matrix(*taps) @ table)
    weight = torch.randn(50, 6, generator=torch.Generator().manual_seed(2))
    found.backward(weight.to(device))
    assert moved.grad is not None
    torch.testing.assert_close(moved.grad.cpu(), matrix(*taps).T @ weight)
    assert torch.equal(moved.grad[7].cpu(), torch.zeros(6))


def test_by_hand():
    table = torch.tensor([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]], requires_grad=True)
    rows = torch.tensor([[0, 2], [2, 2]], dtype=torch.int32)
    found = weighted_rows(table, rows, torch.tensor([[1.0, 0.5], [0.25, 1.0]]))
    assert found.tolist() == [[2.5, 25.0], [3.75, 37.5]]
    found.backward(torch.tensor([[1.0, 0.0], [2.0, 1.0]]))
    assert table.grad is not None
    assert table.grad.tolist() == [[1.0, 0.0], [0.0, 0.0], [3.0, 1.25]]


def test_gradient_against_differences(table, taps):
    rows, weights = taps[0][:5], taps[1][:5].double()
    wide = table.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda t: weighted_rows(t, rows, weights), wide)


def test_both_transposes_agree_to_the_bit(taps):
    rows, weights = taps
    found, expected = _transpose_on_cpu(rows, weights, 30), _transpose(rows, weights, 30)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def test_bfloat16_adds_in_float32():
    """4096 ones: a running bfloat16 sum would stop at 256."""
    table = torch.ones(1, 8, dtype=torch.bfloat16, requires_grad=True)
    rows = torch.zeros(4096, 1, dtype=torch.int32)
    weighted_rows(table, rows, torch.ones(4096, 1)).sum().backward()
    assert table.grad is not None
    assert table.grad[0, 0].item() == 4096
    assert weighted_rows(table, rows.T, torch.ones(1, 4096))[0, 0].item() == 4096


@pytest.mark.parametrize("wrong", [-1, 30])
def test_a_row_that_the_table_lacks(table, wrong):
    rows = torch.tensor([[0, wrong]], dtype=torch.int32)
    with pytest.raises(RuntimeError):
        weighted_rows(table, rows, torch.ones(1, 2))


def test_no_sums(table):
    table = table.requires_grad_()
    found = weighted_rows(table, torch.zeros(0, 4, dtype=torch.int32), torch.zeros(0, 4))
    assert found.shape == (0, 6)
    found.sum().backward()
    assert table.grad is not None
    assert torch.equal(table.grad, torch.zeros(30, 6))
