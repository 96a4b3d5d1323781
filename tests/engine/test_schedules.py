"""Every schedule at every step against torch.optim.lr_scheduler, which has state."""

import inspect
import math

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler

from cnnctl.engine import schedules
from cnnctl.engine.schedules import (
    Constant,
    Cosine,
    MultiStep,
    OneCycle,
    Poly,
    Schedule,
    Step,
    Triangle,
)

PER_EPOCH = 7
ALL = [
    Constant(),
    Step(every=2),
    MultiStep(milestones=(2, 5)),
    Cosine(final=0.1),
    Poly(),
    OneCycle(),
    Triangle(final=0.1),
]


def rates(make, steps: int, lr: float = 0.3) -> list[float]:
    """The learning rates that a torch scheduler gives to the first ``steps`` updates."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler = make(optimizer)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"] / lr)
        optimizer.step()
        scheduler.step()
    return found


def factors(schedule: Schedule, total: int) -> list[float]:
    return [schedule.factor(step, total, PER_EPOCH) for step in range(total)]


@pytest.mark.parametrize(
    ("schedule", "make"),
    [
        (Constant(), lambda o: lr_scheduler.ConstantLR(o, factor=1.0)),
        (Step(every=3, gamma=0.5), lambda o: lr_scheduler.StepLR(o, 3 * PER_EPOCH, 0.5)),
        (Step(every=3, unit="steps"), lambda o: lr_scheduler.StepLR(o, 3, 0.1)),
        (
            MultiStep(milestones=(2, 5, 6), gamma=0.2),
            lambda o: lr_scheduler.MultiStepLR(o, [PER_EPOCH * m for m in (2, 5, 6)], 0.2),
        ),
        (
            MultiStep(milestones=(4, 30), unit="steps"),
            lambda o: lr_scheduler.MultiStepLR(o, [4, 30], 0.1),
        ),
        (Cosine(), lambda o: lr_scheduler.CosineAnnealingLR(o, 60)),
        (Cosine(final=0.05), lambda o: lr_scheduler.CosineAnnealingLR(o, 60, eta_min=0.05 * 0.3)),
        (Poly(), lambda o: lr_scheduler.PolynomialLR(o, 60, power=0.9)),
        (Poly(power=2.0), lambda o: lr_scheduler.PolynomialLR(o, 60, power=2.0)),
    ],
)
def test_equals_torch_at_every_step(schedule, make):
    assert factors(schedule, 60) == pytest.approx(rates(make, 60), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("total", [4, 10, 57, 1000])
@pytest.mark.parametrize("rise", [0.3, 0.45, 0.75])
def test_one_cycle_equals_torch_at_every_step(total, rise):
    expected = rates(
        lambda o: lr_scheduler.OneCycleLR(
            o, 0.3, total_steps=total, pct_start=rise, cycle_momentum=False
        ),
        total,
    )
    schedule = OneCycle(rise=rise, start=1 / 25, final=1 / 25 / 1e4)  # torch's own
    assert factors(schedule, total) == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_one_cycle_without_a_rise_is_a_cosine_to_its_last_step():
    expected = rates(lambda o: lr_scheduler.CosineAnnealingLR(o, 19, 4e-6 * 0.3), 20)
    assert factors(OneCycle(rise=0), 20) == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert factors(OneCycle(rise=0.05), 20) == factors(OneCycle(rise=0), 20)  # a rise of one step


@pytest.mark.parametrize(
    ("schedule", "total"),
    [
        (Triangle(rise=0.23, start=0.2, final=0.07), 476),
        (Triangle(rise=0.1, final=0), 30),
        (Triangle(rise=0), 7),
    ],
)
def test_a_triangle_is_two_straight_lines(schedule, total):
    top = int(schedule.rise * total)
    corners, heights = [0, top, total], [schedule.start, 1.0, schedule.final]
    corners, heights = (corners, heights) if top else (corners[1:], heights[1:])
    expected = np.interp(np.arange(total), corners, heights)
    assert factors(schedule, total) == pytest.approx(expected)


@pytest.mark.parametrize("warmup", [1, 2.5, 0.1])
def test_warm_up_is_torchs_linear(warmup):
    warm = round(warmup * PER_EPOCH)
    expected = rates(
        lambda o: lr_scheduler.LinearLR(o, start_factor=1 / (warm + 1), total_iters=warm), 40
    )
    assert factors(Constant(warmup=warmup), 40) == pytest.approx(expected)


@pytest.mark.parametrize("schedule", ALL, ids=lambda s: type(s).__name__)
def test_without_warm_up_training_starts_at_the_full_rate(schedule):
    start = schedule.start if isinstance(schedule, (OneCycle, Triangle)) else 1.0
    assert schedule.factor(0, 50, PER_EPOCH) == pytest.approx(start)


@pytest.mark.parametrize("cls", [Cosine, Poly])
def test_the_curve_begins_after_the_warm_up(cls):
    warm = 2 * PER_EPOCH
    found = factors(cls(warmup=2), 60)
    assert found[:warm] == pytest.approx([(s + 1) / (warm + 1) for s in range(warm)])
    assert found[warm:] == pytest.approx(factors(cls(), 60 - warm))


@pytest.mark.parametrize(
    ("schedule", "plain"),
    [
        (Step(every=3, warmup=1), Step(every=3)),
        (MultiStep(milestones=(2, 5), warmup=1), MultiStep(milestones=(2, 5))),
    ],
)
def test_drops_are_counted_from_the_start_of_the_run(schedule, plain):
    assert factors(schedule, 60)[PER_EPOCH:] == factors(plain, 60)[PER_EPOCH:]


def test_a_drop_within_the_warm_up_leaves_it_a_straight_line():
    found = factors(MultiStep(milestones=(1,), warmup=2), 30)
    assert torch.tensor(found[: 2 * PER_EPOCH + 1]).diff().std() < 1e-7
    assert found[2 * PER_EPOCH] == pytest.approx(0.1)


@pytest.mark.parametrize("schedule", ALL, ids=lambda s: type(s).__name__)
def test_says_whether_a_longer_run_changes_the_steps_already_made(schedule):
    changed = factors(schedule, 50) != factors(schedule, 70)[:50]
    assert schedule.depends_on_total is changed


@pytest.mark.parametrize("schedule", ALL, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("total", [1, 2, 3])
@pytest.mark.parametrize("warmup", [0.0, 5.0])
def test_the_shortest_runs_have_finite_rates(schedule, total, warmup):
    schedule.warmup, before = warmup, schedule.warmup
    try:
        found = [schedule.factor(step, total, PER_EPOCH) for step in range(total + 2)]
    finally:
        schedule.warmup = before
    assert all(math.isfinite(factor) and 0 <= factor <= 1 for factor in found)
    assert found[0] > 0


def test_the_cifar_recipe_of_he_et_al():
    schedule = MultiStep(milestones=(32_000, 48_000), unit="steps")
    found = [schedule.factor(step, 64_000, 390) for step in (0, 31_999, 32_000, 47_999, 48_000)]
    assert found == pytest.approx([1, 1, 0.1, 0.1, 0.01])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Constant(warmup=-1), "warmup must not be negative, got -1"),
        (lambda: Constant(warmup=math.nan), "warmup must not be negative, got nan"),
        (lambda: Constant(warmup=math.inf), "warmup"),
        (lambda: Step(every=0), "every must be at least 1, got 0"),
        (lambda: Step(every=1, gamma=0), "gamma must be above 0 and at most 1, got 0"),
        (lambda: Step(every=1, gamma=1.5), "gamma"),
        (lambda: Step(every=1, unit="weeks"), 'unit must be "epochs" or "steps", got "weeks"'),  # type: ignore
        (lambda: MultiStep(milestones=(0, 3)), "milestones must rise"),
        (lambda: MultiStep(milestones=(5, 5)), "milestones must rise"),
        (lambda: MultiStep(milestones=(5, 3)), "milestones must rise"),
        (lambda: Cosine(final=1.1), "final must be from 0 to 1, got 1.1"),
        (lambda: Cosine(final=math.nan), "final"),
        (lambda: Poly(power=0), "power must be positive, got 0"),
        (lambda: OneCycle(rise=1), "rise must be at least 0 and below 1, got 1"),
        (lambda: OneCycle(start=-0.1), "start must be from 0 to 1"),
        (lambda: OneCycle(final=2), "final must be from 0 to 1"),
        (lambda: Triangle(rise=1), "rise must be at least 0 and below 1, got 1"),
        (lambda: Triangle(final=-1), "final must be from 0 to 1, got -1"),
    ],
)
def test_bad_numbers_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_every_schedule_is_tested_here():
    defined = {
        cls
        for _, cls in inspect.getmembers(schedules, inspect.isclass)
        if issubclass(cls, Schedule) and cls is not Schedule
    }
    assert defined == {type(schedule) for schedule in ALL}
