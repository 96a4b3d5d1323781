"""Batch norm, addition and ReLU in one, against torch's own of each in double precision."""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnctl.models.cifar_resnet import Block
from cnnctl.ops import batch_norm_relu as module
from cnnctl.ops.batch_norm_relu import batch_norm_relu

NHWC = torch.channels_last
compiled = pytest.mark.skipif(  # one that is there and fails is a fault of the source
    not (os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")),
    reason="no C compiler",
)


@pytest.fixture
def fusions(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each time that the kernel is taken."""
    seen: list[int] = []
    fused: Callable = module._fused
    monkeypatch.setattr(module, "_fused", lambda *given: seen.append(1) or fused(*given))
    return seen


def norm_of(channels: int, dtype: torch.dtype = torch.float32) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        norm.weight.normal_(generator=generator)
        norm.bias.normal_(generator=generator)
    return norm.to(dtype)


def maps(*shape: int, seed: int = 0, far: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator) * 2 + far
    return values.bfloat16().to(memory_format=NHWC).requires_grad_()


def exact(
    norm: nn.BatchNorm2d, x: Tensor, added: Tensor | None, out: Tensor, gradient: Tensor
) -> tuple[Tensor, ...]:
    """In double: what ``out`` rounds; with ReLU passing what it passes in ``out``, gradients of x,
    of what is added, of weight and bias; running mean and variance."""
    norm = copy.deepcopy(norm).double()
    inputs = [t.detach().double().requires_grad_() for t in (x, added) if t is not None]
    before = norm(inputs[0]) + (inputs[1] if added is not None else 0)
    passed = (before * (out != 0)).flatten()
    leaves = [*inputs, *norm.parameters()]
    gradients = torch.autograd.grad(passed, leaves, gradient.double().flatten())
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return before.relu().detach(), *gradients, norm.running_mean, norm.running_var


def relative(value: Tensor, truth: Tensor) -> float:
    return float((value.double() - truth).detach().abs().max() / truth.detach().abs().max())


@compiled
@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize(
    "shape",
    # Rows of few channels are taken several at a time; an odd number of rows; of channels; more
    # channels than a wide row has; several chunks.
    [(4, 16, 8, 8), (3, 16, 5, 7), (2, 7, 3, 3), (3, 300, 3, 1), (9, 24, 32, 32)],
)
def test_values_and_gradients(shape: tuple[int, ...], adds: bool, fusions: list[int]) -> None:
    norm, x = norm_of(shape[1]), maps(*shape, far=3.0)
    added = maps(*shape, seed=1) if adds else None
    gradient = maps(*shape, seed=2).detach()
    start = copy.deepcopy(norm)
    out = batch_norm_relu(norm, x, added)
    truth = exact(start, x, added, out, gradient)
    leaves = [t for t in (x, added, *norm.parameters()) if t is not None]
    values = [out, *torch.autograd.grad(out, leaves, gradient)]
    assert fusions
    assert norm.running_mean is not None
    assert norm.running_var is not None
    values += [norm.running_mean, norm.running_var]
    for value, true in zip(values, truth, strict=True):
        assert relative(value, true) < (2**-8 if value.dtype == torch.bfloat16 else 1e-5)
    assert int(norm.num_batches_tracked or 0) == 1


@compiled
def test_values_far_from_zero_keep_their_variance(fusions: list[int]) -> None:
    x = (torch.arange(512) % 2 * 8 + 1024).reshape(2, 16, 4, 4).bfloat16().to(memory_format=NHWC)
    norm = nn.BatchNorm2d(16, momentum=1.0)
    assert set(batch_norm_relu(norm, x).flatten().tolist()) == {0.0, 1.0}
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.running_mean.tolist() == [1028.0] * 16
    torch.testing.assert_close(norm.running_var, torch.full((16,), 16 * 32 / 31))
    assert fusions


@compiled
def test_threads_change_no_bit() -> None:
    x, before = maps(8, 16, 32, 32), torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            norm = norm_of(16)
            out = batch_norm_relu(norm, x)
            results.append((out, *torch.autograd.grad(out, [x, norm.weight, norm.bias], out)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@compiled
def test_not_a_number_is_not_cut_to_zero() -> None:
    x = maps(2, 4, 3, 3).detach()
    x[0, 1, 0, 0] = torch.nan
    out = batch_norm_relu(nn.BatchNorm2d(4), x)
    assert out[:, 1].isnan().all()
    assert out[:, [0, 2, 3]].isfinite().all()


class Own(nn.BatchNorm2d):
    """Might compute anything."""


def plain(norm: nn.BatchNorm2d, x: Tensor, added: Tensor | None = None) -> Tensor:
    out = norm(x)
    return F.relu(out if added is None else out + added)


@pytest.mark.parametrize("case", ["fp32", "nchw", "eval", "subclass", "hook", "no statistics"])
def test_elsewhere_it_is_the_three_to_the_bit(case: str, fusions: list[int]) -> None:
    x, added = maps(4, 16, 5, 5), maps(4, 16, 5, 5, seed=1)
    norm = norm_of(16)
    if case == "fp32":
        x, added = x.float(), added.float()
    elif case == "nchw":
        x = x.contiguous()
    elif case == "eval":
        norm.eval()
    elif case == "subclass":
        norm = Own(16)
    elif case == "hook":
        norm.register_forward_hook(lambda *given: None)
    else:
        norm = nn.BatchNorm2d(16, track_running_stats=False)
    other = copy.deepcopy(norm)
    assert torch.equal(batch_norm_relu(norm, x, added), plain(other, x, added))
    assert torch.equal(batch_norm_relu(norm, x), plain(other, x))
    assert not fusions
    for name, value in norm.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])


def test_one_value_a_channel_is_refused_as_by_torch() -> None:
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        batch_norm_relu(nn.BatchNorm2d(4), maps(1, 4, 1, 1))


@compiled
def test_a_frozen_part_gets_no_gradient_and_gradients_add_up() -> None:
    norm, x = norm_of(8), maps(4, 8, 4, 4)
    norm.weight.requires_grad_(False)
    for _ in range(2):
        batch_norm_relu(norm, x).float().sum().backward()
    once, again = norm_of(8), maps(4, 8, 4, 4)
    batch_norm_relu(once, again).float().sum().backward()
    assert norm.weight.grad is None
    assert norm.bias.grad is not None
    assert once.bias.grad is not None
    assert torch.equal(norm.bias.grad, 2 * once.bias.grad)


def test_without_a_compiler_torch_does_it(
    monkeypatch: pytest.MonkeyPatch, fusions: list[int], tmp_path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CC", str(tmp_path / "none"))
    monkeypatch.setattr(module, "_kernel", module._kernel.__wrapped__)
    norm, x = norm_of(8), maps(2, 8, 3, 3)
    other = copy.deepcopy(norm)
    assert torch.equal(batch_norm_relu(norm, x), plain(other, x))
    assert not fusions


def test_without_a_bias_torch_does_it(fusions: list[int]) -> None:
    norm = norm_of(8)
    norm.register_parameter("bias", None)
    x = maps(2, 8, 3, 3)
    assert torch.equal(batch_norm_relu(copy.deepcopy(norm), x), plain(norm, x))
    assert not fusions


@compiled
@pytest.mark.parametrize("place", ["kept", "a file"])
def test_where_the_kernel_comes_from(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache, and where that cannot be: nowhere; $CC may be several words."""
    cache = tmp_path / "cache"
    if place == "a file":
        cache.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    found = shutil.which("cc") or shutil.which("gcc")
    monkeypatch.setenv("CC", f"{os.environ.get('CC', found)} -g0")
    monkeypatch.setattr(module, "_kernel", module._kernel.__wrapped__)
    norm, x = norm_of(8), maps(2, 8, 3, 3)
    other = copy.deepcopy(norm).double()
    out = batch_norm_relu(norm, x)
    torch.testing.assert_close(
        out.double(), plain(other, x.detach().double()), rtol=2**-8, atol=1e-3
    )
    kept = [path.name for path in tmp_path.rglob("*.so")]
    assert kept == ([module.kernel_name()] if place == "kept" else [])


@compiled
def test_a_residual_block_in_bfloat16(fusions: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Through autocast and back it is as near to the block in double as torch's own."""
    torch.manual_seed(0)
    block = Block(8, 8, 1, "A").to(memory_format=NHWC).train()
    truth, own = copy.deepcopy(block).double(), copy.deepcopy(block)
    x, weights = maps(4, 8, 6, 6).detach(), maps(4, 8, 6, 6, seed=1).detach()

    def seen(network: nn.Module, pixels: Tensor) -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=network is not truth):
            out = network(pixels)
        (out * weights.to(out.dtype)).sum().backward()
        gradients = [parameter.grad for parameter in network.parameters()]
        return [out.detach(), *(grad for grad in gradients if grad is not None)]

    fused, exact_ones = seen(block, x), seen(truth, x.double())
    assert len(fusions) == 2
    monkeypatch.setattr(module, "_kernel", lambda: None)
    torchs = seen(own, x)
    assert len(fusions) == 2
    assert len(fused) == len(torchs) == len(exact_ones) == 7
    for ours, theirs, exactly in zip(fused, torchs, exact_ones, strict=True):
        off = [float((value.double() - exactly).norm()) for value in (ours, theirs)]
        assert off[0] <= 1.5 * off[1] + 1e-6
        assert off[0] < 0.1 * float(exactly.norm())
