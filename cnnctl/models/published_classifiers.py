"""Published weights of torchvision's classifiers, for networks that have its names of weights."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import nn

from cnnctl.backbones.base import published_weights
from cnnctl.models.published_detectors import Normal, adapt_pixels, entry_of

_IMAGENET = 1000  # classes


def load_classifier(
    model: nn.Module,
    name: str,
    weights: str,
    num_classes: int,
    classes: Sequence[str] = (),
    heads: Sequence[str] | None = None,
    fits: str = "",
    normal: Normal | None = None,
    left_out: Sequence[str] = (),
) -> tuple[str, ...]:
    """Load ``weights`` of torchvision's network ``name``; -> the layers that stay at random.

    Args:
        weights: by torchvision's name, for example "IMAGENET1K_V1".
        num_classes: K of the model.
        classes: the data's names; with other than the published ones, in their order or as
            ImageNet's folders are called (n01440764 and so on), ``heads`` stay as they are.
        heads: the layers that name the classes; None is the last one.
        fits: what the model must be for the weights to fit, for the error.
        normal: mean and deviation of the pixels that the weights expect; None is what pixels here
            are.
        left_out: beginnings of published names that the model has no layers for.

    Raises:
        ValueError: the name of the weights is unknown, or they do not fit the model.
        UserError: the weights are not on this machine and cannot be downloaded.
    """
    entry = entry_of(name, "weights", weights)
    published = published_weights(entry)
    state = {key: v for key, v in published.items() if not key.startswith(tuple(left_out))}
    adapt_pixels(state, model.state_dict(), normal)
    heads = (list(state)[-1].rpartition(".")[0],) if heads is None else tuple(heads)
    rebuilt: tuple[str, ...] = ()
    if not same_classes(entry.meta["categories"], num_classes, classes):
        rebuilt = tuple(heads)
        state = {key: v for key, v in state.items() if key.rpartition(".")[0] not in rebuilt}
    own = {
        key: value
        for key, value in model.state_dict().items()
        if key.rpartition(".")[0] not in rebuilt
    }
    # Files from before torch 0.4.1 do not count batches; no score depends on it.
    odd = [key for key in own.keys() ^ state.keys() if not key.endswith("num_batches_tracked")]
    if odd or any(own[key].shape != state[key].shape for key in own.keys() & state.keys()):
        raise ValueError(f"published weights are of {fits or f'the whole of {name}'}")
    model.load_state_dict(state, strict=False)
    return rebuilt


def same_classes(categories: Sequence[str], num_classes: int, classes: Sequence[str]) -> bool:
    """Whether the data's K ``classes`` are the published ones, in their order: by their names, or
    as ImageNet's folders are called."""
    if num_classes != len(categories):
        return False
    if not classes or list(classes) == list(categories):
        return True
    folders = all(re.fullmatch(r"n\d{8}", name) for name in classes)
    return folders and num_classes == _IMAGENET and list(classes) == sorted(classes)
