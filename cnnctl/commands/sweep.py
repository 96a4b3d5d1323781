"""``cnnctl train -m``: every combination of the given values, each in its own run directory.

Hydra's own sweeper lists the combinations and its launcher runs them, so that the launcher plugins
(joblib, submitit) work. What is ours: every job is composed and checked before the first starts, a
failing job does not end the sweep, what is finished is not done again, and the table at the end.
"""

from __future__ import annotations

import importlib.util
import shlex
import traceback
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from cnnctl import compose
from cnnctl.commands import jobs
from cnnctl.commands.combinations import config_loader, list_jobs
from cnnctl.commands.error_curves import draw_errors
from cnnctl.commands.jobs import Job, Result
from cnnctl.commands.launch import PLAN, STOP, Launch, launcher, stopping
from cnnctl.commands.time_parts import show_time_parts
from cnnctl.engine.checkpoint import disk_error
from cnnctl.engine.console import Console
from cnnctl.engine.run import RunDirectory
from cnnctl.engine.signals import StopFlag
from cnnctl.errors import Exit, UserError

# Launchers that are plugins: their module below hydra_plugins, and what to install.
_SUBMITIT = ("hydra_submitit_launcher", "pip install hydra-submitit-launcher")
_PLUGINS = {
    "joblib": ("hydra_joblib_launcher", "pip install 'cnnctl[joblib]'"),
    "submitit_local": _SUBMITIT,
    "submitit_slurm": _SUBMITIT,
}

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
    _check_plugins(overrides)
    loader = config_loader()
    plan, config = list_jobs(overrides, config_dir, loader)
    flag = StopFlag()
    launch = launcher(config, loader, flag)
    given = any(text.startswith("hydra.sweep.dir=") for text in overrides)
    lock = claim(_sweep_dir(config), given)
    try:
        return _sweep(plan, lock.path, launch, flag, _again(overrides, config_dir, lock.path))
    finally:
        lock.release()


def _check_plugins(overrides: Sequence[str]) -> None:
    for text in overrides:
        key, _, name = text.partition("=")
        module, install = _PLUGINS.get(name, ("", "")) if key == "hydra/launcher" else ("", "")
        if module and not _installed(f"hydra_plugins.{module}"):
            raise UserError(f"{name} is not installed", field=key, advice=install)


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # not even hydra_plugins is there
        return False


def _sweep_dir(config: DictConfig) -> Path:
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


def check_same(
    old: Sequence[Job], new: Sequence[Job], directory: Path, key: str = "hydra.sweep.dir"
) -> None:
    """Refuse another sweep than the one that the directory, named by ``key``, holds."""
    problem = None
    if [job.name for job in old] != [job.name for job in new]:
        first = f" ({old[0]}, ...)" if old else ""
        problem = f"holds another sweep, of {len(old)} jobs{first}"
    for before, after in zip(old, new, strict=False):
        ours, theirs = dict(compose.flat(after.config)), dict(compose.flat(before.config))
        for name in (*theirs, *(name for name in ours if name not in theirs)):
            if problem is None and name not in HARMLESS and ours.get(name) != theirs.get(name):
                was, now = theirs.get(name), ours.get(name)
                problem = f"holds another sweep: {name} was {was} there and would be {now}"
    if problem:
        advice = f"give this one another directory with {key}="
        raise UserError(problem, file=directory, field=key, advice=advice)


def _sweep(plan: list[Job], directory: Path, launch: Launch, flag: StopFlag, again: str) -> int:
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
        with stopping(directory, flag):
            fault = _launch(launch, directory, left, flag)
    results = jobs.ranked([jobs.look(job, directory / job.name) for job in plan])
    jobs.write_csv(directory / "sweep.csv", results)
    jobs.show_table(console, "sweep", results)
    show_time_parts(console, results, directory)
    if (picture := draw_speed(results, directory)) is not None:
        console.say(f"accuracy over time: {picture}")
    if (picture := draw_errors(results, directory)) is not None:
        console.say(f"errors by epoch: {picture}")
    if any(job.config["trainer"]["tensorboard"] for job in plan):
        console.say(f"compare: tensorboard --logdir {shlex.quote(str(directory))}")
    console.say(f"sweep: {directory}")
    if fault is not None and not flag:
        raise fault
    return _code(plan, results, flag, console, again)


def draw_speed(results: list[Result], directory: Path) -> Path | None:
    """speed_accuracy.png of the jobs whose network was timed; None where fewer than two were."""
    from PIL import Image

    from cnnctl.drawing.chart_pictures import Detector, speed_accuracy

    points, metric = [], ""
    for result in results:
        summary, milliseconds = result.summary, result.milliseconds
        if milliseconds is not None:
            metric = summary["monitor"]
            accuracy, name = summary["test"][metric], ", ".join(result.job.varying.values())
            points.append(Detector(name, milliseconds, accuracy, summary["parameters"]))
    if len(points) < 2:
        return None
    path = directory / "speed_accuracy.png"
    try:
        Image.fromarray(speed_accuracy(points, metric).numpy()).save(path)
    except OSError as error:
        raise disk_error(error, path) from None
    return path


def _launch(launch: Launch, directory: Path, left: list[Job], flag: StopFlag) -> UserError | None:
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
    words += [f"hydra.sweep.dir={compose.quoted(directory)}"]
    words += ["--config-dir", config_dir] if config_dir else []
    return shlex.join(words)
