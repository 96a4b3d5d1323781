"""Configuration -> objects: the only call of ``hydra.utils.instantiate``, and every cross-check.

A node names one class in ``_target_`` and gives it numbers; Python passes the parts (the classes
of the data, the backbone). Before anything is built each node is bound to its target's signature
and annotations, so that a wrong name or type is one sentence and not a traceback from within.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any, get_type_hints

from omegaconf import DictConfig, OmegaConf
from torch import nn, optim

from cnnctl.binding import bind, typed
from cnnctl.data.augmentations.base import Augmentation
from cnnctl.data.base import Dataset
from cnnctl.data.choice import choose
from cnnctl.data.proposals.base import ProposalMethod
from cnnctl.engine.given_weights import is_name
from cnnctl.engine.schedules import Schedule
from cnnctl.engine.trainer import Trainer
from cnnctl.engine.transfer import Transfer
from cnnctl.errors import UserError, nearest
from cnnctl.models.base import Model
from cnnctl.tasks.base import Task

# Where the target of each group may come from, and what it must be or return.
_ALLOWED: dict[str, tuple[tuple[str, ...], type]] = {
    "task": (("cnnctl.tasks",), Task),
    "model": (("cnnctl.models", "torchvision.models"), Model),
    "backbone": (("cnnctl.backbones",), nn.Module),
    "data": (("cnnctl.data",), Dataset),
    "augmentation": (("cnnctl.data.augmentations",), Augmentation),
    "optimizer": (("torch.optim",), optim.Optimizer),
    "schedule": (("cnnctl.engine.schedules",), Schedule),
    "trainer": (("cnnctl.engine.trainer",), Trainer),
    "transfer": (("cnnctl.engine.transfer",), Transfer),
    "proposals": (("cnnctl.data.proposals",), ProposalMethod),
}

_LATER = ("transfer", "proposals")  # configurations from before there were any have no such key

# Keys of ``data=`` for any data set of labelled images in memory, applied here to what it reads.
_CHOICE: dict[str, Any] = {"only": list[str | int] | None, "per_class": int | None}


def task(config: DictConfig) -> Task:
    return _build(config, "task")


def dataset(config: DictConfig, split: str) -> Dataset:
    """One split of the data; reads it.

    Raises:
        UserError: the data is absent or damaged (code 3), or has no such split.
    """
    data = _build(config, "data", split=split)
    only, per_class = (config.data.get(key) for key in _CHOICE)
    if only is None and per_class is None:
        return data
    try:
        return choose(data, only, per_class if split == "train" else None)
    except ValueError as error:
        raise UserError(str(error), field="data") from None


def truth(config: DictConfig, split: str) -> Dataset:
    """One split of the data to score predictions by: images may be absent, if it can do without.

    Raises:
        UserError: as ``dataset``.
    """
    return _build(config, "data", data_class(config).truth_alone(), split=split)


def data_class(config: DictConfig) -> type[Dataset]:
    """What ``data=`` is for the task at hand: digits are images of one, or scenes of several.

    Raises:
        UserError: the data has not what the task's targets hold.
    """
    return target(config, "data").serving(task(config).fields)


def facts(config: DictConfig) -> Dataset | type[Dataset]:
    """Something with ``classes``, ``channels``, ``size``, ``mirror``, ``mean`` and ``std``.

    The class itself where it knows all of them without reading the data, else the train split.
    """
    cls = data_class(config)
    known = all(hasattr(cls, name) for name in ("classes", "channels", "mean", "std"))
    return cls if known and config.data.get("only") is None else dataset(config, "train")


def augmentation(config: DictConfig, data: Any) -> Augmentation:
    built = _build(
        config,
        "augmentation",
        num_classes=len(data.classes),
        mirror=data.mirror,
        native=data.size,
        mean=tuple(data.mean),
    )
    task(config).show(built)
    return built


def model(config: DictConfig, data: Any, size: tuple[int, int], fetch: bool = True) -> Model:
    """The network for the data's classes and channels and an input of ``size`` (h, w).

    Args:
        fetch: published weights; False for one whose weights come from a checkpoint. What a model
            decides by whether its backbone has some is the same in both cases.
    """
    pretrained = any(
        g == "backbone" and config[g][key] is not None for g, key in _weight_keys(config)
    )
    if not fetch:
        config = without_pretrained_weights(config.copy())
    parts: dict[str, Any] = {
        "in_channels": data.channels,
        "num_classes": len(data.classes),
        "classes": tuple(data.classes),
        "size": size,
        "mean": tuple(data.mean),
        "std": tuple(data.std),
        "skeleton": getattr(data, "skeleton", None),
    }
    if config.backbone:
        parts["backbone"] = _build(config, "backbone", in_channels=data.channels)
        parts["backbone"].published = pretrained
    built = _build(config, "model", **parts)
    built.trained_shape = (data.channels, *size)
    task(config).prepare(built, data)
    return built


def trainer(config: DictConfig) -> Trainer:
    return _build(config, "trainer")


def optimizer(config: DictConfig) -> Callable[[Iterable[Any]], optim.Optimizer]:
    """A function from parameters or parameter groups to the optimizer."""
    return _build(config, "optimizer", partial=True)


def schedule(config: DictConfig) -> Schedule:
    return _build(config, "schedule")


def transfer(config: DictConfig) -> Transfer | None:
    """What of the network is trained; None: what the model says."""
    return _build(config, "transfer") if config.get("transfer") else None


def proposals(config: DictConfig) -> ProposalMethod | None:
    """Where a model is to look; None: it finds that out by itself.

    Raises:
        UserError: a library or a file that it needs is absent.
    """
    if not config.get("proposals"):  # configurations from before there were any have no such key
        return None
    method = _build(config, "proposals")
    method.require()
    return method


def source(config: DictConfig) -> tuple[str, str] | None:
    """(the key that the user set, the weights that a new network starts from); None: drawn ones.

    Raises:
        UserError: both names of the one key are set.
    """
    named = {key: config.get(key) for key in ("weights", "init_from")}
    found = [(key, str(where)) for key, where in named.items() if where is not None]
    if len(found) > 1:
        raise UserError("is another name of weights=", field="init_from", advice="set one of them")
    if not found or (config.get("transfer") and not transfer_class(config).takes_weights):
        return None
    return found[0]


def transfer_class(config: DictConfig) -> type[Transfer]:
    return target(config, "transfer")


def published(config: DictConfig) -> tuple[str, bool] | None:
    """The published weights that the model or its backbone is built with, by name; and whether
    they are the whole network's."""
    named = [(config[one[0]][one[1]], one == ("model", "weights")) for one in _weight_keys(config)]
    return next(((str(name), whole) for name, whole in named if name is not None), None)


def with_published_weights(config: DictConfig) -> DictConfig:
    """``weights=IMAGENET1K_V1`` as the key of the model, or of its backbone, that takes such names.

    Raises:
        UserError: it is no file either, and neither has one; or that key is set too.
    """
    found = source(config)
    if found is None or not is_name(found[1]):
        return config
    keys = _weight_keys(config)
    if not keys:
        raise UserError(
            f'there is no file "{found[1]}", and no published weights for this model by any name',
            field=found[0],
            advice="name a run, a checkpoint, a state dict or a .safetensors file",
        )
    group, key = keys[0]
    if config[group][key] not in (None, found[1]):
        raise UserError(f"and {group}.{key} are both set", field=found[0], advice="set one of them")
    config[group][key] = found[1]
    return config


def _weight_keys(config: DictConfig) -> list[tuple[str, str]]:
    """Group and key of what takes published weights, the whole network's first."""
    keys = [(group, str(key)) for group in ("model", "backbone") for key in config[group] or ()]
    found = [one for one in keys if one[1] == "weights" or one[1].endswith("_weights")]
    return sorted(found, key=lambda one: one[1] != "weights")


def without_pretrained_weights(config: DictConfig) -> DictConfig:
    """For a model whose weights come from a checkpoint: nothing is fetched to be overwritten."""
    for group, key in _weight_keys(config):
        config[group][key] = None
    return config


def check(config: DictConfig, chosen: dict[str, str]) -> None:
    """Everything that can be said before data is read or a step is spent.

    Args:
        chosen: the option of each group, for the sentences (``model=lenet``).

    Raises:
        UserError: code 2.
    """
    _check_all_there(config)
    for group in _ALLOWED:
        if config.get(group):
            cls = _target(config, group)
            bind(cls, _values(config, group), group, partial=True)
    the_task, model_cls = task(config), target(config, "model")
    names = {group: f"{group}={chosen.get(group, '?')}" for group in _ALLOWED}
    if isinstance(model_cls, type) and not the_task.takes(model_cls):
        raise UserError(
            f"{names['model']} does not do {names['task']}",
            field="model",
            advice=f"{names['task']} needs a {the_task.model.__name__}; see cnnctl train --help",
        )
    fields = (*the_task.fields, *_proposed(config, model_cls, names))
    moved = target(config, "augmentation").moves
    if unmoved := [name for name in fields if name not in moved]:
        raise UserError(
            f"{names['augmentation']} changes an image without its {unmoved[0]}",
            field="augmentation",
            advice=f"take augmentation={the_task.name} or none",
        )
    takes_backbone = "backbone" in inspect.signature(model_cls).parameters
    if config.backbone and not takes_backbone:
        raise UserError(
            f"{names['model']} takes no backbone, so {names['backbone']} would be unused",
            field="backbone",
            advice="leave it out, or take model=classifier",
        )
    if takes_backbone and not config.backbone:
        raise UserError(
            f"{names['model']} needs a backbone", field="backbone", advice="backbone=resnet18"
        )
    for make in (schedule, optimizer, transfer):  # their own checks of their numbers
        make(config)
    with_published_weights(config.copy())
    monitor = trainer(config).monitor
    if monitor is not None and monitor not in the_task.metrics:
        raise UserError(
            f'{names["task"]} has no metric "{monitor}"',
            field="trainer.monitor",
            advice=nearest(monitor, the_task.metrics),
        )


class LeftOut(UserError):
    """A group that nothing runs without."""


def _check_all_there(config: DictConfig) -> None:
    for group in _ALLOWED:
        if group not in config and group not in _LATER:
            raise LeftOut(
                "is left out, and nothing runs without it",
                field=group,
                advice=f"name one ({group}=...), or leave ~{group} out",
            )


def _proposed(config: DictConfig, model: Any, names: dict[str, str]) -> tuple[str, ...]:
    """What the images bring along for the model: nothing, or their proposals.

    Raises:
        UserError: it reads proposals and there are none, or the other way round.
    """
    reads, given = getattr(model, "reads_proposals", False), proposals(config) is not None
    if reads and not given:
        raise UserError(
            f"{names['model']} looks only where proposals are, and there are none",
            field="proposals",
            advice="proposals=selective_search",
        )
    if given and not reads:
        raise UserError(
            f"{names['model']} reads no proposals, so {names['proposals']} would be unused",
            field="proposals",
            advice="leave it out, or take a model that does: model=fast_rcnn, sppnet or rcnn",
        )
    return ("proposals",) * reads


def _values(config: DictConfig, group: str) -> dict[str, Any]:
    node = OmegaConf.to_container(config[group], resolve=True)
    assert isinstance(node, dict)
    values = {str(key): value for key, value in node.items() if key != "_target_"}
    if group == "data":  # what is chosen of any such data is no affair of its constructor
        for key, hint in _CHOICE.items():
            given = typed(values.pop(key, None), hint, f"data.{key}")
            if given is not None and task(config).fields != ("label",):
                raise UserError("chooses among images of one class each", field=f"data.{key}")
    return values


def _build(
    config: DictConfig, group: str, found: Any = None, *, partial: bool = False, **parts: Any
) -> Any:
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    found, values = found or _target(config, group), _values(config, group)
    accepted = inspect.signature(found).parameters
    parts = {name: part for name, part in parts.items() if name in accepted}
    for name in parts.keys() & values.keys():
        raise UserError(
            f"is a fact of the data ({parts[name]}) and cannot be set (to {values[name]})",
            field=f"{group}.{name}",
            advice="leave it out",
        )
    values = bind(found, values, group, partial=partial, given=parts)
    name = f"{found.__module__}.{found.__qualname__}"  # what serves the task, where data= is shared
    node = {"_target_": name, **(values if partial else {})}
    try:
        # Hydra would turn tuples into lists; it names the class, Python passes the values.
        make = instantiate({**node, "_partial_": True}, _recursive_=False)
        built = make if partial else make(**values, **parts)
        if partial:  # an optimizer shows its complaints only when it is built
            built([nn.Parameter()])
    except InstantiationException as error:
        raise _explain(error.__cause__ or error, group) from error.__cause__
    except (ValueError, TypeError) as error:
        raise _explain(error, group) from None
    return built


def _explain(error: BaseException, group: str) -> BaseException:
    if isinstance(error, ValueError) and not isinstance(error, UnicodeError):
        return UserError(str(error), field=group)
    return error


def _target(config: DictConfig, group: str) -> Any:
    return data_class(config) if group == "data" else target(config, group)


def target(config: DictConfig, group: str) -> Any:
    """The class or function that a node names, if it may be named there."""
    name = str(config[group].get("_target_", ""))
    prefixes, kind = _ALLOWED[group]
    trusted = tuple(config.get("trust", ()))
    field = f"{group}._target_"
    if not name.startswith(tuple(f"{prefix}." for prefix in (*prefixes, *trusted))):
        raise UserError(
            f'"{name}" may not be named here, only what is in {", ".join(prefixes)}',
            field=field,
            advice="for a module of your own add trust=[that_module] on the command line",
        )
    if name.startswith(tuple(f"{prefix}." for prefix in trusted)) and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # a module of the user's own lies where the command was typed
    module, _, attribute = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f'there is no "{name}": {error}', field=field) from None
    # What counts is the object that the name leads to: an allowed module may have imported others.
    home = f"{getattr(found, '__module__', None)}."
    if not home.startswith(tuple(f"{prefix}." for prefix in (*prefixes, *trusted))):
        raise UserError(f'"{name}" is not one of ours', field=field)
    makes = get_type_hints(found).get("return") if inspect.isfunction(found) else found
    if not (isinstance(makes, type) and issubclass(makes, kind)) or inspect.isabstract(makes):
        raise UserError(f'"{name}" is no {kind.__name__}', field=field)
    return found
