"""``cnnctl bench``: how fast a configuration and variants of it load, train and evaluate, timed in
turns in one process, beside what the machine was seen to reach; and where the time goes.

Nothing of a run is left: no directory, no checkpoint. The machine's limit is measured too, because
no data sheet says what a part of a shared machine can do today.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from omegaconf import DictConfig

from cnnctl.commands import bench_file, bench_start
from cnnctl.commands.bench_report import Bench, show
from cnnctl.commands.bench_subject import BASE, Subject, Workshop, named
from cnnctl.commands.bench_table import Row
from cnnctl.commands.bench_work import Work, evaluating, gradient_stage, loading, stepping
from cnnctl.engine.console import Console
from cnnctl.engine.operator_times import shares
from cnnctl.engine.processor import described, held_for
from cnnctl.engine.signals import StopFlag, Stopped
from cnnctl.engine.stopwatch import Times, interleaved, peak_flops
from cnnctl.errors import Exit, UserError, nearest

START = "start"
_WORKS: dict[str, Callable[[Subject], Work]] = {
    "load": loading,
    "step": stepping,
    "evaluate": evaluating,
}
PARTS = (*_WORKS, START)
_PROFILED = 3  # steps


def run(options: DictConfig, words: list[str], config_dir: str | None = None) -> int:
    """The command.

    Args:
        options: the keys of conf/bench.yaml.
        words: of the command line, those of ``train``.

    Raises:
        UserError: a key is out of range, a variant does not compose or cannot be compared, or the
            machine cannot do what one asks for.
    """
    _check(options)
    bench = Bench(options, config_dir, Console(), StopFlag())
    bench.stop.install()
    with _process_as_it_was():
        try:
            workshop = Workshop(words, config_dir, bench.console, bench.stop)
            bench.subjects = workshop.subjects(list(options.variants))
            _check_stages(bench)
            _measure_peaks(bench)
            _introduce(bench)
            for part in options.parts:
                if not bench.stop:
                    _time(bench, part)
            _measure_peaks(bench)  # others may have been busy the first time
        except Stopped:
            pass  # the flag is set
        except UserError:
            show(bench)  # what was timed before it
            raise
    show(bench)
    return Exit.DONE if bench.stop.signum is None else 128 + bench.stop.signum


def _check(options: DictConfig) -> None:
    for part in options.parts:
        if part not in PARTS:
            raise UserError(f'there is no "{part}"', field="parts", advice=nearest(part, PARTS))
    for name in ("parts", "variants"):
        twice = [one for one in options[name] if list(options[name]).count(one) > 1]
        if twice:
            raise UserError(f'has "{twice[0]}" twice', field=name)
    if not options.parts:
        raise UserError("is empty", field="parts", advice=f"take some of {', '.join(PARTS)}")
    if any(not one.strip() or one == BASE for one in options.variants):
        raise UserError(
            "has one that changes nothing",
            field="variants",
            advice="write each as overrides: variants=[trainer.precision=fp32]",
        )
    if options.turns < 1:
        raise UserError(f"must be at least 1, not {options.turns}", field="turns")
    if not options.budget > 0:
        raise UserError(f"must be positive, not {options.budget:g}", field="budget")
    bench_file.check(options.json)


def _check_stages(bench: Bench) -> None:
    """What is fitted at once has no training step, and before that nothing to say."""
    if {"step", "evaluate"} & set(bench.options.parts):
        for subject in bench.subjects:
            with named(subject.name):
                gradient_stage(subject)


@contextmanager
def _process_as_it_was() -> Iterator[None]:
    threads, benchmark = torch.get_num_threads(), torch.backends.cudnn.benchmark
    deterministic = torch.are_deterministic_algorithms_enabled()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
        torch.backends.cudnn.benchmark = benchmark


def _measure_peaks(bench: Bench) -> None:
    """Of every precision and number of threads that a subject has; the best that was seen."""
    seen: dict[tuple[str, int], float] = {}
    for subject in bench.subjects:
        name = (subject.machine.precision(), subject.threads)
        if name not in seen and not bench.stop:
            subject.take_turn()
            seen[name] = peak_flops(subject.machine.device, subject.machine.dtype)
    for name, flops in seen.items():
        bench.peaks[name] = max(flops, bench.peaks.get(name, 0.0))


def _introduce(bench: Bench) -> None:
    console, base = bench.console, bench.subjects[0]
    data = base.train.dataset
    size = " x ".join(map(str, (data.channels, *base.train.augmentation.size)))
    console.say(f"{base.chosen['model']} on {base.chosen['data']}, {len(data):,} images of {size}")
    console.say()
    console.facts(described(bench.device))
    console.say()


def _time(bench: Bench, part: str) -> None:
    if part == START:
        _time_starts(bench)
        return
    device, works = bench.device, {}
    flops: dict[str, int] = {}
    for subject in bench.subjects:
        if bench.stop:
            return
        with subject.faults_named():
            work = works[subject.name] = _WORKS[part](subject)
            work.ready()
            flops[subject.name] = _flops(work.run)
    taken = _interleaved(bench, part, {name: work.run for name, work in works.items()}, works)
    memory: dict[str, int | None] = dict.fromkeys(works)
    for subject in bench.subjects:
        if bench.stop:
            break
        work = works[subject.name]
        work.ready()
        with subject.faults_named():
            held = held_for(work.run, device)
            memory[subject.name] = None if held is None else held + work.own()
            if part == "step" and bench.options.profile:
                work.run()
                steps = [work.run] * _PROFILED
                bench.profiles[subject.name] = shares(lambda steps=steps: _all(steps), device)
    for subject in bench.subjects:
        name, images = subject.name, works[subject.name].images
        _add(bench, part, name, taken, images, flops[name], memory[name])


def _all(works: Sequence[Callable[[], object]]) -> None:
    for work in works:
        work()


def _flops(work: Callable[[], object]) -> int:
    """Of the operators that ``work`` calls; a compiled network is asked as it was written."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def _interleaved(
    bench: Bench,
    part: str,
    sides: Mapping[str, Callable[[], object]],
    works: Mapping[str, Work],
    warm: int = 1,
) -> dict[str, Times]:
    options, by_name = bench.options, {subject.name: subject for subject in bench.subjects}
    done = 0
    with bench.console.progress():
        bar = bench.console.bar(part, (options.turns + warm) * len(sides))

        def before(name: str) -> None:
            nonlocal done
            bar.advance(done, name)
            done += 1
            if name in works:
                works[name].ready()

        def faulted(name: str) -> Callable[[], object]:
            def run() -> None:
                with by_name[name].faults_named():
                    sides[name]()

            return run if name in works else sides[name]

        return interleaved(
            {name: faulted(name) for name in sides},
            options.turns,
            warm,
            bench.device,
            options.budget / len(options.parts),
            lambda: bench.stop,
            before,
        )


def _time_starts(bench: Bench) -> None:
    sides: dict[str, Callable[[], object]] = {**bench_start.answering()}
    for subject in bench.subjects:
        sides[subject.name] = _first_step(subject, bench)
    cut: list[str] = []
    apart = {name: _apart(name, side, bench, cut) for name, side in sides.items()}
    taken = _interleaved(bench, START, apart, {}, warm=0)
    for name in cut:
        taken[name] = Times(taken[name].seconds[:-1])
    for part in (bench_start.HELP, bench_start.MISTAKE):
        _add(bench, part, BASE, {BASE: taken[part]}, 0, None, None)
    for subject in bench.subjects:
        _add(bench, bench_start.FIRST_STEP, subject.name, taken, 0, None, None)


def _first_step(subject: Subject, bench: Bench) -> Callable[[], None]:
    def run() -> None:
        with named(subject.name):
            bench_start.first_step(subject.words, bench.config_dir)

    return run


def _apart(
    name: str, side: Callable[[], object], bench: Bench, cut: list[str]
) -> Callable[[], None]:
    """``side`` in a process of its own, which a Ctrl-C ends too: it is then ``cut``."""

    def run() -> None:
        try:
            side()
        except UserError:
            if not bench.stop:
                raise
            cut.append(name)

    return run


def _add(
    bench: Bench,
    part: str,
    name: str,
    taken: dict[str, Times],
    images: int,
    flops: int | None,
    memory: int | None,
) -> None:
    """A row of what was timed, if anything was; the peak comes when all is timed."""
    if not taken[name].seconds:
        return
    base = next((row for row in bench.rows if (row.part, row.variant) == (part, BASE)), None)
    row = Row(part, name, taken[name], images, flops, None, memory, 1.0)
    if base is not None:
        row = replace(row, ratio=row.rate / base.rate)
    bench.rows.append(row)
