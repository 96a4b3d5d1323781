"""A search space in Hydra's grammar: ``model=lenet,mlp``, ``range(1,5)``, ``interval(0.1,1)``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cnnctl import compose
from cnnctl.commands.combinations import config_loader
from cnnctl.errors import UserError


@dataclass(frozen=True)
class Dimension:
    """A key that is searched: ``suggest`` takes an Optuna trial and gives its value as text."""

    text: str  # as on the command line
    probes: list[str]  # values that are checked before the search starts
    suggest: Callable[[Any], str]


def search_space(overrides: list[str]) -> tuple[list[str], dict[str, Dimension]]:
    """The overrides that are the same in every run, and the dimensions of the others.

    Raises:
        UserError: an override cannot be read, or none has more than one value.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    fixed, space = [], {}
    try:
        parsed = OverridesParser.create(config_loader=config_loader()).parse_overrides(overrides)
        for one in parsed:
            if one.is_sweep_override():
                space[one.get_key_element()] = _dimension(one)
            else:
                fixed.append(str(one.input_line))
    except HydraException as error:
        raise compose.explain(error, "train", overrides) from None
    if not space:
        raise UserError(
            "there is nothing to search",
            advice="give a key several values: model=lenet,mlp, 'optimizer.lr=interval(0.01,0.1)'",
        )
    return fixed, space


def _dimension(override: Any) -> Dimension:
    from hydra.core.override_parser.types import IntervalSweep, RangeSweep

    value, text, name = override.value(), str(override.input_line), override.get_key_element()
    if isinstance(value, IntervalSweep):
        return _interval(name, text, value.start, value.end, log="log" in value.tags)
    if isinstance(value, RangeSweep):
        numbers = list(value.range())
        if len(numbers) > 1 and numbers[1] > numbers[0] and isinstance(value.range(), range):
            low, high, step = int(numbers[0]), int(numbers[-1]), int(numbers[1] - numbers[0])
            return Dimension(
                text,
                [str(low), str(high)],
                lambda trial: str(trial.suggest_int(name, low, high, step=step)),
            )
    options = list(override.sweep_string_iterator())
    if not options:
        raise UserError("has no value", field=text)
    return Dimension(text, options, lambda trial: trial.suggest_categorical(name, options))


def _interval(name: str, text: str, low: Any, high: Any, *, log: bool) -> Dimension:
    if low is None or high is None or not low < high:
        raise UserError("an interval goes from a smaller to a larger number", field=text)
    if log and low <= 0:
        raise UserError("a logarithmic interval starts above zero", field=text)
    if isinstance(low, int) and isinstance(high, int):
        return Dimension(
            text,
            [str(low), str(high)],
            lambda trial: str(trial.suggest_int(name, low, high, log=log)),
        )
    return Dimension(
        text,
        [f"{low:.4g}", f"{high:.4g}"],
        lambda trial: f"{trial.suggest_float(name, low, high, log=log):.4g}",
    )
