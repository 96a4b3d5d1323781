"""The jobs of a sweep or a study: run one and record how it ended; rank all of them from disk.

What became of a job is read from its run directory alone (summary.json, error.json, pruned.json,
checkpoints), so that it does not matter which process or machine ran it.
"""

from __future__ import annotations

import csv
import gc
import io
import json
import math
import os
import shutil
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from cnnctl import build, outcome
from cnnctl.commands import train
from cnnctl.commands.request import Request
from cnnctl.engine.checkpoint import write_whole
from cnnctl.engine.console import Console
from cnnctl.engine.journal import Report, show
from cnnctl.engine.run import RunDirectory
from cnnctl.errors import Exit, UserError

FORMAT = 1
DONE, PRUNED, FAILED, STOPPED, WAITING = "done", "pruned", "failed", "stopped", "not started"


@dataclass(frozen=True)
class Job:
    """One run of many, as plain values.

    Args:
        name: of its run directory, below that of the sweep.
        varying: the keys in which the jobs differ, and this one's values.
        overrides: the command line that makes it alone.
        config, chosen: as in ``Request``.
    """

    name: str
    varying: dict[str, str]
    overrides: list[str]
    config: dict[str, Any]
    chosen: dict[str, str]

    def __str__(self) -> str:
        return " ".join(f"{key}={value}" for key, value in self.varying.items()) or self.name


class Pruned(Exception):
    """The report of an evaluation ended a run that does not look promising."""


@dataclass(frozen=True)
class Result:
    """What became of a job."""

    job: Job
    status: str
    summary: dict[str, Any] = field(default_factory=dict)
    error: dict[str, Any] = field(default_factory=dict)

    @property
    def best(self) -> float:
        """The monitored metric; NaN where there is none."""
        value = self.summary.get("best")
        return math.nan if value is None else float(value)

    @property
    def milliseconds(self) -> float | None:
        """Of the network for one image, where that was measured."""
        return self.summary.get("one_image", {}).get("median")


def run(job: Job, directory: Path, report: Report | None = None) -> int:
    """Train ``job`` in ``directory``, which exists; continue where a checkpoint is there.

    Returns:
        the exit code. A failure is printed, and kept in error.json; a fault's traceback in
        crash.txt.
    """
    try:
        RunDirectory.reopen(directory).release()  # a live run's files are not ours to touch
        for name in ("error.json", "pruned.json", "crash.txt"):
            (directory / name).unlink(missing_ok=True)
        resumed = directory if _half_done(directory) else None
        if resumed is None:  # curves of an attempt that never came to a checkpoint
            shutil.rmtree(directory / "tensorboard", ignore_errors=True)
        request = Request(job.config, job.chosen, directory, resumed)
        request.reserved, request.report = True, report
        code = train.run(request)
        # Of several processes the one that failed has printed why.
        return record_failure(job, directory, code, "a process of the run failed") if code else code
    except Pruned:
        write_json(directory / "pruned.json", {"overrides": job.overrides})
        return Exit.DONE
    except UserError as error:
        outcome.report(error)
        return record_failure(job, directory, error.code, str(error))
    except Exception as error:
        (directory / "crash.txt").write_text(traceback.format_exc())
        problem = f"a fault in cnnctl: {type(error).__name__}: {error}"
        crash = directory / "crash.txt"
        outcome.report(UserError(problem, advice=f"the traceback is in {crash}; please report it"))
        return record_failure(job, directory, Exit.BUG, problem)
    finally:
        os.environ.pop("CNNCTL_RUN", None)
        gc.collect()  # the next job in this process starts with the memory of this one


def record_failure(job: Job, directory: Path, code: int, problem: str) -> int:
    """Keep in error.json why a job failed; returns ``code``."""
    if code < 128:  # else it was asked to stop
        what = {"code": int(code), "problem": problem, "overrides": job.overrides}
        write_json(directory / "error.json", what)
    return code


def look(job: Job, directory: Path) -> Result:
    """What the files in a job's directory say."""
    if error := read_json(directory / "error.json"):
        return Result(job, FAILED, error=error)
    if summary := read_json(directory / "summary.json"):
        return Result(job, DONE, summary)
    if (directory / "pruned.json").exists():
        return Result(job, PRUNED)
    return Result(job, STOPPED if _half_done(directory) else WAITING)


def ranked(results: Sequence[Result]) -> list[Result]:
    """Finished ones first, best first; then the others in their order."""

    def place(result: Result) -> tuple[Any, ...]:
        monitor = result.summary.get("monitor", "")
        if result.status != DONE or math.isnan(result.best):
            return (1, _ORDER.index(result.status), monitor, 0.0)
        larger = build.task(OmegaConf.create(result.job.config)).metrics[monitor]
        return (0, 0, monitor, -result.best if larger else result.best)

    return sorted(results, key=place)  # stable: equals stay in the order of the jobs


_ORDER = (DONE, PRUNED, STOPPED, FAILED, WAITING)


def write_csv(path: Path, results: Sequence[Result]) -> None:
    """All that is known of every job, best first; ``results`` are ranked."""
    keys = _keys(results)
    tests = _names(results, "test")
    figures = ("steps", "seconds", "images_per_second", "parameters", "milliseconds")
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    head = ["rank", "job", "status", *keys, "monitor", "best", "best_step"]
    table.writerow([*head, *(f"test/{name}" for name in tests), *figures, "error"])
    for rank, result in enumerate(results, 1):
        summary = result.summary
        table.writerow(
            [
                rank if result.status == DONE else "",
                result.job.name,
                result.status,
                *(result.job.varying.get(key, "") for key in keys),
                *(summary.get(name, "") for name in ("monitor", "best", "best_step")),
                *(summary.get("test", {}).get(name, "") for name in tests),
                *({**summary, "milliseconds": result.milliseconds}.get(n, "") for n in figures),
                result.error.get("problem", ""),
            ]
        )
    write_whole(path, text.getvalue().encode())


def show_table(console: Console, title: str, results: Sequence[Result]) -> None:
    """The ranked table on the screen, and below it why the failed ones failed."""
    keys = _keys(results)
    monitors = list(dict.fromkeys(r.summary["monitor"] for r in results if r.summary))
    lines = {name for r in results for name in build.task(OmegaConf.create(r.job.config)).line}
    tests = [name for name in _names(results, "test") if name in monitors or name in lines]
    timed = any(result.milliseconds is not None for result in results)
    columns = ["", *(_short(keys) or ["job"]), *(f"val {name}" for name in monitors), "step"]
    columns += [*(f"test {name}" for name in tests), "seconds"]
    columns += [*["ms an image"] * timed, "status"]
    rows = []
    for rank, result in enumerate(results, 1):
        summary, varying = result.summary, result.job.varying
        bests = {summary.get("monitor"): summary.get("best")}
        scores = summary.get("test", {})
        rows.append(
            [
                rank if result.status == DONE else "",
                *([varying.get(key, "") for key in keys] or [result.job.name]),
                *(_cell(name, bests.get(name)) for name in monitors),
                summary.get("best_step", ""),
                *(_cell(name, scores.get(name)) for name in tests),
                f"{summary['seconds']:.1f}" if summary else "",
                *["" if (ms := result.milliseconds) is None else f"{ms:.3g}"] * timed,
                result.status,
            ]
        )
    console.table(title, columns, rows)
    for result in results:
        if result.error:
            console.say(f"failed: {result.job}: {result.error.get('problem', '')}")


def write_plan(path: Path, jobs: Sequence[Job], **more: Any) -> None:
    write_json(path, {"format": FORMAT, **more, "jobs": [asdict(job) for job in jobs]})


def read_plan(path: Path) -> list[Job]:
    """Raises UserError (code 4) where the file is not a plan of ours."""
    plan = read_json(path)
    try:
        if plan["format"] != FORMAT:
            raise KeyError
        return [Job(**job) for job in plan["jobs"]]
    except (KeyError, TypeError):
        raise UserError(
            "is damaged, or not of this version",
            file=path,
            advice="give the sweep a directory of its own",
            code=Exit.CHECKPOINT,
        ) from None


def write_json(path: Path, content: dict[str, Any]) -> None:
    write_whole(path, json.dumps(content, indent=1).encode())


def read_json(path: Path) -> dict[str, Any]:
    """Empty where the file is absent or damaged."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _half_done(directory: Path) -> bool:
    return any((directory / name).exists() for name in ("last.pt", "previous.pt"))


def _keys(results: Sequence[Result]) -> list[str]:
    return list(dict.fromkeys(key for result in results for key in result.job.varying))


def _short(keys: Sequence[str]) -> list[str]:
    """The last part of each dotted key, where that says which key it is."""
    last = [key.rpartition(".")[2] for key in keys]
    return [one if last.count(one) == 1 else key for one, key in zip(last, keys, strict=True)]


def _names(results: Sequence[Result], group: str) -> list[str]:
    return list(dict.fromkeys(name for r in results for name in r.summary.get(group, {})))


def _cell(name: str, value: float | None) -> str:
    return "" if value is None else show(name, value)
