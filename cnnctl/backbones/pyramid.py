"""Feature pyramids: Lin et al., "Feature pyramid networks for object detection", arXiv:1612.03144.

Every map of a backbone gets the same number of channels and what the deeper ones know. The names of
the weights are those of torchvision's detectors (``body``, ``fpn``), so that published ones load.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from cnnctl.backbones.base import Backbone

Extra = Literal["pool", "p6p7_of_c5", "p6p7_of_p5"]


class Pyramid(nn.Module):
    """Maps p2, p3, ... at the strides of the backbone's, and one or two coarser ones.

    Args:
        body: the backbone.
        maps: those of its maps that the pyramid stands on, from the shallowest.
        width: channels of every map.
        extra: "pool" adds a map of every second pixel of the last (the paper's for proposals);
            the others add two by convolutions of stride 2 of the deepest map of the backbone or of
            the pyramid (RetinaNet's, FCOS's).
        frozen_norm: batch normalisation of the body as it was published, for small batches.

    Attributes:
        strides: of each map, by name.
        width: channels of every map.

    Raises:
        ValueError: the backbone has not these maps.
    """

    def __init__(
        self,
        body: Backbone,
        maps: Sequence[str] = ("c2", "c3", "c4", "c5"),
        width: int = 256,
        extra: Extra = "pool",
        frozen_norm: bool = False,
    ) -> None:
        super().__init__()
        if missing := [name for name in maps if name not in body.channels]:
            raise ValueError(
                f"the backbone has no map {missing[0]}, only {', '.join(body.channels)}"
            )
        self.body = freeze_norm(body) if frozen_norm else body
        self._maps = tuple(maps)
        self.width = width
        channels = [body.channels[name] for name in maps]
        if extra == "pool":
            block = LastLevelMaxPool()
        else:
            block = LastLevelP6P7(channels[-1] if extra == "p6p7_of_c5" else width, width)
        self.fpn = FeaturePyramidNetwork(channels, width, block)
        strides = [body.strides[name] for name in maps]
        strides += [strides[-1] * 2] if extra == "pool" else [strides[-1] * 2, strides[-1] * 4]
        first = int(maps[0][1:])
        self.strides = {f"p{first + i}": stride for i, stride in enumerate(strides)}

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        maps = self.body(pixels)
        levels = self.fpn(OrderedDict((name, maps[name]) for name in self._maps))
        return dict(zip(self.strides, levels.values(), strict=True))


def freeze_norm(module: nn.Module) -> nn.Module:
    """Put fixed scales and shifts in place of batch normalisation, within ``module``."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            fixed = FrozenBatchNorm2d(child.num_features, child.eps)
            state = child.state_dict()
            state.pop("num_batches_tracked", None)
            if not child.affine:
                raise ValueError("batch normalisation without scales cannot be frozen")
            fixed.load_state_dict(state)
            setattr(module, name, fixed)
        else:
            freeze_norm(child)
    return module
