from __future__ import annotations

import math

import pytest
import torch

from cnnctl.models.auxiliary_heads import weighted_losses
from cnnctl.structures import Targets


def test_by_hand():
    """Two images of two classes: log 2 where the logits are equal, else log(1 + e^-difference)."""
    even, sure = torch.zeros(2, 2), torch.tensor([[3.0, 0.0], [0.0, 3.0]])
    wrong = -sure
    targets = Targets(torch.arange(2), torch.tensor([0, 1]))
    losses = weighted_losses([even, sure, wrong], targets, 0.3)
    right = math.log(1 + math.exp(-3))
    expected = {
        "cross_entropy": math.log(2),
        "auxiliary1": 0.3 * right,
        "auxiliary2": 0.3 * (right + 3),
    }
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(expected)
