"""Whether torch.compile pays for itself in a run: timed once, kept in the user's cache."""

from __future__ import annotations

import copy
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from cnnctl.engine.machine import Machine
from cnnctl.engine.processor import cpu_model
from cnnctl.models.base import Model
from cnnctl.structures import Batch
from cnnctl.user_cache import user_cache

LONG = 1800.0  # seconds of steps ahead; below, finding out costs more than may be won
WINS = 0.95  # of the time as it is
STEPS = 3  # of which the fastest counts


@dataclass(frozen=True)
class Verdict:
    compiled: bool
    why: str


def verdict(
    model: Model, batch: Batch, machine: Machine, steps: int, kernel: str | None = None
) -> Verdict:
    """For a run of ``steps`` steps like that with ``batch``; the model is left as it is.

    Args:
        kernel: that the model is computed with as it is, by name.
    """
    plain = seconds(model, batch, machine, compiled=False)[1]
    ahead = plain * steps
    if ahead < LONG:
        return Verdict(False, f"{ahead:,.0f} s of steps are too few to find out whether it pays")
    known = user_cache("compile") / f"{_key(model, batch, machine, kernel)}.json"
    try:
        cost, ratio = map(float, json.loads(known.read_text()))
    except (OSError, ValueError, TypeError):
        try:
            cost, taken = seconds(model, batch, machine, compiled=True)
        except Exception as error:  # of a compiler: any
            said = str(error) or type(error).__name__
            return Verdict(False, f"it does not work here: {said.splitlines()[0]}")
        ratio = taken / plain
        _remember(known, [cost, ratio])
    pays = ratio < WINS and ahead * (1 - ratio) > cost
    return Verdict(
        pays, f"a step takes {ratio:.2f} of the time, once {cost:,.0f} s are spent on it"
    )


def seconds(model: Model, batch: Batch, machine: Machine, compiled: bool) -> tuple[float, float]:
    """(the first step's, the fastest of the next ones') of a copy, forward and backward."""
    trial = copy.deepcopy(model).train()
    if compiled:
        trial.compile()

    def step() -> None:
        with machine.autocast():
            losses = trial.loss(batch.images, batch.targets)
        torch.stack([*losses.values()]).sum().backward()
        if machine.device.type == "cuda":
            torch.cuda.synchronize(machine.device)

    with torch.random.fork_rng(devices=[]):
        first, *others = [_timed(step) for _ in range(1 + STEPS)]
    return first, min(others)


def _timed(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _key(model: Model, batch: Batch, machine: Machine, kernel: str | None) -> str:
    shapes = [(name, tuple(value.shape)) for name, value in model.state_dict().items()]
    what = (str(model), shapes, tuple(batch.images.pixels.shape), machine.describe(), cpu_model())
    programs = (str(torch.__version__), kernel)
    return hashlib.sha256(repr((*what, *programs)).encode()).hexdigest()[:32]


def _remember(path: Path, figures: list[float]) -> None:
    """A cache that cannot be written is no fault."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(figures))
    except OSError:
        pass
