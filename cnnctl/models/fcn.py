"""FCN-32s, FCN-16s, FCN-8s: Long, Shelhamer, Darrell, "Fully convolutional networks for semantic
segmentation", arXiv:1411.4038, sections 3 and 4, figure 3.

Differs from the paper: it pads the image by 100 pixels and crops the scores, which shifts with the
size; here the image is filled up with zeros, below and to the right, to a multiple of the total
stride, fc6 becomes a convolution that keeps the size, and each upsampling repeats its border, so
that scores and pixels lie exactly over each other. The skips' score layers start at zero, as in the
paper; the deepest starts near it (standard deviation 0.001), so that all layers learn from the
first step. When staged, every stage has the same schedule (the paper lowers the learning rate by
100) and upsamples in all the steps of the final stride, with the later skips still zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnctl.backbones.base import Backbone
from cnnctl.models.base import GradientStage, SegmentationModel, Stage
from cnnctl.ops.upsampling import Bilinear, Transposed

Learning = Literal["learned", "last_fixed", "fixed"]


class FCN(SegmentationModel):
    """Scores (1x1 convolutions) of maps at strides 32, 16, 8, each upsampled and added to the next.

    Args:
        backbone: any with maps at strides from 32 down to ``stride``.
        num_classes: K.
        stride: 32, 16 or 8: of the finest map that is scored.
        upsampling: transposed convolutions that start as bilinear interpolation and are "learned",
            or learned but for the last ("last_fixed", the paper's), or none learned ("fixed").
        dense: put the backbone's dense layers (VGG's fc6 and fc7), turned into convolutions, on
            its deepest map; a backbone that has none goes without.
        dropout: of those layers.
        staged: train FCN-32s first, then FCN-16s from it, then FCN-8s, as far as ``stride``; or
            all at once.

    Raises:
        ValueError: a number is out of range, or the backbone has no map at a stride that is needed.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        stride: Literal[32, 16, 8] = 8,
        upsampling: Learning = "last_fixed",
        dense: bool = True,
        dropout: float = 0.5,
        staged: bool = False,
    ) -> None:
        super().__init__()
        if stride not in (32, 16, 8):
            raise ValueError(f"stride must be 32, 16 or 8, got {stride}")
        if upsampling not in ("learned", "last_fixed", "fixed"):
            raise ValueError(
                f'upsampling must be "learned", "last_fixed" or "fixed", got "{upsampling}"'
            )
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        self.steps = [step for step in (32, 16, 8) if step >= stride]
        self.names = _at(backbone, self.steps)
        self.staged = staged
        channels = [backbone.channels[name] for name in self.names]
        self.dense: nn.Module = nn.Identity()
        if dense:
            top = backbone.build_top()
            if top is not None:
                self.dense = convolutional(top, channels[0], dropout)
                channels[0] = _width(self.dense)
        self.backbone = backbone
        self.scores = nn.ModuleList(nn.Conv2d(made, num_classes, 1) for made in channels)
        _start(self.scores)
        self.ups = nn.ModuleList(_up(num_classes, 2, upsampling != "fixed") for _ in self.steps[1:])
        self.last = _up(num_classes, stride, upsampling == "learned")

    def forward(self, pixels: Tensor) -> Tensor:
        h, w = pixels.shape[-2:]
        step = self.steps[0]
        maps = self.backbone(F.pad(pixels, (0, -w % step, 0, -h % step)))
        deepest, *skips = (maps[name] for name in self.names)
        scores = self.scores[0](self.dense(deepest))  # (N, K, H / 32, W / 32)
        for up, score, skip in zip(self.ups, self.scores[1:], skips, strict=True):
            scores = up(scores) + score(skip)
        return self.last(scores)[..., :h, :w]

    def stages(self) -> Sequence[Stage]:
        if not self.staged:
            return super().stages()
        return [
            GradientStage(f"fcn{step}s", self.loss, partial(self._trained, step))
            for step in self.steps
        ]

    def _trained(self, step: int) -> Iterator[nn.Parameter]:
        """The parameters of the network of stride ``step``: no skips that are finer."""
        later = self.steps.index(step) + 1
        finer = nn.ModuleList([*self.scores[later:], *self.ups[later - 1 :]])
        left_out = {id(parameter) for parameter in finer.parameters()}
        return (parameter for parameter in self.parameters() if id(parameter) not in left_out)


def convolutional(top: nn.Module, channels: int, dropout: float) -> nn.Sequential:
    """Dense layers on a map (R, channels, k, k) as convolutions on a map of any size, with the same
    weights (section 3.1): the first is k x k, the others 1x1.

    The map keeps its size: where all of the first filter lies inside, the values are those that
    the dense layers give for what it covers.

    Raises:
        ValueError: a layer is not one of linear, ReLU, dropout, or k is not an odd whole number.
    """
    layers: list[nn.Module] = []
    first = True
    for layer in top.children():
        if isinstance(layer, nn.Linear):
            side = round((layer.in_features / channels) ** 0.5) if first else 1
            given = channels if first else layer.in_features
            if given * side**2 != layer.in_features or side % 2 == 0:
                raise ValueError(
                    f"a dense layer of {layer.in_features} inputs is no convolution of odd side "
                    f"over {channels} channels"
                )
            with torch.device("meta"):  # the weights are there already
                conv = nn.Conv2d(given, layer.out_features, side, padding=side // 2)
            conv.weight = nn.Parameter(layer.weight.detach().unflatten(1, (given, side, side)))
            conv.bias = layer.bias
            layers.append(conv)
            first = False
        elif isinstance(layer, nn.ReLU):
            layers.append(nn.ReLU(inplace=True))
        elif isinstance(layer, nn.Dropout):
            layers.append(nn.Dropout(dropout))
        elif not isinstance(layer, nn.Flatten):
            raise ValueError(f"{type(layer).__name__} has no form as a convolution")
    return nn.Sequential(*layers)


def _width(layers: nn.Module) -> int:
    return [layer.out_channels for layer in layers.modules() if isinstance(layer, nn.Conv2d)][-1]


def _at(backbone: Backbone, strides: Sequence[int]) -> list[str]:
    """The backbone's maps at ``strides``."""
    names = {stride: name for name, stride in backbone.strides.items()}
    if missing := [stride for stride in strides if stride not in names]:
        own = ", ".join(map(str, backbone.strides.values()))
        raise ValueError(
            f"FCN-{strides[-1]}s needs a map at stride {missing[0]}; "
            f"{type(backbone).__name__} has strides {own}"
        )
    return [names[stride] for stride in strides]


def _start(scores: nn.ModuleList) -> None:
    for number, score in enumerate(scores):
        assert isinstance(score, nn.Conv2d)
        assert score.bias is not None
        nn.init.normal_(score.weight, std=0.0 if number else 1e-3)
        nn.init.zeros_(score.bias)


def _up(channels: int, scale: int, learned: bool) -> nn.Module:
    return _Learned(channels, scale) if learned else Bilinear(channels, channels, scale)


class _Learned(nn.Module):
    """Transposed convolution that sees the border repeated; it starts as ``Bilinear``, exactly."""

    def __init__(self, channels: int, scale: int) -> None:
        super().__init__()
        self.scale = scale
        self.transposed = Transposed(channels, channels, scale, bilinear=True)

    def forward(self, maps: Tensor) -> Tensor:
        # Not F.pad(mode="replicate"), whose gradient on CUDA differs from run to run.
        maps = torch.cat([maps[:, :, :1], maps, maps[:, :, -1:]], 2)
        maps = torch.cat([maps[..., :1], maps, maps[..., -1:]], 3)
        return self.transposed(maps)[..., self.scale : -self.scale, self.scale : -self.scale]
