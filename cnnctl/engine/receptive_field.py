"""Receptive fields from the operations that a network really runs.

Every tensor that depends on the input carries, for each of its spatial axes, the exact interval of
input pixels that each position sees; borders do not clip it. Convolutions and poolings widen the
intervals (Araujo, Norris, Sim, "Computing receptive fields of convolutional neural networks",
Distill, 2019), strides and resizes move them, additions and concatenations take their hull. An
operation without a rule here counts as seeing the whole image, so that a field is never
understated. Statistics of normalisation layers are left out, as usual.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

aten = torch.ops.aten


@dataclass(frozen=True)
class Axis:
    """What the positions of one axis see.

    With P = len(spans), position q * P + r sees the input pixels from q * step + spans[r][0] to
    q * step + spans[r][1]. P is 1 until something enlarges the map.
    """

    step: int
    spans: tuple[tuple[int, int], ...]

    def extent(self) -> int:
        """The largest number of input pixels that a position sees."""
        return max(high - low + 1 for low, high in self.spans)

    def sees(self, position: int) -> tuple[int, int]:
        turns, phase = divmod(position, len(self.spans))
        low, high = self.spans[phase]
        return turns * self.step + low, turns * self.step + high

    def through(self, taps: Sequence[Iterable[int]], stride: int) -> Axis:
        """After an operation whose output q * len(taps) + r reads q * stride + each of taps[r]."""
        period = len(self.spans)
        repeats = period // math.gcd(period, stride)
        spans = []
        for position in range(repeats * len(taps)):
            turns, phase = divmod(position, len(taps))
            seen = [self.sees(turns * stride + tap) for tap in taps[phase]]
            spans.append((min(low for low, _ in seen), max(high for _, high in seen)))
        return Axis(self.step * (repeats * stride // period), tuple(spans))

    def union(self, other: Axis) -> Axis | None:
        """The hull of both at every position; None where the two move at different speeds."""
        period = math.lcm(len(self.spans), len(other.spans))
        step = self.step * (period // len(self.spans))
        if step != other.step * (period // len(other.spans)):
            return None
        pairs = [(self.sees(i), other.sees(i)) for i in range(period)]
        return Axis(step, tuple((min(a[0], b[0]), max(a[1], b[1])) for a, b in pairs))


@dataclass(frozen=True)
class Field:
    """What a tensor's positions see: an Axis by dimension; ``whole`` where all of the image."""

    axes: dict[int, Axis]
    whole: bool = False

    def extent(self) -> tuple[int, int] | None:
        """(height, width) in input pixels; None is the whole image."""
        if self.whole or len(self.axes) != 2:
            return None
        height, width = (self.axes[dim].extent() for dim in sorted(self.axes))
        return height, width

    def moved(self, dims: dict[int, int]) -> Field:
        """Dimensions renamed; one that is not in ``dims`` has been mixed: the whole image."""
        axes = {dims[dim]: axis for dim, axis in self.axes.items() if dim in dims}
        return Field(axes, self.whole or len(axes) < len(self.axes))

    def along(self, change: Callable[[Axis, int], Axis | None]) -> Field:
        """Each axis changed by ``change(axis, dimension)``; None makes it the whole image."""
        changed = {dim: change(axis, dim) for dim, axis in self.axes.items()}
        kept = {dim: axis for dim, axis in changed.items() if axis is not None}
        return Field(kept, self.whole or len(kept) < len(changed))


class FieldTracker(TorchDispatchMode):
    """While active, follows everything that is computed from the tensors given to ``start``.

    Attributes:
        activation_bytes: of all floating-point results so far, views and in-place ones left out.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fields = WeakTensorKeyDictionary()
        self.activation_bytes = 0

    def start(self, pixels: Tensor) -> None:
        """(N, C, H, W): each pixel sees itself."""
        one = Axis(1, ((0, 0),))
        self.fields[pixels] = Field({2: one, 3: one})

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # types: unused, torch's
        kwargs = kwargs or {}
        inputs = [tensor for tensor in _tensors((args, kwargs)) if tensor in self.fields]
        # Before the call: an in-place operation changes what its own input sees.
        fields = [(self.fields[tensor], tensor.dim()) for tensor in inputs]
        storages = {tensor.untyped_storage()._cdata for tensor in inputs}
        result = func(*args, **kwargs)
        if not inputs:
            return result
        source = inputs[0]
        rule = _RULES.get(func.overloadpacket)
        for out in _tensors(result):
            if rule is not None:
                self.fields[out] = rule(_union(fields, source.dim()), source, out, args)
            elif torch.Tag.pointwise in func.tags:
                self.fields[out] = _union(fields, out.dim())
            else:
                self.fields[out] = Field({}, whole=True)
            if out.is_floating_point() and out.untyped_storage()._cdata not in storages:
                self.activation_bytes += out.nbytes
            if func._schema.is_mutable and out._base is not None:
                # Written into a part of a larger tensor: nothing is known of the rest any more.
                self.fields[out._base] = Field({}, whole=True)
        return result


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _tensors(part)


def _union(fields: list[tuple[Field, int]], ndim: int) -> Field:
    """The hull of (field, dimensions) pairs, aligned at the last dimension as broadcasting does."""
    merged: dict[int, Axis] = {}
    whole = False
    for field, dims in fields:
        shift = ndim - dims
        whole |= field.whole
        for dim, axis in field.axes.items():
            known = merged.get(dim + shift)
            both = axis if known is None else known.union(axis)
            if both is None:
                whole = True
            else:
                merged[dim + shift] = both
    return Field(merged, whole)


# Rules: (hull of the inputs, first input, output, positional arguments) -> field of the output.
# torch leaves trailing default arguments out of ``args``.
Rule = Callable[[Field, Tensor, Tensor, tuple[Any, ...]], Field]


def _argument(args: tuple[Any, ...], index: int, default: Any) -> Any:
    return args[index] if len(args) > index and args[index] not in ([], None) else default


def _window(kernel: int, stride: int, padding: int, dilation: int) -> tuple[list[range], int]:
    taps = range(-padding, -padding + kernel * dilation, dilation)
    return [taps], stride


def _transposed(kernel: int, stride: int, padding: int, dilation: int) -> tuple[list[Any], int]:
    """Output o gets input i where o = i * stride - padding + k * dilation for some tap k."""
    taps = []
    for phase in range(stride):
        offsets = [phase + padding - k * dilation for k in range(kernel)]
        reached = [offset // stride for offset in offsets if offset % stride == 0]
        taps.append(reached or [(phase + padding) // stride])  # sees nothing: any one will do
    return taps, 1


def _windowed(field: Field, source: Tensor, shape: Any, *arguments: int | Sequence[int]) -> Field:
    """Each axis through ``shape(kernel, stride, padding, dilation)`` of its own dimension."""
    count = len(arguments[0])  # pyright: ignore[reportArgumentType]

    def change(axis: Axis, dim: int) -> Axis:
        index = dim - (source.dim() - count)
        if index < 0:  # outside of the window
            return axis
        sides = (v if isinstance(v, int) else v[index if len(v) > 1 else 0] for v in arguments)
        return axis.through(*shape(*sides))

    return field.along(change)


def _convolution(field: Field, source: Tensor, out: Tensor, args: tuple[Any, ...]) -> Field:
    weight, stride, padding, dilation, transposed = args[1], *args[3:7]
    shape = _transposed if transposed else _window
    # An axis that has become batch or channels is mixed.
    field = field.moved({dim: dim for dim in range(2, source.dim())})
    return _windowed(field, source, shape, weight.shape[2:], stride, padding, dilation)


def _pooling(field: Field, source: Tensor, out: Tensor, args: tuple[Any, ...]) -> Field:
    kernel = args[1]
    stride, padding = _argument(args, 2, kernel), _argument(args, 3, 0)
    # The fifth argument is max pooling's dilation; in average pooling it is a flag.
    dilation = _argument(args, 4, 1)
    dilation = 1 if isinstance(dilation, bool) else dilation
    return _windowed(field, source, _window, kernel, stride, padding, dilation)


def _adaptive(field: Field, source: Tensor, out: Tensor, args: tuple[Any, ...]) -> Field:
    def change(axis: Axis, dim: int) -> Axis | None:
        size, bins = source.shape[dim], out.shape[dim]
        if bins == 1 or size % bins:
            return axis if size == bins else None
        return axis.through(*_window(size // bins, size // bins, 0, 1))

    return field.along(change)


def _resize(reach: int) -> Rule:
    """Nearest (``reach`` 0), bilinear (1) or bicubic (2) interpolation by a whole factor."""

    def rule(field: Field, source: Tensor, out: Tensor, args: tuple[Any, ...]) -> Field:
        def change(axis: Axis, dim: int) -> Axis | None:
            factor, rest = divmod(out.shape[dim], source.shape[dim])
            if factor == 1 and not rest:
                return axis
            aligned = reach and args[2]  # corners aligned: no two positions sample alike
            if rest or factor < 1 or aligned:
                return None
            if not reach:
                return axis.through([[0]] * factor, 1)
            # Position o samples at (o + 1/2) / factor - 1/2, between two neighbours.
            left = [(2 * phase + 1 - factor) // (2 * factor) for phase in range(factor)]
            return axis.through([range(x - reach + 1, x + reach + 1) for x in left], 1)

        return field.along(change)

    return rule


def _padded(field: Field, source: Tensor, out: Tensor, args: tuple[Any, ...]) -> Field:
    amounts = args[1]  # (before, after) of the last dimension, then of the one before, ...

    def change(axis: Axis, dim: int) -> Axis:
        index = 2 * (source.dim() - 1 - dim)
        return axis.through([[-amounts[index]]], 1) if index < len(amounts) else axis

    return field.along(change)


def _slice(field: Field, source: Tensor, out: Tensor, args: tuple[Any, ...]) -> Field:
    chosen = _argument(args, 1, 0) % source.dim()
    start, step = _argument(args, 2, 0), _argument(args, 4, 1)
    start = max(start + source.shape[chosen], 0) if start < 0 else start
    return field.along(lambda axis, d: axis.through([[start]], step) if d == chosen else axis)


def _reshape(field: Field, source: Tensor, out: Tensor, args: tuple[Any, ...]) -> Field:
    """A dimension survives where a dimension of its size has as many elements behind it."""
    behind = {(n, math.prod(out.shape[i + 1 :])): i for i, n in enumerate(out.shape)}
    places = ((n, math.prod(source.shape[i + 1 :])) for i, n in enumerate(source.shape))
    return field.moved({i: behind[place] for i, place in enumerate(places) if place in behind})


def _permute(field: Field, source: Tensor, out: Tensor, args: tuple[Any, ...]) -> Field:
    return field.moved({dim % source.dim(): place for place, dim in enumerate(args[1])})


def _transpose(field: Field, source: Tensor, out: Tensor, args: tuple[Any, ...]) -> Field:
    first, second = (dim % source.dim() for dim in args[1:3])
    order = {dim: dim for dim in range(source.dim())}
    return field.moved(order | {first: second, second: first})


def _reduce(field: Field, source: Tensor, out: Tensor, args: tuple[Any, ...]) -> Field:
    dims = _argument(args, 1, list(range(source.dim())))
    gone = {dim % source.dim() for dim in ([dims] if isinstance(dims, int) else dims)}
    left = [dim for dim in range(source.dim()) if dim not in gone]
    keep = out.dim() == source.dim()
    return field.moved({dim: dim if keep else place for place, dim in enumerate(left)})


def _keep(field: Field, source: Tensor, out: Tensor, args: tuple[Any, ...]) -> Field:
    """Nothing changes; dimensions may be added in front."""
    more = out.dim() - source.dim()
    return field.moved({dim: dim + more for dim in range(source.dim())})


def _except(position: int, default: int) -> Rule:
    """Nothing changes but along one dimension, the argument at ``position``, which is mixed."""

    def rule(field: Field, source: Tensor, out: Tensor, args: tuple[Any, ...]) -> Field:
        mixed = _argument(args, position, default) % source.dim()
        return field.moved({dim: dim for dim in range(source.dim()) if dim != mixed})

    return rule


_RULES: dict[Any, Rule] = {
    aten.convolution: _convolution,
    **dict.fromkeys(
        (aten.max_pool2d_with_indices, aten.max_pool2d, aten.avg_pool2d, aten.avg_pool3d), _pooling
    ),
    **dict.fromkeys(
        (aten._adaptive_avg_pool2d, aten.adaptive_avg_pool2d, aten.adaptive_max_pool2d), _adaptive
    ),
    **dict.fromkeys((aten.upsample_nearest2d, aten._upsample_nearest_exact2d), _resize(0)),
    aten.upsample_bilinear2d: _resize(1),
    aten.upsample_bicubic2d: _resize(2),
    **dict.fromkeys((aten.constant_pad_nd, aten.reflection_pad2d, aten.replication_pad2d), _padded),
    aten.slice: _slice,
    **dict.fromkeys(
        (aten.view, aten._unsafe_view, aten.reshape, aten.squeeze, aten.unsqueeze), _reshape
    ),
    aten.permute: _permute,
    aten.transpose: _transpose,
    **dict.fromkeys((aten.mean, aten.sum, aten.amax), _reduce),
    aten.cat: _except(1, 0),
    **dict.fromkeys((aten.split, aten.split_with_sizes), _except(2, 0)),
    **dict.fromkeys((aten._softmax, aten._log_softmax), _except(1, -1)),
    **dict.fromkeys(
        (
            aten.native_batch_norm,
            aten._native_batch_norm_legit_no_training,
            aten.cudnn_batch_norm,
            aten.miopen_batch_norm,
            aten.native_group_norm,
            aten.native_layer_norm,
            aten.clone,
            aten._to_copy,
            aten.copy_,
            aten.detach,
            aten.alias,
            aten.expand,
        ),
        _keep,
    ),
}
