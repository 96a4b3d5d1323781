"""torchvision's classifiers for any channels and classes, under its names of weights.

torchvision is imported where a network is built: it takes a second or two.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from cnnctl.models.published_classifiers import load_classifier
from cnnctl.models.published_detectors import Normal

STRIDE = 32  # of the deepest map of all of these networks


def torchvision_classifier(
    name: str,
    in_channels: int,
    num_classes: int,
    weights: str | None,
    classes: Sequence[str],
    *,
    heads: Sequence[str] | None = None,
    normal: Normal | None = None,
    left_out: Sequence[str] = (),
    fits: str = "",
    **options: Any,
) -> Any:
    """``torchvision.models.get_model(name)`` for these channels and classes.

    With other than 3 channels each gets an equal share of the first filters' sum. Its attribute
    ``rebuilt`` has the layers that start at random in spite of ``weights``, by name.

    Args:
        weights: by torchvision's name; None starts at random.
        classes: the data's; where they are not the published ones, ``heads`` are not loaded.
        heads: the layers that name the classes; None is the last one.
        normal: mean and deviation of the pixels that the weights expect; None is what pixels here
            are.
        left_out: beginnings of published names that the network has no layers for.
        fits: what the model must be for the weights to fit, for the error.
        options: of the network's constructor.

    Raises:
        ValueError: the name of weights is unknown, or they do not fit.
        UserError: the weights are not on this machine and cannot be downloaded.
    """
    from torchvision.models import get_model

    network: Any = get_model(name, weights=None, num_classes=num_classes, **options)
    if in_channels != 3:
        _give_stem(network, in_channels)
    network.rebuilt = ()
    if weights is not None:
        network.rebuilt = load_classifier(
            *(network, name, weights, num_classes, classes),
            heads=heads,
            fits=fits,
            normal=normal,
            left_out=left_out,
        )
    return network


def require(name: str, size: tuple[int, int], least: int = STRIDE) -> None:
    """Raise ValueError where an input of (h, w) ``size`` is smaller than a network's minimum."""
    if min(size) < least:
        raise ValueError(
            f"{name} needs images of at least {least} x {least}, got {size[0]} x {size[1]}"
        )


def adopt(model: nn.Module, network: nn.Module) -> None:
    """Make the layers of ``network`` those of ``model``, under the same names of weights."""
    for name, layer in network.named_children():
        model.add_module(name, layer)


def _give_stem(network: nn.Module, in_channels: int) -> None:
    """A first convolution for other than 3 channels, started as wide as torchvision's."""
    name, conv = next((n, m) for n, m in network.named_modules() if isinstance(m, nn.Conv2d))
    stem = nn.Conv2d(
        in_channels,
        conv.out_channels,
        conv.kernel_size,  # pyright: ignore[reportArgumentType]
        conv.stride,  # pyright: ignore[reportArgumentType]
        conv.padding,  # pyright: ignore[reportArgumentType]
        bias=conv.bias is not None,
    )
    with torch.no_grad():  # filters drawn as theirs are: at their deviation for 3 channels
        spread = float(conv.weight.std()) if not conv.weight.is_meta else 0.0
        stem.weight.normal_(std=spread * (3 / in_channels) ** 0.5)
        if stem.bias is not None:
            stem.bias.zero_()
    network.set_submodule(name, stem)
