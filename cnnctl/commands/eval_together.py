"""``cnnctl eval checkpoint=[a,b,c]``: each checkpoint alone, and what they say together.

The probabilities of several networks averaged are the "5 CNNs" of Krizhevsky, Sutskever, Hinton,
NIPS 2012, table 2.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from cnnctl import build, compose
from cnnctl.commands.eval import Scores, rebuild, score
from cnnctl.engine import checkpoint
from cnnctl.engine.console import Console
from cnnctl.engine.distributed import Processes
from cnnctl.engine.journal import shown
from cnnctl.engine.machine import faults_explained
from cnnctl.errors import Exit, UserError
from cnnctl.structures import Batch, Predictions, Targets
from cnnctl.tasks.base import Task


@dataclass
class Member:
    """One of the checkpoints: its file, its configuration and the classes that it knows."""

    path: Path
    config: DictConfig
    data: str  # the option
    classes: list[str]


def run(settings: DictConfig, overrides: list[str], config_dir: str | None = None) -> int:
    """The command, where ``checkpoint`` is a list; ``overrides`` change the settings of all.

    Raises:
        UserError: they do not answer the same question about the same images (code 2).
    """
    console = Console()
    paths = [checkpoint.find(str(where)) for where in settings.checkpoint]
    if not paths:
        raise UserError("names none", field="checkpoint", advice="checkpoint=[run1,run2]")
    members = [_member(path, settings, overrides, config_dir) for path in paths]
    for path in paths:
        console.say(f"checkpoint: {path}")
    _require_alike(members)
    task = build.task(members[0].config)
    if task.average is None:
        raise UserError(
            f"task={task.name} has no average of several networks",
            field="checkpoint",
            advice="name one checkpoint",
        )
    answers = [_scored(member, settings.split, console) for member in members]
    scores, said = [one for one, _, _ in answers], [one for _, one, _ in answers]
    targets = answers[0][2]
    evaluator = task.evaluator(SimpleNamespace(classes=members[0].classes))
    evaluator.update(task.average(said), targets)
    together = _named(evaluator.compute(), len(members))
    _print(console, task, members, scores, together, evaluator, settings.split)
    if overrides:
        console.say("not written: the command line changed the settings")
        return Exit.DONE
    record = {
        "split": settings.split,
        "images": len(targets.image_id),
        "checkpoints": [
            {"checkpoint": str(member.path), **found.metrics}
            for member, found in zip(members, scores, strict=True)
        ],
        **together,
        **evaluator.details(),
    }
    file = paths[0].parent / f"eval-{settings.split}@{len(members)}models.json"
    checkpoint.write_whole(file, json.dumps(record, indent=1).encode())
    console.say(f"written: {file}")
    return Exit.DONE


def _member(
    path: Path, settings: DictConfig, overrides: list[str], config_dir: str | None
) -> Member:
    state = checkpoint.read(path)
    config, regrouped = rebuild(state, path, settings, overrides, config_dir)
    data = regrouped.get("data") or state["choices"]["data"]
    return Member(path, config, data, state["classes"])


def _require_alike(members: Sequence[Member]) -> None:
    """Raise UserError where networks differ in what they were asked."""
    first = members[0]
    for index, member in enumerate(members):
        if any(member.path == other.path for other in members[:index]):
            raise UserError("is named twice", file=member.path, field="checkpoint")
        if member.classes != first.classes:
            problem = f"has classes {member.classes}, and the first has {first.classes}"
            raise UserError(problem, file=member.path, field="checkpoint", code=Exit.DATA)
        if member.config.trainer.learn_by_heart != first.config.trainer.learn_by_heart:
            raise UserError(
                "was trained by heart on other images than the first",
                file=member.path,
                field="checkpoint",
                advice="give all the same: trainer.learn_by_heart=null",
            )
        for group in ("data", "task"):
            own, its = (compose.flat(_plain(one.config[group])) for one in (member, first))
            unlike = sorted({key for key, _ in set(map(_entry, own)) ^ set(map(_entry, its))})
            if unlike:
                raise UserError(
                    f"has another {group}.{unlike[0]} than the first: the averages of one image "
                    "need the same images and the same way to test",
                    file=member.path,
                    field="checkpoint",
                    advice=f"set it for all: {group}.{unlike[0]}=",
                )


def _entry(item: tuple[str, Any]) -> tuple[str, str]:
    return item[0].partition("[")[0], f"{item[0]}={item[1]}"


def _plain(node: DictConfig) -> dict[str, Any]:
    plain = OmegaConf.to_container(node, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _scored(member: Member, split: str, console: Console) -> tuple[Scores, Predictions, Targets]:
    """A checkpoint alone, and what it said of each image in their order."""
    batches: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def watch(number: int, batch: Batch, predictions: Predictions) -> None:
        assert predictions.log_probs is not None
        assert batch.targets.label is not None
        row = (predictions.log_probs, batch.targets.image_id, batch.targets.label)
        batches.append((row[0].cpu(), row[1].cpu(), row[2].cpu()))

    processes = Processes()
    machine = build.trainer(member.config).machine(processes)
    state = checkpoint.read(member.path)
    with faults_explained():
        found = score(member.config, state, split, machine, processes, console, watch=watch)
    log_probs, image_id, label = (torch.cat(column) for column in zip(*batches, strict=True))
    return found, Predictions(log_probs=log_probs), Targets(image_id, label)


def _named(metrics: dict[str, float], count: int) -> dict[str, float]:
    """top1 -> top1@5models; top1@10crop -> top1@10crop+5models."""
    return {
        f"{name}{'+' if '@' in name else '@'}{count}models": value
        for name, value in metrics.items()
    }


def _print(
    console: Console,
    task: Task,
    members: Sequence[Member],
    scores: Sequence[Scores],
    together: dict[str, float],
    evaluator: Any,
    split: str,
) -> None:
    """One table: each network alone, all of them together."""
    count = len(members)
    names = [name for name, _ in shown(scores[0].metrics)]
    rows = [
        [_name(member, members), *(text for _, text in shown(found.metrics))]
        for member, found in zip(members, scores, strict=True)
    ]
    rows.append([f"@{count}models", *(text for _, text in shown(together))])
    console.table(f"{count} models on {members[0].data}, {split}", ("", *names), rows)
    for title, value in task.table(evaluator):
        console.say(f"@{count}models, {title}: {value}")


def _name(member: Member, members: Sequence[Member]) -> str:
    """A checkpoint's path from the folder that holds all of them."""
    return os.path.relpath(member.path, os.path.commonpath([one.path.parent for one in members]))
