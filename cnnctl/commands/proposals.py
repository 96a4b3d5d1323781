"""``cnnctl proposals`` and ``cnnctl eval proposals=``: where things may be, made ahead and scored.

No network is asked: a proposal is good where it lies on an object of any class.
"""

from __future__ import annotations

import errno
import io
import json
import math
import os
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from cnnctl import build, compose
from cnnctl.commands.eval_predictions import truth_rows
from cnnctl.commands.proposing import made, method_of
from cnnctl.data.base import SPLITS, Dataset, NoSplit
from cnnctl.data.image_file import printable
from cnnctl.data.proposal_cache import Kept
from cnnctl.data.proposals.base import ProposalMethod
from cnnctl.data.proposed import Computed
from cnnctl.drawing.recall_pictures import recall_curves
from cnnctl.engine.console import Console
from cnnctl.engine.distributed import Processes
from cnnctl.engine.signals import StopFlag, Stopped
from cnnctl.errors import Exit, UserError, nearest
from cnnctl.metrics.proposal_recall import ProposalRecall, Recall

_PARTS = ("data", "task", "proposals", "trainer", "trust")  # of a configuration, that have a say
_ALL = "all"
_IOUS = (0.5, 0.7, 0.9)  # columns of the table on the console


@dataclass(frozen=True)
class Scored:
    """What the proposals of a split come to.

    Args:
        counts: (M,) of each image.
        seconds: for an image.
        clock: what these seconds are of.
    """

    recall: Recall
    counts: np.ndarray
    seconds: float
    clock: str


def run(config: DictConfig, chosen: dict[str, str], options: DictConfig) -> int:
    """Make the proposals of each split, and say how many objects they find.

    Args:
        chosen: the option of each group.
        options: ``split`` and ``output``, as conf/recall.yaml has them.

    Returns:
        128 + the signal that stopped it, else 0.

    Raises:
        UserError: there is no such split, no method is named, the output cannot be what it is to
            be, or as ``proposal_cache.keep``.
    """
    if options.split not in (*SPLITS, _ALL):
        advice = nearest(options.split, [*SPLITS, _ALL])
        raise UserError(f'there is no split "{options.split}"', field="split", advice=advice)
    console, stop = Console(), StopFlag()
    method = method_of(config, Processes())
    if method is None:
        raise UserError(
            "names no method",
            field="proposals",
            advice=nearest("", set(compose.groups()["proposals"]) - {"none"}),
        )
    path = Path(options.output or f"proposals-{chosen['proposals']}-{chosen['data']}.png")
    path = path.expanduser().absolute()
    _require_writable(path)
    for remark in method.remarks():
        console.say(remark)
    stop.install()
    curves: dict[str, Recall] = {}
    record: dict[str, Any] = {"proposals": chosen["proposals"], "settings": method.settings()}
    try:
        for split in SPLITS if options.split == _ALL else [options.split]:
            try:
                data = build.dataset(config, split)
            except NoSplit:
                if options.split != _ALL:
                    raise
                continue
            if method.looks:
                source = made(config, data, method, Processes(), console, stop, split)
            else:
                source = Computed(method)
            found = _scored(data, source, method, console, stop)
            curves[split] = found.recall
            _tell(console, f"{chosen['proposals']} on {chosen['data']}, {split}", found)
            record[split] = _figures(found)
    except Stopped as stopped:
        console.say("stopped; what is made is kept, and the same command goes on from there")
        return 128 + stopped.signum
    _write(console, path, record, recall_curves(curves))
    return Exit.DONE


def alone(settings: DictConfig, overrides: list[str], config_dir: str | None = None) -> int:
    """``cnnctl eval proposals=...``, with no checkpoint: the same on one split.

    Args:
        settings: of ``eval``.
        overrides: keys of ``train`` that say what is proposed in which images.

    Raises:
        UserError: another key is among them, or as ``run``.
    """
    for text in overrides:
        key = text.partition("=")[0]
        if key.lstrip("+~").partition(".")[0] not in _PARTS:
            raise UserError(
                "has no part in scoring proposals",
                field=key,
                advice="leave it out; or name a checkpoint= that is to read the proposals",
            )
    if not any(text.startswith("task=") for text in overrides):
        overrides = ["task=detect", *overrides]
    composed = compose.compose("train", overrides, config_dir)
    config, options = compose.settings(composed), compose.settings(compose.compose("recall", []))
    config.trust, options.split = settings.trust, settings.split
    return run(config, compose.choices(composed), options)


def _require_writable(path: Path) -> None:
    """Before minutes of work: the picture, and the figures beside it."""
    if path.suffix.lower() != ".png":
        problem, advice = "is a picture, and the figures go beside it", path.with_suffix(".png")
    elif path.is_dir() or not path.parent.is_dir():
        problem = "is a folder" if path.is_dir() else "is in a folder that is not there"
        advice = "<another file>.png"
    else:
        for file in (path, path.with_suffix(".json")):
            if not os.access(file if file.exists() else file.parent, os.W_OK):
                raise _not_written(file, os.strerror(errno.EACCES))
        return
    raise UserError(problem, file=printable(path), field="output", advice=f"output={advice}")


def _not_written(file: Path, reason: object) -> UserError:
    return UserError(
        f"cannot be written: {reason}",
        file=printable(file),
        field="output",
        advice="output=<another file>",
        code=Exit.MACHINE,
    )


def _scored(
    data: Dataset, source: Kept | Computed, method: ProposalMethod, console: Console, stop: StopFlag
) -> Scored:
    """How many objects of any class the proposals are on; where these are not kept, images are read
    for their size."""
    truth, recall = truth_rows(data), ProposalRecall()
    ends = np.searchsorted(truth.image, np.arange(len(data) + 1))
    counts = np.zeros(len(data), np.int64)
    with console.bar_if_slow("images") as show:
        for index, (start, end) in enumerate(pairwise(ends.tolist())):
            own = truth.at(np.arange(start, end))
            kept = isinstance(source, Kept)
            boxes = source.of(index) if kept else source.of(index, data[index][0])
            counts[index] = len(boxes)
            columns = (own.boxes, own.crowd | own.difficult)
            columns = (torch.from_numpy(np.ascontiguousarray(column)) for column in columns)
            recall.update(boxes, *columns)
            show(index + 1, len(data))
            if stop:
                raise Stopped(stop.signum or 0)
    clock = "on one core" if method.forks else "of the network, on the wall"
    return Scored(recall.compute(), counts, source.seconds, clock)


def _tell(console: Console, title: str, found: Scored) -> None:
    counts, recall = found.counts, found.recall
    console.table(
        title,
        ("proposals", *(f"recall at IoU {iou:g}" for iou in _IOUS), "average recall"),
        [
            [f"{row['proposals']:,}", *(_percent(row[name]) for name in list(row)[1:])]
            for row in recall.rows()
        ],
    )
    console.facts(
        [
            ("images", f"{recall.images:,} with {recall.objects:,} objects"),
            (
                "proposals",
                f"{np.median(counts):,.0f} an image (median), {counts.min():,} to {counts.max():,}"
                if len(counts)
                else "none",
            ),
            ("time", f"{_seconds(found.seconds)} an image {found.clock}"),
        ]
    )
    if len(counts) and not counts.any():
        console.say("warning: nothing is proposed in any image")


def _seconds(time: float) -> str:
    return f"{time:.3g} s" if time >= 1 else f"{1000 * time:.3g} ms"


def _percent(share: float) -> str:
    return "" if math.isnan(share) else f"{100 * share:.1f}%"


def _figures(found: Scored) -> dict[str, Any]:
    """For other programs: recall[c][t] is that of the first counts[c] proposals at ious[t]."""
    counts, recall = found.counts, found.recall
    share = [[None if math.isnan(s) else s for s in row] for row in recall.recall.tolist()]
    return {
        "images": recall.images,
        "objects": recall.objects,
        "proposals_an_image": {
            "median": float(np.median(counts)) if len(counts) else 0.0,
            "least": int(counts.min(initial=int(counts.max(initial=0)))),
            "most": int(counts.max(initial=0)),
        },
        "seconds_an_image": found.seconds,
        "seconds_are": found.clock,
        "ious": list(recall.ious),
        "counts": list(recall.counts),
        "recall": share,
        "average_recall": [None if math.isnan(s) else s for s in recall.average.tolist()],
    }


def _write(console: Console, path: Path, record: dict[str, Any], picture: torch.Tensor) -> None:
    """The figure, and all numbers beside it."""
    from PIL import Image

    encoded = io.BytesIO()
    Image.fromarray(picture.numpy()).save(encoded, "PNG")
    for file, content in (
        (path, encoded.getvalue()),
        (path.with_suffix(".json"), json.dumps(record, indent=1).encode()),
    ):
        try:
            file.write_bytes(content)
        except OSError as error:
            raise _not_written(file, error.strerror or error) from None
        console.say(f"written: {file}")
