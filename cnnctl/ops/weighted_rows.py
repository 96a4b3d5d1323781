"""Weighted sums of a table's rows, with a gradient that is one too.

``embedding_bag`` gathers with all threads and in any float type; the gradient that autograd has for
it scatters, which is one thread's work. Here the gradient gathers as well: of every row of the
table, over the sums that read it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from scipy.sparse import csr_array
from torch import Tensor
from torch.autograd.function import once_differentiable


def weighted_rows(table: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    """(M, D) with out[m] = sum over t of weights[m, t] * table[rows[m, t]].

    Both ways sum in an order that only ``rows`` decides.

    Args:
        table: (R, D), of any float type.
        rows: (M, T) int32, in 0..R-1.
        weights: (M, T) float32 or float64; no gradient reaches them.
    """
    return _WeightedRows.apply(table, rows, weights)  # pyright: ignore[reportReturnType]


class _WeightedRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(rows, weights)
        ctx.length = len(table)
        if not rows.numel():
            return table.new_zeros(len(rows), table.shape[1])
        shares = weights.to(table.dtype)
        return F.embedding_bag(rows, table.detach(), mode="sum", per_sample_weights=shares)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore
        rows, weights = ctx.saved_tensors
        if not rows.numel():
            return grad.new_zeros(ctx.length, grad.shape[1]), None, None
        transpose = _transpose_on_cpu if rows.device.type == "cpu" else _transpose
        sums, starts, shares = transpose(rows, weights, ctx.length)
        shares = shares.to(grad.dtype)
        transposed = F.embedding_bag(
            sums, grad.contiguous(), starts, mode="sum", per_sample_weights=shares
        )
        return transposed, None, None


def _transpose(rows: Tensor, weights: Tensor, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """The sums m that read each row of the table: (sums (M * T,), where each row's begin (R,),
    weights (M * T,)), row by row and with m rising in each."""
    by_row, order = rows.flatten().sort(stable=True)
    every = torch.arange(length, dtype=by_row.dtype, device=by_row.device)
    sums = order.div(rows.shape[1], rounding_mode="floor").int()
    return sums, torch.searchsorted(by_row, every, out_int32=True), weights.flatten()[order]


def _transpose_on_cpu(rows: Tensor, weights: Tensor, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """The same in linear time: a sparse matrix (M, R) turned from rows to columns. Threads do not
    help a sort of this size, and where the cores are busy they wait for each other."""
    count, taps = rows.shape
    starts = torch.arange(0, count * taps + 1, taps, dtype=torch.int32)
    parts = (weights.flatten().numpy(), rows.flatten().numpy(), starts.numpy())
    turned = csr_array(parts, shape=(count, length)).tocsc()
    sums, starts = torch.from_numpy(turned.indices), torch.from_numpy(turned.indptr)
    return sums, starts[:-1], torch.from_numpy(turned.data)
