"""Maxout and L2 pooling by hand and against torch's."""

from __future__ import annotations

import torch
from torch import nn

from cnnctl.ops.pooling import L2Pool2d, Maxout

MAP = [[1.0, 1.0, 2.0, 4.0], [5.0, 6.0, 7.0, 8.0], [3.0, 2.0, 1.0, 0.0], [1.0, 2.0, 3.0, 4.0]]


def test_l2_pooling_is_the_root_of_squares():
    layer = L2Pool2d(2)
    squares = torch.tensor([[63.0, 133.0], [18.0, 26.0]])  # 1 + 1 + 25 + 36, ...
    torch.testing.assert_close(layer(torch.tensor([[MAP]]))[0, 0], squares.sqrt())
    zeros = torch.zeros(1, 1, 2, 2, requires_grad=True)
    layer(zeros).sum().backward()
    assert zeros.grad is not None
    assert not zeros.grad.any()


def test_l2_pooling_is_torchs():
    values = torch.randn(2, 3, 7, 9, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(L2Pool2d(3, 2)(values), nn.LPPool2d(2, 3, 2)(values))


def test_maxout_by_hand():
    values = torch.tensor([[1.0, 5.0, -2.0, -3.0, 0.0, 7.0]])
    assert Maxout(2)(values).tolist() == [[5.0, -2.0, 7.0]]
    assert Maxout(3)(values[:, :, None, None]).flatten().tolist() == [5.0, 7.0]
