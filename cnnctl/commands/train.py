"""``cnnctl train``: task, data, model, trainer, fit, score the best weights on the test split."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from omegaconf import DictConfig, OmegaConf

from cnnctl import build, compose, outcome
from cnnctl.commands.proposing import with_proposals
from cnnctl.commands.request import Request, last_checkpoint
from cnnctl.commands.start import start
from cnnctl.commands.summary import announce, finish, hparams
from cnnctl.data.base import Dataset, NoSplit
from cnnctl.data.loaders import ResidentLoader
from cnnctl.data.part import Part
from cnnctl.data.proposed import changed
from cnnctl.drawing.layer_pictures import draw_layers
from cnnctl.engine import checkpoint, distributed
from cnnctl.engine.checkpoint import Checkpoints, State
from cnnctl.engine.chosen import has_batch_norm
from cnnctl.engine.compiling import verdict
from cnnctl.engine.console import Console
from cnnctl.engine.distributed import Processes
from cnnctl.engine.given_weights import Taken
from cnnctl.engine.journal import Journal
from cnnctl.engine.log import Board, MetricsFile
from cnnctl.engine.loop import Loop
from cnnctl.engine.machine import Machine, faults_explained
from cnnctl.engine.run import RunDirectory
from cnnctl.engine.signals import StopFlag, Stopped
from cnnctl.engine.trainer import Trainer
from cnnctl.errors import Exit, UserError
from cnnctl.models.base import GradientStage, Model, Stage, identity
from cnnctl.ops.batch_norm_relu import kernel_name
from cnnctl.randomness import key
from cnnctl.tasks.base import Task

PEERS_REPORT = 2.0  # seconds that another process has to say what is wrong with all of them


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

    code = outcome.run(work)
    if code:
        # Everything is saved and closed. Python's own way out ends PyTorch's threads, and when the
        # other processes are gone already that now and then aborts: "terminate called ...".
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)


@distributed.lost_peers_explained()
def _work(request: Request, stop: StopFlag) -> int:
    started = time.monotonic()
    config = OmegaConf.create(request.config, flags={"struct": True})
    stop.install()
    processes = distributed.join(config.trainer.device)
    console = Console(quiet=not processes.first)
    trainer = build.trainer(config)
    machine = trainer.machine(processes)
    # A run that goes on is locked before its checkpoint is read; a new one gets its directory once
    # everything that can be wrong has been found out.
    held = _claim(request, processes) if request.resumed is not None else None
    loop = directory = None
    try:
        with faults_explained():
            loop, taken = _prepare(request, config, trainer, machine, processes, console, stop)
        held = held or _claim(request, processes)
        directory = held.path
        os.environ["CNNCTL_RUN"] = str(directory)
        summary = directory / "summary.json"
        if processes.from_first(summary.exists()) and not request.extends():
            console.say(f"already complete: {directory}")
            return Exit.DONE
        _open(request, config, loop, directory)
        if taken is not None and processes.first:
            checkpoint.write_whole(directory / "weights.txt", taken.text().encode())
        announce(console, request, config, loop, directory)
        with faults_explained(trainer.held_at_once(loop.train.augmentation.size, processes)):
            loop.fit()
        with faults_explained():
            finish(console, request, loop, directory, started)
    except Stopped as stopped:
        if loop is None or directory is None:
            console.say("stopped before the first step: the same command starts again")
        else:
            console.say(f"stopped at step {loop.progress.total_steps}, saved; continue with:")
            console.say(f"  {_resume_command(request, directory)}")
        return 128 + stopped.signum
    finally:
        if loop is not None:
            loop.journal.close()
        distributed.leave()
        if held is not None:
            held.release()
    return Exit.DONE


def _prepare(
    request: Request,
    config: DictConfig,
    trainer: Trainer,
    machine: Machine,
    processes: Processes,
    console: Console,
    stop: StopFlag,
) -> tuple[Loop, Taken | None]:
    """Everything a run needs but its directory: data, model, weights, loaders."""
    task = build.task(config)
    monitor = trainer.monitor or task.best
    train, val = build.dataset(config, "train"), _validation(config)
    if trainer.learn_by_heart is not None:
        train = val = _part(train, trainer.learn_by_heart)
    if monitor not in task.evaluator(train).names:
        raise UserError(
            f"{monitor} says nothing about {len(train.classes)} classes",
            field="trainer.monitor",
            advice=f"take trainer.monitor={task.best}",
        )
    trainer.total_steps(len(train))
    augmentation = build.augmentation(config, train)
    torch.manual_seed(key(config.seed, "init"))
    build.with_published_weights(config)
    model = build.model(config, train, augmentation.size, fetch=request.resumed is None)
    # What can be wrong is said before minutes of work; proposals of a network draw numbers of it.
    with torch.random.fork_rng(devices=[]):
        splits = [train] if val is None or val is train else [train, val]
        splits = with_proposals(config, splits, processes, console, stop)
    train, val = splits[0], splits[-1] if val is not None else None
    described = _describe(request, train, val, model, machine, processes)
    state = _resumed_state(request, described, processes)
    taken = None
    if state is None:
        taken = start(config, model, train.classes, console)
        learnt = _learnt(task, train, processes, console, stop)
        model.load_state_dict(learnt, strict=False)
    model = placed(model, trainer, machine)
    journal = Journal(
        console,
        lambda batch: task.draw_batch(batch, train),
        lambda seen, evaluator, scored: task.draw_evaluation(seen, evaluator, scored, val or train),
        task.line,
        draw_layers,
    )
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
        evaluator=task.evaluator,
        monitor=monitor,
        larger_is_better=task.metrics[monitor],
        seed=config.seed,
        describe=described,
        journal=journal,
        stop=stop,
        resumed=state,
    )
    loop.stages = _transferred(config, loop, console)
    if trainer.compile == "auto":
        loop.describe["compiled"] = _compiled_where_it_pays(loop, console)
    return loop, taken


def _compiled_where_it_pays(loop: Loop, console: Console) -> bool:
    """Compile the model, in every process or in none; what is found is said."""
    trainer, found = loop.trainer, None
    stages = (loop.stages or loop.model.stages)()
    plain = all(isinstance(stage, GradientStage) and stage.view is identity for stage in stages)
    if loop.processes.first and plain and not trainer.watch:
        batches = loop.train.train(0, 1, trainer.batch_size, 0)
        part = next(next(batches).split(trainer.accumulate))
        steps = trainer.total_steps(len(loop.train.dataset))[0] * len(stages) * trainer.accumulate
        found = verdict(loop.model, part, loop.machine, steps, kernel_name())
        console.say(f"trainer.compile={str(found.compiled).lower()}: {found.why}")
    compiled = bool(loop.processes.from_first(found is not None and found.compiled))
    if compiled:
        loop.model.compile()
    return compiled


def _transferred(
    config: DictConfig, loop: Loop, console: Console
) -> Callable[[], Sequence[Stage]] | None:
    """What is trained where ``transfer=`` says it; asked for once now, so that faults show."""
    transfer = build.transfer(config)
    if transfer is None:
        return None
    resident, plain = isinstance(loop.train, ResidentLoader), loop.train.augmentation.is_plain
    samples = len(loop.train.dataset) if resident and plain else None
    try:
        stages = transfer.stages(loop.model, samples, console.say)
    except ValueError as error:
        raise UserError(str(error), field="transfer", advice="take transfer=none") from None
    given = build.source(config) or build.published(config)
    if transfer.takes_weights and not given and loop.resumed is None:
        console.say("nothing is transferred: weights= is not set, the network starts as drawn")
    return lambda: stages


def _learnt(
    task: Task, train: Dataset, processes: Processes, console: Console, stop: StopFlag
) -> dict[str, torch.Tensor]:
    """What the loss takes from the training data; the first process looks at it for all.

    Raises:
        Stopped: in all of them, where a signal came to the first.
    """
    learnt: dict[str, torch.Tensor] | int = {}
    if processes.first:

        def watch(done: int, total: int) -> None:
            show(done, total)
            if stop:
                raise Stopped(stop.signum or 0)

        try:
            with console.bar_if_slow("masks") as show:
                learnt = task.learn(train, watch)
        except Stopped as stopped:
            learnt = stopped.signum
    learnt = processes.from_first(learnt)
    if isinstance(learnt, int):
        raise Stopped(learnt)
    return learnt


def placed(model: Model, trainer: Trainer, machine: Machine) -> Model:
    """The model on its device, as it is trained there."""
    machine.place(model)
    if trainer.sync_batchnorm:
        model = cast(Model, torch.nn.SyncBatchNorm.convert_sync_batchnorm(model))
    if trainer.compile is True:
        model.compile()
    return model


def _open(request: Request, config: DictConfig, loop: Loop, directory: Path) -> None:
    """Checkpoints and logs in the run directory; the first process alone has any."""
    if not loop.processes.first:
        return
    text = OmegaConf.to_yaml(OmegaConf.create(request.config))
    checkpoint.write_whole(directory / "config.yaml", text.encode())
    (directory / "summary.json").unlink(missing_ok=True)  # a run that goes on is not complete
    loop.checkpoints = Checkpoints(directory)
    before = {"metrics_bytes": 0, "total_steps": 0}
    progress = loop.resumed["progress"] if loop.resumed else before
    metrics = MetricsFile(directory / "metrics.jsonl", progress["metrics_bytes"])
    board = None
    if config.trainer.tensorboard:
        board = Board(directory / "tensorboard", progress["total_steps"])
        if loop.resumed is None:
            board.text("config", f"```yaml\n{text}```")
            board.hparams(hparams(request))
    loop.journal.open(metrics, board)


def _resume_command(request: Request, directory: Path) -> str:
    words = ["cnnctl", "train", f"resume={compose.quoted(directory)}"]
    if request.config["trust"]:
        words.append(f"trust=[{','.join(request.config['trust'])}]")
    return shlex.join(words)


def _validation(config: DictConfig) -> Dataset | None:
    """The val split, None where the data has none."""
    try:
        return build.dataset(config, "val")
    except NoSplit:
        return None


def _part(data: Dataset, count: int) -> Dataset:
    try:
        return Part(data, count)
    except ValueError as error:
        raise UserError(str(error), field="trainer.learn_by_heart") from None


def _resumed_state(
    request: Request, described: dict[str, Any], processes: Processes
) -> State | None:
    if request.resumed is None:
        return None
    state, _, complaint = last_checkpoint(request.resumed)
    if complaint and processes.first:
        print(f"warning: {complaint}; going on from the checkpoint before it", file=sys.stderr)
    where: dict[str, Any] = {"file": request.resumed, "code": Exit.CHECKPOINT}
    for split, fingerprint in described["fingerprints"].items():
        before = state["fingerprints"][split]
        if before != fingerprint:
            proposals = changed(before, fingerprint) == "proposals"
            what = "proposals are" if proposals else "data is"
            why = " (the same network, the same version of opencv)" * proposals
            raise UserError(
                f"the {split} {what} not what the run started with",
                **where,
                advice=f"bring the old {what.split()[0]} back{why}, or start a new run with"
                " init_from=",
            )
    if state["world"] != processes.world:
        raise UserError(
            f"the run had {state['world']} processes and now has {processes.world}",
            **where,
            advice="the order of additions would differ: resume with as many, or use init_from=",
        )
    before, now = _inline(state), _inline(described)
    if before != now and processes.first:
        print(
            f"warning: the run began with {before} and goes on with {now}:"
            " its last digits will differ from those of a run left alone",
            file=sys.stderr,
        )
    return state


def _fused_norm(model: Model, machine: Machine) -> bool:
    """Whether batch norm, addition and ReLU may be one here, which rounds less often."""
    reduced = machine.device.type == "cpu" and machine.dtype == torch.bfloat16
    return reduced and has_batch_norm(model) and kernel_name() is not None


def _inline(state: dict[str, Any]) -> str:
    """What a run computes with, and how."""
    kinds = {"fused_norm": False, **state["machine"], "compiled": state.get("compiled", False)}
    said = {name: value for name, value in kinds.items() if value is not False}
    return ", ".join(name if value is True else f"{name} {value}" for name, value in said.items())


def _claim(request: Request, processes: Processes) -> RunDirectory:
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
    return claimed or RunDirectory(result)


def _describe(
    request: Request,
    train: Dataset,
    val: Dataset | None,
    model: Model,
    machine: Machine,
    processes: Processes,
) -> dict[str, Any]:
    """What lets a checkpoint be used with nothing else at hand."""
    config = {name: value for name, value in request.config.items() if name != "trust"}
    return {
        "format": checkpoint.FORMAT,
        "config": {**config, "resume": None, "trust": []},
        "choices": request.chosen,
        "classes": list(train.classes),
        "channels": train.channels,
        "palette": [list(colour) for colour in train.palette] if train.palette else None,
        "skeleton": train.skeleton.plain() if train.skeleton else None,
        "native": list(train.size) if train.size else None,
        "mirror": train.mirror,
        "mean": list(train.mean),
        "std": list(train.std),
        "fingerprints": {
            "train": train.fingerprint(),
            "val": val.fingerprint() if val is not None else None,
        },
        "world": processes.world,
        "machine": {
            "device": machine.device.type,
            "precision": machine.precision(),
            "threads": torch.get_num_threads(),
            "fused_norm": _fused_norm(model, machine),
        },
        "compiled": request.config["trainer"]["compile"] is True,
        "versions": {"torch": str(torch.__version__)},
    }
