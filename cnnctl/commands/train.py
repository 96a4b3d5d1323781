"""``cnnctl train``: task, data, model, trainer, fit, score the best weights on the test split."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from omegaconf import DictConfig, OmegaConf

from cnnctl import build, compose
from cnnctl.commands.eval import score, write_scores
from cnnctl.data.base import Dataset, NoSplit, data_root
from cnnctl.engine import checkpoint, distributed
from cnnctl.engine.checkpoint import Checkpoints, State
from cnnctl.engine.console import Console
from cnnctl.engine.distributed import Processes
from cnnctl.engine.journal import Journal, Report, show, shown
from cnnctl.engine.log import Board, MetricsFile
from cnnctl.engine.loop import Loop, weights
from cnnctl.engine.machine import Machine, faults_explained
from cnnctl.engine.run import RunDirectory
from cnnctl.engine.signals import StopFlag, Stopped
from cnnctl.errors import Exit, UserError
from cnnctl.models.base import Model
from cnnctl.randomness import key

PEERS_REPORT = 2.0  # seconds that another process has to say what is wrong with all of them

# What a resumed run may change: nothing that changes a bit of the result up to its old end.
RESUMABLE = (
    "trainer.epochs",
    "trainer.steps",
    "trainer.workers",
    "trainer.save_every",
    "trainer.keep_every",
    "trainer.patience",
    "trainer.tensorboard",
    "trainer.test",
    "trainer.device",
    "trainer.threads",
    "data.root",
)

# What TensorBoard's table compares runs by: groups with all their keys, and some of the trainer's.
COMPARED = ("data", "model", "backbone", "augmentation", "optimizer", "schedule")
COMPARED_OF_TRAINER = (
    *("epochs", "steps", "batch_size", "accumulate", "clip", "ema"),
    *("decay_norm_and_bias", "precision"),
)


@dataclass
class Request:
    """A training run as plain values, so that it can be sent to other processes."""

    config: dict[str, Any]
    chosen: dict[str, str]
    directory: Path
    resumed: Path | None = None  # the run directory to continue
    changed: list[str] = field(default_factory=list)  # keys that a resume changes
    reserved: bool = False  # the directory was made for this run, by a sweep
    report: Report | None = None  # told the epoch and the metrics of every evaluation

    @classmethod
    def of(cls, config: DictConfig, chosen: dict[str, str], directory: Path) -> Request:
        plain = OmegaConf.to_container(config, resolve=True)
        assert isinstance(plain, dict)
        return cls({str(name): value for name, value in plain.items()}, chosen, directory)


def resume(settings: DictConfig, overrides: list[str]) -> int:
    """Continue the run (or checkpoint) named in ``settings.resume`` with its own configuration."""
    path = Path(settings.resume).expanduser().absolute()
    directory = path if path.is_dir() else path.parent
    if not path.exists():
        raise UserError("does not exist", file=path, field="resume", code=Exit.CHECKPOINT)
    if directory.joinpath("lock").exists() and os.environ.get("RANK", "0") == "0":
        RunDirectory.reopen(directory).release()  # first of all: is it running?
    state, _, _ = _last(path)
    _check_own(state, path, settings)
    config, regrouped = compose.override(state["config"], overrides)
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    changed = _differences(state["config"], plain, "")
    refused = [line for name, line in changed.items() if name not in RESUMABLE]
    if regrouped or refused:
        raise UserError(
            "a resumed run continues as it was; this would change "
            f"{'; '.join(refused) or ', '.join(regrouped)}",
            field="resume",
            advice="leave that out, or start a new run from the weights with init_from=",
            code=Exit.CHECKPOINT,
        )
    plain["trust"] = OmegaConf.to_container(settings.trust)
    config_values = {str(name): value for name, value in plain.items()}
    return run(Request(config_values, state["choices"], directory, path, list(changed.values())))


def _check_own(state: State, path: Path, settings: DictConfig) -> None:
    """A checkpoint's configuration is a stranger's until it is checked; it cannot widen ``trust``.

    Raises:
        UserError: it names what may not be named, or is not one of this version (code 4).
    """
    config = OmegaConf.create({**state["config"], "trust": settings.trust}, flags={"struct": True})
    try:
        build.check(config, state["choices"])
    except UserError as error:
        error.file, error.code = path, Exit.CHECKPOINT
        raise


def run(request: Request) -> int:
    """One training run in this process, or in ``trainer.devices`` of them."""
    config = OmegaConf.create(request.config, flags={"struct": True})
    build.check(config, request.chosen)
    devices = config.trainer.devices
    if devices > 1 and not distributed.under_torchrun():
        return distributed.launch(devices, _worker, request)
    return _work(request, StopFlag())


def _worker(request: Request) -> None:
    """What each process of ``distributed.launch`` runs: only the one at fault says so."""
    from cnnctl import cli

    stop = StopFlag()

    def work() -> int:
        try:
            return _work(request, stop)
        except UserError as error:
            lost = isinstance(error, distributed.LostPeer)
            # The launcher ends the others once one has failed.
            if (lost or os.environ["RANK"] != "0") and stop.wait(PEERS_REPORT * (1 + 9 * lost)):
                return error.code
            raise

    sys.exit(cli.run(work))


@distributed.lost_peers_explained()
def _work(request: Request, stop: StopFlag) -> int:
    started = time.monotonic()
    config = OmegaConf.create(request.config, flags={"struct": True})
    stop.install()
    processes = distributed.join(config.trainer.device)
    console = Console(quiet=not processes.first)
    trainer, task = build.trainer(config), build.task(config)
    monitor = trainer.monitor or task.best
    machine = trainer.machine(processes)
    train, val = build.dataset(config, "train"), _validation(config)
    augmentation = build.augmentation(config, train)
    torch.manual_seed(key(config.seed, "init"))
    if request.resumed is not None:
        build.without_pretrained_weights(config)
    model = build.model(config, train, augmentation.size)
    trainer.total_steps(len(train))
    state = _resumed_state(request, config, train, processes)
    if state is None and config.init_from is not None:
        _initialise(model, config.init_from, console)
    machine.place(model)
    if trainer.sync_batchnorm:
        model = cast(Model, torch.nn.SyncBatchNorm.convert_sync_batchnorm(model))
    if trainer.compile:
        model.compile()
    run_directory, directory = _claim(request, processes)
    os.environ["CNNCTL_RUN"] = str(directory)
    summary = directory / "summary.json"
    if processes.from_first(summary.exists()) and not request.changed:
        console.say(f"already complete: {directory}")
        return _leave(run_directory)
    if processes.first:
        summary.unlink(missing_ok=True)  # a run that goes on is not complete
    journal = _journal(request, config, processes, console, directory, state, task, train, val)
    journal.report = request.report
    loop = Loop(
        trainer=trainer,
        model=model,
        machine=machine,
        processes=processes,
        train=trainer.load(train, augmentation, machine, processes, config.seed),
        val=trainer.load(val, augmentation, machine, processes, config.seed) if val else None,
        optimizer=build.optimizer(config),
        schedule=build.schedule(config),
        evaluator=lambda: task.evaluator(train.classes),
        monitor=monitor,
        larger_is_better=task.metrics[monitor],
        seed=config.seed,
        describe=_describe(request, train, processes),
        checkpoints=Checkpoints(directory) if processes.first else None,
        journal=journal,
        stop=stop,
        resumed=state,
    )
    _header(console, request, config, loop, directory)
    try:
        with faults_explained(trainer.batch_size, augmentation.size):
            loop.fit()
            _finish(console, request, loop, directory, started)
    except Stopped as stopped:
        console.say(f"stopped at step {loop.progress.total_steps}, saved; continue with:")
        console.say(f"  cnnctl train resume={directory}")
        return 128 + stopped.signum
    finally:
        if journal.board is not None:
            journal.board.close()
        _leave(run_directory)
    return Exit.DONE


def _leave(run_directory: RunDirectory | None) -> int:
    distributed.leave()
    if run_directory is not None:
        run_directory.release()
    return Exit.DONE


def _validation(config: DictConfig) -> Dataset | None:
    """The val split, None where the data has none."""
    try:
        return build.dataset(config, "val")
    except NoSplit:
        return None


def _last(path: Path) -> tuple[State, Path, str | None]:
    if path.is_file():
        return checkpoint.read(path), path, None
    return Checkpoints(path, clean=False).load_last()


def _resumed_state(
    request: Request, config: DictConfig, train: Dataset, processes: Processes
) -> State | None:
    if request.resumed is None:
        return None
    state, _, complaint = _last(request.resumed)
    if complaint and processes.first:
        print(f"warning: {complaint}; going on from the checkpoint before it", file=sys.stderr)
    where: dict[str, Any] = {"file": request.resumed, "code": Exit.CHECKPOINT}
    if state["fingerprint"] != train.fingerprint():
        raise UserError(
            "the training data is not what the run started with",
            **where,
            advice="bring the old data back, or start a new run with init_from=",
        )
    if state["world"] != processes.world:
        raise UserError(
            f"the run had {state['world']} processes and now has {processes.world}",
            **where,
            advice="the order of additions would differ: resume with as many, or use init_from=",
        )
    del config
    return state


def _initialise(model: torch.nn.Module, source: str, console: Console) -> None:
    """Take the weights that fit by name and shape, and say which did not."""
    path = checkpoint.find(source)
    given = weights(checkpoint.read(path))
    own = model.state_dict()
    fitting = {k: v for k, v in given.items() if k in own and own[k].shape == v.shape}
    if not fitting:
        raise UserError(
            "holds no tensor that fits this model by name and shape",
            file=path,
            field="init_from",
            code=Exit.CHECKPOINT,
        )
    model.load_state_dict(fitting, strict=False)
    fresh = [name for name in own if name not in fitting]
    unused = [name for name in given if name not in fitting]
    console.say(f"init_from {path}: {len(fitting)} tensors taken")
    for title, names in (("left as initialised", fresh), ("not used", unused)):
        if names:
            console.say(f"  {title}: {', '.join(names)}")


def _claim(request: Request, processes: Processes) -> tuple[RunDirectory | None, Path]:
    """The first process owns the directory; a failure there is a failure everywhere."""
    claimed, result = None, None
    if processes.first:
        try:
            if request.resumed is not None or request.reserved:
                claimed = RunDirectory.reopen(request.directory)
            else:
                claimed = RunDirectory.claim(request.directory)
            result = claimed.path
        except UserError as error:
            result = error
    result = processes.from_first(result)
    if isinstance(result, UserError):
        raise result
    assert result is not None
    if processes.first:
        OmegaConf.save(OmegaConf.create(request.config), result / "config.yaml")
    return claimed, result


def _journal(
    request: Request,
    config: DictConfig,
    processes: Processes,
    console: Console,
    directory: Path,
    state: State | None,
    task: Any,
    train: Dataset,
    val: Dataset | None,
) -> Journal:
    metrics = board = None
    if processes.first:
        progress = state["progress"] if state else {"metrics_bytes": 0, "total_steps": 0}
        metrics = MetricsFile(directory / "metrics.jsonl", progress["metrics_bytes"])
        wanted = directory / "tensorboard" if config.trainer.tensorboard else None
        board = Board(wanted, progress["total_steps"]) if wanted else None
        if board is not None and state is None:
            board.text("config", f"```yaml\n{OmegaConf.to_yaml(config)}```")
            board.hparams(_hparams(request))
    return Journal(
        console,
        metrics,
        board,
        lambda batch: task.draw_batch(batch, train),
        lambda *seen: task.draw_evaluation(*seen, val),
    )


def _hparams(request: Request) -> dict[str, Any]:
    """The choices and numbers that decide how a run ends, for a table of many runs."""
    values: dict[str, Any] = {"seed": request.config["seed"]}
    for group in COMPARED:
        values[group] = request.chosen[group]
        for name, value in (request.config[group] or {}).items():
            if name not in ("_target_", "root"):
                values[f"{group}.{name}"] = value
    for name in COMPARED_OF_TRAINER:
        values[f"trainer.{name}"] = request.config["trainer"][name]
    return values


def _describe(request: Request, train: Dataset, processes: Processes) -> dict[str, Any]:
    """What lets a checkpoint be used with nothing else at hand."""
    config = {name: value for name, value in request.config.items() if name != "trust"}
    return {
        "format": checkpoint.FORMAT,
        "config": {**config, "resume": None, "trust": []},
        "choices": request.chosen,
        "classes": list(train.classes),
        "channels": train.channels,
        "native": list(train.size) if train.size else None,
        "mean": list(train.mean),
        "std": list(train.std),
        "fingerprint": train.fingerprint(),
        "world": processes.world,
        "versions": {"torch": str(torch.__version__), "threads": torch.get_num_threads()},
    }


def _header(
    console: Console, request: Request, config: DictConfig, loop: Loop, directory: Path
) -> None:
    train, chosen = loop.train.dataset, request.chosen
    parameters = sum(p.numel() for p in loop.model.parameters())
    total, per_epoch = loop.trainer.total_steps(len(train))
    height, width = loop.train.augmentation.size
    optimizer = {k: v for k, v in config.optimizer.items() if k != "_target_"}
    val = len(loop.val.dataset) if loop.val else 0
    rows = [
        ("task", f"{chosen['task']}, best by {loop.monitor}"),
        ("model", f"{chosen['model']}, {parameters:,} parameters"),
        (
            "data",
            f"{chosen['data']}, {len(train.classes)} classes, train {len(train):,}, val {val:,}",
        ),
        (
            "",
            f"looked for in {data_root(config.data.get('root'))}" if "root" in config.data else "",
        ),
        ("input", f"{train.channels} x {height} x {width}, augmentation {chosen['augmentation']}"),
        ("optimizer", f"{chosen['optimizer']} {_inline(optimizer)}, schedule {chosen['schedule']}"),
        ("steps", f"{total:,} ({per_epoch:,} an epoch) of {loop.trainer.batch_size} images"),
        ("machine", f"{loop.machine.describe()}, {loop.processes.world} process(es)"),
        ("run", str(directory)),
    ]
    console.facts([row for row in rows if row[1]])
    for split, loader in (("train", loop.train), ("val", loop.val)):
        for remark in loader.dataset.remarks() if loader else ():
            console.say(f"{split}: {remark}")
    for line in request.changed:
        console.say(f"changed since the run started: {line}")
    if request.changed and loop.schedule.depends_on_total:
        console.say(f"schedule {chosen['schedule']} follows the run's new length from here on")
    if request.resumed is not None and loop.resumed is not None:
        console.say(f"resumed at step {loop.resumed['progress']['total_steps']}")


def _inline(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items() if value is not None)


def _finish(
    console: Console, request: Request, loop: Loop, directory: Path, started: float
) -> None:
    """Score best.pt on the test split and write what a run comes to."""
    config = OmegaConf.create(request.config, flags={"struct": True})
    state = checkpoint.read(checkpoint.find(directory)) if loop.processes.first else None
    state = loop.processes.from_first(state)
    rows: list[tuple[str, str]] = []
    scores: dict[str, Any] = {}
    if loop.trainer.test:
        try:
            result = score(config, state, "test", loop.machine, loop.processes, console)
        except NoSplit:
            console.say("the data has no test split: nothing is scored on one")
        else:
            scores = result.metrics
            rows += [(f"test {name}", text) for name, text in shown(scores)]
            rows += [(f"test {name}", text) for name, text in result.table]
            if loop.processes.first:
                write_scores(directory, "test", result)
    progress = loop.progress
    if progress.best is not None:
        best = show(loop.monitor, progress.best)
        rows.insert(0, (f"best val {loop.monitor}", f"{best} at step {progress.best_step}"))
    seconds, speed = time.monotonic() - started, loop.journal.mean_speed()
    rows += [("time", f"{seconds:.1f} s"), ("training", f"{speed:,.0f} images/s")]
    if not loop.processes.first:
        return
    summary = {
        "monitor": loop.monitor,
        "best": progress.best,
        "best_step": progress.best_step,
        "steps": progress.total_steps,
        "test": scores,
        "seconds": seconds,
        "images_per_second": speed,
        "parameters": sum(p.numel() for p in loop.model.parameters()),
    }
    checkpoint.write_whole(directory / "summary.json", json.dumps(summary, indent=1).encode())
    if loop.journal.board is not None:
        best_scores = {f"test_{name}": value for name, value in scores.items()}
        if progress.best is not None:
            best_scores[f"val_{loop.monitor}"] = progress.best
        loop.journal.board.finished(best_scores, progress.total_steps)
    console.table("summary", ("", "value"), rows)
    console.say(f"run: {directory}")


def _differences(old: Any, new: Any, path: str) -> dict[str, str]:
    """Dotted key -> ``key: old -> new`` for every value that differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        found: dict[str, str] = {}
        for name in [*old, *(name for name in new if name not in old)]:
            below = f"{path}.{name}" if path else str(name)
            if below not in ("resume", "trust", "outputs"):
                found |= _differences(old.get(name), new.get(name), below)
        return found
    return {} if old == new else {path: f"{path}: {old} -> {new}"}


def machine_of(config: DictConfig) -> tuple[Machine, Processes]:
    """The machine of a command that runs in one process."""
    trainer = replace(build.trainer(config), devices=1)
    return trainer.machine(Processes()), Processes()


__all__ = ["Request", "asdict", "resume", "run"]
