from __future__ import annotations

import numpy as np
import torch

from cnnctl.ops.linear_svm import one_against_rest


def test_the_planes_of_three_points():
    """By hand: x = -2, 0, 2 are classes 3, 1, 0; at the outer ones |w| grows to the margin."""
    rows, labels = np.array([[-2.0], [0.0], [2.0]]), torch.tensor([3, 1, 0])
    weight, bias = one_against_rest(rows, labels, 4, C=1e4, seed=0)
    # Class 0 against x = -2, 0: margins 1 at x = 2 and -1 at x = 0 are w = 1, b = -1.
    torch.testing.assert_close(weight[[0, 3], 0], torch.tensor([1.0, -1.0]), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(bias[[0, 3]], torch.tensor([-1.0, -1.0]), rtol=1e-3, atol=1e-3)
    # Class 1 lies between the others, no plane parts it: w = 0, b = -1/3 has the least squares.
    torch.testing.assert_close(weight[1, 0], torch.tensor(0.0), rtol=0, atol=1e-3)
    torch.testing.assert_close(bias[1], torch.tensor(-1 / 3), rtol=0, atol=1e-3)
    assert (weight[2].item(), bias[2].item()) == (0.0, -1e3)  # no rows
