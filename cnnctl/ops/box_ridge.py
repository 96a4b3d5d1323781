"""Ridge regression of boxes: from what a region looks like to the code that corrects it.

Girshick et al., "Rich feature hierarchies", arXiv:1311.2524, appendix C: regularised least squares
for each class, lambda = 1000, on proposals that overlap a true box by more than 0.6.

Differs from the paper's code: the constant is not held back, which takes nothing but its bias; that
code also makes the four targets independent of one another first, which changes nothing here.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def ridge(chunks: Iterable[tuple[Tensor, Tensor]], penalty: float) -> tuple[Tensor, Tensor]:
    """(weights (T, D), biases (T,)), float32, that minimise the sum of squared differences between
    ``rows @ weights.T + biases`` and ``wanted``, and ``penalty`` times the squared weights.

    The normal equations are added up in float64, so that D x D numbers are all that is held.

    Args:
        chunks: rows (M, D) and wanted (M, T) of some of the data at a time; all on one device.

    Raises:
        ValueError: there is no chunk.
    """
    moments: list[Tensor] = []
    count = 0
    for rows, wanted in chunks:
        rows, wanted = rows.double(), wanted.double()
        if not moments:
            d, t = rows.shape[1], wanted.shape[1]
            moments = [rows.new_zeros(shape) for shape in ((d, d), (d, t), (d,), (t,))]
        inner, outer, total, aim = moments
        inner.addmm_(rows.T, rows)
        outer.addmm_(rows.T, wanted)
        total += rows.sum(0)
        aim += wanted.sum(0)
        count += len(rows)
    if not moments:
        raise ValueError("ridge regression needs rows")
    inner, outer, total, aim = moments
    mean, middle = total / max(1, count), aim / max(1, count)
    # About the means the constant needs no column of its own, and no penalty reaches it.
    inner.addr_(total, mean, alpha=-1)
    outer.addr_(total, middle, alpha=-1)
    inner.diagonal().add_(penalty)
    weights = torch.cholesky_solve(outer, torch.linalg.cholesky(inner)).T
    return weights.float(), (middle - weights @ mean).float()
