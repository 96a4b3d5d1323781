"""VGG-11, 13, 16 and 19: Simonyan and Zisserman, "Very deep convolutional networks for large-scale
image recognition", arXiv:1409.1556, table 1, columns A, B, D, E; torchvision's names of weights are
kept (``features``) so that the published weights load.

Differs from the paper: ``norm`` (Ioffe and Szegedy, arXiv:1502.03167) is not in it; weights start
as in He et al., arXiv:1502.01852, which needs no shallower network to be trained first.
"""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, nn

from cnnctl.backbones.base import Backbone, published_weights

_NAMES = ("c1", "c2", "c3", "c4", "c5")
_WIDTHS = (64, 128, 256, 512, 512)
_CONVOLUTIONS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
_FC = 4096  # features of fc6 and of fc7
_SIDE = 7  # of the map that fc6 sees, from an image of 224 x 224


class VGG(Backbone):
    """Maps c1 to c5, after the poolings 1 to 5, at strides 2, 4, 8, 16, 32.

    Args:
        depth: 11, 13, 16 or 19: layers with weights, the three dense ones included.
        in_channels: C of the pixels. With other than 3 and ``weights``, each channel gets an equal
            share of the published filters' sum, so that an image whose channels are all the same
            has the response of the grey image with three.
        norm: batch normalisation after each convolution (torchvision's vgg16_bn and so on).
        weights: a name of torchvision's, for example "IMAGENET1K_V1"; None starts at random.

    Raises:
        ValueError: the depth or the name of the weights is unknown.
        UserError: the weights are not on this machine and cannot be downloaded.
    """

    def __init__(
        self,
        depth: Literal[11, 13, 16, 19],
        in_channels: int = 3,
        norm: bool = False,
        weights: str | None = None,
    ) -> None:
        super().__init__()
        if depth not in _CONVOLUTIONS:
            raise ValueError(f"depth must be 11, 13, 16 or 19, got {depth}")
        entry = _entry(depth, norm, weights)
        self.features = _features(_CONVOLUTIONS[depth], in_channels, norm)
        self._published, self.published = entry, entry is not None
        if entry is not None:
            self._load(published_weights(entry))
        self.channels = dict(zip(_NAMES, _WIDTHS, strict=True))
        self.strides = {name: 2 << i for i, name in enumerate(_NAMES)}

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        out, found = pixels, []
        for layer in self.features:
            out = layer(out)
            if isinstance(layer, nn.MaxPool2d):
                found.append(out)
        return dict(zip(_NAMES, found, strict=True))

    def build_top(self, dropout: float = 0.5) -> nn.Sequential:
        """fc6 and fc7, from (R, 512, 7, 7) to (R, 4096), with the published weights
        where the convolutions have them.

        A model that goes on from the maps alone does without; the two hold nine tenths of the
        network's weights, so they are made only for one that asks.
        """
        top = nn.Sequential(
            nn.Flatten(),
            nn.Linear(_WIDTHS[-1] * _SIDE**2, _FC),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(_FC, _FC),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
        )
        published = None if self._published is None else published_weights(self._published)
        for layer, theirs in ((top[1], "classifier.0"), (top[4], "classifier.3")):
            assert isinstance(layer, nn.Linear)
            if published is not None:
                state = {name: published[f"{theirs}.{name}"] for name in ("weight", "bias")}
                layer.load_state_dict(state)
            else:
                nn.init.normal_(layer.weight, std=0.01)  # section 3.1, and torchvision's
                nn.init.zeros_(layer.bias)
        return top

    def _load(self, published: dict[str, Tensor]) -> None:
        state = {
            name.removeprefix("features."): value
            for name, value in published.items()
            if name.startswith("features.")
        }
        first, weight = self.features[0], state["0.weight"]
        assert isinstance(first, nn.Conv2d)
        if first.in_channels != 3:
            shared = weight.sum(1, keepdim=True) / first.in_channels
            state["0.weight"] = shared.expand_as(first.weight)
        self.features.load_state_dict(state)


def _entry(depth: int, norm: bool, weights: str | None) -> Any:
    """torchvision's entry of the weights, None for none."""
    if weights is None:
        return None
    from torchvision.models import get_model_weights

    members = get_model_weights(f"vgg{depth}{'_bn' if norm else ''}").__members__
    # IMAGENET1K_FEATURES is for pixels from 0 to 255, and has no dense layers.
    entries = {name: entry for name, entry in members.items() if "FEATURES" not in name}
    if weights not in entries:
        raise ValueError(f'weights must be null or one of {", ".join(entries)}, got "{weights}"')
    return entries[weights].value


def _features(convolutions: tuple[int, ...], in_channels: int, norm: bool) -> nn.Sequential:
    """3x3 convolutions with ReLU, a 2x2 max pooling after each group, in torchvision's order."""
    layers: list[nn.Module] = []
    given = in_channels
    for count, width in zip(convolutions, _WIDTHS, strict=True):
        for _ in range(count):
            conv = nn.Conv2d(given, width, 3, padding=1)
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)
            layers += [conv, *([nn.BatchNorm2d(width)] if norm else []), nn.ReLU(inplace=True)]
            given = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)
