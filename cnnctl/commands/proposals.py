"""``cnnctl proposals`` and ``cnnctl eval proposals=``: where things may be, made ahead and scored.

No network is asked: a proposal is good where it lies on an object of any class.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from cnnctl import build, compose
from cnnctl.commands.eval_predictions import truth_rows
from cnnctl.commands.proposing import config_name, made, method_of
from cnnctl.data.base import SPLITS, Dataset, NoSplit
from cnnctl.data.proposals.base import ProposalMethod
from cnnctl.engine import checkpoint
from cnnctl.engine.console import Console
from cnnctl.engine.distributed import Processes
from cnnctl.engine.signals import StopFlag, Stopped
from cnnctl.errors import Exit, UserError, nearest

_PARTS = ("data", "task", "proposals", "trainer", "trust")  # of a configuration, that have a say


@dataclass
class Made:
    """The proposals of a split.

    Args:
        boxes: (P, 4) of each image.
        seconds: that one core took for an image.
    """

    data: Dataset
    boxes: Sequence[np.ndarray]
    seconds: float

    def counts(self) -> np.ndarray:
        return np.array([len(rows) for rows in self.boxes], np.int64)


def run(config: DictConfig, chosen: dict[str, str], options: DictConfig) -> int:
    """Make the proposals of each split, and say how many objects they find.

    Args:
        chosen: the option of each group.
        options: ``split`` and ``output``, as conf/recall.yaml has them.

    Returns:
        128 + the signal that stopped it, else 0.

    Raises:
        UserError: there is no such split, no method is named, or as ``proposal_cache.keep``.
    """
    if options.split is not None and options.split not in SPLITS:
        advice = nearest(str(options.split), SPLITS)
        raise UserError(f'there is no split "{options.split}"', field="split", advice=advice)
    console, stop = Console(), StopFlag()
    method = method_of(config, Processes())
    if method is None:
        raise UserError(
            "names no method",
            field="proposals",
            advice=f"choose one of: {', '.join(set(compose.groups()['proposals']) - {'none'})}",
        )
    for remark in method.remarks():
        console.say(remark)
    stop.install()
    record: dict[str, Any] = {"proposals": chosen["proposals"], "settings": method.settings()}
    try:
        for split in [options.split] if options.split else SPLITS:
            try:
                data = build.dataset(config, split)
            except NoSplit:
                if options.split:
                    raise
                continue
            found = _made(config, data, method, console, stop, split)
            record[split] = _told(console, f"{chosen['proposals']} on {chosen['data']}", found)
    except Stopped as stopped:
        console.say("stopped; what is made is kept, and the same command goes on from there")
        return 128 + stopped.signum
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


def _made(
    config: DictConfig,
    data: Dataset,
    method: ProposalMethod,
    console: Console,
    stop: StopFlag,
    split: str,
) -> Made:
    if method.looks:
        kept = made(config, data, method, Processes(), console, stop, split)
        return Made(data, [kept.of(index).numpy() for index in range(len(kept))], kept.seconds)
    boxes, seconds = [], 0.0
    with console.bar_if_slow("images") as show:
        for index in range(len(data)):
            image = data[index][0]
            started = time.perf_counter()
            boxes.append(method.propose(image).numpy())
            seconds += time.perf_counter() - started
            show(index + 1, len(data))
            if stop:
                raise Stopped(stop.signum or 0)
    return Made(data, boxes, seconds / max(1, len(data)))


def _told(console: Console, title: str, found: Made) -> dict[str, Any]:
    """Say what was found in a split; the figures."""
    counts = found.counts()
    middle = float(np.median(counts)) if len(counts) else 0.0
    least, most = int(counts.min(initial=0)), int(counts.max(initial=0))
    return {"images": len(counts), "median": middle, "least": least, "most": most}
