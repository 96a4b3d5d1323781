"""The fully convolutional form of a classifier: Sermanet et al., "OverFeat", arXiv:1312.6229,
section 3.5; Simonyan and Zisserman, arXiv:1409.1556, section 3.2.

What a classifier says of an image of its training size it says here at every place of a larger one
where such an image fits: the first dense layer, which sees a whole map, becomes a convolution with
a kernel of that map's size, and those after it 1x1 convolutions; global pooling becomes pooling
with a window of that size at stride 1. The weights are the classifier's own, seen in another shape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

Trunk = Callable[[Tensor], Tensor]  # pixels (N, C, H, W) -> the last map (N, D, h, w)

# Layers that treat every number alone, so that they may come before or after flattening.
_ELEMENTWISE = (
    *(nn.Identity, nn.Dropout, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Tanh),
    *(nn.Sigmoid, nn.Hardswish),
)
_PASSED = (*_ELEMENTWISE, nn.Flatten)
_POOLS = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)


class ScoreMaps:
    """Pixels (N, C, H, W) -> logits (N, K, h, w), 1 x 1 at the training size.

    Args:
        trunk: pixels -> the last map.
        layers: from that map to the logits, in order: pooling and flattening, where there are any,
            then dense layers. Without a pooling layer, a dense layer with an input for each of the
            map's channels sees their means.
        trained: shape (D, h, w) of the last map of a training image.

    Raises:
        ValueError: the layers are none of these.
    """

    def __init__(self, trunk: Trunk, layers: Sequence[nn.Module], trained: Sequence[int]) -> None:
        self.trunk = trunk
        channels, *window = trained
        self.window = (window[0], window[1])
        self._before: list[nn.Module] = []  # on the map
        rest = list(layers)
        while rest and (isinstance(rest[0], _PASSED) or self._is_no_change(rest[0])):
            layer = rest.pop(0)
            self._before += [layer] * isinstance(layer, _ELEMENTWISE)
        first = rest[0] if rest else None
        self._meets: nn.Module | None = None  # what sees a whole window; None is its mean
        if _sees(first, channels * window[0] * window[1]) or _is_global(first):
            self._meets = rest.pop(0)
        elif not _sees(first, channels):
            name = "nothing" if first is None else type(first).__name__
            raise ValueError(
                f"its map of {channels} x {window[0]} x {window[1]} is followed by {name}, "
                "where a dense layer of that size or global pooling is expected"
            )
        self._after = rest  # on one vector for each place

    def __call__(self, pixels: Tensor) -> Tensor:
        """Raises ValueError where the images are smaller than those of training."""
        out = self.trunk(pixels)  # (N, D, H', W')
        if any(side < least for side, least in zip(out.shape[2:], self.window, strict=True)):
            raise ValueError(
                f"images of {pixels.shape[2]} x {pixels.shape[3]} are smaller than those that the "
                "network was made for"
            )
        for layer in self._before:
            out = layer(out)
        out = self._met(out)
        n, width, h, w = out.shape
        rows = out.permute(0, 2, 3, 1).reshape(n * h * w, width, 1, 1)  # a pixel for each place
        if isinstance(self._meets, nn.Linear):
            rows = rows.flatten(1)
        for layer in self._after:
            rows = layer(rows.flatten(1) if isinstance(layer, nn.Linear) else rows)
        return rows.view(n, h, w, -1).permute(0, 3, 1, 2)  # (N, K, h, w)

    def _met(self, out: Tensor) -> Tensor:
        """(N, D, H', W') -> (N, D', h, w): what is made of each window."""
        layer = self._meets
        if isinstance(layer, nn.Linear):
            kernel = layer.weight.view(layer.out_features, -1, *self.window)
            return F.conv2d(out, kernel, layer.bias)
        if isinstance(layer, nn.AdaptiveMaxPool2d):
            return F.max_pool2d(out, self.window, 1)
        return F.avg_pool2d(out, self.window, 1)

    def _is_no_change(self, layer: nn.Module) -> bool:
        """Whether it pools maps to the size that they have anyway."""
        pools = isinstance(layer, _POOLS) and self.window != (1, 1)
        return pools and _pair(layer.output_size) == self.window


def flattened(layers: Iterable[nn.Module]) -> list[nn.Module]:
    """Layers in order, those of every ``nn.Sequential`` among them one by one."""
    found: list[nn.Module] = []
    for layer in layers:
        found += flattened(layer) if isinstance(layer, nn.Sequential) else [layer]
    return found


def map_shape(model: nn.Module, trunk: Trunk, shape: tuple[int, int, int]) -> tuple[int, ...]:
    """(D, h, w) of the map that ``trunk`` makes of an image of ``shape``, without computing it.

    Args:
        model: it has the trunk's weights.
        shape: (C, h, w).
    """
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    shapes = {f"model.{name}": value.to("meta") for name, value in state.items()}
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    pixels = torch.empty(1, *shape, device="meta", dtype=dtype)
    # A map of one pixel is none to batch normalisation that trains.
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            return tuple(functional_call(_Trunk(model, trunk), shapes, (pixels,)).shape[1:])
    finally:
        for module, training in modes:
            module.training = training


class _Trunk(nn.Module):
    """A trunk as the forward pass of its model, whose weights can be exchanged for a call."""

    def __init__(self, model: nn.Module, trunk: Trunk) -> None:
        super().__init__()
        self.model = model
        self._trunk = (trunk,)  # not a second time among the modules

    def forward(self, pixels: Tensor) -> Tensor:
        return self._trunk[0](pixels)


def _sees(layer: nn.Module | None, count: int) -> bool:
    return isinstance(layer, nn.Linear) and layer.in_features == count


def _is_global(layer: nn.Module | None) -> bool:
    return isinstance(layer, _POOLS) and _pair(layer.output_size) == (1, 1)


def _pair(size: object) -> object:
    return tuple(size) if isinstance(size, (tuple, list)) else (size, size)
