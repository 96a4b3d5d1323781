"""Compilation where a probe says that it pays, and nowhere else."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cnnctl.commands import train as train_command
from cnnctl.engine import checkpoint, compiling
from cnnctl.engine.compiling import Verdict, verdict
from cnnctl.engine.machine import Machine
from cnnctl.models.lenet import LeNet
from cnnctl.structures import Batch, Images, Targets

CPU = Machine(torch.device("cpu"), torch.float32, channels_last=False)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return LeNet(1, 10, (32, 32))


@pytest.fixture
def batch():
    images = Images(torch.randn(2, 1, 32, 32), [(32, 32)] * 2, [(32, 32)] * 2)
    return Batch(images, Targets(torch.arange(2), label=torch.tensor([3, 5])))


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """Seconds by hand: a step takes 1, compiled ``measured["compiled"]`` after 40."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = {"compiled": 0.5, "asked": 0}

    def seconds(model, batch, machine, compiled):
        found["asked"] += compiled
        if found["compiled"] == 0:
            raise RuntimeError("no C++ compiler\nand more")
        return (40.0, found["compiled"]) if compiled else (2.0, 1.0)

    monkeypatch.setattr(compiling, "seconds", seconds)
    return found


@pytest.mark.parametrize(
    ("compiled", "steps", "pays", "why"),
    [
        (0.5, 1000, False, "1,000 s of steps are too few to find out whether it pays"),
        (0.5, 2000, True, "a step takes 0.50 of the time, once 40 s are spent on it"),
        (0.97, 2000, False, "a step takes 0.97 of the time"),
        (1.5, 2000, False, "a step takes 1.50 of the time"),
    ],
)
def test_what_pays(compiled, steps, pays, why, measured, model, batch):
    measured["compiled"] = compiled
    found = verdict(model, batch, CPU, steps)
    assert found.compiled is pays
    assert found.why.startswith(why)


def test_it_is_found_out_once(measured, model, batch):
    first = verdict(model, batch, CPU, 2000)
    measured["compiled"] = 2.0
    assert verdict(model, batch, CPU, 2000) == first
    assert measured["asked"] == 1
    other = Machine(torch.device("cpu"), torch.bfloat16, channels_last=False)
    assert verdict(model, batch, other, 2000) != first
    assert verdict(LeNet(1, 9, (32, 32)), batch, CPU, 2000) != first
    assert measured["asked"] == 3


def test_without_a_compiler_training_goes_on(monkeypatch, tmp_path, model, batch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    original = compiling.seconds

    def broken(self: nn.Module) -> None:
        raise RuntimeError("no C++ compiler\nand more")

    def seconds(*arguments, compiled: bool):
        return original(*arguments, compiled=True) if compiled else (9.0, 9.0)

    monkeypatch.setattr(compiling, "seconds", seconds)
    monkeypatch.setattr(LeNet, "compile", broken)
    found = verdict(model, batch, CPU, 2000)
    assert found == Verdict(False, "it does not work here: no C++ compiler")


def test_a_probe_leaves_no_trace(model, batch):
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    drawn = torch.random.get_rng_state()
    first, later = compiling.seconds(model, batch, CPU, compiled=False)
    assert min(first, later) > 0
    assert torch.equal(torch.random.get_rng_state(), drawn)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_resumed_run_does_as_it_did(train, command, tmp_path, monkeypatch, capsys):
    asked, compiled = [], []

    def found(model, batch, machine, steps, kernel):
        asked.append((len(batch), steps))
        return Verdict(True, "a sundial says so")

    monkeypatch.setattr(train_command, "verdict", found)
    monkeypatch.setattr(nn.Module, "compile", lambda self: compiled.append(type(self).__name__))
    run = tmp_path / "run"
    assert train(run, "trainer.compile=auto", "trainer.steps=2", "trainer.accumulate=2") == 0
    assert "trainer.compile=true: a sundial says so" in capsys.readouterr().out
    assert checkpoint.read(run / "last.pt")["compiled"] is True
    assert command("train", f"resume={run}", "trainer.steps=4") == 0
    assert (asked, compiled) == ([(32, 4)], ["MLP", "MLP"])
    assert "last digits" not in capsys.readouterr().err


def test_a_resumed_run_may_do_without(train, command, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(nn.Module, "compile", lambda self: None)
    run = tmp_path / "run"
    assert train(run, "trainer.compile=true", "trainer.steps=2") == 0
    assert command("train", f"resume={run}", "trainer.steps=4", "trainer.compile=false") == 0
    assert ", compiled and goes on with device cpu" in capsys.readouterr().err
    assert checkpoint.read(run / "last.pt")["compiled"] is False


def test_a_compiler_that_says_nothing(measured, model, batch, monkeypatch):
    def seconds(model, batch, machine, compiled):
        if compiled:
            raise AssertionError
        return 9.0, 9.0

    monkeypatch.setattr(compiling, "seconds", seconds)
    found = verdict(model, batch, CPU, 1000)
    assert found == Verdict(False, "it does not work here: AssertionError")
