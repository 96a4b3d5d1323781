"""The console: progress bars on a terminal, plain lines elsewhere, and tables at the end."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

NOTE_EVERY = 20.0  # seconds between two plain lines within an epoch
SLOW = 1.5  # seconds from which on a short task gets a bar


WIDE = 160  # columns of a table that goes into a file or a pipe: nothing is cut off


class _Rich(RichConsole):
    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # rich itself would end the process


class Console:
    """Speaks for the first process; the others are silent. A closed pipe silences it too."""

    def __init__(self, quiet: bool = False) -> None:
        self.rich = _Rich(quiet=quiet, soft_wrap=True, highlight=False)
        if not self.rich.is_terminal and "COLUMNS" not in os.environ:
            self.rich.width = WIDE
        self.terminal = self.rich.is_terminal and not self.rich.is_dumb_terminal
        self._bars: Progress | None = None

    def say(self, text: str = "") -> None:
        self._print(text, markup=False)

    def facts(self, rows: Sequence[tuple[str, str]]) -> None:
        """Aligned ``name  value`` lines."""
        width = max((len(name) for name, _ in rows), default=0)
        for name, value in rows:
            self.say(f"{name:<{width}}  {value}")

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        table = Table(title=title, title_justify="left")
        for index, column in enumerate(columns):
            table.add_column(column, justify="left" if index == 0 else "right")
        for row in rows:
            table.add_row(*(str(cell) for cell in row))
        self._print(table)

    @contextlib.contextmanager
    def progress(self) -> Iterator[None]:
        """Bars live inside this block; where there is no terminal it does nothing."""
        if not self.terminal:
            yield
            return
        columns = [
            TextColumn("{task.description:<7}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        ]
        with Progress(*columns, console=self.rich, transient=True) as bars:
            self._bars = bars
            try:
                yield
            finally:
                self._bars = None

    def bar(self, name: str, total: int, done: int = 0) -> Bar:
        return Bar(self, self._bars, name, total, done)

    @contextlib.contextmanager
    def bar_if_slow(self, name: str) -> Iterator[Callable[[int, int], None]]:
        """(done, total) -> a bar, once it is plain that what is done in this block takes a while.

        Args:
            name: what is counted, in the plural.
        """
        started, bar = time.monotonic(), None
        with contextlib.ExitStack() as bars:

            def watch(done: int, total: int) -> None:
                nonlocal bar
                seconds = time.monotonic() - started
                if bar is None and seconds > SLOW:
                    bars.enter_context(self.progress())
                    bar = self.bar(name, total, done)
                if bar is not None:
                    rate = done / seconds
                    bar.advance(done, f"{rate:,.{0 if rate >= 10 else 1}f} {name}/s")

            yield watch

    def _print(self, *items: Any, **options: Any) -> None:
        try:
            self.rich.print(*items, **options)
        except OSError:  # `| head` has gone; training has not
            self.rich = RichConsole(quiet=True)
            self._bars = None
            with contextlib.suppress(OSError, ValueError):  # so that what is buffered goes nowhere
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Bar:
    """One line of progress: drawn on a terminal, a plain line now and then elsewhere."""

    def __init__(
        self, console: Console, bars: Progress | None, name: str, total: int, done: int
    ) -> None:
        self._console, self._bars, self.name, self.total, self.done = (
            console,
            bars,
            name,
            total,
            done,
        )
        self._said = time.monotonic()
        self._id = bars.add_task(name, total=total, completed=done, note="") if bars else None

    def advance(self, done: int, note: str = "") -> None:
        self.done = done
        if self._bars is not None and self._id is not None:
            self._bars.update(self._id, completed=done, note=note)
        elif note and time.monotonic() - self._said > NOTE_EVERY:
            self._said = time.monotonic()
            self._console.say(f"{self.name} {done}/{self.total}  {note}")

    def restart(self, total: int, done: int = 0) -> None:
        self.total, self.done = total, done
        if self._bars is not None and self._id is not None:
            self._bars.reset(self._id, total=total, completed=done)

    def close(self) -> None:
        if self._bars is not None and self._id is not None:
            self._bars.remove_task(self._id)
