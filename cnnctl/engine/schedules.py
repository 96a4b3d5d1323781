"""Learning-rate schedules: pure functions of the step, so that a run resumes by a jump.

``schedule.factor(step, total, per_epoch)`` times the optimizer's learning rate is the rate of
update number ``step`` (from 0) of ``total``. Nothing here has state.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from itertools import pairwise
from typing import ClassVar, Literal


class Schedule(ABC):
    """A curve, after a linear warm-up.

    With w steps of warm-up the factors start at 1 / (w + 1) of the curve's first one and rise by
    equal amounts to reach it with the first step after (torch's LinearLR with that start factor).

    Args:
        warmup: length in epochs; a fraction is rounded to whole steps.
    """

    depends_on_total: ClassVar[bool]  # does a longer run change the rates of steps already made?

    def __init__(self, warmup: float = 0.0) -> None:
        if not 0 <= warmup < math.inf:
            raise ValueError(f"warmup must not be negative, got {warmup}")
        self.warmup = warmup

    def factor(self, step: int, total: int, per_epoch: int) -> float:
        """The share of the learning rate that update ``step`` is made with.

        Args:
            step: 0 for the first update.
            total: updates in the whole run.
            per_epoch: updates in an epoch.
        """
        warm = round(self.warmup * per_epoch)
        if step < warm:
            return self.curve(warm, warm, total, per_epoch) * (step + 1) / (warm + 1)
        return self.curve(step, warm, total, per_epoch)

    @abstractmethod
    def curve(self, step: int, warm: int, total: int, per_epoch: int) -> float:
        """The factor at ``step`` >= ``warm``, the first step after the warm-up."""


class Constant(Schedule):
    """The learning rate as it is."""

    depends_on_total = False

    def curve(self, step: int, warm: int, total: int, per_epoch: int) -> float:
        return 1.0


class Step(Schedule):
    """Multiply by ``gamma`` after every ``every`` epochs or steps, counted from the run's start.

    Args:
        every: a whole number of ``unit``.
    """

    depends_on_total = False

    def __init__(
        self,
        every: int,
        gamma: float = 0.1,
        unit: Literal["epochs", "steps"] = "epochs",
        warmup: float = 0.0,
    ) -> None:
        super().__init__(warmup)
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        self.every = every
        self.gamma = _decay(gamma)
        self.in_epochs = _in_epochs(unit)

    def curve(self, step: int, warm: int, total: int, per_epoch: int) -> float:
        return self.gamma ** (step // (self.every * (per_epoch if self.in_epochs else 1)))


class MultiStep(Schedule):
    """Multiply by ``gamma`` at each milestone, counted from the run's start.

    Args:
        milestones: rising whole numbers of ``unit``; the update with that number is the first
            with the lower rate.
    """

    depends_on_total = False

    def __init__(
        self,
        milestones: tuple[int, ...],
        gamma: float = 0.1,
        unit: Literal["epochs", "steps"] = "epochs",
        warmup: float = 0.0,
    ) -> None:
        super().__init__(warmup)
        if any(before >= after for before, after in pairwise((0, *milestones))):
            raise ValueError(f"milestones must rise from 1 or more, got {list(milestones)}")
        self.milestones = milestones
        self.gamma = _decay(gamma)
        self.in_epochs = _in_epochs(unit)

    def curve(self, step: int, warm: int, total: int, per_epoch: int) -> float:
        passed = step // per_epoch if self.in_epochs else step
        return self.gamma ** bisect_right(self.milestones, passed)


class Cosine(Schedule):
    """Half a cosine from 1 to ``final`` over the steps after the warm-up.

    Loshchilov and Hutter, arXiv:1608.03983, equation 5 without restarts.

    Args:
        final: the factor that the end of the run would have, one step after the last.
    """

    depends_on_total = True

    def __init__(self, final: float = 0.0, warmup: float = 0.0) -> None:
        super().__init__(warmup)
        if not 0 <= final <= 1:
            raise ValueError(f"final must be from 0 to 1, got {final}")
        self.final = final

    def curve(self, step: int, warm: int, total: int, per_epoch: int) -> float:
        return _between(1.0, self.final, _progress(step - warm, total - warm))


class Poly(Schedule):
    """(1 - t) ** ``power`` over the steps after the warm-up, t from 0 to 1.

    Chen et al., "DeepLab", arXiv:1606.00915, section 4.1.2, which takes a power of 0.9.
    """

    depends_on_total = True

    def __init__(self, power: float = 0.9, warmup: float = 0.0) -> None:
        super().__init__(warmup)
        if not 0 < power < math.inf:
            raise ValueError(f"power must be positive, got {power}")
        self.power = power

    def curve(self, step: int, warm: int, total: int, per_epoch: int) -> float:
        return (1 - _progress(step - warm, total - warm)) ** self.power


class OneCycle(Schedule):
    """Up to the learning rate and down to almost nothing, along two half cosines.

    Smith and Topin, "Super-convergence", arXiv:1708.07120, in the form of torch's OneCycleLR; the
    momentum is left alone. Its rising part is a warm-up, so it has no other.

    Args:
        rise: the share of the run that goes up.
        start: the factor of the first update.
        final: the factor of the last update.
    """

    depends_on_total = True

    def __init__(self, rise: float = 0.3, start: float = 0.04, final: float = 4e-6) -> None:
        super().__init__()
        _check_shares(rise, start=start, final=final)
        self.rise, self.start, self.final = rise, start, final

    def curve(self, step: int, warm: int, total: int, per_epoch: int) -> float:
        top = max(0.0, self.rise * total - 1)  # the step of the highest rate, not always whole
        if step < top:
            return _between(self.start, 1.0, _progress(step, top))
        return _between(1.0, self.final, _progress(step - top, total - 1 - top))


class Triangle(Schedule):
    """Up to the learning rate and down again along two straight lines.

    Smith, arXiv:1506.01186, section 3.1, with one period. Its rising part is a warm-up, so it has
    no other.

    Args:
        rise: the share of the run that goes up, cut to whole steps.
        start: the factor of the first update.
        final: the factor that the end of the run would have, one step after the last.
    """

    depends_on_total = True

    def __init__(self, rise: float = 0.25, start: float = 0.2, final: float = 0.0) -> None:
        super().__init__()
        _check_shares(rise, start=start, final=final)
        self.rise, self.start, self.final = rise, start, final

    def curve(self, step: int, warm: int, total: int, per_epoch: int) -> float:
        top = int(self.rise * total)
        if step < top:
            return self.start + (1 - self.start) * _progress(step, top)
        return 1 - (1 - self.final) * _progress(step - top, total - top)


def _progress(step: float, steps: float) -> float:
    """How much of ``steps`` is done, 0..1; a stretch without steps is at its start."""
    return min(1.0, step / steps) if steps > 0 else 0.0


def _between(start: float, end: float, progress: float) -> float:
    """From ``start`` to ``end`` along half a cosine."""
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def _check_shares(rise: float, **factors: float) -> None:
    """Raises ValueError where one is out of range."""
    if not 0 <= rise < 1:
        raise ValueError(f"rise must be at least 0 and below 1, got {rise}")
    for name, value in factors.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must be from 0 to 1, got {value}")


def _decay(gamma: float) -> float:
    if not 0 < gamma <= 1:
        raise ValueError(f"gamma must be above 0 and at most 1, got {gamma}")
    return gamma


def _in_epochs(unit: str) -> bool:
    if unit not in ("epochs", "steps"):
        raise ValueError(f'unit must be "epochs" or "steps", got "{unit}"')
    return unit == "epochs"
