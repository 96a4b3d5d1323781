"""What ``cnnctl bench`` knows by now, and how it is told."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from omegaconf import DictConfig

from cnnctl.commands import bench_file
from cnnctl.commands.bench_subject import Subject
from cnnctl.commands.bench_table import Row, labels, lines, profile_lines, room
from cnnctl.commands.info import scaled
from cnnctl.data.loaders import ResidentLoader
from cnnctl.engine.console import WIDE, Console
from cnnctl.engine.processor import described
from cnnctl.engine.signals import StopFlag


@dataclass
class Bench:
    """What is to be timed and what is known by now."""

    options: DictConfig
    config_dir: str | None
    console: Console
    stop: StopFlag
    subjects: list[Subject] = field(default_factory=list)
    peaks: dict[tuple[str, int], float] = field(default_factory=dict)  # (precision, threads)
    rows: list[Row] = field(default_factory=list)
    profiles: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        return self.subjects[0].machine.device

    def peak(self, subject: Subject) -> float:
        return self.peaks[subject.machine.precision(), subject.threads]


def show(bench: Bench) -> None:
    console = bench.console
    if bench.stop:
        console.say("stopped" if bench.rows else "stopped before anything was timed")
    if not bench.rows:
        return
    by_name = {subject.name: subject for subject in bench.subjects}
    bench.rows = [replace(row, peak=bench.peak(by_name[row.variant])) for row in bench.rows]
    width = min(console.rich.width, WIDE)
    names = [subject.name for subject in bench.subjects]
    called = labels(names, room(bench.rows, width))
    legend = []
    for subject in bench.subjects:
        label = called[subject.name]
        full = [(label, subject.name)] if label.startswith("variant ") else []
        legend += [*full, ("" if full else label, subject.described())]
    console.facts([*legend, ("peak", _peaks(bench))])
    console.say()
    for line in lines(bench.rows, called):
        console.say(line)
    console.say()
    for line in _notes(bench):
        console.say(line)
    if bench.profiles:
        console.say()
        console.say("where a training step goes, of the time in operators")
        for line in profile_lines(bench.profiles, called, width):
            console.say(line)
    if bench.options.json is not None:
        path = bench_file.write(bench.options.json, _record(bench))
        console.say()
        console.say(f"written: {path}")


def _peaks(bench: Bench) -> str:
    several = len({threads for _, threads in bench.peaks}) > 1
    peaks = [
        f"{scaled(flops)}FLOP/s in {name}" + (f" on {threads} threads" if several else "")
        for (name, threads), flops in bench.peaks.items()
    ]
    return f"{', '.join(peaks)} (measured)"


def _notes(bench: Bench) -> Iterator[str]:
    """How the figures are meant."""
    turns = sorted({len(row.times.seconds) for row in bench.rows})
    count = f"{turns[0]}" if len(turns) == 1 else f"{turns[0]} to {turns[-1]}"
    plural = "s" if turns[-1] > 1 else ""
    yield f"ms: median of {count} turn{plural}, ± half of what is between the quartiles"
    yield "speed: images/s over the base's; of peak: FLOP/s over the peak"
    streamed = not isinstance(bench.subjects[0].train, ResidentLoader)
    if streamed and any(row.part == "load" for row in bench.rows):
        yield "load: by one core; a run has trainer.workers processes that do it beside the steps"


def _record(bench: Bench) -> dict[str, Any]:
    return {
        "machine": dict(described(bench.device)),
        "peaks": [
            {"precision": name, "threads": threads, "flops_per_second": flops}
            for (name, threads), flops in bench.peaks.items()
        ],
        "variants": [
            {
                "name": subject.name,
                "words": subject.words,
                "precision": subject.machine.precision(),
                "channels_last": subject.machine.channels_last,
                "compile": subject.trainer.compile,
                "threads": subject.threads,
                "batch_size": subject.trainer.batch_size,
            }
            for subject in bench.subjects
        ],
        "rows": [row.record() for row in bench.rows],
        "profile": bench.profiles,
    }
