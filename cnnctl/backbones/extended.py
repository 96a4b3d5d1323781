"""Any backbone with the extra layers of SSD: Liu et al., "SSD: single shot multibox detector",
arXiv:1512.02325, section 2.1 and figure 2.
"""

from __future__ import annotations

from torch import Tensor, nn

from cnnctl.backbones.base import Backbone

_FINEST = 8  # stride of the first map
_EXTRA = (128, 256)  # channels of the two convolutions of an extra layer


class Extended(nn.Module):
    """A backbone's maps from stride 8 on (or its last), and those of extra layers, each half as
    large, until the shorter side has one pixel; by "0", "1", ...

    Args:
        body: any.
        size: (h, w) of the training input.

    Attributes:
        channels: of each map.
    """

    def __init__(self, body: Backbone, size: tuple[int, int]) -> None:
        super().__init__()
        self.body = body
        deep = [name for name, stride in body.strides.items() if stride >= _FINEST]
        self._names = deep or [body.deepest]
        self.channels = [body.channels[name] for name in self._names]
        side = -(-min(size) // body.strides[body.deepest])
        hidden, width = _EXTRA
        self.extra = nn.ModuleList()
        while side > 1:
            layers = nn.Sequential(
                nn.Conv2d(self.channels[-1], hidden, 1),
                nn.ReLU(inplace=True),
                nn.Conv2d(hidden, width, 3, 2, 1),
                nn.ReLU(inplace=True),
            )
            for layer in (layers[0], layers[2]):
                assert isinstance(layer, nn.Conv2d)
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)  # pyright: ignore[reportArgumentType]
            self.extra.append(layers)
            self.channels.append(width)
            side = -(-side // 2)

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        found = self.body(pixels)
        maps = [found[name] for name in self._names]
        for layers in self.extra:
            maps.append(layers(maps[-1]))
        return {str(place): one for place, one in enumerate(maps)}
