"""torchvision's networks for segmentation under its names, so that its published weights load.

torchvision is imported where a network is built: it takes a second or two.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from cnnctl.backbones.base import published_weights
from cnnctl.ops.dense import resized

AUXILIARY = 0.5  # share of the auxiliary head's loss in torchvision's own training


def torchvision_network(
    name: str,
    in_channels: int,
    num_classes: int,
    auxiliary: bool,
    weights: str | None,
    backbone: str,
    backbone_weights: str | None,
    classes: Sequence[str] = (),
) -> Any:
    """``torchvision.models.get_model(name)`` for these channels and classes.

    Of published weights all tensors are taken, but for other than the published classes the last
    convolution of each head starts at random. With other than 3 channels each gets an equal share
    of the first filters' sum. Its attribute ``rebuilt`` has the layers that start at random in
    spite of ``weights``, by name.

    Args:
        weights: of the whole network, by torchvision's name; None starts at random.
        backbone: torchvision's name of the classifier that ``backbone_weights`` are of.
        backbone_weights: of the backbone alone, by torchvision's name.
        classes: the data's; where they are not the published ones in their order (the first of
            both is the background, whatever it is called), the heads are not taken.

    Raises:
        ValueError: the name of weights is unknown, or both are given, or a tensor of the network
            is not in the weights.
        UserError: the weights are not on this machine and cannot be downloaded.
    """
    from torchvision.models import get_model

    if weights is not None and backbone_weights is not None:
        raise ValueError("weights hold those of the backbone: set backbone_weights to null")
    entry = _entry(name, "weights", weights)
    backbone_entry = _entry(backbone, "backbone_weights", backbone_weights)
    network: Any = get_model(
        name, weights=None, weights_backbone=None, num_classes=num_classes, aux_loss=auxiliary
    )
    published: dict[str, Tensor] = {}
    if entry is not None:
        published = published_weights(entry)
    elif backbone_entry is not None:
        found = published_weights(backbone_entry)
        published = {f"backbone.{key.removeprefix('features.')}": v for key, v in found.items()}
    if in_channels != 3:
        _give_stem(network, in_channels, published)
    own = network.state_dict()
    fitting = {k: v for k, v in published.items() if k in own and own[k].shape == v.shape}
    categories = getattr(entry, "meta", {}).get("categories", ())
    if classes and list(classes[1:]) != list(categories[1:]):
        fitting = {key: value for key, value in fitting.items() if not _is_last(key)}
    expected = own if entry is not None else [key for key in own if key.startswith("backbone.")]
    lacking = [key for key in expected if key not in fitting and not _is_last(key)]
    if published and lacking:
        raise ValueError(f"the published weights have no {lacking[0]} that fits")
    network.load_state_dict(fitting, strict=False)
    anew = [key.rpartition(".")[0] for key in own if entry is not None and key not in fitting]
    network.rebuilt = tuple(dict.fromkeys(anew))
    return network


def _is_last(key: str) -> bool:
    """Whether a tensor belongs to the convolution that names the classes."""
    last = ("classifier.4.", "aux_classifier.4.", "classifier.low_", "classifier.high_")
    return key.startswith(last)


def head_scores(network: Any, pixels: Tensor, heads: Iterable[str]) -> dict[str, Tensor]:
    """Logits (N, K, H, W) of some of a network's heads "out" and "aux", upsampled as its own."""
    features = network.backbone(pixels)
    layers = {"out": network.classifier, "aux": network.aux_classifier}
    size = (pixels.shape[2], pixels.shape[3])
    return {head: resized(layers[head](features[head]), size) for head in heads}


def _entry(name: str, key: str, wanted: str | None) -> Any:
    if wanted is None:
        return None
    from torchvision.models import get_model_weights

    entries = get_model_weights(name).__members__
    if wanted not in entries:
        raise ValueError(f'{key} must be null or one of {", ".join(entries)}, got "{wanted}"')
    return entries[wanted].value


def _give_stem(network: Any, in_channels: int, published: dict[str, Tensor]) -> None:
    """A first convolution for ``in_channels``, in the network and in the published weights."""
    layers = network.backbone.named_modules()
    name, conv = next((name, m) for name, m in layers if isinstance(m, nn.Conv2d))
    stem = nn.Conv2d(
        in_channels,
        conv.out_channels,
        conv.kernel_size,  # pyright: ignore[reportArgumentType]
        conv.stride,  # pyright: ignore[reportArgumentType]
        conv.padding,  # pyright: ignore[reportArgumentType]
        bias=False,
    )
    nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")  # as torchvision's
    network.backbone.set_submodule(name, stem)
    key = f"backbone.{name}.weight"
    if key in published:
        share = published[key].sum(1, keepdim=True) / in_channels
        published[key] = share.expand(-1, in_channels, -1, -1)
