"""Ridge regression in chunks, against numpy's closed form and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from cnnctl.ops.box_ridge import ridge

RNG = np.random.default_rng(0)
ROWS, WANTED = RNG.normal(1, 2, (300, 12)), RNG.normal(-1, 1, (300, 4))
WANTED += ROWS[:, :4]


def chunked(count: int):
    parts = zip(np.array_split(ROWS, count), np.array_split(WANTED, count), strict=True)
    return [(torch.from_numpy(a), torch.from_numpy(b)) for a, b in parts]


@pytest.mark.parametrize("penalty", [0.5, 1000.0])
def test_as_scikit_learn(penalty):
    weights, biases = ridge(chunked(1), penalty)
    oracle = Ridge(alpha=penalty).fit(ROWS, WANTED)
    np.testing.assert_allclose(weights, oracle.coef_, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(biases, oracle.intercept_, rtol=1e-5, atol=1e-6)


def test_as_the_closed_form():
    """(X'X + lambda I)^-1 X'Y about the means: w, and the constant brings the means together."""
    x, y = ROWS - ROWS.mean(0), WANTED - WANTED.mean(0)
    solution = np.linalg.solve(x.T @ x + 7 * np.eye(12), x.T @ y)
    weights, biases = ridge(chunked(3), 7)
    np.testing.assert_allclose(weights, solution.T, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(biases, WANTED.mean(0) - ROWS.mean(0) @ solution, atol=1e-5)


def test_chunks_change_nothing():
    for ours, whole in zip(ridge(chunked(50), 3), ridge(chunked(1), 3), strict=True):
        torch.testing.assert_close(ours, whole)


def test_fewer_rows_than_numbers():
    rows, wanted = torch.randn(3, 20, generator=torch.Generator().manual_seed(0)), torch.ones(3, 4)
    weights, biases = ridge([(rows, wanted)], 10)
    torch.testing.assert_close(weights, torch.zeros(4, 20))  # all are alike: the constant says it
    torch.testing.assert_close(biases, torch.ones(4))


def test_targets_may_be_mixed_first():
    """The published code makes the targets independent of one another and undoes it after."""
    mix = torch.from_numpy(RNG.normal(size=(4, 4)))
    mixed = [(rows, wanted @ mix) for rows, wanted in chunked(1)]
    weights, biases = ridge(mixed, 1000)
    back = torch.linalg.inv(mix.T).float()
    plain = ridge(chunked(1), 1000)
    torch.testing.assert_close(back @ weights, plain[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(back @ biases, plain[1], rtol=1e-4, atol=1e-5)


def test_nothing_to_learn_from():
    with pytest.raises(ValueError, match="needs rows"):
        ridge([], 1.0)
