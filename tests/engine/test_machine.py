"""Device, precision and threads, and what a machine's faults are called."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from cnnctl.data.augmentations.standard import Standard
from cnnctl.data.digits import Digits
from cnnctl.engine import chosen, machine
from cnnctl.engine.distributed import Processes
from cnnctl.engine.inference import held_at_once
from cnnctl.engine.machine import Machine, choose_device, choose_dtype, faults_explained
from cnnctl.engine.trainer import Trainer
from cnnctl.errors import Exit, UserError
from cnnctl.models.base import SegmentationModel
from cnnctl.models.lenet import LeNet
from cnnctl.ops.dense import DenseTesting
from cnnctl.structures import Images

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"),
    [(False, False, "cpu"), (True, False, "cuda"), (False, True, "mps"), (True, True, "cuda")],
)
def test_auto_takes_what_there_is(cuda, mps, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert choose_device("auto").type == expected


def test_each_process_has_its_own_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("cuda", 1) == torch.device("cuda", 1)
    assert choose_device("cuda:0", 1) == torch.device("cuda", 0)
    with pytest.raises(UserError, match="there is no cuda:2: this machine has 2 GPUs") as caught:
        choose_device("cuda", 2)
    assert caught.value.code == Exit.MACHINE


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("gpu", Exit.CONFIG, 'there is no device "gpu"'),
        ("cuda:x", Exit.CONFIG, 'there is no device "cuda:x"'),
        ("cuda", Exit.MACHINE, r"has no cuda"),
        ("cuda:7", Exit.MACHINE, r"has no cuda:7"),
        ("mps", Exit.MACHINE, r"has no mps"),
    ],
)
def test_a_device_that_is_not_there(name, code, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UserError, match=message) as caught:
        choose_device(name)
    assert caught.value.code == code
    assert caught.value.field == "trainer.device"


@pytest.mark.parametrize(
    ("able", "expected"),
    [
        ({"amx_bf16": True}, torch.bfloat16),
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"avx512_f": True}, torch.float32),
        ({}, torch.float32),
    ],
)
def test_auto_precision_is_bf16_where_it_is_native(able, expected, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    assert choose_dtype("auto", CPU) == expected
    assert choose_dtype("bf16", CPU) == torch.bfloat16
    assert choose_dtype("fp32", CPU) == torch.float32


@pytest.mark.parametrize(("major", "expected"), [(7, torch.float32), (8, torch.bfloat16)])
def test_auto_precision_of_a_gpu(major, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (major, 0))
    assert choose_dtype("auto", torch.device("cuda")) == expected


def test_fp16_is_for_gpus():
    with pytest.raises(UserError, match="fp16 is for GPUs"):
        choose_dtype("fp16", CPU)


def test_autocast_and_memory_format():
    model = nn.Conv2d(3, 4, 3)
    placed = Machine(CPU, torch.bfloat16, channels_last=True).place(model)
    assert isinstance(placed, nn.Conv2d)
    assert placed.weight.is_contiguous(memory_format=torch.channels_last)
    for dtype in (torch.bfloat16, torch.float32):
        with Machine(CPU, dtype, channels_last=False).autocast():
            assert model(torch.zeros(1, 3, 8, 8)).dtype == dtype


def test_threads(monkeypatch):
    monkeypatch.setattr(machine, "cores", lambda: 4)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for threads, processes, expected in ((None, 1, 4), (None, 2, 2), (None, 8, 1), (3, 2, 3)):
        machine.set_threads(threads, processes)
        assert torch.get_num_threads() == expected
    monkeypatch.setenv("OMP_NUM_THREADS", "3")  # the user's own choice, where there is one process
    machine.set_threads(1, 1)
    machine.set_threads(None, 1)
    assert torch.get_num_threads() == 1


def test_more_threads_than_cores(monkeypatch):
    monkeypatch.setattr(machine, "cores", lambda: 4)
    trainer = Trainer(threads=5)  # a checkpoint may come from a larger machine
    with pytest.raises(UserError, match="is 5, and this machine has 4 cores") as e:
        trainer.machine(Processes())
    assert (e.value.code, e.value.field) == (Exit.MACHINE, "trainer.threads")
    assert e.value.advice == "take at most trainer.threads=4; null takes all of them"


def test_what_was_chosen_and_why(monkeypatch):
    data, processes = Digits("train"), Processes()
    common = {"num_classes": 10, "mirror": False, "native": (8, 8)}
    model = LeNet(1, 10, (32, 32))
    monkeypatch.setattr(chosen, "cores", lambda: 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")

    def said(trainer: Trainer, size: int, world=1, dtype=torch.float32, fused=True):
        here, pipeline = Machine(CPU, dtype, True), Standard(**common, size=size)
        loader = trainer.load(data, pipeline, here, processes, 0)
        return chosen.why_chosen(trainer, here, loader, model, Processes(0, world), fused)

    assert said(Trainer(workers=1), 8, dtype=torch.bfloat16) == (
        "device cpu (no GPU here), precision bf16 (native here), threads 2 (all cores,"
        " GOMP_SPINCOUNT=7), loader resident (0.1 MB), eval_batch_size 500"
    )
    own = {"precision": "bf16", "threads": 1, "loader": "resident", "eval_batch_size": 5}
    assert said(Trainer(device="cpu", **own), 8, dtype=torch.bfloat16, fused=False) == ""
    model.add_module("norm", torch.nn.BatchNorm2d(3))
    assert said(Trainer(device="cpu", **own), 8, dtype=torch.bfloat16, fused=False) == (
        "batch norm not fused (no C compiler, or CNNCTL_FUSED=0)"
    )
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert said(Trainer(device="cpu", workers=1), 2048, 2) == (
        "precision fp32 (bf16 is not native here), threads 1 (2 cores for 2 processes),"
        " loader streaming (4,312 MB; workers 1), eval_batch_size 16"
    )
    own = {"precision": "fp32", "threads": 1, "loader": "resident", "eval_batch_size": 5}
    assert said(Trainer(device="cpu", **own), 8) == ""


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 GB"),
    ],
)
def test_out_of_memory(error):
    held = Trainer(batch_size=256).held_at_once((224, 200), Processes())
    match = "out of memory in training with 256 images of 224 x 200 at once"
    with pytest.raises(UserError, match=match) as caught, faults_explained(held):
        raise error
    assert caught.value.code == Exit.MACHINE
    assert caught.value.advice == (
        "trainer.accumulate=2 keeps the recipe;"
        " else trainer.batch_size=128 or augmentation.size=100"
    )
    with pytest.raises(UserError, match="out of memory before the first batch: the data"):  # noqa: SIM117
        with faults_explained():
            raise error


@pytest.mark.parametrize(
    ("settings", "world", "images", "advice"),
    [
        (
            {"batch_size": 96, "accumulate": 2},
            3,
            "16 images",
            "trainer.accumulate=4 keeps the recipe; else trainer.batch_size=48 or ",
        ),
        (
            {"batch_size": 50, "accumulate": 2},
            1,
            "25 images",
            "trainer.accumulate=10 keeps the recipe; else trainer.batch_size=24 or ",
        ),
        ({"batch_size": 4, "accumulate": 4}, 1, "1 image", "take "),
    ],
)
def test_what_makes_a_step_smaller_is_a_setting_that_works(settings, world, images, advice):
    held = Trainer(**settings).held_at_once((64, 64), Processes(0, world))
    error = held.exhausted()
    assert error.problem == f"out of memory in training with {images} of 64 x 64 at once"
    assert error.advice == f"{advice}augmentation.size=32"
    if world == 1:
        for said in re.findall(r"trainer\.(\w+)=(\d+)", advice):
            Trainer(**{**settings, said[0]: int(said[1])})


class Whole(SegmentationModel):
    def forward(self, pixels):
        return pixels


@pytest.mark.parametrize(
    ("model", "images", "size", "advice"),
    [
        (nn.Identity(), 7, (30, 40), "take trainer.eval_batch_size=3"),
        (LeNet(3, 10, (32, 32)), 1, (500, 400), "take augmentation.size=200"),
        (Whole(), 1, (500, 400), "take task.tile=250, which sees larger images in parts"),
    ],
)
def test_what_makes_an_evaluation_smaller(model, images, size, advice):
    held = held_at_once(model, "evaluation")
    assert "before the first batch of the evaluation" in held.exhausted().problem
    held.see(Images(torch.zeros(images, 3, *size), [size] * images, [size] * images))
    assert f"in evaluation with {images} image" in held.exhausted().problem
    assert "of {} x {} at once".format(*size) in held.exhausted().problem
    assert held.exhausted().advice == advice


def test_smaller_tiles_than_those_that_did_not_fit():
    model = Whole()
    model.testing = DenseTesting(tile=96)
    assert model.less_memory((500, 400)).startswith("task.tile=48,")
    assert model.less_memory((64, 60)).startswith("task.tile=32,")


def test_other_faults_stay_what_they_are():
    with pytest.raises(RuntimeError, match="mat1 and mat2"), faults_explained():
        torch.matmul(torch.zeros(2, 3), torch.zeros(2, 3))


def test_an_operator_without_a_deterministic_form_is_named():
    text = (
        "cumsum_cuda_kernel does not have a deterministic implementation, but you set"
        " 'torch.use_deterministic_algorithms(True)'. You can turn off determinism just for this"
    )
    match = "cumsum_cuda_kernel does not have"
    with pytest.raises(UserError, match=match) as caught, faults_explained():
        raise RuntimeError(text)
    assert caught.value.field == "trainer.deterministic"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs must be between 1 and 1e9, got 0"),
        ({"steps": -1}, "steps must be between 1"),
        ({"eval_batch_size": 0}, "eval_batch_size must be"),
        ({"workers": -1}, "workers must be between 0 and 1024, got -1"),
        ({"clip": 0.0}, "clip must be positive, got 0.0"),
        ({"ema": 1.0}, "ema must be between 0 and 1, got 1.0"),
        ({"batch_size": 10, "accumulate": 3}, "batch_size 10 does not divide"),
        ({"batch_size": 9, "devices": 2}, "batch_size 9 does not divide into 2 devices"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        Trainer(**settings)


def test_steps_and_epochs():
    assert Trainer(epochs=3, batch_size=64).total_steps(1078) == (48, 16)
    assert Trainer(steps=5, batch_size=64).total_steps(1078) == (5, 16)
    assert Trainer(epochs=1, batch_size=1078).total_steps(1078) == (1, 1)
    assert Trainer(evaluate_every=2).evaluation_interval(16) == 32
    assert Trainer(evaluate_every=2, evaluate_every_steps=5).evaluation_interval(16) == 5
