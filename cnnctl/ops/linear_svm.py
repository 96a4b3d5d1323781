"""Linear support vector machines, one for each class against the rest, by scikit-learn's LinearSVC
(Fan et al., "LIBLINEAR: a library for large linear classification", JMLR 9, 2008)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

NEVER = -1e3  # a margin below all that occur


def one_against_rest(
    rows: Any, labels: Tensor, num_classes: int, C: float, seed: int
) -> tuple[Tensor, Tensor]:
    """The planes that minimise half of |w|^2 and C times the squared hinge losses, each of a class.

    A class without rows is never said: its margin is ``NEVER`` everywhere.

    Args:
        rows: (M, D) numpy array or scipy sparse matrix.
        labels: (M,) of 0 to K - 1.
        num_classes: K.
        seed: of the order in which a dual problem, that of few rows, is solved.

    Returns:
        weights (K, D) and biases (K,), float32.
    """
    from sklearn.svm import LinearSVC

    weight, bias = torch.zeros(num_classes, rows.shape[1]), torch.full((num_classes,), NEVER)
    present = labels.cpu().unique()
    if len(present) == 1:
        bias[present] = 1.0
        return weight, bias
    svm = LinearSVC(C=C, random_state=seed).fit(rows, labels.cpu().numpy())
    planes, offsets = torch.from_numpy(svm.coef_), torch.from_numpy(svm.intercept_)
    if len(present) == 2:  # scikit-learn has one plane for both
        planes, offsets = torch.cat([-planes, planes]), torch.cat([-offsets, offsets])
    weight[present], bias[present] = planes.float(), offsets.float()
    return weight, bias
