"""torchvision's GoogLeNet: Szegedy, Liu, Jia et al., "Going deeper with convolutions",
arXiv:1409.4842, with its names of weights, so that the published ones load (69.8 % top-1).

Differs from the paper (model=googlenet is the paper's): 3x3 in place of the 5x5 convolutions, batch
normalisation in place of the local response normalisation and of all biases, a 2x2 pooling after
4e, dropout of 0.2 before the last layer; an auxiliary head's map is always 4 x 4.
"""

from __future__ import annotations

from torch import Tensor, nn

from cnnctl.models.auxiliary_heads import weighted_losses
from cnnctl.models.base import ClassificationModel, Losses
from cnnctl.models.published_detectors import CENTRED
from cnnctl.models.torchvision_classifiers import adopt, require, torchvision_classifier
from cnnctl.structures import Images, Targets

_STEM = ("conv1", "maxpool1", "conv2", "conv3", "maxpool2")
_MODULES = (
    *("inception3a", "inception3b", "maxpool3"),
    *("inception4a", "inception4b", "inception4c", "inception4d", "inception4e", "maxpool4"),
    *("inception5a", "inception5b"),
)
_TAPS = {"inception4a": "aux1", "inception4d": "aux2"}
_LEAST = 15  # pixels


class GoogLeNetTV(ClassificationModel):
    """A stem, nine inception modules, global average pooling, dropout of 0.2, linear (K).

    Args:
        in_channels: C.
        num_classes: K.
        size: (h, w) of the input.
        auxiliary: share of the loss of each of the two auxiliary heads; 0 leaves them out.
        weights: torchvision's, by name; for other than the published classes the last layer of
            each head starts at random.
        classes: their names, by which a published head is known to be theirs.

    Attributes:
        rebuilt: the layers that start at random in spite of ``weights``, by name.

    Raises:
        ValueError: the share is negative, the input too small, or the name of the weights unknown.
        UserError: the weights are not on this machine and cannot be downloaded.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        size: tuple[int, int],
        auxiliary: float = 0.3,
        weights: str | None = None,
        classes: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        if auxiliary < 0:
            raise ValueError(f"auxiliary must be at least 0, got {auxiliary}")
        require("GoogLeNet", size, _LEAST)
        network = torchvision_classifier(
            *("googlenet", in_channels, num_classes, weights, classes),
            heads=_class_layers(auxiliary),
            normal=CENTRED,
            left_out=() if auxiliary else ("aux1.", "aux2."),
            aux_logits=bool(auxiliary),
            init_weights=False,
        )
        self.rebuilt = network.rebuilt
        self.auxiliary = auxiliary
        adopt(self, network)
        for layer in self.modules():
            if weights is None and isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")

    def features(self, pixels: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, 1024, about H / 32, W / 32)."""
        return self._maps(pixels)[0]

    def class_layers(self) -> tuple[str, ...]:
        return _class_layers(self.auxiliary)

    def forward(self, pixels: Tensor) -> Tensor:
        return self._classified(self.features(pixels))

    def outputs(self, pixels: Tensor) -> list[Tensor]:
        """Logits (N, K) of the main head and of the auxiliary ones."""
        out, taps = self._maps(pixels)
        heads = [self.get_submodule(_TAPS[name])(tap) for name, tap in taps.items()]
        return [self._classified(out), *heads]

    def loss(self, images: Images, targets: Targets) -> Losses:
        if not (self.training and self.auxiliary):
            return super().loss(images, targets)
        return weighted_losses(self.outputs(images.pixels), targets, self.auxiliary)

    def _maps(self, pixels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The last map, and those that the auxiliary heads see."""
        out, taps = pixels, {}
        for name in (*_STEM, *_MODULES):
            out = self.get_submodule(name)(out)
            if name in _TAPS:
                taps[name] = out
        return out, taps

    def _classified(self, features: Tensor) -> Tensor:
        pooled = self.get_submodule("dropout")(features.mean((2, 3)))  # (N, 1024)
        return self.get_submodule("fc")(pooled)


def _class_layers(auxiliary: float) -> tuple[str, ...]:
    heads = tuple(_TAPS.values()) if auxiliary else ()
    return ("fc", *(f"{head}.fc2" for head in heads))
