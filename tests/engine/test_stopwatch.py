"""Turns, their order and their end, by a clock that is set by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from cnnctl.engine import stopwatch
from cnnctl.engine.stopwatch import Times, interleaved, peak_flops


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(stopwatch, "time", SimpleNamespace(perf_counter=lambda: now.seconds))
    return now


@pytest.fixture
def work(clock):
    """(name, seconds of each call) -> a side that takes so long; ``work.order``: who ran."""
    order = []

    def side(name, *seconds):
        left = iter(seconds)

        def run():
            order.append(name)
            clock.seconds += next(left)

        return run

    side.__dict__["order"] = order
    return side


@pytest.mark.parametrize(
    ("seconds", "median", "spread"),
    [
        ((3.0,), 3.0, (3.0, 3.0)),
        ((4.0, 1.0, 2.0, 3.0, 5.0), 3.0, (2.0, 4.0)),
        ((1.0, 2.0), 1.5, (1.25, 1.75)),
        ((7.0, 1.0, 3.0, 5.0), 4.0, (2.5, 5.5)),
    ],
)
def test_median_and_quartiles_by_hand(seconds, median, spread):
    times = Times(seconds)
    assert (times.median, times.spread) == (median, spread)


def test_no_turn_has_no_median():
    assert math.isnan(Times(()).median)


def test_the_order_rotates_and_warm_turns_are_not_timed(work):
    sides = {name: work(name, 100.0, *[seconds] * 3) for name, seconds in (("a", 1.0), ("b", 2.0))}
    sides["c"] = work("c", 50.0, 3.0, 4.0, 5.0)
    times = interleaved(sides, turns=3, warm=1)
    assert "".join(work.order) == "cababcbcacab"
    assert {name: side.seconds for name, side in times.items()} == {
        "a": (1.0, 1.0, 1.0),
        "b": (2.0, 2.0, 2.0),
        "c": (3.0, 4.0, 5.0),
    }


@pytest.mark.parametrize(("budget", "turns"), [(0.0, 3), (9.5, 4), (12.0, 4), (15.5, 6), (None, 8)])
def test_a_budget_ends_it_after_three_turns_at_least(work, budget, turns):
    sides = {name: work(name, 1000.0, *[1.5] * 8) for name in "ab"}
    times = interleaved(sides, turns=8, warm=1, budget=budget)
    assert [len(side.seconds) for side in times.values()] == [turns, turns]


def test_what_is_timed_when_asked_to_stop_is_kept(work):
    sides = {name: work(name, *[1.0] * 9) for name in "ab"}
    times = interleaved(sides, turns=9, warm=0, stop=lambda: len(work.order) == 5)
    assert {name: len(side.seconds) for name, side in times.items()} == {"a": 3, "b": 2}


def test_what_is_done_before_a_side_is_not_timed(clock, work):
    names = []

    def before(name):
        names.append(name)
        clock.seconds += 10

    times = interleaved({"a": work("a", 1, 1), "b": work("b", 2, 2)}, 2, warm=0, before=before)
    assert "".join(names) == "".join(work.order) == "abba"
    assert {name: side.seconds for name, side in times.items()} == {"a": (1, 1), "b": (2, 2)}


def test_the_peak_is_the_larger_of_two_known_numbers_of_operations(monkeypatch, clock):
    def work(seconds, flops):
        def run():
            clock.seconds += seconds

        return run, flops

    monkeypatch.setattr(stopwatch, "_matrix_product", lambda *_: work(0.5, 100))
    monkeypatch.setattr(stopwatch, "_convolution", lambda *_: work(0.25, 75))
    assert peak_flops(torch.device("cpu"), torch.float32) == 300.0


@pytest.mark.parametrize("work", [stopwatch._matrix_product, stopwatch._convolution])
def test_operations_are_those_that_torch_counts(work):
    from torch._subclasses import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    with FakeTensorMode(), FlopCounterMode(display=False) as counter:
        run, flops = work(torch.device("cpu"), torch.bfloat16)
        run()
    assert counter.get_total_flops() == flops
