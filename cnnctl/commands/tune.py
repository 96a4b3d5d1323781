"""``cnnctl tune``: search hyperparameters with Optuna, one training run after another.

The search space is written in Hydra's own grammar: a key of train with several values. Optuna is
driven by ask and tell; its journal file, beside the runs, is all its state, so that the same
command goes on with the same study. What is tried is a function of the search's seed, the number
of the trial and the results so far: a search that was interrupted tries what it would have tried.

The plugin hydra-optuna-sweeper is not used: its release 1.3.0 needs Optuna 2, and can neither
prune nor resume.
"""

from __future__ import annotations

import importlib.util
import math
import shlex
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from cnnctl import build, compose
from cnnctl.commands import jobs
from cnnctl.commands.combinations import checked_job, job_name
from cnnctl.commands.jobs import Job, Pruned
from cnnctl.commands.search_space import Dimension, search_space
from cnnctl.commands.sweep import check_same, claim
from cnnctl.engine.console import Console
from cnnctl.engine.journal import show
from cnnctl.engine.signals import StopFlag
from cnnctl.errors import Exit, UserError, nearest
from cnnctl.randomness import key as counter_key

STUDY, JOURNAL = "study.json", "optuna.journal"
MOST_TRIALS = 10_000  # the names of the run directories have four digits
HOPELESS = 3  # failures, and nothing else, after which a search ends
SAMPLERS = ("tpe", "random")


@dataclass
class Search:
    """A study and the fixed part of its command line."""

    directory: Path
    fixed: list[str]
    space: dict[str, Dimension]
    config_dir: str | None
    base: Job
    settings: DictConfig
    study: Any
    flag: StopFlag
    plan: list[Job]  # of the trials so far

    @property
    def monitor(self) -> str:
        return _monitor(self.base)[0]


def run(settings: DictConfig, overrides: list[str], config_dir: str | None = None) -> int:
    """Run trials until there are ``settings.trials`` of them.

    Returns:
        0, 128 + the signal that stopped the search, or a code of ``Exit`` if nothing succeeded.

    Raises:
        UserError: Optuna is not installed, the search space or a run's configuration is wrong
            (code 2, nothing was created), or the directory is another study's (2) or busy (7).
    """
    _check(settings)
    fixed, space = search_space(overrides)
    base = _check_space(fixed, space, config_dir)
    lock = claim(_directory(settings, base), settings.study is not None, STUDY)
    try:
        plan = _stored_plan(lock.path, base, space, settings)
        study = _open(lock.path, _monitor(base)[1])
        search = Search(
            lock.path, fixed, space, config_dir, base, settings, study, StopFlag(), plan
        )
        return _run(search, overrides)
    finally:
        lock.release()


def _check(settings: DictConfig) -> None:
    if importlib.util.find_spec("optuna") is None:
        raise UserError("tune needs Optuna", advice="pip install 'cnnctl[optuna]'")
    wanted = {"trials": int, "search_seed": int, "prune": bool, "sampler": str}
    for name, kind in wanted.items():
        if type(settings[name]) is not kind:
            words = {int: "a whole number", bool: "true or false", str: "text"}[kind]
            raise UserError(f"must be {words}, not {settings[name]!r}", field=name)
    if not 1 <= settings.trials <= MOST_TRIALS:
        raise UserError(f"must be between 1 and {MOST_TRIALS}", field="trials")
    if settings.sampler not in SAMPLERS:
        advice = nearest(settings.sampler, SAMPLERS)
        raise UserError(f'there is no "{settings.sampler}"', field="sampler", advice=advice)


def _check_space(fixed: list[str], space: dict[str, Dimension], config_dir: str | None) -> Job:
    """Compose and check every option and both ends of every interval, one key at a time.

    Returns:
        the job of the first values, by which two searches are compared.
    """
    first = {name: dimension.probes[0] for name, dimension in space.items()}
    base = _job(0, first, fixed, config_dir)
    for name, dimension in space.items():
        for probe in dimension.probes[1:]:
            try:
                other = _job(0, {**first, name: probe}, fixed, config_dir)
            except UserError as error:
                error.record = f"{name}={probe}"
                raise
            if _monitor(other) != _monitor(base):
                was, now = _monitor(base)[0], _monitor(other)[0]
                raise UserError(
                    f"would compare {was} with {now}",
                    field=dimension.text,
                    advice="set trainer.monitor to one metric",
                )
    return replace(base, varying={})


def _job(number: int, values: dict[str, str], fixed: list[str], config_dir: str | None) -> Job:
    row = [*fixed, *(f"{name}={value}" for name, value in values.items())]
    config = compose.compose("train", row, config_dir)
    varying = {name.lstrip("+"): value for name, value in values.items()}
    return checked_job(job_name(number, MOST_TRIALS, varying), varying, row, config)


def _monitor(job: Job) -> tuple[str, bool]:
    """The metric of a job's task that is searched by, and whether larger is better."""
    from omegaconf import OmegaConf

    task = build.task(OmegaConf.create(job.config))
    monitor = job.config["trainer"]["monitor"] or task.best
    return monitor, task.metrics[monitor]


def _directory(settings: DictConfig, base: Job) -> Path:
    if settings.study is not None:
        return Path(str(settings.study)).expanduser().absolute()
    now = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    return Path(base.config["outputs"], base.chosen["task"], "studies", now).absolute()


def _stored_plan(
    directory: Path, base: Job, space: dict[str, Dimension], settings: DictConfig
) -> list[Job]:
    """The trials that a study has already; refuses another study's directory."""
    search = {name: dimension.text for name, dimension in space.items()}
    search |= {name: settings[name] for name in ("sampler", "search_seed")}
    plan = []
    if (directory / STUDY).exists():
        stored_base, *plan = jobs.read_plan(directory / STUDY)
        check_same([stored_base], [base], directory, "study")
        if (stored := jobs.read_json(directory / STUDY).get("search")) != search:
            raise UserError(
                f"holds another search: {_words(stored)}",
                file=directory,
                field="study",
                advice="give this one another directory with study=",
            )
    jobs.write_plan(directory / STUDY, [base, *plan], search=search)
    return plan


def _words(search: Any) -> str:
    return ", ".join(str(value) for value in search.values()) if isinstance(search, dict) else "?"


def _open(directory: Path, larger_is_better: bool) -> Any:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", module="optuna")
    return optuna.create_study(
        study_name="cnnctl",
        storage=JournalStorage(JournalFileBackend(str(directory / JOURNAL))),
        load_if_exists=True,
        direction="maximize" if larger_is_better else "minimize",
        # Steps are thousandths of an epoch; nothing is ended before its second epoch is over.
        pruner=optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=1001),
    )


def _run(search: Search, overrides: list[str]) -> int:
    from optuna.trial import Trial, TrialState

    console, study, flag = Console(), search.study, search.flag
    over = [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
    console.say(f"study  {search.settings.trials} trials, {len(over)} done, in {search.directory}")
    flag.install()
    for frozen in study.get_trials(states=(TrialState.RUNNING,)):  # cut short by a signal or a kill
        if not flag:
            _sample(search, frozen.number)
            _trial(search, Trial(study, frozen._trial_id), console)
    while not flag and (number := len(study.get_trials(deepcopy=False))) < search.settings.trials:
        states = {trial.state for trial in study.get_trials(deepcopy=False)}
        if number >= HOPELESS and states == {TrialState.FAIL}:
            console.say(f"the first {number} trials have all failed: no more are tried")
            break
        _sample(search, number)
        _trial(search, study.ask(), console)
    return _finish(search, overrides, console)


def _sample(search: Search, number: int) -> None:
    """A sampler whose randomness is a function of the trial's number."""
    import optuna

    seed = counter_key(search.settings.search_seed, "tune", number) % 2**32
    samplers = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}
    search.study.sampler = samplers[search.settings.sampler](seed=seed)


def _trial(search: Search, trial: Any, console: Console) -> None:
    """Train what the trial suggests, and tell the study what came of it."""
    from optuna.trial import TrialState

    values = {name: dimension.suggest(trial) for name, dimension in search.space.items()}
    job = _remember(search, trial.number, values)
    directory = search.directory / job.name
    directory.mkdir(exist_ok=True)
    if jobs.look(job, directory).status not in (jobs.DONE, jobs.PRUNED):
        console.say(f"[{trial.number + 1}/{search.settings.trials}] {job}")
        alone = job.config["trainer"]["devices"] == 1  # a report cannot go to other processes
        code = jobs.run(job, directory, _reporter(search, trial) if alone else None)
        search.flag.install()  # the run had its own
        if code > 128:
            search.flag.signum = code - 128
            return
    result = jobs.look(job, directory)
    if result.status == jobs.DONE and math.isfinite(result.best):
        search.study.tell(trial, result.best)
    else:
        pruned = result.status == jobs.PRUNED
        search.study.tell(trial, state=TrialState.PRUNED if pruned else TrialState.FAIL)


def _remember(search: Search, number: int, values: dict[str, str]) -> Job:
    """The trial's job, written into the plan of the study before it runs."""
    known = {int(job.name[:4]): job for job in search.plan}
    if number in known:
        return known[number]
    job = _job(number, values, search.fixed, search.config_dir)
    search.plan = sorted([*search.plan, job], key=lambda job: job.name[:4])
    plan = jobs.read_json(search.directory / STUDY)
    jobs.write_plan(search.directory / STUDY, [search.base, *search.plan], search=plan["search"])
    return job


def _reporter(search: Search, trial: Any) -> Callable[[float, dict[str, float]], None]:
    def report(epoch: float, metrics: dict[str, float]) -> None:
        value = metrics.get(search.monitor, math.nan)  # nothing labelled: no figure
        trial.report(value, round(1000 * epoch))  # Optuna counts whole steps
        if search.settings.prune and trial.should_prune():
            raise Pruned

    return report


def _finish(search: Search, overrides: list[str], console: Console) -> int:
    results = jobs.ranked([jobs.look(job, search.directory / job.name) for job in search.plan])
    jobs.write_csv(search.directory / "study.csv", results)
    jobs.show_table(console, "study", results)
    best = next((result for result in results if result.status == jobs.DONE), None)
    if best is not None:
        console.say(f"best: {best.job}, val {search.monitor} {show(search.monitor, best.best)}")
        console.say(f"  {shlex.join(['cnnctl', 'train', *best.job.overrides])}")
    console.say(f"study: {search.directory}")
    if search.flag.signum is not None:
        console.say("continue with:")
        console.say(f"  {_again(search, overrides)}")
        return 128 + search.flag.signum
    failed = [result.error for result in results if result.error]
    return Exit.DONE if best is not None or not failed else int(failed[0].get("code", Exit.BUG))


def _again(search: Search, overrides: list[str]) -> str:
    """The command that continues the study."""
    words = ["cnnctl", "tune", *overrides]
    words += [f"{name}={search.settings[name]}" for name in ("trials", "sampler", "search_seed")]
    words += [
        f"prune={str(search.settings.prune).lower()}",
        f"study={compose.quoted(search.directory)}",
    ]
    words += ["--config-dir", search.config_dir] if search.config_dir else []
    return shlex.join(words)
