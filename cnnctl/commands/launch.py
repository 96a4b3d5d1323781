"""Run jobs through one of Hydra's launchers: in this process, in others, or on other machines."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, open_dict, read_write

from cnnctl import compose
from cnnctl.commands import jobs
from cnnctl.commands.jobs import Job, Result
from cnnctl.engine.journal import show
from cnnctl.engine.signals import StopFlag
from cnnctl.errors import Exit, UserError

PLAN, STOP = "sweep.json", "stop"
Launch = Callable[[Path, Sequence[Job]], None]


@dataclass
class Task:
    """What a launcher calls for every job, in this process or in another one.

    A process that is not the sweep's own writes its output to log.txt in the job's directory, and
    only one line at the start and one at the end to the screen.
    """

    directory: Path
    flag: StopFlag
    home: tuple[str, int] = field(default_factory=lambda: (socket.gethostname(), os.getpid()))

    def __call__(self, config: DictConfig) -> int:
        from hydra.core.hydra_config import HydraConfig

        name = Path(HydraConfig.get().runtime.output_dir).name
        plan = jobs.read_plan(self.directory / PLAN)
        index = next(index for index, job in enumerate(plan) if job.name == name)
        job, own = plan[index], self.directory / name
        here = self.home == (socket.gethostname(), os.getpid())
        self.flag.install()
        if self.flag or (self.directory / STOP).exists():
            return Exit.INTERRUPTED
        _line(f"[{index + 1}/{len(plan)}] {job}")
        with contextlib.nullcontext() if here else _output_to(own / "log.txt"):
            code = jobs.run(job, own)
        self.flag.install()  # the run had its own
        if here and code > 128:
            self.flag.signum = code - 128
        if not here:
            _line(f"[{index + 1}/{len(plan)}] {job}: {_ending(jobs.look(job, own))}")
        return code


def _line(text: str) -> None:
    with contextlib.suppress(OSError):
        os.write(1, f"{text}\n".encode())  # at once and whole, beside other processes' lines


def _ending(result: Result) -> str:
    if result.status != jobs.DONE:
        return f"{result.status} {result.error.get('problem', '')}".strip()
    monitor = result.summary["monitor"]
    return f"val {monitor} {show(monitor, result.best)}, {result.summary['seconds']:.1f} s"


@contextlib.contextmanager
def _output_to(path: Path) -> Iterator[None]:
    """Send this process's stdout and stderr, its children's too, to the end of a file."""
    saved = [os.dup(1), os.dup(2)]
    with path.open("ab") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    try:
        yield
    finally:
        for stream, descriptor in zip((1, 2), saved, strict=True):
            (sys.stdout, sys.stderr)[stream - 1].flush()
            os.dup2(descriptor, stream)
            os.close(descriptor)


def launcher(config: DictConfig, loader: Any, flag: StopFlag) -> Launch:
    """A function of (directory, jobs) that runs them with the launcher that ``config`` names."""
    from hydra._internal.callbacks import Callbacks
    from hydra.core.plugins import Plugins
    from hydra.errors import HydraException
    from hydra.types import HydraContext

    context, task = HydraContext(loader, Callbacks()), Task(Path(), flag)
    try:
        plugin = Plugins.instance().instantiate_launcher(context, task, config)
    except (HydraException, ImportError, RuntimeError) as error:
        problem = f"cannot be used: {error.__cause__ or error}".splitlines()[0]
        raise UserError(problem, field="hydra.launcher") from None

    def launch(directory: Path, left: Sequence[Job]) -> None:
        task.directory = directory
        with read_write(config.hydra), open_dict(config.hydra):
            config.hydra.sweep.dir = str(directory)
            config.hydra.job.name = "cnnctl"
            config.hydra.overrides.hydra.append(f"hydra.sweep.dir={compose.quoted(directory)}")
        size = config.hydra.sweeper.max_batch_size or len(left)
        for start in range(0, len(left), size):
            batch = left[start : start + size]
            rows = [[*job.overrides, f"hydra.sweep.subdir={job.name}"] for job in batch]
            plugin.launch(rows, initial_job_idx=start)
            if flag:
                return

    return launch


@contextlib.contextmanager
def stopping(directory: Path, flag: StopFlag) -> Iterator[None]:
    """Pass a request to stop on to the processes of a launcher, and keep it from starting more.

    A process is told only once it holds the lock of its run: from then on it saves itself.
    """
    over = threading.Event()

    def watch() -> None:
        told: set[int] = set()
        while not over.wait(0.2):
            if not flag:
                continue
            with contextlib.suppress(OSError):
                (directory / STOP).touch()
            ours = {child.pid for child in multiprocessing.active_children()}
            for pid in (ours & _running(directory)) - told:
                assert pid is not None
                told.add(pid)
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGTERM)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        (directory / STOP).unlink(missing_ok=True)


def _running(directory: Path) -> set[int]:
    """Processes on this machine that have, or had, a run below ``directory``."""
    found = set()
    for lock in directory.glob("*/lock"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            owner = json.loads(lock.read_text())
            if owner["host"] == socket.gethostname():
                found.add(int(owner["pid"]))
    return found
