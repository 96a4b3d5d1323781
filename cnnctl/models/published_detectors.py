"""Published weights of torchvision's detectors, for networks that have its names of weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cnnctl.backbones.base import published_weights

_NORM_EPS = 1e-5  # of every batch normalisation here


def load_published(
    model: nn.Module,
    name: str,
    weights: str,
    num_classes: int,
    classes: Sequence[str],
    by_class: Sequence[str],
    fits: str,
    norm_eps: float = _NORM_EPS,
    background: bool = False,
) -> list[str]:
    """Load ``weights`` of torchvision's ``name`` and return the layers that could not be taken.

    With other than 3 channels each gets an equal share of the first filters' sum.

    Args:
        num_classes: K of the model.
        classes: the data's names. Where all of them are published ones, their rows of the layers
            ``by_class`` are taken, else those layers stay as they are.
        by_class: layers whose outputs are (anchor, class), class changing faster; or (class,
            number), class changing slower, where there is ``background``.
        fits: what the model must be for the weights to fit, for the error.
        norm_eps: what the published network added to variances.
        background: the first category is none of the K classes, and its rows are kept as they are.

    Raises:
        ValueError: the name of the weights is unknown, or they do not fit the model.
        UserError: the weights are not on this machine and cannot be downloaded.
    """
    from torchvision.models import get_model_weights

    entries = get_model_weights(name).__members__
    if weights not in entries:
        raise ValueError(f'weights must be null or one of {", ".join(entries)}, got "{weights}"')
    entry = entries[weights].value
    published = dict(published_weights(entry))
    _share_channels(model, published)
    categories = entry.meta["categories"]
    if background:
        rebuilt = _choose_classes(published, categories, num_classes, classes, by_class)
    else:
        rebuilt = _choose_rows(published, categories, num_classes, classes, by_class)
    for key in published:
        if key.endswith(".running_var"):
            published[key] = published[key] + (norm_eps - _NORM_EPS)
    try:
        lacking, unknown = model.load_state_dict(published, strict=False)
    except RuntimeError:  # a tensor of another shape
        raise ValueError(f"published weights are of {fits}") from None
    lacking = [key for key in lacking if key.rpartition(".")[0] not in rebuilt]
    if lacking or any(".extra_blocks." not in key for key in unknown):
        raise ValueError(f"published weights are of {fits}")
    return rebuilt


def _share_channels(model: nn.Module, published: dict[str, Tensor]) -> None:
    """Fit the filters of the first convolution to the number of channels of the data."""
    key = "backbone.body.conv1.weight"
    own = model.state_dict().get(key)
    if own is not None and own.shape[1] != published[key].shape[1]:
        share = published[key].sum(1, keepdim=True) / own.shape[1]
        published[key] = share.expand(-1, own.shape[1], -1, -1)


def _choose_rows(
    published: dict[str, Tensor],
    categories: Sequence[str],
    num_classes: int,
    classes: Sequence[str],
    by_class: Sequence[str],
) -> list[str]:
    """Keep the rows of the data's classes, in their order; or leave out the layers, and say so."""
    rows = _rows(categories, num_classes, classes)
    if rows is None:
        return _without(published, by_class)
    for layer in by_class:
        for kind in ("weight", "bias"):
            whole = published[f"{layer}.{kind}"]
            each = whole.unflatten(0, (-1, len(categories)))  # (anchors, classes, ...)
            published[f"{layer}.{kind}"] = each[:, rows].flatten(0, 1)
    return []


def _choose_classes(
    published: dict[str, Tensor],
    categories: Sequence[str],
    num_classes: int,
    classes: Sequence[str],
    by_class: Sequence[str],
) -> list[str]:
    """The same of layers whose rows are (class, number), the background before the classes."""
    rows = _rows(categories[1:], num_classes, classes)
    if rows is None:
        return _without(published, by_class)
    rows = torch.cat([torch.zeros(1, dtype=torch.int64), rows + 1])
    for layer in by_class:
        for kind in ("weight", "bias"):
            whole = published[f"{layer}.{kind}"]
            each = whole.unflatten(0, (len(categories), -1))  # (classes, numbers, ...)
            published[f"{layer}.{kind}"] = each[rows].flatten(0, 1)
    return []


def _rows(categories: Sequence[str], num_classes: int, classes: Sequence[str]) -> Tensor | None:
    """(K,) int64 where in ``categories`` the data's classes are; None where they are not."""
    if classes and set(classes) <= set(categories):
        return torch.tensor([categories.index(name) for name in classes])
    if not classes and num_classes == len(categories):
        return torch.arange(num_classes)
    return None


def _without(published: dict[str, Tensor], layers: Sequence[str]) -> list[str]:
    for layer in layers:
        del published[f"{layer}.weight"], published[f"{layer}.bias"]
    return list(layers)
