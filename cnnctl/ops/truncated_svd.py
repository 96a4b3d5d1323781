"""Dense layers by fewer numbers: Girshick, "Fast R-CNN", arXiv:1504.08083, section 3.1.

A layer of v inputs and u outputs becomes two of rank t, W ~ U (S V^T), with t (u + v) weights in
place of u v.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def truncated_svd(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """(u, v) -> (u, t) and (t, v), whose product is the nearest of that rank (Eckart and Young).

    The singular vectors of the shorter side are eigenvectors of a square matrix, which is much
    faster than a decomposition of all of it; the other factor is a product with them, so that
    nothing is divided by small singular values and the full rank gives the weights back.

    Args:
        weight: (u, v).
        rank: t, at most the shorter side.

    Raises:
        ValueError: the rank is out of range.
    """
    u, v = weight.shape
    if not 1 <= rank <= min(u, v):
        raise ValueError(f"a layer of {v} to {u} has a rank from 1 to {min(u, v)}, got {rank}")
    wide = weight.detach().double()
    square = wide @ wide.T if u <= v else wide.T @ wide
    vectors = torch.linalg.eigh(square).eigenvectors[:, -rank:]  # the largest last
    factors = (vectors, vectors.T @ wide) if u <= v else (wide @ vectors, vectors.T)
    return factors[0].to(weight.dtype), factors[1].to(weight.dtype)


class TruncatedLinear:
    """What a dense layer says, by its truncated weights; the layer itself stays as it is.

    They are worked out at the first call and when the layer's weights are others than at the last.

    Args:
        rank: t.
    """

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self._made_of: tuple[object, ...] = ()
        self._factors: tuple[Tensor, Tensor] | None = None

    def __call__(self, layer: nn.Linear, inputs: Tensor) -> Tensor:
        """(B, v) -> (B, u)."""
        up, down = self.factors(layer.weight)
        return F.linear(F.linear(inputs, down), up, layer.bias)

    def factors(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        # A weight's version counts the changes in place; another place or type is another tensor.
        made_of = (weight.data_ptr(), weight._version, weight.dtype, weight.device)
        if self._factors is None or made_of != self._made_of:
            # What inference mode makes could not be used where gradients are asked for later.
            with torch.inference_mode(False), torch.no_grad():
                self._factors, self._made_of = truncated_svd(weight, self.rank), made_of
        return self._factors
