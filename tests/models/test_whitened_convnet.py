"""The network against the paper's counts, its initialisation by what it does, and its pace."""

from __future__ import annotations

import math
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cnnctl.data.digits import Digits
from cnnctl.data.loaders import Normalize
from cnnctl.engine import checkpoint
from cnnctl.engine.trainer import parameter_groups
from cnnctl.models.whitened_convnet import Group, WhitenedConvNet, second_moment, whitening
from cnnctl.structures import Batch, Images, Targets

sys.path.insert(0, str(Path(__file__).parent.parent / "engine"))
import comparing  # pyright: ignore[reportMissingImports]

SIZE = (32, 32)


def network(*, seed: int = 0, **options) -> WhitenedConvNet:
    torch.manual_seed(seed)
    return WhitenedConvNet(3, 10, SIZE, **options)


def batches(pixels: torch.Tensor, count: int = 100) -> list[Batch]:
    size = [(pixels.shape[2], pixels.shape[3])]
    return [
        Batch(
            Images(part, size * len(part), size * len(part)),
            Targets(torch.arange(len(part)), torch.arange(len(part)) % 10),
        )
        for part in pixels.split(count)
    ]


@pytest.fixture(scope="module")
def digits() -> torch.Tensor:
    """(1078, 1, 8, 8) as a network sees them."""
    data = Digits("train")
    return Normalize(data.mean, data.std, torch.device("cpu"))(data.pixels)


def test_weights_and_maps_of_the_paper():
    """1.97 million parameters; maps of 31, 15, 7 and 3 pixels."""
    model, shapes = network().eval(), []
    for layer in (model.whiten, *model.groups):
        layer.register_forward_hook(lambda *call: shapes.append(tuple(call[2].shape[1:])))
    with torch.no_grad():
        assert model(torch.zeros(2, 3, *SIZE)).shape == (2, 10)
    assert shapes == [(24, 31, 31), (64, 15, 15), (256, 7, 7), (256, 3, 3)]
    by_hand = 24 * 12 + 24 + 9 * (24 * 64 + 64 * 64 + 64 * 256 + 3 * 256 * 256) + 2560
    assert by_hand == 1_970_488
    norms = 2 * 2 * (64 + 256 + 256)
    assert sum(p.numel() for p in model.parameters()) == by_hand + norms
    trained = sum(p.numel() for p in model.stages()[0].params())
    assert trained == by_hand - 24 * 12 + norms // 2


def test_work_of_the_paper():
    """0.36 PFLOP in 9.9 epochs of 50,000 images, three passes of two operations each."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network().eval()(torch.zeros(1, 3, *SIZE))
    assert 3 * counter.get_total_flops() * 50_000 * 9.9 == pytest.approx(0.36e15, rel=0.03)


def test_contract():
    """Finite loss, a gradient for all that is trained, one image = the batch."""
    model = network(widths=(8, 16, 16), convolutions=3)
    (stage,) = model.stages()
    (batch,) = batches(torch.randn(4, 3, *SIZE))
    model.train()
    model.loss(batch.images, batch.targets)["cross_entropy"].backward()
    assert all(p.grad is not None and p.grad.any() for p in stage.params())
    model.eval()
    with torch.no_grad():
        together = model(batch.images.pixels)
        alone = torch.cat([model(one[None]) for one in batch.images.pixels])
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(9, 9), (28, 20), (64, 40)])
def test_other_inputs(size):
    torch.manual_seed(0)
    model = WhitenedConvNet(1, 5, size, widths=(4, 8)).eval()
    assert model(torch.randn(2, 1, *size)).isfinite().all()


def test_directions_lose_their_correlation_and_get_variance_one(digits):
    """On real images, against NumPy; every filter comes with its negative."""
    torch.manual_seed(0)
    model = WhitenedConvNet(1, 10, (9, 9), widths=(4,))
    model.see(iter(batches(digits)))
    with torch.no_grad():
        seen = F.conv2d(digits, model.whiten.weight).transpose(0, 1).flatten(1).double().numpy()
    assert np.array_equal(model.whiten.weight[4:].detach(), -model.whiten.weight[:4].detach())
    moment = seen[:4] @ seen[:4].T / seen.shape[1]
    patches = np.lib.stride_tricks.sliding_window_view(digits[:, 0].numpy(), (2, 2), axis=(1, 2))
    patches = patches.reshape(-1, 4).astype(np.float64)
    variance = np.linalg.eigvalsh(patches.T @ patches / len(patches))[::-1]
    np.testing.assert_allclose(moment, np.diag(variance / (variance + 5e-4)), atol=2e-4)
    np.testing.assert_allclose(moment, np.eye(4), atol=0.02)


def test_whitening_is_of_the_first_images_and_of_nothing_else(digits):
    """Whatever their batches, whatever comes after, whatever the weights were."""
    many = digits.repeat(5, 1, 1, 1)  # 5,390
    models = []
    for seed, pixels, count in ((0, many, 500), (1, many[:5000], 77)):
        torch.manual_seed(seed)
        models.append(WhitenedConvNet(1, 10, (9, 9), widths=(4,)))
        models[-1].see(iter(batches(pixels, count)))
    weights = [model.whiten.weight for model in models]
    torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-4)
    before = weights[0].clone()
    models[0].see(iter(batches(-3 * digits + 1)))
    assert torch.equal(weights[0], before), "once"


def test_whitening_does_not_depend_on_the_precision_or_a_sign(digits):
    exact, count = second_moment(digits)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(second_moment(digits)[0], exact)
    assert count == len(digits) * 49
    filters = whitening(exact / count)
    assert (filters[:4].gather(1, filters[:4].abs().argmax(1, keepdim=True)) > 0).all()


@pytest.mark.parametrize(("inputs", "outputs"), [(24, 64), (256, 256), (64, 32)])
def test_convolutions_start_as_the_identity_on_the_first_maps(inputs, outputs):
    torch.manual_seed(0)
    first = Group(inputs, outputs, 2, 0.6).convs[0]
    pixels = torch.randn(1, inputs, 6, 6)
    same = min(inputs, outputs)
    assert isinstance(first, nn.Conv2d)
    torch.testing.assert_close(first(pixels)[:, :same], pixels[:, :same])
    if outputs > inputs:  # and the others at random
        assert first.weight.detach()[inputs:].std() == pytest.approx(
            1 / math.sqrt(3 * 9 * inputs), rel=0.05
        )


def test_three_convolutions_have_a_shortcut_within_the_activation():
    """Without the last normalisation's output the group passes on what its first part made."""
    torch.manual_seed(0)
    group = Group(4, 8, 3, 0.9).eval()
    pixels = torch.randn(2, 4, 8, 8)
    nn.init.zeros_(group.convs[2].weight)  # pyright: ignore[reportArgumentType]
    start = F.gelu(group.norms[0](F.max_pool2d(group.convs[0](pixels), 2)))
    torch.testing.assert_close(group(pixels), F.gelu(start))


def test_logits_are_divided():
    model = network(widths=(4, 8)).eval()
    pixels = torch.randn(2, 3, *SIZE)
    expected = model.features(pixels).amax((2, 3)) @ model.linear.weight.T / 9
    torch.testing.assert_close(model(pixels), expected)


def test_pace_of_each_parameter():
    """Biases of normalisation 64 times as fast, as much decay; the whitening's for 3 epochs."""
    model = network(widths=(4, 8))
    (stage,) = model.stages()
    groups = parameter_groups(list(stage.params()), True, stage)
    names = {id(p): name for name, p in model.named_parameters()}
    found = [
        ({k: v for k, v in group.items() if k != "params"}, [names[id(p)] for p in group["params"]])
        for group in groups
    ]
    convs = [f"groups.{g}.convs.{c}.weight" for g in (0, 1) for c in (0, 1)]
    norms = [f"groups.{g}.norms.{c}.bias" for g in (0, 1) for c in (0, 1)]
    assert found == [
        ({}, [*convs, "linear.weight"]),
        ({"epochs": 3.0}, ["whiten.bias"]),
        ({"share": 64.0, "decay": 1 / 64}, norms),
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widths": ()}, "widths must be numbers of maps"),
        ({"widths": (4, 0)}, "widths must be numbers of maps"),
        ({"convolutions": 4}, "convolutions must be 2 or 3, got 4"),
        ({"norm_momentum": 1.0}, "norm_momentum must be at least 0 and below 1, got 1.0"),
        ({"bias_rate": 0.0}, "bias_rate must be positive, got 0.0"),
        ({"divisor": -1.0}, "divisor must be positive, got -1.0"),
        ({"whitening_epochs": -1.0}, "whitening_epochs must not be negative, got -1.0"),
    ],
)
def test_bad_numbers_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        network(**options)


def test_images_may_be_too_small():
    with pytest.raises(ValueError, match="needs images of at least 9 x 9, got 8 x 12"):
        WhitenedConvNet(3, 10, (8, 12))


@pytest.mark.slow
def test_the_recipe_resumes_to_the_same_bits(command, tmp_path):
    """All its parts at once, across the end of the whitening bias's epochs and between returns to
    the average; in training it stays as it was from that step on."""
    run = (
        *("experiment=cifar10_speed", "data=digits", "~data.validation", "trainer.threads=1"),
        *("model.widths=[4,4]", "model.whitening_epochs=0.125", "augmentation.size=9"),
        *("trainer.batch_size=64", "trainer.steps=7", "trainer.keep_every=1", "trainer.test=false"),
        *("trainer.tensorboard=false", "trainer.lookahead=3", "task.flip=false"),
    )
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    assert command("train", f"hydra.run.dir={whole}", *run) == 0
    groups = checkpoint.read(whole / "last.pt")["optimizer"]["param_groups"]
    assert [g["weight_decay"] for g in groups] == pytest.approx([1.33e-3, 1.33e-3, 1.33e-3 / 64])
    assert groups[2]["lr"] == pytest.approx(64 * groups[0]["lr"])
    biases = [
        checkpoint.read(whole / f"step-{step}.pt")["model"]["whiten.bias"] for step in range(1, 8)
    ]
    moved = [not torch.equal(*pair) for pair in pairwise(biases)]
    # Of 16 steps in an epoch two train it; with the third it returns to its average.
    assert moved == [True, True, False, False, False, False]
    resumed.mkdir()
    (resumed / "last.pt").write_bytes((whole / "step-4.pt").read_bytes())
    assert command("train", f"resume={resumed}") == 0
    assert comparing.runs_differ(whole, resumed) == []
