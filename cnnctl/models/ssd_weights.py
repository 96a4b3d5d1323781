"""Published weights of torchvision's SSD300 and SSDlite, and of the backbones of both.

They are for pixels that were normalised otherwise than here (ImageNet's mean and deviation); the
first convolution takes the difference upon itself, so that a checkpoint needs no memory of it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cnnctl.backbones.base import published_weights

Normal = tuple[tuple[float, ...], tuple[float, ...]]  # mean and deviation of red, green, blue

_HERE: Normal = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CAFFE: Normal = ((0.48235, 0.45882, 0.40784), (1 / 255,) * 3)  # VGG-16's: 0 to 255 less the mean
CENTRED: Normal = ((0.5,) * 3, (0.5,) * 3)  # -1 to 1

_BY_CLASS = re.compile(r"head\.classification_head\.module_list\.\d+\.(1\.)?(weight|bias)")


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


def load_detector(
    model: nn.Module, entry: Any, classes: Sequence[str], normal: Normal, fits: str
) -> tuple[str, ...]:
    """Load a whole network and return the layers that stay at random, by name.

    The class layers' rows are taken where all of ``classes`` are published ones, or all of them
    where no names are given and their number is right; else these layers are rebuilt.

    Args:
        normal: what the published network expects of pixels.
        fits: what the model must be, for the error.

    Raises:
        ValueError: the weights do not fit the model.
        UserError: the weights are not on this machine and cannot be downloaded.
    """
    published, own = dict(published_weights(entry)), model.state_dict()
    adapt_pixels(published, own, normal)
    categories: list[str] = list(entry.meta["categories"])
    by_class = [key for key in published if _BY_CLASS.fullmatch(key)]
    rebuilt: list[str] = []
    if classes and set(classes) <= set(categories[1:]):
        rows = torch.tensor([0, *(categories.index(name) for name in classes)])
        for key in by_class:
            each = published[key].unflatten(0, (-1, len(categories)))  # (boxes, classes, ...)
            published[key] = each[:, rows].flatten(0, 1)
    elif classes or any(published[key].shape != own[key].shape for key in by_class if key in own):
        for key in by_class:
            del published[key]
        rebuilt = sorted({key.rpartition(".")[0] for key in by_class})
    try:
        lacking, unknown = model.load_state_dict(published, strict=False)
    except RuntimeError:  # a tensor of another shape
        raise ValueError(f"the published weights are of {fits}") from None
    if unknown or any(key.rpartition(".")[0] not in rebuilt for key in lacking):
        raise ValueError(f"the published weights are of {fits}")
    return tuple(rebuilt)


def load_features(network: nn.Module, entry: Any, normal: Normal | None) -> None:
    """Load the layers ``features`` of a published classifier into ``network``, which has them.

    Args:
        normal: what the classifier expects of pixels; None is what pixels here are.

    Raises:
        ValueError: they are of another shape.
        UserError: the weights are not on this machine and cannot be downloaded.
    """
    published = {
        key: value for key, value in published_weights(entry).items() if key.startswith("features.")
    }
    adapt_pixels(published, network.state_dict(), normal)
    try:
        network.load_state_dict(published, strict=False)
    except RuntimeError:
        raise ValueError("the backbone's published weights are of another shape") from None


def adapt_pixels(
    published: dict[str, Tensor], own: dict[str, Tensor], normal: Normal | None
) -> None:
    """Fit the first convolution to pixels as they are normalised here, and to their channels: with
    other than 3, each gets an equal share of the filters' sum.

    The constant part goes into the bias, or into the mean of the batch normalisation that follows.
    At the border, where pixels are zeros in both, it is right but for the difference of the means.
    """
    key = next(key for key in published if key.endswith("weight") and published[key].dim() == 4)
    weight = published[key]
    if normal is not None:
        mean, std, own_mean, own_std = (torch.tensor(part) for part in (*normal, *_HERE))
        shift = (weight * ((own_mean - mean) / std)[:, None, None]).sum((1, 2, 3))
        weight = weight * (own_std / std)[:, None, None]
        bias = key.removesuffix("weight") + "bias"
        if bias in published:
            published[bias] = published[bias] + shift
        else:
            moving = key.removesuffix("0.weight") + "1.running_mean"
            published[moving] = published[moving] - shift
    channels = own[key].shape[1]
    if channels != weight.shape[1]:
        weight = (weight.sum(1, keepdim=True) / channels).expand(-1, channels, -1, -1)
    published[key] = weight
