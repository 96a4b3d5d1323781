"""``cnnctl eval predictions=<json> data=...``: score what any program found, without a network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from cnnctl import build, compose
from cnnctl.data.base import Dataset
from cnnctl.data.coco_results import read_results
from cnnctl.engine import checkpoint
from cnnctl.engine.console import Console
from cnnctl.engine.journal import shown
from cnnctl.errors import Exit, UserError
from cnnctl.metrics.box_rows import DetectionRows, TruthRows
from cnnctl.metrics.detection import Rows
from cnnctl.structures import Targets, collate
from cnnctl.tasks.base import Task

_KEYS = ("data", "task")  # what decides on the truth and on the figures
_AT_ONCE = 64  # images whose masks are taken together


def run(settings: DictConfig, overrides: list[str], config_dir: str | None = None) -> int:
    """The command.

    Args:
        overrides: of ``data`` and ``task``; the task is detection unless they say otherwise.
        config_dir: a folder of the user's own YAML files.

    Raises:
        UserError: the file is not in COCO's results format, or not of this data (code 3).
    """
    if settings.checkpoint is not None:
        raise UserError(
            "is scored alone: a checkpoint makes its own",
            field="predictions",
            advice="leave out predictions= or checkpoint=",
        )
    config, name = _composed(settings, overrides, config_dir)
    task, file = build.task(config), Path(settings.predictions).expanduser()
    if task.results is None:
        raise UserError(
            f"task={task.name} has no predictions in a file",
            field="task",
            advice="task=detect, task=instance or task=pose",
        )
    data = build.truth(config, settings.split)
    evaluator = _scored(task, file, data)
    console = Console()
    found = evaluator.details()
    counts = [(key, found[key]) for key in ("images", "objects", "detections")]
    metrics = evaluator.compute()
    rows = [*shown(metrics), *task.table(evaluator), *((key, f"{n:,}") for key, n in counts)]
    split = None if getattr(data, "undivided", False) else settings.split
    console.table(f"{file.name} on {name}, {split or 'the whole file'}", ("", "value"), rows)
    for table in task.tables(evaluator):
        console.table(*table)
    record = {"predictions": file.name, "data": name, "split": split}
    _write(console, file.with_suffix(".scores.json"), {**record, **metrics, **found})
    return Exit.DONE


def _composed(
    settings: DictConfig, overrides: list[str], config_dir: str | None
) -> tuple[DictConfig, str]:
    """The configuration of data and task, and the option of ``data``."""
    for text in overrides:
        key = text.partition("=")[0].partition(".")[0]
        if key.lstrip("+~") not in _KEYS:
            raise UserError(
                "has no part in scoring predictions",
                field=text.partition("=")[0],
                advice="leave it out: data= and task= have",
            )
    if not any(text.startswith("task=") for text in overrides):
        overrides = ["task=detect", *overrides]
    config = compose.compose("train", overrides, config_dir)
    settled = compose.settings(config)
    settled.trust = settings.trust
    return settled, compose.choices(config)["data"]


def _scored(task: Task, file: Path, data: Dataset) -> Any:
    """An evaluator that holds the detections in a file and the truth."""
    masks = "masks" in task.fields
    points = len(data.skeleton or ()) if "keypoints" in task.fields else 0
    results = read_results(file, data, masks, points)
    evaluator = task.evaluator(data)
    if masks or points:
        for start in range(0, len(data), _AT_ONCE):
            stop = min(start + _AT_ONCE, len(data))
            evaluator.update(results.predictions(start, stop), _targets(data, start, stop))
        return evaluator
    said = DetectionRows(results.image, results.boxes, results.scores, results.labels)
    evaluator.merge([Rows(np.arange(len(data)), said, truth_rows(data))])
    return evaluator


def _targets(data: Any, start: int, stop: int) -> Targets:
    """The truth of some samples as a loader makes it, without their images where that can be."""
    of = data.truth if hasattr(data, "truth") else lambda index: data[index][1]
    nothing = torch.zeros(1, 1, 1, dtype=torch.uint8)
    return collate([(index, nothing, of(index)) for index in range(start, stop)]).targets


def truth_rows(data: Any) -> TruthRows:
    """The boxes of all samples, from the arrays of a data set that has them."""
    every = data.all_truth() if hasattr(data, "all_truth") else None  # None: a part of one without
    if every is not None:
        return TruthRows(**every)
    targets = [data[index][1] for index in range(len(data))]
    image = np.repeat(np.arange(len(data)), [len(target["labels"]) for target in targets])
    names = ("boxes", "labels", "crowd", "difficult", "area")
    columns = {name: np.concatenate([t[name].numpy() for t in targets]) for name in names}
    return TruthRows(image, **columns)


def _write(console: Console, path: Path, record: dict[str, Any]) -> None:
    """All figures beside the predictions; their folder may be one to read only."""
    try:
        checkpoint.write_whole(path, json.dumps(record, indent=1).encode())
    except UserError as error:
        console.say(f"not written: {path}: {error.problem}")
    else:
        console.say(f"written: {path}")
