"""DeepLab, its variant LargeFOV: Chen, Papandreou, Kokkinos, Murphy, Yuille, "Semantic image
segmentation with deep convolutional nets and fully connected CRFs", arXiv:1412.7062, sections 3.1,
3.2 and table 2 (20.5 million parameters), later called DeepLab v1.

Differs from the paper: without the CRF; its steps of the rate, and the tenfold rate of the last
layer, are left to the experiment. Poolings are 3x3, as in the released model, whose additional
average pooling after the fifth is left out. The loss is taken at full resolution after the bilinear
upsampling, not on labels shrunk by 8. fc6 and fc7 start from every fourth filter of VGG's own and
every third of their 7x7 taps where published weights are loaded; the paper subsamples them in space
and says little of the filters.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnctl.models.base import SegmentationModel

CONVS = (2, 2, 3, 3, 3)  # of each level of VGG-16
WIDTHS = (1, 2, 4, 8, 8)  # its channels, times ``width``
STRIDE = 8


class DeepLab(SegmentationModel):
    """VGG-16 without its last two subsamplings, dilated where they were, upsampled by 8.

    An image is filled up with zeros to 8n + 1 pixels a side, of which the paper's crops (321) are:
    then position i of every map at stride 8 lies on pixel 8i, and aligned upsampling puts the
    scores back to where they come from. A position sees 419 pixels a side.

    Args:
        in_channels: C.
        num_classes: K.
        width: channels of the first level; the paper's is 64, fc6 and fc7 have 16 times as many.
        dropout: of fc6 and fc7.
        norm: batch normalisation in VGG-16, for training from scratch; the paper has none.
        weights: "IMAGENET1K_V1", torchvision's of VGG-16, for ``width`` 64. With other than 3
            channels each gets an equal share of the first filters' sum.

    Raises:
        ValueError: a number is out of range, the name of the weights is unknown, or they do not
            fit the width.
        UserError: the weights are not on this machine and cannot be downloaded.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        width: int = 64,
        dropout: float = 0.5,
        norm: bool = False,
        weights: str | None = None,
    ) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"width must be at least 1, got {width}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        if weights not in (None, "IMAGENET1K_V1"):
            raise ValueError(f'weights must be null or IMAGENET1K_V1, got "{weights}"')
        if weights and width != 64:
            raise ValueError(f"published weights are of width 64, got {width}")
        self.features = _features(in_channels, width, norm)
        self.fc6 = nn.Conv2d(8 * width, 16 * width, 3, padding=12, dilation=12)
        self.fc7 = nn.Conv2d(16 * width, 16 * width, 1)
        self.classify = nn.Conv2d(16 * width, num_classes, 1)
        self.dropout = nn.Dropout(dropout)
        self._start()
        if weights:
            from torchvision.models import get_model_weights

            from cnnctl.backbones.base import published_weights

            name = "vgg16_bn" if norm else "vgg16"
            self._take(published_weights(get_model_weights(name)[weights].value))
            self.rebuilt = ("classify",)  # VGG-16 has no layer for it

    def forward(self, pixels: Tensor) -> Tensor:
        h, w = pixels.shape[-2:]
        below, right = (-(side - 1) % STRIDE for side in (h, w))
        maps = self.features(F.pad(pixels, (0, right, 0, below)))
        maps = self.dropout(self.fc6(maps).relu())
        maps = self.dropout(self.fc7(maps).relu())
        scores = self.classify(maps)
        size = (h + below, w + right)
        scores = F.interpolate(scores.float(), size, mode="bilinear", align_corners=True)
        return scores[..., :h, :w]

    def _start(self) -> None:
        """As torchvision starts VGG; the new layer as the released model does."""
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        nn.init.normal_(self.classify.weight, std=0.01)

    @torch.no_grad()
    def _take(self, published: dict[str, Tensor]) -> None:
        """VGG-16's weights; its dense layers are thinned out to the size of these."""
        own = self.features.state_dict()
        given = {name: published.get(f"features.{name}", value) for name, value in own.items()}
        first, channels = published["features.0.weight"], own["0.weight"].shape[1]
        if channels != 3:
            shared = first.sum(1, keepdim=True) / channels
            given["0.weight"] = shared.expand(-1, channels, -1, -1)
        self.features.load_state_dict(given)
        wide = published["classifier.0.weight"].view(4096, 512, 7, 7)
        self.fc6.weight.copy_(wide[::4, :, ::3, ::3])
        self.fc7.weight.copy_(published["classifier.3.weight"][::4, ::4, None, None])
        for layer, name in ((self.fc6, "classifier.0.bias"), (self.fc7, "classifier.3.bias")):
            assert layer.bias is not None
            layer.bias.copy_(published[name][::4])


def _features(in_channels: int, width: int, norm: bool) -> nn.Sequential:
    """The convolutions under torchvision's names, so that its weights load."""
    layers: list[nn.Module] = []
    given = in_channels
    for level, (count, factor) in enumerate(zip(CONVS, WIDTHS, strict=True)):
        made, dilation = factor * width, 2 if level == 4 else 1
        for before, after in pairwise((given, *[made] * count)):
            layers.append(nn.Conv2d(before, after, 3, padding=dilation, dilation=dilation))
            layers += [*([nn.BatchNorm2d(after)] if norm else []), nn.ReLU(inplace=True)]
        layers.append(nn.MaxPool2d(3, stride=2 if level < 3 else 1, padding=1))
        given = made
    return nn.Sequential(*layers)
