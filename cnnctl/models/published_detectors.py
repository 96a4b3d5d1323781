"""Published weights of torchvision's detectors, for networks that have its names of weights.

Some are for pixels that were normalised otherwise than here (ImageNet's mean and deviation); the
first convolution takes the difference upon itself, so that a checkpoint needs no memory of it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cnnctl.backbones.base import published_weights

Normal = tuple[tuple[float, ...], tuple[float, ...]]  # mean and deviation of red, green, blue

HERE: Normal = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CAFFE: Normal = ((0.48235, 0.45882, 0.40784), (1 / 255,) * 3)  # VGG-16's: 0 to 255 less the mean
CENTRED: Normal = ((0.5,) * 3, (0.5,) * 3)  # -1 to 1

_NORM_EPS = 1e-5  # of the batch normalisation of backbones here


@dataclass(frozen=True)
class Published:
    """A detector of torchvision's, and how its weights differ from what is wanted here.

    Args:
        name: torchvision's.
        by_class: a regular expression, of the layers whose outputs are (anchor, class), class
            changing faster; or (class, number), class changing slower, with ``classes_first``.
        fits: what the model must be for the weights to fit, for the error.
        background: the first category is none of the model's classes, and its outputs are kept.
        normal: what it expects of pixels; None is what pixels here are.
        norm_eps: what it adds to variances where here it is 1e-5.
    """

    name: str
    by_class: str
    fits: str
    classes_first: bool = False
    background: bool = False
    normal: Normal | None = None
    norm_eps: float = _NORM_EPS


def load_published(
    model: nn.Module, source: Published, weights: str, num_classes: int, classes: Sequence[str]
) -> tuple[str, ...]:
    """Load ``weights`` of the whole of ``source`` and return the layers that stay at random.

    Args:
        num_classes: K of the model.
        classes: the data's names. Where all of them are published ones, their outputs are taken,
            else the layers ``source.by_class`` stay as they are.

    Raises:
        ValueError: the name of the weights is unknown, or they do not fit the model.
        UserError: the weights are not on this machine and cannot be downloaded.
    """
    entry = entry_of(source.name, "weights", weights)
    state = dict(published_weights(entry))
    adapt_pixels(state, model.state_dict(), source.normal)
    rebuilt = _choose_classes(state, source, entry.meta["categories"], num_classes, classes)
    for key in state:
        if key.endswith(".running_var"):
            state[key] = state[key] + (source.norm_eps - _NORM_EPS)
    try:
        lacking, unknown = model.load_state_dict(state, strict=False)
    except RuntimeError:  # a tensor of another shape
        raise ValueError(f"published weights are of {source.fits}") from None
    lacking = [key for key in lacking if key.rpartition(".")[0] not in rebuilt]
    if lacking or any(".extra_blocks." not in key for key in unknown):
        raise ValueError(f"published weights are of {source.fits}")
    return rebuilt


def load_features(network: nn.Module, entry: Any, normal: Normal | None) -> None:
    """Load the layers ``features`` of a published classifier into ``network``, which has them.

    Args:
        normal: what the classifier expects of pixels; None is what pixels here are.

    Raises:
        ValueError: they are of another shape.
        UserError: the weights are not on this machine and cannot be downloaded.
    """
    state = {
        key: value for key, value in published_weights(entry).items() if key.startswith("features.")
    }
    adapt_pixels(state, network.state_dict(), normal)
    try:
        network.load_state_dict(state, strict=False)
    except RuntimeError:
        raise ValueError("the backbone's published weights are of another shape") from None


def entry_of(name: str, key: str, wanted: str) -> Any:
    """torchvision's entry of the weights ``wanted`` of its network ``name``.

    Raises:
        ValueError: there is none; it names the constructor's ``key``.
    """
    from torchvision.models import get_model_weights

    entries = get_model_weights(name).__members__
    if wanted not in entries:
        raise ValueError(f'{key} must be null or one of {", ".join(entries)}, got "{wanted}"')
    return entries[wanted].value


def adapt_pixels(state: dict[str, Tensor], own: dict[str, Tensor], normal: Normal | None) -> None:
    """Fit the first convolution to pixels as they are normalised here, and to their channels: with
    other than 3, each gets an equal share of the filters' sum.

    The constant part goes into the bias, or into the mean of the batch normalisation that follows.
    At the border, where pixels are zeros in both, it is right but for the difference of the means.
    """
    key = next(key for key in state if key.endswith("weight") and state[key].dim() == 4)
    if key not in own:  # another network, which loading will tell
        return
    weight = state[key]
    if normal is not None:
        mean, std, own_mean, own_std = (torch.tensor(part) for part in (*normal, *HERE))
        shift = (weight * ((own_mean - mean) / std)[:, None, None]).sum((1, 2, 3))
        weight = weight * (own_std / std)[:, None, None]
        bias = key.removesuffix("weight") + "bias"
        if bias in state:
            state[bias] = state[bias] + shift
        else:
            moving = next(name for name in state if name.endswith("running_mean"))  # the first
            state[moving] = state[moving] - shift
    channels = own[key].shape[1]
    if channels != weight.shape[1]:
        weight = (weight.sum(1, keepdim=True) / channels).expand(-1, channels, -1, -1)
    state[key] = weight


def _choose_classes(
    state: dict[str, Tensor],
    source: Published,
    categories: Sequence[str],
    num_classes: int,
    classes: Sequence[str],
) -> tuple[str, ...]:
    """Keep the outputs of the data's classes, in their order; or leave out the layers, which are
    returned."""
    layers = dict.fromkeys(key.rpartition(".")[0] for key in state)
    layers = [layer for layer in layers if re.fullmatch(source.by_class, layer)]
    tensors = [f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]
    first = 1 if source.background else 0
    rows = _rows(categories[first:], num_classes, classes)
    if rows is None:
        for key in tensors:
            del state[key]
        return tuple(layers)
    rows = torch.cat([torch.arange(first), rows + first])
    sides, axis = ((len(categories), -1), 0) if source.classes_first else ((-1, len(categories)), 1)
    for key in tensors:
        each = state[key].unflatten(0, sides)  # (classes, numbers, ...) or (anchors, classes, ...)
        state[key] = each.index_select(axis, rows).flatten(0, 1)
    return ()


def _rows(categories: Sequence[str], num_classes: int, classes: Sequence[str]) -> Tensor | None:
    """(K,) int64 where in ``categories`` the data's classes are; None where they are not."""
    if classes and set(classes) <= set(categories):
        return torch.tensor([categories.index(name) for name in classes])
    if not classes and num_classes == len(categories):
        return torch.arange(num_classes)
    return None
