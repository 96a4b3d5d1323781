"""A prediction's time is shared out to its parts, none of it twice."""

from __future__ import annotations

from itertools import count

import pytest

from cnnctl.ops import clock
from cnnctl.ops.clock import Clock, timed


@pytest.fixture(autouse=True)
def ticking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look at the time is a second later than the one before."""
    seconds = count()
    monkeypatch.setattr(clock, "_now", lambda: float(next(seconds)))


def test_each_part_has_its_own_seconds_and_an_inner_part_is_not_counted_twice() -> None:
    with Clock() as asked:
        with timed("convolution"):  # 0 to 1
            pass
        with timed("regions"), timed("convolution"):  # 2 to 5, of which 3 to 4 are another part's
            pass
        with timed("regions"):  # 6 to 7
            pass
    assert asked.seconds == {"convolution": 2.0, "regions": 3.0}


def test_nothing_is_counted_without_a_clock_or_after_it() -> None:
    with timed("regions"):
        pass
    with Clock() as asked:
        pass
    with timed("regions"):
        pass
    assert asked.seconds == {}


def test_the_inner_of_two_clocks_counts_and_a_part_that_fails_is_counted() -> None:
    with Clock() as outer:
        with pytest.raises(ValueError, match="broken"), Clock() as inner, timed("regions"):
            raise ValueError("broken")
        with timed("proposals"):
            pass
    assert inner.seconds == {"regions": 1.0}
    assert outer.seconds == {"proposals": 1.0}
