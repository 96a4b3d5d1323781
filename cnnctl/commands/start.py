"""What a network starts from: numbers drawn in one of several ways, and weights that are given."""

from __future__ import annotations

from collections.abc import Sequence

from omegaconf import DictConfig

from cnnctl import build
from cnnctl.engine import given_weights
from cnnctl.engine.console import Console
from cnnctl.engine.given_weights import Taken
from cnnctl.engine.initialisation import initialise
from cnnctl.models.base import Model


def start(
    config: DictConfig, model: Model, classes: Sequence[str], console: Console
) -> Taken | None:
    """Bring a new network to where its training begins, and say what it took; None: nothing.

    Published weights are in it already (``build.model``); ``trainer.init`` does not touch them.

    Args:
        classes: the data's.

    Raises:
        UserError: the weights cannot be read, or none of them fits (code 4).
    """
    taken = None
    if published := build.published(config):
        taken = given_weights.of_published(model, *published)
    initialise(model, build.trainer(config).init, set(taken.loaded) if taken else set())
    source = build.source(config)
    if source is None:
        return None  # model.weights= is announced with the model
    key, where = source
    if not given_weights.is_name(where):
        taken = given_weights.take(model, given_weights.read(where), classes, key)
    assert taken is not None
    for line in taken.lines():
        console.say(line)
    return taken
