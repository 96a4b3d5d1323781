"""``cnnctl train``: task, data, model, trainer, fit, score the best weights on the test split."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any, cast

import torch
from omegaconf import DictConfig, OmegaConf

from cnnctl import build, outcome
from cnnctl.commands.request import Request, last_checkpoint
from cnnctl.commands.summary import announce, finish, hparams
from cnnctl.data.base import Dataset, NoSplit
from cnnctl.engine import checkpoint, distributed
from cnnctl.engine.checkpoint import Checkpoints, State
from cnnctl.engine.console import Console
from cnnctl.engine.distributed import Processes
from cnnctl.engine.journal import Journal
from cnnctl.engine.log import Board, MetricsFile
from cnnctl.engine.loop import Loop, weights
from cnnctl.engine.machine import faults_explained
from cnnctl.engine.run import RunDirectory
from cnnctl.engine.signals import StopFlag, Stopped
from cnnctl.errors import Exit, UserError
from cnnctl.models.base import Model
from cnnctl.randomness import key

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

    sys.exit(outcome.run(work))


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
    state = _resumed_state(request, train, processes)
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
    announce(console, request, config, loop, directory)
    try:
        with faults_explained(trainer.batch_size, augmentation.size):
            loop.fit()
            finish(console, request, loop, directory, started)
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


def _resumed_state(request: Request, train: Dataset, processes: Processes) -> State | None:
    if request.resumed is None:
        return None
    state, _, complaint = last_checkpoint(request.resumed)
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
            board.hparams(hparams(request))
    return Journal(
        console,
        metrics,
        board,
        lambda batch: task.draw_batch(batch, train),
        lambda *seen: task.draw_evaluation(*seen, val),
    )


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
