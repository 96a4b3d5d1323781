"""``cnnctl train -m``: every combination of the given values, each in its own run directory.

Hydra's own sweeper lists the combinations and its launcher runs them, so that the launcher plugins
(joblib, submitit) work. What is ours: every job is composed and checked before the first starts, a
failing job does not end the sweep, what is finished is not done again, and the table at the end.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import multiprocessing
import os
import random
import re
import shlex
import signal
import socket
import threading
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, open_dict, read_write

from cnnctl import build, compose
from cnnctl.commands import jobs
from cnnctl.commands.jobs import Job, Result
from cnnctl.commands.train import Request
from cnnctl.engine.checkpoint import disk_error
from cnnctl.engine.console import Console
from cnnctl.engine.journal import show
from cnnctl.engine.run import RunDirectory
from cnnctl.engine.signals import StopFlag
from cnnctl.errors import Exit, UserError

PLAN, STOP = "sweep.json", "stop"
NAME_LENGTH = 100  # of a job's directory; file systems stop at 255 bytes
_BASIC_SWEEPER = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
_EXTRAS = {"joblib": "hydra_joblib_launcher", "submitit_local": "hydra_submitit_launcher"}
_EXTRAS["submitit_slurm"] = _EXTRAS["submitit_local"]

# What may differ when a sweep is continued: nothing that a result depends on.
HARMLESS = ("outputs", "trust", "data.root", "trainer.workers", "trainer.tensorboard")
HARMLESS += ("trainer.save_every", "trainer.keep_every", "trainer.threads")


def run(overrides: list[str], config_dir: str | None = None) -> int:
    """Run what is not finished yet of a sweep.

    Returns:
        0, the code of the first job that failed, or 128 + the signal that stopped the sweep.

    Raises:
        UserError: a job's configuration is wrong (code 2, nothing was created), or the directory
            is another sweep's (2) or a live one's (7).
    """
    _check_extras(overrides)
    loader = _config_loader()
    plan, config = list_jobs(overrides, config_dir, loader)
    flag = StopFlag()
    launch = _launcher(config, loader, flag)
    given = any(text.startswith("hydra.sweep.dir=") for text in overrides)
    lock = claim(compose_dir(config), given)
    try:
        return _sweep(plan, lock.path, launch, flag, _again(overrides, config_dir, lock.path))
    finally:
        lock.release()


def list_jobs(
    overrides: list[str], config_dir: str | None, loader: Any
) -> tuple[list[Job], DictConfig]:
    """Every combination, composed and checked, and the first one's configuration."""
    hydra_own, combinations = _combinations(overrides, config_dir, loader)
    keys = [text.partition("=")[0] for text in combinations[0]]
    differ = [len({row[column] for row in combinations}) > 1 for column in range(len(keys))]
    plan, first = [], None
    for index, row in enumerate(combinations):
        pairs = [text.partition("=") for text in row]
        varying = {k.lstrip("+"): v for (k, _, v), it in zip(pairs, differ, strict=True) if it}
        name = job_name(index, len(combinations), varying)
        try:
            config = compose.compose("train", [*hydra_own, *row], config_dir)
            job = checked_job(name, varying, row, config)
        except UserError as error:
            if len(combinations) > 1:
                what = " ".join(f"{key}={value}" for key, value in varying.items())
                error.record = f"job {index + 1} of {len(combinations)} ({what})"
            raise
        plan.append(job)
        first = config if first is None else first
    assert first is not None
    return plan, first


def checked_job(name: str, varying: dict[str, str], row: list[str], config: DictConfig) -> Job:
    """Raises UserError for all that can be said before data is read."""
    settings, chosen = compose.settings(config), compose.choices(config)
    if settings.resume is not None:
        raise UserError(
            "a sweep makes runs of its own", field="resume", advice="start from it with init_from="
        )
    build.check(settings, chosen)
    return Job(name, varying, row, Request.of(settings, chosen, Path(name)).config, chosen)


def job_name(index: int, count: int, varying: dict[str, str]) -> str:
    """``0_optimizer.lr-0.1_model-lenet``: only characters that need no quotes anywhere.

    An equals sign or a comma would have to be quoted in ``resume=`` and ``checkpoint=``.
    """
    parts = [f"{index:0{len(str(count - 1))}d}", *(f"{k}-{v}" for k, v in varying.items())]
    return re.sub(r"[^A-Za-z0-9._+-]+", "_", "_".join(parts))[:NAME_LENGTH].rstrip("._")


def _combinations(
    overrides: list[str], config_dir: str | None, loader: Any
) -> tuple[list[str], list[list[str]]]:
    """Overrides of Hydra's own node, and the others once for every combination."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create(config_loader=loader)

    def split(texts: list[str]) -> tuple[list[str], list[list[str]]]:
        parsed = parser.parse_overrides(texts)
        hydra_own = [one for one in parsed if one.is_hydra_override()]
        if swept := [str(one.input_line) for one in hydra_own if one.is_sweep_override()]:
            raise UserError("Hydra's own settings cannot be swept", field=swept[0])
        ours = [one for one in parsed if not one.is_hydra_override()]
        before = random.getstate()
        random.seed(0)  # shuffle(...) must list the same jobs when a sweep is continued
        try:
            rows = BasicSweeper.split_arguments(ours, None)[0]
        finally:
            random.setstate(before)
        return [str(one.input_line) for one in hydra_own], rows

    try:
        hydra_own, rows = split(overrides)
        if not rows:
            raise UserError("one of the sweeps has no value", field=" ".join(overrides))
        node = compose.compose("train", [*hydra_own, *rows[0]], config_dir).hydra
        _check_node(node, hydra_own)
        if node.sweeper.params:  # a sweep that a YAML file describes; the command line wins
            own = [f"{key}={value}" for key, value in node.sweeper.params.items()]
            hydra_own, rows = split([*own, *overrides])
    except HydraException as error:
        if "does not support sweep type" in str(error):
            swept = next(text for text in overrides if "interval(" in text)
            raise UserError(
                "an interval has no list of values to try",
                field=swept,
                advice="give a,b,c or range(...), or search in it with cnnctl tune",
            ) from None
        raise compose.explain(error, "train", overrides) from None
    return hydra_own, rows


def _check_node(node: DictConfig, hydra_own: list[str]) -> None:
    if node.sweeper._target_ != _BASIC_SWEEPER:
        raise UserError(
            "only Hydra's basic sweeper lists all jobs beforehand",
            field="hydra/sweeper",
            advice="leave it out; cnnctl tune searches with Optuna",
        )
    if node.job.env_set or node.job.env_copy:
        raise UserError(
            "a configuration cannot set the environment", field="hydra.job", advice="use the shell"
        )
    if any(text.startswith("hydra.sweep.subdir") for text in hydra_own):
        raise UserError(
            "is made from what varies between the jobs",
            field="hydra.sweep.subdir",
            advice="leave it out",
        )


def _check_extras(overrides: Sequence[str]) -> None:
    for text in overrides:
        name = text.removeprefix("hydra/launcher=")
        package = _EXTRAS.get(name) if name != text else None
        if package and importlib.util.find_spec(f"hydra_plugins.{package}") is None:
            extra = name if name == "joblib" else "submitit"
            raise UserError(
                f"the {extra} launcher is not installed",
                field="hydra/launcher",
                advice="pip install 'cnnctl[joblib]'"
                if extra == "joblib"
                else "pip install hydra-submitit-launcher",
            )


def _config_loader() -> Any:
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    with initialize_config_dir(str(compose.conf_dir().absolute()), version_base="1.3"):
        return GlobalHydra.instance().config_loader()


def compose_dir(config: DictConfig) -> Path:
    """``hydra.sweep.dir`` with the time and the choices filled in."""
    from hydra.core.hydra_config import HydraConfig

    HydraConfig.instance().set_config(config)
    return Path(str(config.hydra.sweep.dir)).expanduser().absolute()


def claim(wanted: Path, given: bool, plan: str = PLAN) -> RunDirectory:
    """A new directory; or ``wanted`` itself, new or with a sweep in it, where it was ``given``."""
    if not given:
        return RunDirectory.claim(wanted)
    try:
        wanted.mkdir(parents=True, exist_ok=True)
        there = {path.name for path in wanted.iterdir()}
    except FileExistsError:
        raise UserError("is a file, not a directory", file=wanted) from None
    except OSError as error:
        raise disk_error(error, wanted) from None
    if there - {"lock"} and plan not in there:
        raise UserError(
            f"has other things in it, and no {plan}", file=wanted, advice="name a new directory"
        )
    return RunDirectory.reopen(wanted)


def check_same(old: Sequence[Job], new: Sequence[Job], directory: Path) -> None:
    """Refuse another sweep than the one that the directory holds."""
    problem = None
    if [job.name for job in old] != [job.name for job in new]:
        first = f" ({old[0]}, ...)" if old else ""
        problem = f"holds another sweep, of {len(old)} jobs{first}"
    for before, after in zip(old, new, strict=False):
        ours, theirs = dict(compose.flat(after.config)), dict(compose.flat(before.config))
        for key in (*theirs, *(key for key in ours if key not in theirs)):
            if problem is None and key not in HARMLESS and ours.get(key) != theirs.get(key):
                was, now = theirs.get(key), ours.get(key)
                problem = f"holds another sweep: {key} was {was} there and would be {now}"
    if problem:
        advice = "give this one a hydra.sweep.dir of its own"
        raise UserError(problem, file=directory, field="hydra.sweep.dir", advice=advice)


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
    import sys

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


def _launcher(config: DictConfig, loader: Any, flag: StopFlag) -> Any:
    """A function of (directory, jobs) that runs them with the launcher that ``config`` names."""
    from hydra._internal.callbacks import Callbacks
    from hydra.core.plugins import Plugins
    from hydra.errors import HydraException
    from hydra.types import HydraContext

    context, task = HydraContext(loader, Callbacks()), Task(Path(), flag)
    try:
        launcher = Plugins.instance().instantiate_launcher(context, task, config)
    except (HydraException, ImportError, RuntimeError) as error:
        problem = f"cannot be used: {error.__cause__ or error}".splitlines()[0]
        raise UserError(problem, field="hydra.launcher") from None

    def launch(directory: Path, left: Sequence[Job]) -> None:
        task.directory = directory
        with read_write(config.hydra), open_dict(config.hydra):
            config.hydra.sweep.dir = str(directory)
            config.hydra.job.name = "cnnctl"
            config.hydra.overrides.hydra.append(f"hydra.sweep.dir={_quoted(directory)}")
        size = config.hydra.sweeper.max_batch_size or len(left)
        for start in range(0, len(left), size):
            rows = [
                [*j.overrides, f"hydra.sweep.subdir={j.name}"] for j in left[start : start + size]
            ]
            launcher.launch(rows, initial_job_idx=start)
            if flag:
                return

    return launch


def _sweep(plan: list[Job], directory: Path, launch: Any, flag: StopFlag, again: str) -> int:
    console = Console()
    if (directory / PLAN).exists():
        check_same(jobs.read_plan(directory / PLAN), plan, directory)
    (directory / STOP).unlink(missing_ok=True)
    jobs.write_plan(directory / PLAN, plan, command=again)
    left = [job for job in plan if jobs.look(job, directory / job.name).status != jobs.DONE]
    done = f", {len(plan) - len(left)} of them done before" if len(left) < len(plan) else ""
    console.say(f"sweep  {len(plan)} jobs{done}, in {directory}")
    flag.install()
    fault = None
    if left:
        with _stopping(directory, flag):
            fault = _launch(launch, directory, left, flag)
    results = jobs.ranked([jobs.look(job, directory / job.name) for job in plan])
    jobs.write_csv(directory / "sweep.csv", results)
    jobs.show_table(console, "sweep", results)
    if any(job.config["trainer"]["tensorboard"] for job in plan):
        console.say(f"compare: tensorboard --logdir {shlex.quote(str(directory))}")
    console.say(f"sweep: {directory}")
    if fault is not None and not flag:
        raise fault
    return _code(plan, results, flag, console, again)


def _launch(launch: Any, directory: Path, left: list[Job], flag: StopFlag) -> UserError | None:
    """What became of the launcher itself; a job's failure is the job's own affair."""
    try:
        launch(directory, left)
    except KeyboardInterrupt:
        if not flag:
            raise
    except Exception as error:
        (directory / "crash.txt").write_text(traceback.format_exc())
        text = next(iter(str(error).splitlines()), "")
        return UserError(
            f"the launcher failed: {type(error).__name__}: {text}",
            file=directory / "crash.txt",
            advice="the same command goes on with what is left",
            code=Exit.MACHINE,
        )
    return None


def _code(
    plan: list[Job], results: list[Result], flag: StopFlag, console: Console, again: str
) -> int:
    by_name = {result.job.name: result for result in results}
    failed = [by_name[job.name].error for job in plan if by_name[job.name].error]
    unfinished = sum(result.status in (jobs.STOPPED, jobs.WAITING) for result in results)
    if unfinished or failed:
        console.say(f"{unfinished} jobs left, {len(failed)} failed; continue with:")
        console.say(f"  {again}")
    if flag.signum is not None:
        return 128 + flag.signum
    if failed:
        return int(failed[0].get("code", Exit.BUG))
    return Exit.TERMINATED if unfinished else Exit.DONE


def _again(overrides: list[str], config_dir: str | None, directory: Path) -> str:
    """The command that continues the sweep."""
    words = ["cnnctl", "train", "-m"]
    words += [text for text in overrides if not text.startswith("hydra.sweep.dir=")]
    words += [f"hydra.sweep.dir={_quoted(directory)}"]
    words += ["--config-dir", config_dir] if config_dir else []
    return shlex.join(words)


def _quoted(path: Path) -> str:
    """A path as Hydra's grammar wants it: in quotes only where it needs them."""
    text = str(path)
    plain = re.fullmatch(r"[A-Za-z0-9._/+-]+", text)
    return text if plain else "'" + text.replace("'", r"\'") + "'"


@contextlib.contextmanager
def _stopping(directory: Path, flag: StopFlag) -> Iterator[None]:
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
