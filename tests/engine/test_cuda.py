"""A GPU is never waited for within a step, and computes what the CPU does."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn, optim

from cnnctl.data.digits import Digits
from cnnctl.data.loaders import ResidentLoader, Share, StreamingLoader, mover
from cnnctl.engine import checkpoint
from cnnctl.engine.loop import Loop
from cnnctl.engine.trainer import fused_on, load_optimizer
from cnnctl.structures import Batch, Images, Targets

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@contextlib.contextmanager
def no_waiting() -> Iterator[None]:
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "settings",
    [
        ("optimizer=sgd",),
        ("optimizer=adamw", "trainer.clip=1", "trainer.accumulate=2"),
        ("optimizer=sgd", "trainer.ema=0.9", "trainer.lookahead=3"),
        ("optimizer=adagrad", "trainer.precision=fp16", "trainer.ema=0.9"),
    ],
)
def test_no_step_waits_for_the_gpu(settings, train, tmp_path, monkeypatch):
    """From the first batch of an epoch to the last: resident data, ResNet-20."""
    steps, original = 0, Loop._step

    def watched(self: Loop, *arguments: Any) -> None:
        nonlocal steps
        steps += 1
        if steps < 3:  # algorithms are chosen and memory is taken
            return original(self, *arguments)
        with no_waiting():
            return original(self, *arguments)

    monkeypatch.setattr(Loop, "_step", watched)
    here = ("trainer.device=cuda", "model=resnet20", "trainer.log_every=100")
    assert train(tmp_path / "run", *here, *settings) == 0
    assert steps == 20


@pytest.mark.gpu
def test_batches_of_resident_data_wait_for_nothing(pipeline):
    data = Digits("train")
    loader = ResidentLoader(data, pipeline, CUDA, 0, Share())
    list(loader.train(0, 1, 64, 0))
    with no_waiting():
        batches = list(loader.train(0, 40, 64, 0))  # of three epochs
    expected = ResidentLoader(data, pipeline, CPU, 0, Share()).train(0, 40, 64, 0)
    for there, here in zip(batches, expected, strict=True):
        assert torch.equal(there.targets.image_id.cpu(), here.targets.image_id)
        torch.testing.assert_close(there.images.pixels.cpu(), here.images.pixels)


@pytest.mark.gpu
def test_streamed_batches_arrive_whole_while_the_gpu_computes(pipeline):
    """Slow work is queued before every batch: one that was used or given away early would show."""
    data = Digits("train")
    slow = torch.randn(4096, 4096, device=CUDA)
    loader = StreamingLoader(data, pipeline, CUDA, 0, Share(), 1)
    found = []
    for batch in loader.train(0, 24, 64, 0):
        for _ in range(10):
            slow.mm(slow)
        found.append(batch.images.pixels.sum((1, 2, 3)))
        del batch
    expected = ResidentLoader(data, pipeline, CPU, 0, Share()).train(0, 24, 64, 0)
    for sums, here in zip(found, expected, strict=True):
        torch.testing.assert_close(sums.cpu(), here.images.pixels.sum((1, 2, 3)))


@pytest.fixture
def pipeline():
    from cnnctl.data.augmentations.standard import Standard

    return Standard(num_classes=10, mirror=False, native=(8, 8), flip=True)


def test_on_a_cpu_batches_stay_what_they_are():
    pixels, ids = torch.arange(12.0).view(1, 3, 2, 2), torch.tensor([7])
    moved = mover(CPU)(Batch(Images(pixels, [(2, 2)], [(2, 2)]), Targets(ids)))
    assert moved.images.pixels is pixels
    assert moved.targets.image_id is ids


@pytest.mark.parametrize(
    ("make", "settings", "fused"),
    [
        (optim.SGD, {}, True),
        (optim.Adam, {}, True),
        (optim.AdamW, {}, True),
        (optim.Adagrad, {}, True),
        (optim.SGD, {"fused": False}, False),
        (optim.SGD, {"foreach": True}, None),
        (optim.RMSprop, {}, "absent"),
        (optim.Muon, {}, "absent"),
    ],
)
def test_a_gpu_gets_the_fused_optimizer_where_there_is_one(make, settings, fused):
    weight = nn.Parameter(torch.zeros(2, 2))
    built = fused_on(CUDA, functools.partial(make, lr=0.1, **settings))([weight])
    assert built.param_groups[0].get("fused", "absent") is fused or fused == "absent"
    assert "fused" in built.param_groups[0] or fused == "absent"
    alone = fused_on(CPU, functools.partial(make, lr=0.1, **settings))([weight])
    assert alone.param_groups[0].get("fused") is settings.get("fused")


@pytest.mark.parametrize("make", [optim.SGD, optim.AdamW])
@pytest.mark.parametrize(("before", "after"), [(None, True), (True, None)])
def test_what_a_checkpoint_holds_goes_on_in_the_form_of_the_device(make, before, after):
    """Of an optimizer that was fused and no longer is, and the other way round."""
    torch.manual_seed(0)
    start, gradients = torch.randn(3, 3), torch.randn(4, 3, 3)

    def run(weight: nn.Parameter, opt: optim.Optimizer, rows: torch.Tensor) -> None:
        for gradient in rows:
            weight.grad = gradient.clone()
            opt.step()

    usual = nn.Parameter(start.clone())
    settings: dict[str, Any] = {"lr": 0.1, "weight_decay": 0.01}
    if make is optim.SGD:
        settings["momentum"] = 0.9
    run(usual, make([usual], **settings), gradients)
    first = nn.Parameter(start.clone())
    opt = make([first], fused=before, **settings)
    run(first, opt, gradients[:2])
    second = nn.Parameter(first.detach().clone())
    resumed = make([second], fused=after, **settings)
    load_optimizer(resumed, opt.state_dict())
    assert resumed.param_groups[0]["fused"] is after
    run(second, resumed, gradients[2:])
    torch.testing.assert_close(second, usual)


@pytest.mark.gpu
def test_a_run_of_a_gpu_goes_on_on_the_cpu(train, command, tmp_path):
    """And the other way round; the weights are those of a run left alone, up to rounding."""
    still = ("schedule=constant", "optimizer=adamw", "optimizer.lr=1e-3")
    runs = {}
    for first, second in (("cpu", "cpu"), ("cuda", "cpu"), ("cpu", "cuda")):
        run: Path = tmp_path / f"{first}-{second}"
        assert train(run, *still, f"trainer.device={first}", "trainer.steps=7") == 0
        again = (f"resume={run}", f"trainer.device={second}", "trainer.steps=14")
        assert command("train", *again) == 0
        runs[first, second] = checkpoint.read(run / "last.pt")["model"]
    for other in (("cuda", "cpu"), ("cpu", "cuda")):
        for name, weight in runs["cpu", "cpu"].items():
            torch.testing.assert_close(runs[other][name], weight, rtol=1e-3, atol=1e-4)
