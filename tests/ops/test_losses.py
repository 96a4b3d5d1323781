"""Losses of class maps by hand and against plain readings of their definitions."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cnnctl.ops.losses import SegmentationLoss, dice_loss, frequency_weights

EVERY = {"cross_entropy": 1.0, "dice": 1.0, "focal": 1.0}


def batch(k: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(2, k, 6, 5, generator=generator)
    mask = torch.randint(k, (2, 6, 5), generator=generator)
    void = torch.rand(mask.shape, generator=generator) < 0.2
    return logits, torch.where(void, 255, mask).byte()


def test_cross_entropy_by_hand():
    """Two classes, logits log 3 and 0: probabilities 3/4 and 1/4."""
    logits = torch.tensor([math.log(3), 0.0]).view(1, 2, 1, 1).expand(1, 2, 1, 4)
    mask = torch.tensor([[[0, 1, 1, 255]]], dtype=torch.uint8)
    loss = SegmentationLoss(2, {"cross_entropy": 1.0})
    right, wrong = math.log(4 / 3), math.log(4)
    assert loss(logits, mask)["cross_entropy"] == pytest.approx((right + 2 * wrong) / 3)
    loss.weight.copy_(torch.tensor([1.0, 3.0]))
    assert loss(logits, mask)["cross_entropy"] == pytest.approx((right + 6 * wrong) / 7)
    pixel = torch.tensor([[[10.0, 1.0, 0.0, 99.0]]])
    weighted = loss(logits, mask, pixel)["cross_entropy"]
    assert weighted == pytest.approx((10 * right + 3 * wrong) / 7)  # not divided by the 10


def test_cross_entropy_is_torchs():
    logits, mask = batch()
    loss = SegmentationLoss(4, {"cross_entropy": 1.0})
    loss.weight.copy_(torch.tensor([0.2, 1.0, 3.0, 0.0]))
    expected = F.cross_entropy(logits, mask.long(), loss.weight, ignore_index=255)
    assert loss(logits, mask)["cross_entropy"] == pytest.approx(float(expected))


def test_a_weight_of_one_for_every_pixel_changes_nothing():
    logits, mask = batch()
    loss = SegmentationLoss(4, EVERY)
    loss.weight.copy_(torch.tensor([0.2, 1.0, 3.0, 0.5]))
    plain, weighted = loss(logits, mask), loss(logits, mask, torch.ones(mask.shape))
    for name in EVERY:
        assert torch.equal(plain[name], weighted[name])


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 5.0])
def test_focal_is_its_formula(gamma):
    logits, mask = batch()
    loss = SegmentationLoss(4, {"focal": 1.0}, gamma)
    loss.weight.copy_(torch.tensor([0.2, 1.0, 3.0, 0.5]))
    total = weights = 0.0
    for row, truth in zip(logits, mask, strict=True):
        for y, x in (truth != 255).nonzero().tolist():
            k = int(truth[y, x])
            p = float(row[:, y, x].double().softmax(0)[k])
            total += float(loss.weight[k]) * (1 - p) ** gamma * -math.log(p)
            weights += float(loss.weight[k])
    assert loss(logits, mask)["focal"] == pytest.approx(total / weights, rel=1e-5)


def test_focal_of_gamma_zero_is_cross_entropy():
    logits, mask = batch()
    losses = SegmentationLoss(4, EVERY, gamma=0.0)(logits, mask)
    assert losses["focal"] == pytest.approx(float(losses["cross_entropy"]))


def test_dice_by_hand():
    """Class 0: p 1, 1/2 where it is and 0 elsewhere; class 1: 1/2, 1; class 2 is not there."""
    p = torch.tensor([[1, 0.5, 0.0, 0.3], [0, 0.5, 1.0, 0.3], [0, 0, 0, 0.4]]).view(1, 3, 1, 4)
    truth = torch.tensor([[[0, 0, 1, 255]]])
    first = 2 * 1.5 / (1.25 + 2)
    second = 2 * 1 / (1.25 + 1)
    assert dice_loss(p, truth) == pytest.approx(1 - (first + second) / 2)


def test_dice_of_a_perfect_prediction_is_zero_and_of_a_wrong_one_is_one():
    _, mask = batch()
    truth = torch.where(mask == 255, 0, mask).long()
    perfect = F.one_hot(truth, 4).movedim(-1, 1).float()
    assert dice_loss(perfect, mask.long()) == pytest.approx(0, abs=1e-6)
    assert dice_loss(perfect.roll(1, 1), mask.long()) == 1


def test_dice_of_a_one_hot_reading():
    logits, mask = batch()
    p = logits.softmax(1).movedim(1, -1)[mask != 255]  # (labelled, K)
    g = F.one_hot(mask[mask != 255].long(), 4).float()
    expected = 1 - (2 * (p * g).sum(0) / (p.square().sum(0) + g.sum(0))).mean()
    value = SegmentationLoss(4, {"dice": 1.0})(logits, mask)["dice"]
    assert value == pytest.approx(float(expected), rel=1e-5)


def test_what_a_term_counts_is_in_the_loss():
    logits, mask = batch()
    shares = {"cross_entropy": 0.5, "dice": 2.0, "focal": 3.0}
    plain, scaled = (SegmentationLoss(4, terms)(logits, mask) for terms in (EVERY, shares))
    assert set(scaled) == set(EVERY)
    for name, share in shares.items():
        assert scaled[name] == pytest.approx(share * float(plain[name]))
    assert set(SegmentationLoss(4, {"focal": 1.0})(logits, mask)) == {"focal"}


@pytest.mark.parametrize("empty", [False, True], ids=["void", "no image"])
def test_no_labelled_pixel_is_a_loss_of_zero_with_a_gradient_of_zero(empty):
    logits = torch.randn(0 if empty else 2, 4, 6, 5).requires_grad_()
    mask = torch.full((len(logits), 6, 5), 255, dtype=torch.uint8)
    losses = SegmentationLoss(4, EVERY)(logits, mask, torch.zeros(mask.shape))
    assert [float(loss.detach()) for loss in losses.values()] == [0, 0, 0]
    (gradient,) = torch.autograd.grad(torch.stack([*losses.values()]).sum(), logits)
    assert torch.equal(gradient, torch.zeros_like(logits))


@pytest.mark.parametrize("term", EVERY)
def test_void_pixels_do_not_count(term):
    logits, mask = batch()
    changed = torch.where((mask == 255)[:, None], 50 * torch.randn(logits.shape), logits)
    changed = changed.requires_grad_()
    loss = SegmentationLoss(4, {term: 1.0})
    value = loss(changed, mask)[term]
    assert torch.equal(value.detach(), loss(logits, mask)[term])
    (gradient,) = torch.autograd.grad(value, changed)
    assert not gradient.movedim(1, -1)[mask == 255].any()
    assert gradient.movedim(1, -1)[mask != 255].any()


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_gradients_are_finite_where_the_network_is_certain(gamma):
    logits = torch.zeros(1, 2, 1, 2)
    logits[:, 0] = 1000
    mask = torch.tensor([[[0, 1]]], dtype=torch.uint8)
    logits.requires_grad_()
    losses = SegmentationLoss(2, EVERY, gamma)(logits, mask)
    (gradient,) = torch.autograd.grad(torch.stack([*losses.values()]).sum(), logits)
    assert gradient.isfinite().all()
    assert gradient[0, 1, 0, 1] < 0  # towards the truth


def test_gradients_are_those_of_the_loss():
    """gradcheck needs float64, the loss is of float32: so by differences along one direction."""
    logits, mask = batch()
    direction = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
    loss = SegmentationLoss(4, EVERY)
    for term in EVERY:
        start = logits.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(start, mask)[term], start)
        ends = [loss(logits + step * direction, mask)[term] for step in (5e-3, -5e-3)]
        slope = float(ends[0] - ends[1]) / 1e-2
        assert float((gradient * direction).sum()) == pytest.approx(slope, rel=2e-2, abs=1e-4)


def test_half_precision_logits_give_a_float32_loss():
    logits, mask = batch()
    loss = SegmentationLoss(4, EVERY)
    with torch.autocast("cpu", torch.bfloat16):
        lower = loss(logits.bfloat16(), mask)
    expected = loss(logits.bfloat16().float(), mask)
    for name in EVERY:
        assert lower[name].dtype == torch.float32
        assert torch.equal(lower[name], expected[name])


def test_weights_of_classes_are_kept_with_a_model():
    loss = SegmentationLoss(3, {"cross_entropy": 1.0})
    loss.weight.copy_(torch.tensor([1.0, 2.0, 3.0]))
    other = SegmentationLoss(3, {"cross_entropy": 1.0})
    other.load_state_dict(loss.state_dict())
    assert other.weight.tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("terms", "gamma", "said"),
    [
        ({}, 2.0, "among"),
        ({"dise": 1.0}, 2.0, "among"),
        ({"dice": -1.0}, 2.0, "at least 0"),
        ({"dice": math.nan}, 2.0, "at least 0"),
        ({"focal": 1.0}, -1.0, "gamma"),
    ],
)
def test_what_is_refused(terms, gamma, said):
    with pytest.raises(ValueError, match=said):
        SegmentationLoss(2, terms, gamma)


# Two images of 100 labelled pixels each: 90 of class 0 and 10 of class 1; 60 of 0 and 40 of 3.
PIXELS, AROUND = torch.tensor([150, 10, 0, 40]), torch.tensor([200, 100, 0, 100])


def test_weights_by_inverse_frequency_have_a_mean_of_one():
    weights = frequency_weights("inverse", PIXELS, AROUND)
    assert weights[1] / weights[0] == pytest.approx(15)
    assert weights[1] / weights[3] == pytest.approx(4)
    assert weights[[0, 1, 3]].mean() == pytest.approx(1)
    assert weights[2] == 1


def test_weights_by_median_frequency_are_the_papers():
    frequency = [0.75, 0.1, 0.4]  # in the images that hold the class: median 0.4
    weights = frequency_weights("median", PIXELS, AROUND)
    assert weights[[0, 1, 3]].tolist() == pytest.approx([0.4 / f for f in frequency])
    assert weights[2] == 1
    assert frequency_weights("median", PIXELS[:2], AROUND[:2])[0] == pytest.approx(0.425 / 0.75)


@pytest.mark.parametrize("kind", ["none", "inverse", "median"])
def test_weights_of_nothing_are_one(kind):
    zeros = torch.zeros(3, dtype=torch.int64)
    assert frequency_weights(kind, zeros, zeros).tolist() == [1, 1, 1]
    equal = torch.tensor([7, 7])
    assert frequency_weights(kind, equal, equal).tolist() == [1, 1]


def test_weights_of_an_unknown_kind():
    with pytest.raises(ValueError, match="none, inverse or median"):
        frequency_weights("effective", PIXELS, AROUND)
