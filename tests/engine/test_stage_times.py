"""Seconds of stages: evaluation left out, kept with checkpoints, added up over a run's parts."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from cnnctl.engine import stage_times
from cnnctl.engine.stage_times import FILE, StageTimes


@pytest.fixture
def at(monkeypatch):
    """Sets the time, in seconds."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(stage_times, "time", SimpleNamespace(monotonic=lambda: clock.now))

    def move(now: float) -> None:
        clock.now = now

    return move


def test_seconds_by_hand(at):
    times = StageTimes()
    times.begin("finetune")
    at(10)
    times.pause()  # an evaluation of 5 seconds
    at(15)
    times.go_on()
    with times.paused():  # a checkpoint of 2 seconds
        at(17)
    at(19)
    times.begin("svm")
    at(22)
    with times.paused():
        at(50)
        times.keep()
        at(60)
    times.pause()
    with times.paused():  # not counted before, not counted after
        at(70)
    at(100)  # after the last stage nothing counts
    assert times.seconds == {"finetune": 12.0, "svm": 3.0}


def test_a_run_that_goes_on_adds_to_what_its_checkpoint_had(at, tmp_path):
    first = StageTimes()
    first.open(tmp_path, goes_on=False)
    first.begin("train")
    at(4)
    first.keep()
    at(9)  # killed: these five seconds are done again
    assert json.loads((tmp_path / FILE).read_text()) == {"train": 4.0}
    second = StageTimes()
    second.open(tmp_path, goes_on=True)
    second.begin("train")
    at(15)
    second.pause()
    assert second.seconds == {"train": 10.0}


@pytest.mark.parametrize("content", [None, "", "[1]", '{"train": "long"}', '{"train": null}'])
def test_what_cannot_be_read_is_no_reason_to_stop(content, tmp_path):
    if content is not None:
        (tmp_path / FILE).write_text(content)
    times = StageTimes()
    times.open(tmp_path, goes_on=True)
    assert times.seconds == {}


def test_a_new_run_takes_nothing_from_an_attempt_before(tmp_path):
    (tmp_path / FILE).write_text('{"train": 4.0}')
    times = StageTimes()
    times.open(tmp_path, goes_on=False)
    assert times.seconds == {}
