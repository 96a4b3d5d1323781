"""Linear support vector machines of several classes on the same rows, in memory once.

What LIBLINEAR solves (ops/linear_svm.py), but for all classes together and without copies of the
rows, so that tens of thousands of dense descriptors are solved for in seconds: Keerthi, DeCoste, "A
modified finite Newton method for fast solution of large scale linear SVMs", JMLR 6, 2005, solve the
same primal problem; here by L-BFGS. tests/ops holds it against scikit-learn.
"""

from __future__ import annotations

import torch
from torch import Tensor

_STEPS, _HISTORY = 200, 20


@torch.enable_grad()
def squared_hinge_planes(
    rows: Tensor, signs: Tensor, C: float, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """The planes that minimise half of |w|^2 and C times the squared hinge losses, each of a class.

    The bias counts as a weight, as it does in LIBLINEAR.

    Args:
        rows: (M, D) float32.
        signs: (M, K) 1 where a row is of the class, -1 where it is not, 0 where that does not say.
        weight, bias: (K, D) and (K,) where the search begins.

    Returns:
        weights (K, D) and biases (K,).
    """
    weight = weight.detach().clone().requires_grad_()
    bias = bias.detach().clone().requires_grad_()
    signs = signs.to(rows.dtype)
    counted = (signs != 0).to(rows.dtype)
    search = torch.optim.LBFGS(
        [weight, bias],
        max_iter=_STEPS,
        history_size=_HISTORY,
        tolerance_grad=1e-5,
        tolerance_change=1e-9,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        search.zero_grad()
        lacks = (counted - signs * (rows @ weight.T + bias)).clamp(min=0)  # (M, K)
        total = (weight.square().sum() + bias.square().sum()) / 2 + C * lacks.square().sum()
        total.backward()
        return total

    search.step(loss)  # pyright: ignore[reportArgumentType]  # a tensor is a number here
    return weight.detach(), bias.detach()
