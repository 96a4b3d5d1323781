"""Times of several ways to do the same work, taken in turns in one process, and the hardware's
own limit beside them.

A machine is never twice the same: it warms up, and neighbours come and go. What runs in turns meets
the same of both, so the ratio of two medians repeats where neither of them does.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

LEAST_TURNS = 3  # that every side gets, however small the budget
_PEAK_SECONDS = 0.4  # that each of the two operators of ``peak_flops`` is repeated
_PEAK_REPEATS = 5  # of it at least


@dataclass(frozen=True)
class Times:
    """
    Args:
        seconds: of every turn, in order.
    """

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Seconds; nan without a turn."""
        return self._quantile(0.5)

    @property
    def spread(self) -> tuple[float, float]:
        """Lower and upper quartile, in seconds."""
        return self._quantile(0.25), self._quantile(0.75)

    def _quantile(self, share: float) -> float:
        if not self.seconds:
            return math.nan
        ordered, place = sorted(self.seconds), share * (len(self.seconds) - 1)
        low = int(place)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def interleaved(
    sides: Mapping[str, Callable[[], object]],
    turns: int,
    warm: int = 1,
    device: torch.device | None = None,
    budget: float | None = None,
    stop: Callable[[], object] = bool,
    before: Callable[[str], object] = lambda name: None,
) -> dict[str, Times]:
    """Run every side once a turn, in an order that rotates by one from turn to turn.

    Args:
        sides: by name; what they return is dropped.
        turns: that are timed.
        warm: turns before them that are not.
        device: where the work is; a GPU is waited for before and after each side.
        budget: seconds, after which no turn begins but the first ``LEAST_TURNS``; the warm turns
            do not count.
        stop: whether to end at once; asked before each side. What is timed by then is returned.
        before: called with the name of each side before it runs; its time does not count.

    Returns:
        times of each side, in the order of ``sides``.
    """
    seconds = {name: [] for name in sides}
    for turn, name in _in_turns(list(sides), turns, warm, budget):
        if stop():
            break
        before(name)
        taken = _seconds(sides[name], device)
        if turn >= 0:
            seconds[name].append(taken)
    return {name: Times(tuple(taken)) for name, taken in seconds.items()}


def _in_turns(
    names: list[str], turns: int, warm: int, budget: float | None
) -> Iterator[tuple[int, str]]:
    """(turn, name), the warm turns below 0, until ``budget`` seconds have passed since turn 0."""
    started = time.perf_counter()
    for turn in range(-warm, turns):
        if turn == 0:
            started = time.perf_counter()
        passed = time.perf_counter() - started
        if turn >= LEAST_TURNS and budget is not None and passed >= budget:
            return
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            yield turn, name


def _seconds(work: Callable[[], object], device: torch.device | None) -> float:
    gpu = device is not None and device.type == "cuda"
    if gpu:
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    work()
    if gpu:
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


@torch.inference_mode()
def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s that the device was seen to reach, with as many threads as are set: the best of a
    large matrix product and of a 3 x 3 convolution in channels_last (a multiply-add counts 2)."""
    best = 0.0
    for work, flops in (_matrix_product(device, dtype), _convolution(device, dtype)):
        work()
        shortest, repeats, started = math.inf, 0, time.perf_counter()
        while repeats < _PEAK_REPEATS or time.perf_counter() - started < _PEAK_SECONDS:
            shortest, repeats = min(shortest, _seconds(work, device)), repeats + 1
        best = max(best, flops / shortest)
    return best


def _matrix_product(device: torch.device, dtype: torch.dtype) -> tuple[Callable[[], Tensor], int]:
    side = 8192 if device.type == "cuda" else 1536
    left, right = (torch.rand(side, side, device=device).to(dtype) for _ in range(2))
    return lambda: left @ right, 2 * side**3


def _convolution(device: torch.device, dtype: torch.dtype) -> tuple[Callable[[], Tensor], int]:
    images, channels, side = (256, 512, 28) if device.type == "cuda" else (16, 128, 28)
    layout = torch.channels_last
    pixels = torch.rand(images, channels, side, side, device=device)
    pixels = pixels.to(dtype, memory_format=layout)
    weight = torch.rand(channels, channels, 3, 3, device=device).to(dtype, memory_format=layout)
    flops = 2 * images * side**2 * channels**2 * 9
    return lambda: functional.conv2d(pixels, weight, padding=1), flops
