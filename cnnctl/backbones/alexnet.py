"""AlexNet on one device: Krizhevsky, "One weird trick for parallelizing convolutional neural
networks", arXiv:1404.5997, figure 1, by torchvision, whose names of weights are kept
(``features``) so that the published weights load.

R-CNN's network and the small one of Fast R-CNN have groups and a normalisation of responses as
well, as cnnctl/models/alexnet.py has.

Differs from the paper: torchvision's widths (64, 192, 384, 256, 256), and no normalisation of
responses; without published weights convolutions start as in He et al., arXiv:1502.01852.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from cnnctl.backbones.base import Backbone, published_weights

_NAMES = ("c2", "c3", "c4", "c5")
_ENDS = (1, 4, 11, 12)  # place in ``features`` of the ReLUs of convolutions 1, 2, 5; of pool5
_FC = 4096  # features of fc6 and of fc7
_SIDE = 6  # of the map that fc6 sees, from an image of 224 x 224
_LEAST = 63  # pixels of an image that leave one of pool5


class AlexNet(Backbone):
    """Maps c2, c3, c4 of the convolutions 1, 2 and 5, and c5 after pool5, at strides 4, 8, 16, 32.

    Args:
        in_channels: C of the pixels. With other than 3 and ``weights``, each channel gets an equal
            share of the published filters' sum, so that an image whose channels are all the same
            has the response of the grey image with three.
        weights: a name of torchvision's, for example "IMAGENET1K_V1"; None starts at random.

    Raises:
        ValueError: the name of the weights is unknown.
        UserError: the weights are not on this machine and cannot be downloaded.
    """

    def __init__(self, in_channels: int = 3, weights: str | None = None) -> None:
        super().__init__()
        self._published, self.published = _entry(weights), weights is not None
        widths = (in_channels, 64, 192, 384, 256, 256)
        one, two, three, four, five = (
            nn.Conv2d(given, made, *shape)
            for given, made, shape in zip(
                widths[:-1],
                widths[1:],
                ((11, 4, 2), (5, 1, 2), (3, 1, 1), (3, 1, 1), (3, 1, 1)),
                strict=True,
            )
        )
        self.features = nn.Sequential(
            *(one, nn.ReLU(inplace=True), nn.MaxPool2d(3, 2)),
            *(two, nn.ReLU(inplace=True), nn.MaxPool2d(3, 2)),
            *(three, nn.ReLU(inplace=True), four, nn.ReLU(inplace=True)),
            *(five, nn.ReLU(inplace=True), nn.MaxPool2d(3, 2)),
        )
        self.channels = dict(zip(_NAMES, (64, 192, 256, 256), strict=True))
        self.strides = {name: 4 << i for i, name in enumerate(_NAMES)}
        if self._published is not None:
            self._load(published_weights(self._published))
            return
        for layer in (one, two, three, four, five):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        out, found = pixels, []
        for place, layer in enumerate(self.features):
            out = layer(out)
            if place in _ENDS:
                found.append(out)
        return dict(zip(_NAMES, found, strict=True))

    def build_top(self, dropout: float = 0.5) -> nn.Sequential:
        """fc6 and fc7, from (R, 256, 6, 6) to (R, 4096), with the published weights where the
        convolutions have them."""
        top = nn.Sequential(
            *(nn.Flatten(), nn.Dropout(dropout)),
            *(nn.Linear(256 * _SIDE**2, _FC), nn.ReLU(inplace=True), nn.Dropout(dropout)),
            *(nn.Linear(_FC, _FC), nn.ReLU(inplace=True)),
        )
        if self._published is not None:
            state = published_weights(self._published)
            # torchvision's classifier without its flattening, which is a place earlier.
            top.load_state_dict(
                {
                    f"{place + 1}.{part}": state[f"classifier.{place}.{part}"]
                    for place in (1, 4)
                    for part in ("weight", "bias")
                }
            )
            return top
        for layer in top:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.01)  # NIPS 2012, section 5
                nn.init.zeros_(layer.bias)
        return top

    def require(self, size: tuple[int, int]) -> None:
        if min(size) < _LEAST:
            raise ValueError(
                f"AlexNet needs images of at least {_LEAST} x {_LEAST}, got {size[0]} x {size[1]}"
            )

    def _load(self, published: dict[str, Tensor]) -> None:
        own = self.state_dict()
        state = {name: published[name] for name in own}
        first = state["features.0.weight"]
        if own["features.0.weight"].shape[1] != 3:
            shared = first.sum(1, keepdim=True) / own["features.0.weight"].shape[1]
            state["features.0.weight"] = shared.expand_as(own["features.0.weight"])
        self.load_state_dict(state)


def _entry(weights: str | None) -> Any:
    """torchvision's entry of the weights, None for none."""
    if weights is None:
        return None
    from torchvision.models import get_model_weights

    entries = get_model_weights("alexnet").__members__
    if weights not in entries:
        raise ValueError(f'weights must be null or one of {", ".join(entries)}, got "{weights}"')
    return entries[weights].value
