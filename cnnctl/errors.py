"""The one exception for a user's mistake or a machine's fault, and the program's exit codes."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from enum import IntEnum
from os import PathLike


class Exit(IntEnum):
    """What the process returns; scripts may rely on it."""

    DONE = 0
    BUG = 1  # a fault in cnnctl itself; the traceback is in <run>/crash.txt
    CONFIG = 2  # usage or configuration
    DATA = 3
    CHECKPOINT = 4
    MACHINE = 5  # disk, memory, worker, device
    DIVERGED = 6
    BUSY = 7  # the run directory belongs to a live run
    INTERRUPTED = 130  # SIGINT; resumable
    TERMINATED = 143  # SIGTERM; resumable


class UserError(Exception):
    """One sentence a user can act on: what is wrong, where, and what to do.

    Args:
        problem: what is wrong, without the place and without the advice.
        file: the file it is in.
        record: the record within the file (``annotations[12] (id 88)``).
        field: the key or field (``trainer.epochs``, ``bbox[2]``).
        advice: what to type or to change.
        code: the exit code of the program.
    """

    def __init__(
        self,
        problem: str,
        *,
        file: str | PathLike[str] | None = None,
        record: str | None = None,
        field: str | None = None,
        advice: str | None = None,
        code: Exit = Exit.CONFIG,
    ) -> None:
        super().__init__(problem)
        self.problem = problem
        self.file = file
        self.record = record
        self.field = field
        self.advice = advice
        self.code = code

    def __str__(self) -> str:
        place = [str(part) for part in (self.file, self.record, self.field) if part is not None]
        return ": ".join([*place, self.problem])

    def __reduce__(self):  # exceptions with keyword arguments do not survive pickling by default
        return _rebuild, (self.problem, self.__dict__)


def _rebuild(problem: str, state: dict[str, object]) -> UserError:
    error = UserError(problem)
    error.__dict__.update(state)
    return error


def nearest(name: str, options: Iterable[str]) -> str:
    """``did you mean "lenet"?`` for the closest option, or a list of all where none is close."""
    options = sorted(options)
    close = difflib.get_close_matches(name, options, n=1, cutoff=0.6)
    if close:
        return f'did you mean "{close[0]}"?'
    return f"choose one of: {', '.join(options)}" if options else "there is nothing to choose from"
