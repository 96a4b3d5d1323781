"""Weights that a run starts from: read from a file of whatever kind, and fitted to a model by name.

Nothing but tensors and plain values is read, so a stranger's file cannot run code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cnnctl.engine import checkpoint
from cnnctl.engine.averaging import weights
from cnnctl.errors import Exit, UserError
from cnnctl.models.base import Model

NESTED = ("state_dict", "model")  # where others keep the tensors of a file
SHOWN = 4  # names that the console shows of a list


@dataclass(frozen=True)
class Given:
    """Tensors by name, and what is known of them.

    Args:
        classes: that the last layer names; None where the file does not say.
        own: a checkpoint of ours, whose names need no translation.
    """

    path: Path
    tensors: dict[str, Tensor]
    classes: tuple[str, ...] | None = None
    own: bool = False


@dataclass
class Taken:
    """What became of the tensors, by the model's names but for ``unused``."""

    origin: str
    loaded: list[str] = field(default_factory=list)
    rebuilt: list[str] = field(default_factory=list)  # of the layers that name the classes
    rows: list[str] = field(default_factory=list)  # classes whose rows of those were taken
    adapted: list[str] = field(default_factory=list)  # filters summed for other channels
    fresh: list[str] = field(default_factory=list)  # as initialised: nothing was there
    unused: list[str] = field(default_factory=list)

    def kinds(self) -> list[tuple[str, list[str]]]:
        rows = f" but for the rows of {', '.join(self.rows)}" if self.rows else ""
        return [
            ("fitted to the data's channels", self.adapted),
            (f"rebuilt for the data's classes{rows}", self.rebuilt),
            ("left as initialised", self.fresh),
            ("not used", self.unused),
        ]

    def lines(self) -> list[str]:
        """For the console: every list counted, its first few named."""
        found = [f"{self.origin}: {len(self.loaded)} tensors taken{_few(self.loaded)}"]
        for title, names in self.kinds():
            if names:
                found.append(f"  {title}: {len(names)}{_few(names)}")
        return found

    def text(self) -> str:
        """All of them, a line each, for a file of the run."""
        parts = [f"{self.origin}\n"]
        for title, names in [("taken", self.loaded), *self.kinds()]:
            parts.append(f"\n{title}: {len(names)}\n" + "".join(f"  {name}\n" for name in names))
        return "".join(parts)


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f" ({', '.join(names[:SHOWN])}{more})" if names else ""


def is_name(source: str) -> bool:
    """Whether it is a name of torchvision's (IMAGENET1K_V1) and no file or folder."""
    return bool(re.fullmatch(r"[A-Z][A-Z0-9_]*", source)) and not Path(source).exists()


def read(source: str) -> Given:
    """The tensors of a run directory, a checkpoint, a state dict or a .safetensors file.

    A state dict may lie below "state_dict" or "model", and its names may begin with "module.",
    which a network that was trained in parallel adds.

    Raises:
        UserError: there is none, or it is damaged or holds no tensors by name (code 4).
    """
    path = checkpoint.find(source)
    if path.suffix == ".safetensors":
        return Given(path, _read_safetensors(path))
    held = checkpoint.read_tensors(path, legacy=True)
    if isinstance(held, dict) and "format" in held and "config" in held:
        state = checkpoint.read(path)
        classes = state["classes"]
        return Given(path, weights(state), tuple(classes) if classes else None, own=True)
    for name in NESTED:
        if isinstance(held, dict) and isinstance(held.get(name), Mapping):
            held = held[name]
    tensors = {}
    if isinstance(held, Mapping):
        tensors = {str(name): value for name, value in held.items() if isinstance(value, Tensor)}
    if not tensors:
        raise checkpoint.bad(
            path,
            "holds no tensors by name",
            'name a state dict, alone or below "state_dict" or "model"',
        )
    return Given(path, tensors)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(path.read_bytes())
    except OSError as error:
        raise checkpoint.bad(path, f"cannot be read: {error.strerror}") from None
    except (SafetensorError, KeyError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise checkpoint.bad(path, f"is damaged or no safetensors file: {reason}") from None


def _plain_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    prefix = "module."
    if all(name.startswith(prefix) for name in tensors):
        return {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def take(model: Model, given: Given, classes: Sequence[str], key: str) -> Taken:
    """Load what fits by name and shape; the rows of classes that both name, by their names.

    Args:
        classes: the data's, in the order of the model's outputs.
        key: that the user set, for the sentences.

    Raises:
        UserError: no tensor fits (code 4).
    """
    # What the loss took from other data does not belong to the weights.
    own = {k: v for k, v in model.state_dict().items() if not k.startswith("criterion.")}
    tensors = given.tensors if given.own else _translated(model, given, own, key)
    taken = Taken(f"{key} {given.path}")
    heads, buffers = model.class_layers(), model.class_buffers()
    flags, tensors = _flags_apart(tensors, own, buffers)
    fitting: dict[str, Tensor] = {}
    stem = next((name for name, value in own.items() if value.dim() == 4), None)
    for name, value in tensors.items():
        wanted = own.get(name)
        if wanted is None:
            taken.unused.append(name)
        elif (name.rpartition(".")[0] in heads or name in buffers) and _other_classes(
            value, wanted, given, classes
        ):
            rows = _rows(value, wanted, given.classes, classes)
            taken.rebuilt.append(name)
            if rows is not None:
                fitting[name] = rows
                taken.rows = [one for one in classes if one in (given.classes or ())]
        elif value.shape == wanted.shape:
            fitting[name] = value
            taken.loaded.append(name)
        elif name == stem and _but_for_channels(value, wanted):
            channels = wanted.shape[1]
            fitting[name] = value.sum(1, keepdim=True).expand(-1, channels, -1, -1) / channels
            taken.adapted.append(name)
        else:
            taken.unused.append(name)
    complete = not taken.rebuilt or set(classes) <= set(taken.rows)
    flags = flags if complete and _all_rows(fitting, own, buffers) else {}
    fitting |= flags
    taken.loaded += flags
    if not taken.loaded:
        raise UserError(
            "holds no tensor that fits this model by name and shape"
            f": it begins with {next(iter(tensors), 'none')}, the model with {next(iter(own))}",
            file=given.path,
            field=key,
            advice="name the weights of this very network",
            code=Exit.CHECKPOINT,
        )
    place = {name: index for index, name in enumerate(own)}
    known = {*taken.loaded, *taken.rebuilt, *taken.adapted}
    for name in (name for name in own if name not in known):
        in_head = name.rpartition(".")[0] in heads or name in buffers
        (taken.rebuilt if in_head else taken.fresh).append(name)
    for names in (taken.loaded, taken.rebuilt):  # files may have another order
        names.sort(key=place.__getitem__)
    model.load_state_dict(fitting, strict=False)
    return taken


def _translated(
    model: Model, given: Given, own: Mapping[str, Tensor], key: str
) -> dict[str, Tensor]:
    """Under the model's names: its own translation, or below the one part that has such names."""
    try:
        tensors = _plain_names(model.translate(dict(given.tensors)))
    except ValueError as error:
        raise UserError(str(error), file=given.path, field=key, code=Exit.CHECKPOINT) from None
    prefixes = ["", *(f"{name}." for name, _ in model.named_children())]

    def fit(prefix: str) -> int:
        there = ((own.get(prefix + name), value) for name, value in tensors.items())
        return sum(mine is not None and mine.shape == value.shape for mine, value in there)

    best = max(prefixes, key=fit)  # of equals the first
    return {best + name: value for name, value in tensors.items()}


def _flags_apart(
    tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], buffers: Sequence[str]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What says that the rows of all classes are solved, which is so if all are taken; the rest."""
    flags = {name for name in buffers if not own[name].dim()}
    rest = {name: value for name, value in tensors.items() if name not in flags}
    return {name: tensors[name] for name in flags & tensors.keys()}, rest


def _all_rows(
    fitting: Mapping[str, Tensor], own: Mapping[str, Tensor], buffers: Sequence[str]
) -> bool:
    return all(name in fitting for name in buffers if own[name].dim())


def _other_classes(value: Tensor, own: Tensor, given: Given, classes: Sequence[str]) -> bool:
    if value.shape != own.shape:
        return True
    return given.classes is not None and tuple(given.classes) != tuple(classes)


def _rows(
    value: Tensor, own: Tensor, given: Sequence[str] | None, classes: Sequence[str]
) -> Tensor | None:
    """``own`` with the rows of the classes that both have; None where there are none."""
    if given is None or value.shape[1:] != own.shape[1:]:
        return None
    if len(value) != len(given) or len(own) != len(classes):
        return None
    common = [name for name in classes if name in given]
    if not common:
        return None
    rows = own.clone()
    places = torch.tensor([list(classes).index(name) for name in common])
    rows[places] = value[torch.tensor([list(given).index(name) for name in common])].to(rows.dtype)
    return rows


def _but_for_channels(value: Tensor, own: Tensor) -> bool:
    """A first convolution of other input channels: each gets an equal share of the filters' sum."""
    return (
        value.dim() == own.dim() == 4
        and value.shape[0] == own.shape[0]
        and value.shape[2:] == own.shape[2:]
    )


def of_published(model: Any, name: str, whole: bool) -> Taken:
    """What a model took of weights that it loaded itself, by the layers that it names as rebuilt;
    of a backbone's weights (not ``whole``), all that is not the backbone or filled from them."""
    taken, rebuilt = Taken(f"weights {name}"), tuple(model.rebuilt)
    for key in model.state_dict():
        if key.startswith("criterion."):
            continue
        layer = key.rpartition(".")[0]
        of_backbone = "backbone" in key.split(".") or layer in model.published
        anew = layer in rebuilt if whole else not of_backbone
        (taken.rebuilt if anew else taken.loaded).append(key)
    return taken
