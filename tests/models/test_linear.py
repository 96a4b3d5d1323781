from __future__ import annotations

import torch

from cnnctl.models.linear import Linear


def test_contract(check):
    torch.manual_seed(0)
    check(Linear(3, 10, (8, 6)), 3, (8, 6), 10)


def test_overfits_eight_images(overfit):
    torch.manual_seed(0)
    overfit(Linear(1, 4, (8, 8)), 1, (8, 8), 4, lr=0.1)


def test_is_one_matrix_over_the_pixels_in_order():
    model = Linear(2, 3, (4, 5))
    assert {name: tuple(p.shape) for name, p in model.named_parameters()} == {
        "classifier.weight": (3, 40),
        "classifier.bias": (3,),
    }
    pixels = torch.zeros(1, 2, 4, 5)
    pixels[0, 1, 2, 3] = 1.0  # pixel 1 * 20 + 2 * 5 + 3
    expected = model.classifier.weight[:, 33] + model.classifier.bias
    torch.testing.assert_close(model(pixels)[0], expected)
