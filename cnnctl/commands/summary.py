"""What a training run says at its start and at its end: header, test scores, summary.json."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from cnnctl import build
from cnnctl.commands.eval import score, write_scores
from cnnctl.commands.info import scaled
from cnnctl.commands.request import Request
from cnnctl.data.base import NoSplit
from cnnctl.data.proposed import Proposed
from cnnctl.engine import checkpoint
from cnnctl.engine.chosen import why_chosen
from cnnctl.engine.console import Console
from cnnctl.engine.journal import show, shown
from cnnctl.engine.loop import Loop
from cnnctl.models.base import GradientStage
from cnnctl.user_cache import user_cache

# What TensorBoard's table compares runs by: groups with all their keys, and some of the trainer's.
COMPARED = (
    *("task", "data", "model", "backbone", "augmentation", "optimizer", "schedule"),
    *("transfer", "proposals"),
)
COMPARED_OF_TRAINER = (
    *("epochs", "steps", "batch_size", "accumulate", "clip", "ema"),
    *("decay_norm_and_bias", "init", "precision"),
)


def announce(
    console: Console, request: Request, config: DictConfig, loop: Loop, directory: Path
) -> None:
    """What is about to be trained on what, with which settings, where to."""
    train, chosen = loop.train.dataset, request.chosen
    by_heart = loop.trainer.learn_by_heart is not None
    parameters = sum(p.numel() for p in loop.model.parameters())
    total, per_epoch = loop.trainer.total_steps(len(train))
    height, width = loop.train.augmentation.size
    optimizer = {k: v for k, v in config.optimizer.items() if k != "_target_"}
    transfer, proposals = (
        {k: v for k, v in (config.get(group) or {}).items() if k != "_target_"}
        for group in ("transfer", "proposals")
    )
    val = len(loop.val.dataset) if loop.val else 0
    home = train.home(config.data.get("root"))
    rows = [
        ("task", f"{chosen['task']}, best by {loop.monitor}"),
        ("model", f"{chosen['model']}, {parameters:,} parameters"),
        (
            "data",
            f"{chosen['data']}, {len(train.classes)} classes, train {len(train):,}, val {val:,}",
        ),
        ("", f"from {home}" if home else ""),
        ("", "val is the training images: can they be learnt by heart?" if by_heart else ""),
        ("input", f"{train.channels} x {height} x {width}, augmentation {chosen['augmentation']}"),
        ("optimizer", f"{chosen['optimizer']} {_inline(optimizer)}, schedule {chosen['schedule']}"),
        ("transfer", f"{chosen['transfer']} {_inline(transfer)}".rstrip() if transfer else ""),
        ("proposals", f"{chosen['proposals']} {_inline(proposals)}" if proposals else ""),
        ("features", _kept(loop)),
        ("steps", f"{total:,} ({per_epoch:,} an epoch) of {loop.trainer.batch_size} images"),
        ("machine", f"{loop.machine.describe()}, {loop.processes.world} process(es)"),
        ("chosen", _chosen(loop)),
        ("run", str(directory)),
    ]
    if not any(isinstance(stage, GradientStage) for stage in loop.model.stages()):
        rows = [row for row in rows if row[0] not in ("optimizer", "steps")]
        rows.insert(-3, ("training", "all images are fitted at once, without gradients"))
    console.facts([row for row in rows if row[1]])
    rebuilt = loop.model.rebuilt
    if rebuilt and request.resumed is None and build.source(config) is None:
        console.say(
            f"the published weights are of other classes: {', '.join(rebuilt)} start at random"
        )
    for split, loader in (("train", loop.train), ("val", loop.val)):
        for remark in loader.dataset.remarks() if loader else ():
            console.say(f"{split}: {remark}")
    for line in request.changed.values():
        console.say(f"changed since the run started: {line}")
    if request.extends() and loop.schedule.depends_on_total:
        console.say(f"schedule {chosen['schedule']} follows the run's new length from here on")
    if request.resumed is not None and loop.resumed is not None:
        console.say(f"resumed at step {loop.resumed['progress']['total_steps']}")


def _chosen(loop: Loop) -> str:
    fused = loop.describe["machine"]["fused_norm"]
    return why_chosen(
        loop.trainer, loop.machine, loop.train, loop.model, loop.processes, fused=fused
    )


def _kept(loop: Loop) -> str:
    """What training puts on the disk beside its checkpoints, and where; empty: nothing."""
    data = loop.train.dataset
    most = data.most if isinstance(data, Proposed) else 0
    needed = loop.model.disk_needed(len(data), most) * loop.processes.world  # each has all of it
    return f"at most {scaled(needed)}B in {user_cache('features')}" if needed else ""


def _inline(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items() if value is not None)


def finish(console: Console, request: Request, loop: Loop, directory: Path, started: float) -> None:
    """Score best.pt on the test split and write what a run comes to."""
    config = OmegaConf.create(request.config, flags={"struct": True})
    state = checkpoint.read(checkpoint.find(directory)) if loop.processes.first else None
    state = loop.processes.from_first(state)
    rows: list[tuple[str, str]] = []
    scores: dict[str, Any] = {}
    speed_of_one: dict[str, Any] = {}
    if loop.trainer.test:
        try:
            stop = loop.stop if loop.processes.world == 1 else None
            timed = loop.trainer.measure_speed
            result = score(
                config, state, "test", loop.machine, loop.processes, console, stop, timed
            )
        except NoSplit:
            console.say("the data has no test split: nothing is scored on one")
        else:
            scores = result.metrics
            rows += [(f"test {name}", text) for name, text in shown(scores)]
            rows += [(f"test {name}", text) for name, text in result.table]
            if result.speed is not None:
                rows += result.speed.rows()
                speed_of_one = {"one_image": result.speed.record()}
            if loop.processes.first:
                write_scores(directory, "test", result)
    progress = loop.progress
    if progress.best is not None:
        best = show(loop.monitor, progress.best)
        split = "train" if loop.trainer.learn_by_heart is not None else "val"
        rows.insert(0, (f"best {split} {loop.monitor}", f"{best} at step {progress.best_step}"))
    seconds, speed = time.monotonic() - started, loop.journal.mean_speed()
    title = "time" if request.resumed is None else "time since resuming"
    rows += [(title, f"{seconds:.1f} s"), *[("training", f"{speed:,.0f} images/s")] * (speed > 0)]
    if not loop.processes.first:
        return
    summary = {
        "monitor": loop.monitor,
        "best": progress.best,
        "best_step": progress.best_step,
        "steps": progress.total_steps,
        "test": scores,
        "seconds": seconds,
        "stages": loop.times.seconds,
        "images_per_second": speed,
        "parameters": sum(p.numel() for p in loop.model.parameters()),
        **speed_of_one,
    }
    checkpoint.write_whole(directory / "summary.json", json.dumps(summary, indent=1).encode())
    if loop.journal.board is not None:
        best_scores = {f"test_{name}": value for name, value in scores.items()}
        if progress.best is not None:
            best_scores[f"val_{loop.monitor}"] = progress.best
        loop.journal.board.finished(best_scores, progress.total_steps)
    console.table("summary", ("", "value"), rows)
    console.say(f"run: {directory}")


def hparams(request: Request) -> dict[str, Any]:
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
