from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.svm import LinearSVC

from cnnctl.ops.svm_on_rows import squared_hinge_planes


def solved(rows: torch.Tensor, signs: torch.Tensor, C: float, start: float = 0.0):
    weight = torch.full((signs.shape[1], rows.shape[1]), start)
    return squared_hinge_planes(rows, signs, C, weight, torch.full((signs.shape[1],), start))


def test_the_planes_of_two_points():
    """By hand: x = 1 is of the class, x = -1 is not, so that b = 0. With C: w^2 / 2 + 2 C (1 - w)^2
    is least at w = 4 C / (1 + 4 C); of a class that only the first is asked about, w = b and
    w^2 + C (1 - 2 w)^2 is least at w = 2 C / (1 + 4 C)."""
    rows, signs = torch.tensor([[1.0], [-1.0]]), torch.tensor([[1, 1], [-1, 0]])
    for C in (0.25, 2.0):
        weight, bias = solved(rows, signs, C)
        torch.testing.assert_close(weight[:, 0], torch.tensor([4.0, 2.0]) * C / (1 + 4 * C))
        torch.testing.assert_close(bias, torch.tensor([0.0, 2 * C / (1 + 4 * C)]))


@pytest.mark.parametrize("C", [0.01, 1.0])
def test_are_scikit_learns(C):
    generator = torch.Generator().manual_seed(0)
    rows = torch.rand(300, 40, generator=generator)
    labels = torch.randint(0, 3, (300,), generator=generator)
    rows[torch.arange(300), labels] += 0.5
    signs = torch.where(labels[:, None] == torch.arange(3), 1, -1)
    signs[:60, 1] = 0  # the second class is not asked about these
    weight, bias = solved(rows, signs, C)
    for label in range(3):
        said = signs[:, label] != 0
        svm = LinearSVC(C=C, tol=1e-9, max_iter=10**5, random_state=0)
        svm.fit(rows[said].numpy(), signs[said, label].numpy())
        largest = np.abs(svm.coef_).max()
        np.testing.assert_allclose(weight[label], svm.coef_[0], atol=5e-3 * largest)
        np.testing.assert_allclose(bias[label], np.atleast_1d(svm.intercept_)[0], atol=1e-2)


def test_where_the_search_begins_does_not_matter_and_is_left_alone():
    rows = torch.rand(50, 8, generator=torch.Generator().manual_seed(0))
    signs = torch.where(rows[:, :2] > 0.5, 1, -1)
    weight, bias = solved(rows, signs, 0.5)
    before = (weight.clone(), bias.clone())
    again = squared_hinge_planes(rows, signs, 0.5, weight + 1, bias - 1)
    torch.testing.assert_close(again, before, rtol=1e-2, atol=5e-3)
    assert torch.equal(weight, before[0])


def test_no_rows_at_all():
    weight, bias = solved(torch.empty(0, 3), torch.empty(0, 2), 1.0, start=0.5)
    assert weight.abs().max() < 1e-4
    assert bias.abs().max() < 1e-4
