"""Inception v3: Szegedy, Vanhoucke, Ioffe, Shlens, Wojna, "Rethinking the Inception architecture
for computer vision", arXiv:1512.00567, table 1, by torchvision, whose names of weights are kept so
that the published ones load (77.3 % top-1; the paper 78.8 % of one crop, table 3).

Differs from the paper: torchvision's network is that of the published weights, whose modules have
other widths than the figures in places; the auxiliary head weighs 0.4, torchvision's and those
weights' (the paper gives none); label smoothing is the augmentation's.
"""

from __future__ import annotations

from torch import Tensor

from cnnctl.models.auxiliary_heads import weighted_losses
from cnnctl.models.base import ClassificationModel, Losses
from cnnctl.models.deeplabv3 import PooledNorm
from cnnctl.models.published_detectors import CENTRED
from cnnctl.models.torchvision_classifiers import adopt, require, torchvision_classifier
from cnnctl.structures import Images, Targets

_LAYERS = (
    *("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "maxpool1"),
    *("Conv2d_3b_1x1", "Conv2d_4a_3x3", "maxpool2"),  # (N, 192, 35, 35)
    *("Mixed_5b", "Mixed_5c", "Mixed_5d"),  # (N, 288, 35, 35)
    *("Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"),  # (N, 768, 17, 17)
    *("Mixed_7a", "Mixed_7b", "Mixed_7c"),  # (N, 2048, 8, 8)
)
_TAP, _HEAD = "Mixed_6e", "AuxLogits"
_LEAST, _LEAST_WITH_HEAD = 75, 299  # pixels: a last map of 1 x 1; one of 17 x 17 at the tap


class InceptionV3(ClassificationModel):
    """A stem without padding, eleven inception modules, average pooling, dropout of 0.5, linear.

    Args:
        in_channels: C.
        num_classes: K.
        size: (h, w) of the input, 299 x 299 in the paper.
        auxiliary: share of the loss of the auxiliary head; 0 leaves it out.
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
        auxiliary: float = 0.4,
        weights: str | None = None,
        classes: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        if auxiliary < 0:
            raise ValueError(f"auxiliary must be at least 0, got {auxiliary}")
        if auxiliary:
            name = "Inception v3 with its auxiliary head (auxiliary=0 has none)"
            require(name, size, _LEAST_WITH_HEAD)
        require("Inception v3", size, _LEAST)
        network = torchvision_classifier(
            *("inception_v3", in_channels, num_classes, weights, classes),
            heads=_class_layers(auxiliary),
            normal=CENTRED,
            left_out=() if auxiliary else (f"{_HEAD}.",),
            aux_logits=bool(auxiliary),
            init_weights=weights is None,
        )
        if auxiliary:
            network.AuxLogits.conv1.bn = PooledNorm.of(network.AuxLogits.conv1.bn)
        self.rebuilt = network.rebuilt
        self.auxiliary = auxiliary
        adopt(self, network)

    def features(self, pixels: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, 2048, h, w), 8 x 8 at 299 x 299."""
        return self._maps(pixels)[0]

    def class_layers(self) -> tuple[str, ...]:
        return _class_layers(self.auxiliary)

    def forward(self, pixels: Tensor) -> Tensor:
        return self._classified(self.features(pixels))

    def outputs(self, pixels: Tensor) -> list[Tensor]:
        """Logits (N, K) of the main head and of the auxiliary one."""
        out, tap = self._maps(pixels)
        return [self._classified(out), self.get_submodule(_HEAD)(tap)]

    def loss(self, images: Images, targets: Targets) -> Losses:
        if not (self.training and self.auxiliary):
            return super().loss(images, targets)
        return weighted_losses(self.outputs(images.pixels), targets, self.auxiliary)

    def _maps(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """The last map, and the one that the auxiliary head sees."""
        out = tap = pixels
        for name in _LAYERS:
            out = self.get_submodule(name)(out)
            if name == _TAP:
                tap = out
        return out, tap

    def _classified(self, features: Tensor) -> Tensor:
        pooled = self.get_submodule("dropout")(features.mean((2, 3)))  # (N, 2048)
        return self.get_submodule("fc")(pooled)


def _class_layers(auxiliary: float) -> tuple[str, ...]:
    return ("fc", f"{_HEAD}.fc") if auxiliary else ("fc",)
