"""Where the time of a prediction goes: a model names its parts, whoever asks adds them up.

    with Clock() as clock:
        model.predict(images)
    clock.seconds  # {"convolution": 0.012, "regions": 0.004, ...}

Without a clock, which is nearly always, ``timed`` costs a function call.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

# The parts of a detector, as the papers split their times.
PROPOSALS, CONVOLUTION = "proposals", "convolution"
REGIONS, POST_PROCESSING = "regions", "post-processing"
PARTS = (PROPOSALS, CONVOLUTION, REGIONS, POST_PROCESSING)
OTHER = "other"  # what belongs to no part that a model names


class Clock:
    """Adds up the seconds of each part while it is entered; a part within another is not counted
    twice, the inner one has it.

    Attributes:
        seconds: of each part, by its name.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._inner = [0.0]  # seconds of the parts within the one that runs, a level each

    def __enter__(self) -> Clock:
        self._before = _clock.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        _clock.reset(self._before)


_clock: ContextVar[Clock | None] = ContextVar("clock", default=None)


def in_order(names: Iterable[str]) -> list[str]:
    """Each name once: as the papers list them, then a model's own, and ``OTHER`` at the end."""
    there = dict.fromkeys(names)
    own = [name for name in there if name not in PARTS and name != OTHER]
    return [name for name in (*PARTS, *own, OTHER) if name in there]


@contextmanager
def timed(part: str) -> Iterator[None]:
    """What runs within is ``part``; the device's work is waited for where a clock runs."""
    clock = _clock.get()
    if clock is None:
        yield
        return
    started = _now()
    clock._inner.append(0.0)
    try:
        yield
    finally:
        taken = _now() - started
        own = taken - clock._inner.pop()
        clock._inner[-1] += taken
        clock.seconds[part] = clock.seconds.get(part, 0.0) + own


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
