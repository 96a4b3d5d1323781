"""What a sweep over detectors says of time: tables of its parts and of how many times as fast each
is as the slowest, beside the papers', and time_parts.png.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from cnnctl import build
from cnnctl.commands.jobs import Result
from cnnctl.drawing.time_pictures import TimedDetector, time_parts
from cnnctl.engine.checkpoint import disk_error
from cnnctl.engine.console import Console
from cnnctl.engine.journal import show
from cnnctl.ops.clock import PROPOSALS, in_order


@dataclass(frozen=True)
class Timed:
    """A finished job whose network names the parts of its predictions.

    Args:
        name: what it differs in from the others.
        metric, accuracy: AP50 on the test images where there is one, else what chose best.pt.
        stages: seconds of each training stage.
        milliseconds: of an image in testing; parts: likewise, of each part.
        published: seconds of an image by its paper, (proposals, the rest), or None.
    """

    name: str
    metric: str
    accuracy: float
    stages: dict[str, float]
    milliseconds: float
    parts: dict[str, float]
    published: tuple[float, float] | None

    def times(self, proposals: bool) -> tuple[float, float]:
        """(ours in ms, the paper's in s, or NaN), with proposals or without."""
        ours = self.milliseconds - (0 if proposals else self.parts.get(PROPOSALS, 0.0))
        if self.published is None:
            return ours, math.nan
        return ours, sum(self.published) if proposals else self.published[1]


def show_time_parts(console: Console, results: Sequence[Result], directory: Path) -> None:
    """Tables and picture, in the order of the jobs; nothing where fewer than two were timed so."""
    found = [timed(result) for result in sorted(results, key=lambda r: _number(r.job.name))]
    rows = [one for one in found if one is not None]
    if len(rows) < 2:
        return
    base = slowest(rows)
    _show_parts(console, rows)
    _show_ratios(console, rows, base)
    path = directory / "time_parts.png"
    _draw(rows, base, path)
    console.say(f"where the time goes: {path}")


def timed(result: Result) -> Timed | None:
    """What a job's summary says; None where it was not timed by parts."""
    summary = result.summary
    one_image: dict[str, Any] = summary.get("one_image", {})
    if not one_image.get("parts"):
        return None
    test = summary["test"]
    metric = next((name for name in test if name.endswith("ap50")), summary["monitor"])
    model = build.target(OmegaConf.create(result.job.config), "model")
    return Timed(
        name=", ".join(result.job.varying.values()) or result.job.name,
        metric=metric,
        accuracy=test.get(metric, math.nan),
        stages=summary.get("stages", {}),
        milliseconds=one_image["median"],
        parts=one_image["parts"],
        published=vars(model).get("published_seconds"),  # not those of what it derives from
    )


def slowest(rows: Sequence[Timed]) -> Timed:
    """What the others are compared with: the slowest by the papers, or where they say nothing the
    slowest here."""
    said = [one for one in rows if one.published is not None]
    if said:
        return max(said, key=lambda one: one.times(True)[1])
    return max(rows, key=lambda one: one.milliseconds)


def _show_parts(console: Console, rows: Sequence[Timed]) -> None:
    parts = in_order(part for one in rows for part in one.parts)
    cells = [
        [
            one.name,
            show(one.metric, one.accuracy),
            training(one.stages),
            _figure(one.milliseconds),
            *(_figure(one.parts[part]) if part in one.parts else "" for part in parts),
        ]
        for one in rows
    ]
    title = "where the time goes: training in seconds, an image in milliseconds"
    columns = ["", rows[0].metric, "training", "image", *parts]
    console.table(title, columns, cells)


def training(stages: dict[str, float]) -> str:
    """All stages together, and each where there are several."""
    total = _figure(sum(stages.values()))
    if len(stages) < 2:
        return total
    return f"{total} ({', '.join(f'{name} {_figure(taken)}' for name, taken in stages.items())})"


def _show_ratios(console: Console, rows: Sequence[Timed], base: Timed) -> None:
    cells = []
    for one in rows:
        ratios = [ratio for proposals in (True, False) for ratio in _times(one, base, proposals)]
        papers = [_figure(one.times(proposals)[1]) for proposals in (True, False)]
        said = f"{papers[0]} ({papers[1]} without)" if papers[0] else ""
        cells.append([one.name, *ratios, said])
    columns = ["", "here", "papers", "here, without proposals", "papers, without", "papers, s"]
    console.table(f"times as fast as {base.name}, and what the papers say", columns, cells)


def _times(one: Timed, base: Timed, proposals: bool) -> tuple[str, str]:
    """How many times as fast as ``base``, here and by the papers."""
    pairs = zip(one.times(proposals), base.times(proposals), strict=True)
    ours, papers = (slow / fast if fast else math.nan for fast, slow in pairs)
    return tuple("" if math.isnan(r) else f"{_figure(r)}x" for r in (ours, papers))  # pyright: ignore


def _figure(value: float) -> str:
    """Two digits at least; empty where there is none."""
    if math.isnan(value):
        return ""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _draw(rows: Sequence[Timed], base: Timed, path: Path) -> None:
    from PIL import Image

    drawn = [
        TimedDetector(one.name, one.parts, one.milliseconds, one.accuracy, _remark(one, base))
        for one in rows
    ]
    try:
        Image.fromarray(time_parts(drawn, rows[0].metric).numpy()).save(path)
    except OSError as error:
        raise disk_error(error, path) from None


def _remark(one: Timed, base: Timed) -> str:
    if one is base:
        return "1x"
    ours, papers = _times(one, base, proposals=True)
    return f"{ours} as fast" + (f" (papers {papers})" if papers else "")


def _number(name: str) -> int:
    """Of a job in its sweep: its name begins with it."""
    return int(name.partition("_")[0])
