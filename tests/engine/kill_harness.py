"""Kill -9 at random moments, resume, and compare with a run that was left alone, bit for bit.

    python tests/engine/kill_harness.py --kills 24
    python tests/engine/kill_harness.py --kills 24 --in-place    # the negative control: must fail

Each run is a process of its own, forked from one that has imported torch already, so that a kill
costs no start-up; it is killed at a random moment of reading the data, training, evaluating or
saving. A run that gets to its end is compared and the next one starts, until all kills are spent.
The network is large for its data (2.2 million weights, 18 MB a checkpoint) and saves every second
step, so that much of the time is a checkpoint being written.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import comparing
import torch

from cnnctl import build, cli, compose  # noqa: F401  # before any fork, with all that they import
from cnnctl.commands import train  # noqa: F401
from cnnctl.engine.checkpoint import FRESH, Checkpoints
from cnnctl.errors import UserError

ALWAYS = (
    "trainer.ema=0.9",
    "trainer.steps=45",
    "trainer.save_every=2",
    "trainer.evaluate_every_steps=7",
    "trainer.log_every=2",
    "trainer.threads=1",
    "trainer.precision=fp32",
    "trainer.tensorboard=false",
    "trainer.test=false",
)
RUNS = {
    "classify": (
        *("model=mlp", "model.widths=[2000,1000]", "model.batch_norm=true", "model.dropout=0.2"),
        *("augmentation=mixup", "trainer.batch_size=64", *ALWAYS),
    ),
    "segment": (
        *("task=segment", "model=unet", "model.width=32", "model.depth=4", "model.dropout=0.2"),
        *("data.size=32", "data.digits=[1,3]", "data.scale=[0.3,0.6]", "data.train_images=200"),
        *("data.val_images=20", "augmentation=elastic", "trainer.batch_size=8", *ALWAYS),
    ),
    "detect": (
        *("task=detect", "model.width=64", "model.hidden=128", "data.size=48", "data.digits=[1,3]"),
        *("data.scale=[0.3,0.6]", "data.train_images=200", "data.val_images=20"),
        *("augmentation=yolo", "trainer.batch_size=8", *ALWAYS),
    ),
}


@dataclass
class Outcome:
    """What came of it."""

    kills: int = 0
    in_a_write: int = 0  # kills that left a half-written or not yet renamed file behind
    before_the_first: int = 0  # kills before there was a checkpoint: the run starts anew
    equal: int = 0
    different: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)  # no checkpoint could be read any more

    def shows(self, in_place: bool) -> bool:
        """Has chance brought the kill that the test is about?"""
        return bool(self.lost or self.different if in_place else self.in_a_write)

    def report(self) -> str:
        lines = [
            f"kills {self.kills}, of these while a checkpoint was written {self.in_a_write},"
            f" before the first one {self.before_the_first}",
            f"runs that ended: {self.equal} bitwise equal to the undisturbed one,"
            f" {len(self.different)} different; runs lost: {len(self.lost)}",
        ]
        return "\n".join([*lines, *self.different[:5], *self.lost[:5]])


def save_in_place(self: Checkpoints, state, *, metric, best, keep) -> None:
    """What most training scripts do, on a disk that takes its time; the negative control."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    for name in ("last.pt", *["best.pt"] * best):
        with (self.directory / name).open("wb", buffering=0) as file:
            for start in range(0, len(buffer.getbuffer()), 1 << 20):
                file.write(buffer.getbuffer()[start : start + (1 << 20)])
                os.fsync(file.fileno())


def start(arguments: Sequence[str], log: Path, *, in_place: bool) -> int:
    """``cnnctl arguments`` in a fork of this process -> its process id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        with log.open("ab", buffering=0) as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        if in_place:
            Checkpoints.save = save_in_place
        cli.main(list(arguments))
    except SystemExit as ended:
        code = int(ended.code or 0)
    finally:
        os._exit(code)


def finish(arguments: Sequence[str], log: Path, *, in_place: bool) -> int:
    _, status = os.waitpid(start(arguments, log, in_place=in_place), 0)
    return os.waitstatus_to_exitcode(status)


def kill(arguments: Sequence[str], log: Path, after: float, *, in_place: bool) -> int | None:
    """Kill -9 ``after`` seconds; the exit code if it was quicker than that."""
    child = start(arguments, log, in_place=in_place)
    until = time.monotonic() + after
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(min(0.002, max(0.0, until - time.monotonic())))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def caught_writing(run: Path) -> bool:
    """Did the kill leave a save half done?"""
    halves = [*run.glob(".*.tmp"), *run.glob(FRESH)]
    return bool(halves) or ((run / "previous.pt").exists() and not (run / "last.pt").exists())


def begun(run: Path) -> bool:
    """Is there anything to resume from, whole or not?"""
    return (run / "last.pt").exists() or (run / "previous.pt").exists()


def harness(
    kills: int,
    seed: int,
    folder: Path,
    *,
    task: str = "classify",
    in_place: bool = False,
    most: int = 0,
) -> Outcome:
    """Spend ``kills`` on a task's runs under ``folder``, and up to ``most`` until it shows.

    What must show is a kill within a write, and in place a run that is not what it should be.
    """
    generator, outcome, log = random.Random(seed), Outcome(), folder / "log.txt"
    reference = folder / "reference"
    began = time.monotonic()
    if finish(("train", f"hydra.run.dir={reference}", *RUNS[task]), log, in_place=False):
        raise RuntimeError(log.read_text())
    whole = time.monotonic() - began  # seconds
    while outcome.kills < kills or (outcome.kills < most and not outcome.shows(in_place)):
        goal = max(kills, outcome.kills + 1)
        run = folder / f"run-{outcome.kills}"
        command: tuple[str, ...] = ("train", f"hydra.run.dir={run}", *RUNS[task])
        code = None
        while code is None and outcome.kills < goal:
            after = generator.uniform(0.1, 0.6) * whole
            code = kill(command, log, after, in_place=in_place)
            if code is None:
                outcome.kills += 1
                outcome.in_a_write += caught_writing(run)
                if not begun(run):
                    outcome.before_the_first += 1
                    run = folder / f"run-{outcome.kills}"
                    command = ("train", f"hydra.run.dir={run}", *RUNS[task])
                else:
                    command = ("train", f"resume={run}")
        if code is None:
            code = finish(command, log, in_place=in_place)
        judge(outcome, reference, run, code)
    return outcome


def judge(outcome: Outcome, reference: Path, run: Path, code: int) -> None:
    """Count a run that came to its end, or could not."""
    if code:
        outcome.lost.append(f"{run.name}: exit code {code}")
    elif found := compare(reference, run):
        outcome.different.append(f"{run.name}: {', '.join(found[:3])}")
    else:
        outcome.equal += 1


def compare(reference: Path, run: Path) -> list[str]:
    try:
        return comparing.runs_differ(reference, run)
    except (UserError, OSError) as error:
        return [str(error)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=24)
    parser.add_argument("--task", choices=RUNS, default="classify")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--in-place", action="store_true", help="the negative control")
    given = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder)
        outcome = harness(given.kills, given.seed, where, task=given.task, in_place=given.in_place)
    print(outcome.report())
    print(f"{time.monotonic() - began:.0f} s")
    sys.exit(bool(outcome.different or outcome.lost))


if __name__ == "__main__":
    main()
