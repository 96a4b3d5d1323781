"""Which jobs a sweep has: every combination of the values given, composed and checked."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from cnnctl import build, compose
from cnnctl.commands.jobs import Job
from cnnctl.commands.request import Request
from cnnctl.errors import UserError

NAME_LENGTH = 100  # of a job's directory; file systems stop at 255 bytes
_BASIC_SWEEPER = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"


def list_jobs(
    overrides: list[str], config_dir: str | None, loader: Any
) -> tuple[list[Job], DictConfig]:
    """Every combination, composed and checked, and the first one's configuration."""
    hydra_own, combinations = _combinations(overrides, config_dir, loader)
    keys = [text.partition("=")[0] for text in combinations[0]]
    differ = [len({row[column] for row in combinations}) > 1 for column in range(len(keys))]
    plan, first = [], None
    for index, row in enumerate(combinations):
        pairs = [text.partition("=") for text in row]
        varying = {k.lstrip("+"): v for (k, _, v), it in zip(pairs, differ, strict=True) if it}
        name = job_name(index, len(combinations), varying)
        try:
            config = compose.compose("train", [*hydra_own, *row], config_dir)
            job = checked_job(name, varying, row, config)
        except UserError as error:
            if len(combinations) > 1:
                what = " ".join(f"{key}={value}" for key, value in varying.items())
                error.record = f"job {index + 1} of {len(combinations)} ({what})"
            raise
        plan.append(job)
        first = config if first is None else first
    assert first is not None
    return plan, first


def checked_job(name: str, varying: dict[str, str], row: list[str], config: DictConfig) -> Job:
    """Raises UserError for all that can be said before data is read."""
    settings, chosen = compose.settings(config), compose.choices(config)
    if settings.resume is not None:
        raise UserError(
            "a sweep makes runs of its own", field="resume", advice="start from it with init_from="
        )
    build.check(settings, chosen)
    return Job(name, varying, row, Request.of(settings, chosen, Path(name)).config, chosen)


def job_name(index: int, count: int, varying: dict[str, str]) -> str:
    """``0_optimizer.lr-0.1_model-lenet``: only characters that need no quotes anywhere.

    An equals sign or a comma would have to be quoted in ``resume=`` and ``checkpoint=``.
    """
    parts = [f"{index:0{len(str(count - 1))}d}", *(f"{k}-{v}" for k, v in varying.items())]
    return re.sub(r"[^A-Za-z0-9._+-]+", "_", "_".join(parts))[:NAME_LENGTH].rstrip("._")


def _combinations(
    overrides: list[str], config_dir: str | None, loader: Any
) -> tuple[list[str], list[list[str]]]:
    """Overrides of Hydra's own node, and the others once for every combination."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create(config_loader=loader)

    def split(texts: list[str]) -> tuple[list[str], list[list[str]]]:
        parsed = parser.parse_overrides(texts)
        hydra_own = [one for one in parsed if one.is_hydra_override()]
        if swept := [str(one.input_line) for one in hydra_own if one.is_sweep_override()]:
            raise UserError("Hydra's own settings cannot be swept", field=swept[0])
        ours = [one for one in parsed if not one.is_hydra_override()]
        before = random.getstate()
        random.seed(0)  # shuffle(...) must list the same jobs when a sweep is continued
        try:
            rows = BasicSweeper.split_arguments(ours, None)[0]
        finally:
            random.setstate(before)
        return [str(one.input_line) for one in hydra_own], rows

    try:
        hydra_own, rows = split(overrides)
        if not rows:
            raise UserError("one of the sweeps has no value", field=" ".join(overrides))
        node = compose.compose("train", [*hydra_own, *rows[0]], config_dir).hydra
        _check_node(node, hydra_own)
        if node.sweeper.params:  # a sweep that a YAML file describes; the command line wins
            own = [f"{key}={value}" for key, value in node.sweeper.params.items()]
            hydra_own, rows = split([*own, *overrides])
    except HydraException as error:
        if "does not support sweep type" in str(error):
            swept = next(text for text in overrides if "interval(" in text)
            raise UserError(
                "an interval has no list of values to try",
                field=swept,
                advice="give a,b,c or range(...), or search in it with cnnctl tune",
            ) from None
        raise compose.explain(error, "train", overrides) from None
    return hydra_own, rows


def _check_node(node: DictConfig, hydra_own: list[str]) -> None:
    if node.sweeper._target_ != _BASIC_SWEEPER:
        raise UserError(
            "only Hydra's basic sweeper lists all jobs beforehand",
            field="hydra/sweeper",
            advice="leave it out; cnnctl tune searches with Optuna",
        )
    if node.job.env_set or node.job.env_copy:
        raise UserError(
            "a configuration cannot set the environment", field="hydra.job", advice="use the shell"
        )
    if any(text.startswith("hydra.sweep.subdir") for text in hydra_own):
        raise UserError(
            "is made from what varies between the jobs",
            field="hydra.sweep.subdir",
            advice="leave it out",
        )


def config_loader() -> Any:
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    with initialize_config_dir(str(compose.conf_dir().absolute()), version_base="1.3"):
        return GlobalHydra.instance().config_loader()
