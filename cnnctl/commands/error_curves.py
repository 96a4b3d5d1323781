"""error_curves.png of a sweep whose runs scored their training images too."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf

from cnnctl import build
from cnnctl.commands.jobs import Result
from cnnctl.drawing.curve_pictures import Curves, error_curves
from cnnctl.engine.checkpoint import disk_error


def draw_errors(results: Sequence[Result], directory: Path) -> Path | None:
    """Error of training and held-out images by epoch; None where fewer than two runs have both.

    Of a sweep over two keys or more each value of the first has a panel of its own.
    """
    from PIL import Image

    finished = sorted((r for r in results if r.summary), key=lambda r: _number(r.job.name))
    found = [(result, curves_of(result, directory)) for result in finished]
    drawn = [(result, curves) for result, curves in found if curves is not None]
    if len(drawn) < 2:
        return None
    path = directory / "error_curves.png"
    try:
        picture = error_curves([curves for _, curves in drawn], drawn[0][0].summary["monitor"])
        Image.fromarray(picture.numpy()).save(path)
    except OSError as error:
        raise disk_error(error, path) from None
    return path


def curves_of(result: Result, directory: Path) -> Curves | None:
    """What metrics.jsonl says of a run; None where it has no curve of its training images."""
    metric = result.summary["monitor"]
    if not build.task(OmegaConf.create(result.job.config)).metrics[metric]:
        return None  # a loss: 1 less it is no error
    try:
        lines = (directory / result.job.name / "metrics.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
    except (OSError, ValueError):
        return None
    both = [record for record in records if f"on_train/{metric}" in record]
    if len(both) < 2:  # what is fitted at once has no curve
        return None
    words = [f"{key.rpartition('.')[2]} {value}" for key, value in result.job.varying.items()]
    test = result.summary.get("test", {}).get(metric)
    return Curves(
        name=", ".join(words[1:] or words),
        panel=words[0] if words[1:] else "",
        epochs=[record["epoch"] for record in both],
        train=[1 - record[f"on_train/{metric}"] for record in both],
        held_out=[1 - record[f"val/{metric}"] for record in both],
        test=None if test is None else 1 - test,
    )


def _number(name: str) -> int:
    """Of a job in its sweep: its name begins with it."""
    return int(name.partition("_")[0])
