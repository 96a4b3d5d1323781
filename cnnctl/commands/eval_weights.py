"""``cnnctl eval model=... data=... weights=...``: score weights that come from no run of ours."""

from __future__ import annotations

from typing import Any

import torch
from omegaconf import DictConfig

from cnnctl import build, compose
from cnnctl.commands.eval import score, show_scores
from cnnctl.commands.start import start
from cnnctl.engine import given_weights
from cnnctl.engine.console import Console
from cnnctl.engine.distributed import Processes
from cnnctl.engine.given_weights import Taken
from cnnctl.engine.machine import faults_explained
from cnnctl.errors import Exit, UserError
from cnnctl.models.base import Model


def run(settings: DictConfig, overrides: list[str], config_dir: str | None = None) -> int:
    """The command.

    Args:
        overrides: keys of ``train``: the model, the data, how it is tested.
        config_dir: a folder of the user's own YAML files.

    Raises:
        UserError: the weights cannot be read, or are not all that the network has (code 4).
    """
    if settings.checkpoint is not None:
        raise UserError(
            "brings its own weights", field="checkpoint", advice="leave out weights= or checkpoint="
        )
    console = Console()
    config, chosen = _composed(settings, overrides, config_dir)
    machine = build.trainer(config).machine(Processes())
    facts = build.facts(config)
    model, taken = _loaded(config, facts, console)
    _require_whole(model, taken, settings.weights)
    state = {
        "classes": list(facts.classes),
        "mean": list(facts.mean),
        "std": list(facts.std),
        "model": model.state_dict(),
        "ema": None,
    }
    with faults_explained():
        found = score(config, state, settings.split, machine, Processes(), console, timed=True)
    show_scores(console, f"{chosen['model']} on {chosen['data']}, {settings.split}", found)
    return Exit.DONE


def _composed(
    settings: DictConfig, overrides: list[str], config_dir: str | None
) -> tuple[DictConfig, dict[str, str]]:
    composed = compose.compose("train", overrides, config_dir)
    config, chosen = compose.settings(composed), compose.choices(composed)
    config.trust, config.weights, config.transfer = settings.trust, settings.weights, None
    build.check(config, chosen)
    return config, chosen


def _loaded(config: DictConfig, facts: Any, console: Console) -> tuple[Model, Taken]:
    source = config.weights
    if not given_weights.is_name(source) and given_weights.read(source).own:
        raise UserError(
            "is a checkpoint of cnnctl, which knows its model and data",
            field="weights",
            advice=f"take checkpoint={source}",
        )
    size = build.augmentation(config, facts).size
    torch.manual_seed(0)
    model = build.model(build.with_published_weights(config), facts, size)
    taken = start(config, model, facts.classes, console)
    assert taken is not None
    return model, taken


def _require_whole(model: Model, taken: Taken, source: str) -> None:
    """A part that nothing was loaded into would be scored as it was drawn.

    Files from before torch 0.4.1 do not count batches, which no score depends on.
    """
    lacking = [
        name
        for name in (*taken.rebuilt, *taken.fresh)
        if not name.endswith("num_batches_tracked") and name in model.state_dict()
    ]
    if lacking:
        raise UserError(
            f"lacks {len(lacking)} of the network's tensors, which would be scored as they were"
            f" drawn: {', '.join(lacking[: given_weights.SHOWN])}",
            file=source,
            field="weights",
            advice="name weights of this network for these classes, or train it first",
            code=Exit.CHECKPOINT,
        )
