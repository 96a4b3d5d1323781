"""What the console shows while a run has nothing else to say."""

from __future__ import annotations

import io

import pytest
from rich.console import Console as RichConsole

from cnnctl.engine import console as consoles
from cnnctl.engine.console import Console


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """The time in seconds, to be set."""
    now = [100.0]
    monkeypatch.setattr(consoles.time, "monotonic", lambda: now[0])
    return now


def test_what_is_soon_done_has_no_bar(clock, capsys):
    with Console().bar_if_slow("masks") as watch:
        for done in range(1, 5):
            clock[0] += 0.3
            watch(done, 4)
    assert capsys.readouterr().out == ""


def test_what_is_slow_says_so_now_and_then(clock, capsys):
    with Console().bar_if_slow("masks") as watch:
        for done in range(1, 51):
            clock[0] += 1
            watch(done, 50)
    assert capsys.readouterr().out.splitlines() == [
        "masks 23/50  1.0 masks/s",
        "masks 44/50  1.0 masks/s",
    ]


def test_a_terminal_has_a_bar_that_goes_away(clock):
    console, seen = Console(), io.StringIO()
    console.rich = RichConsole(file=seen, force_terminal=True, width=80)
    console.terminal = True
    with console.bar_if_slow("masks") as watch:
        watch(1, 40)
        assert seen.getvalue() == ""
        clock[0] += 2
        watch(10, 40)
        assert console._bars is not None
        (task,) = console._bars.tasks
        assert (task.description, task.completed, task.total) == ("masks", 10, 40)
        assert task.fields["note"] == "5.0 masks/s"
    assert console._bars is None
    assert "masks" in seen.getvalue()
