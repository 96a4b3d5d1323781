"""``cnnctl eval``: rebuild everything from a checkpoint and score it on a split of the data."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor

from cnnctl import build, compose
from cnnctl.commands import eval_predictions
from cnnctl.commands.proposing import with_proposals
from cnnctl.commands.speed import Speed, measured
from cnnctl.data.base import Dataset
from cnnctl.data.part import Part
from cnnctl.data.proposed import Proposed
from cnnctl.engine import checkpoint
from cnnctl.engine.averaging import weights
from cnnctl.engine.checkpoint import State
from cnnctl.engine.console import Console
from cnnctl.engine.distributed import Processes
from cnnctl.engine.inference import Watch, evaluate
from cnnctl.engine.journal import shown
from cnnctl.engine.machine import Machine, cores, faults_explained
from cnnctl.engine.run import newest
from cnnctl.engine.signals import StopFlag, Stopped
from cnnctl.errors import Exit, UserError
from cnnctl.structures import Batch, Predictions
from cnnctl.tasks.base import Table


@dataclass
class Scores:
    metrics: dict[str, float]
    table: list[tuple[str, str]]
    images: int
    evaluator: Any
    seconds: float  # of the whole pass, reading included
    speed: Speed | None = None
    tables: Sequence[Table] = ()  # beside the metrics
    results: Callable[[], list[dict[str, Any]]] | None = None  # for other programs to score
    mistakes: Callable[[], Tensor | None] | None = None  # a picture of the worst images


def run(settings: DictConfig, overrides: list[str], config_dir: str | None = None) -> int:
    """The command; ``overrides`` change the checkpoint's own configuration.

    Args:
        config_dir: a folder of the user's own YAML files.
    """
    if settings.split not in ("train", "val", "test"):
        raise UserError(
            f'there is no split "{settings.split}"', field="split", advice="val or test"
        )
    if settings.predictions is not None:
        return eval_predictions.run(settings, overrides, config_dir)
    if settings.weights is not None:
        from cnnctl.commands import eval_weights

        return eval_weights.run(settings, overrides, config_dir)
    if settings.checkpoint is None and any(one.startswith("proposals=") for one in overrides):
        from cnnctl.commands import proposals

        return proposals.alone(settings, overrides, config_dir)
    if isinstance(settings.checkpoint, ListConfig):
        from cnnctl.commands import eval_together

        return eval_together.run(settings, overrides, config_dir)
    console = Console()
    path = locate(settings)
    console.say(f"checkpoint: {path}")
    state = checkpoint.read(path)
    config, regrouped = rebuild(state, path, settings, overrides, config_dir)
    trainer = build.trainer(config)
    processes = Processes()
    machine = trainer.machine(processes)
    with faults_explained():
        scores = score(config, state, settings.split, machine, processes, console, timed=True)
    data = regrouped.get("data", state["choices"]["data"])
    show_scores(console, f"{state['choices']['model']} on {data}, {settings.split}", scores)
    if overrides:
        console.say("not written into the run: the command line changed its settings")
    elif path.parent.joinpath("manifest.json").exists():
        for written in write_scores(path.parent, settings.split, scores):
            console.say(f"written: {written}")
    return Exit.DONE


def show_scores(console: Console, title: str, scores: Scores) -> None:
    """What ``eval`` prints."""
    rows = shown(scores.metrics)
    rows += [*scores.table, ("images", f"{scores.images:,}")]
    rows.append(("end to end", f"{scores.images / scores.seconds:,.0f} images/s with reading"))
    rows += scores.speed.rows() if scores.speed else []
    console.table(title, ("", "value"), rows)
    for table in scores.tables:
        console.table(*table)


def locate(settings: DictConfig) -> Path:
    """The checkpoint file that is named, or that of the newest run."""
    if isinstance(settings.checkpoint, ListConfig):
        raise UserError(
            "is a list, and one network is asked", field="checkpoint", advice="name one"
        )
    if settings.checkpoint is None:
        return checkpoint.find(newest(Path(settings.outputs)))
    return checkpoint.find(settings.checkpoint)


def rebuild(
    state: State,
    path: Path,
    settings: DictConfig,
    overrides: list[str],
    config_dir: str | None = None,
) -> tuple[DictConfig, dict[str, str]]:
    """The configuration of a checkpoint with the command line's changes; nothing else is trusted.

    Raises:
        UserError: the checkpoint's configuration names what may not be named (code 4).
    """
    try:
        config, regrouped = compose.override(
            {**state["config"], "trust": []}, overrides, config_dir
        )
        config.trust = settings.trust
        config.trainer.devices = 1
        config.trainer.monitor = None  # of training; the metrics' names say how one tests now
        if config.trainer.threads is None:  # as in training: another count, other last digits
            config.trainer.threads = min(state["machine"]["threads"], cores())
        build.check(config, {**state["choices"], **regrouped})
    except UserError as error:
        if not overrides:
            error.file, error.code = path, Exit.CHECKPOINT
        raise
    except OmegaConfBaseException as error:
        raise checkpoint.foreign(path, error) from None
    return config, regrouped


def score(
    config: DictConfig,
    state: State,
    split: str,
    machine: Machine,
    processes: Processes,
    console: Console,
    stop: StopFlag | None = None,
    timed: bool = False,
    watch: Watch | None = None,
) -> Scores:
    """Score a checkpoint's weights; the same function and batches as during training.

    Args:
        timed: measure the network's speed too, on some images after the pass.
        watch: called with each batch and what was predicted.

    Raises:
        Stopped: ``stop`` was set.
        UserError: the data's classes are not the checkpoint's (code 3), the weights do not fit
            (code 4).
    """
    task, trainer = build.task(config), build.trainer(config)
    by_heart = None if split == "test" else trainer.learn_by_heart
    whole = _data(config, state, split, by_heart)
    (data,) = with_proposals(config, [whole], processes, console, stop)
    augmentation = build.augmentation(config, data)
    model = load(config, state, data, augmentation.size)
    machine.place(model)
    loader = trainer.load(data, augmentation, machine, processes, config.seed)
    at_once = trainer.evaluation_batch(model, augmentation)
    evaluator = task.evaluator(data)
    with console.progress():
        bar = console.bar(split, len(data))

        def scored(number: int, batch: Batch, predictions: Predictions) -> None:
            if stop:
                raise Stopped(stop.signum or 0)
            bar.advance(bar.done + len(batch))
            if watch is not None:
                watch(number, batch, predictions)

        start = time.perf_counter()
        metrics = evaluate(
            model,
            loader.in_order(at_once),
            evaluator,
            machine,
            processes,
            scored,
        )
        seconds = time.perf_counter() - start
        method = data.method if isinstance(data, Proposed) else None  # the one that is ready
        speed = measured(model, loader, machine, method) if timed else None
    results = task.results if by_heart is None else None  # ids are of the whole split
    mistakes = task.mistakes
    return Scores(
        metrics,
        task.table(evaluator),
        len(data),
        evaluator,
        seconds,
        speed,
        task.tables(evaluator),
        None if results is None else lambda: results(evaluator, data),
        None if mistakes is None else lambda: mistakes(evaluator, data),
    )


def _data(config: DictConfig, state: State, split: str, by_heart: int | None) -> Dataset:
    """What is scored, with the mean and deviation that the weights expect."""
    data = build.dataset(config, split if by_heart is None else "train")
    if by_heart is not None:
        data = Part(data, by_heart)
    if list(data.classes) != state["classes"]:
        raise UserError(
            f"the data has classes {list(data.classes)}, the checkpoint {state['classes']}",
            field="data",
            code=Exit.DATA,
        )
    if not len(data):
        raise UserError(f"the {split} split has no images", field="split", code=Exit.DATA)
    data.mean, data.std = tuple(state["mean"]), tuple(state["std"])
    return data


def load(config: DictConfig, state: State, data: Any, size: tuple[int, int]) -> Any:
    """The model of a checkpoint with its weights."""
    model = build.model(config, data, size, fetch=False)
    try:
        model.load_state_dict(weights(state))
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
        raise UserError(
            f"its weights do not fit its model: {reason}", field="checkpoint", code=Exit.CHECKPOINT
        ) from None
    return model


def write_scores(directory: Path, split: str, scores: Scores) -> list[Path]:
    """eval-<split>.json in the run directory: metrics, figures of each class, confusion matrix.

    Where other programs score such predictions, predictions-<split>.json too; where the task draws
    them and there are some, the images with the most mistakes as mistakes-<split>.png.
    """
    path = directory / f"eval-{split}.json"
    details = scores.evaluator.details()
    record = {"split": split, "images": scores.images, **scores.metrics, **details}
    checkpoint.write_whole(path, json.dumps(record, indent=1).encode())
    written = [path]
    if scores.results is not None:
        written.append(directory / f"predictions-{split}.json")
        lines = ",\n".join(json.dumps(row) for row in scores.results())
        checkpoint.write_whole(written[-1], f"[{lines}]\n".encode())
    picture = None if scores.mistakes is None else scores.mistakes()
    if picture is not None:
        from PIL import Image

        written.append(directory / f"mistakes-{split}.png")
        encoded = io.BytesIO()
        Image.fromarray(picture.numpy()).save(encoded, "PNG")
        checkpoint.write_whole(written[-1], encoded.getvalue())
    return written
