from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from cnnctl.models.linear import Linear, hinge_loss
from cnnctl.structures import Images, Targets


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


def test_hinge_loss_by_hand():
    """The three images of Stanford's CS231n, lecture 3: 2.9, 0 and 12.9."""
    scores = torch.tensor([[3.2, 5.1, -1.7], [1.3, 4.9, 2.0], [2.2, 2.5, -3.1]])
    losses = [float(hinge_loss(row[None], torch.tensor([y]))) for y, row in enumerate(scores)]
    assert losses == pytest.approx([2.9, 0.0, 12.9])
    assert float(hinge_loss(scores, torch.arange(3))) == pytest.approx(15.8 / 3)


def test_hinge_loss_is_torchs_and_takes_shares_of_classes():
    generator = torch.Generator().manual_seed(0)
    scores = 3 * torch.randn(6, 5, generator=generator)
    label = torch.randint(5, (6,), generator=generator)
    loss = hinge_loss(scores, label)
    torch.testing.assert_close(loss, 5 * F.multi_margin_loss(scores, label))
    torch.testing.assert_close(loss, hinge_loss(scores, F.one_hot(label, 5).float()))
    mixed = 0.25 * F.one_hot(label, 5) + 0.75 * F.one_hot(label.flip(0), 5)
    both = 0.25 * loss + 0.75 * hinge_loss(scores, label.flip(0))
    torch.testing.assert_close(hinge_loss(scores, mixed), both)


def test_trains_by_the_loss_that_is_chosen():
    torch.manual_seed(0)
    model = Linear(1, 3, (4, 4), loss="hinge")
    size = [(4, 4)] * 6
    images = Images(torch.randn(6, 1, 4, 4), size, size)
    targets = Targets(torch.arange(6), torch.arange(6) % 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(60):
        optimizer.zero_grad()
        model.loss(images, targets)["hinge"].backward()
        optimizer.step()
    with torch.no_grad():
        losses, predictions = model.loss_and_predict(images, targets)
    assert {name: loss.item() for name, loss in losses.items()} == {"hinge": 0.0}  # not so softmax
    assert predictions.log_probs is not None
    assert predictions.log_probs.argmax(1).tolist() == (torch.arange(6) % 3).tolist()


def test_refuses_another_loss():
    with pytest.raises(ValueError, match='loss must be "softmax" or "hinge", got "square"'):
        Linear(1, 3, (4, 4), loss="square")  # pyright: ignore[reportArgumentType]
