"""What each layer of a network makes and costs: shapes, parameters, FLOPs, receptive field."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cnnctl.engine.receptive_field import Field, FieldTracker
from cnnctl.models.base import Model
from cnnctl.structures import Images

if TYPE_CHECKING:
    from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Row:
    """One call of one leaf layer.

    Args:
        name: where it is in the network (``layer1.0.conv1``).
        kind: its class.
        shape: of its output, without the batch: (C, H, W) or (K,).
        kernel, stride, padding: in pixels, (height, width); None where it has no window.
        parameters: of its own; 0 where an earlier row has them (a layer that is used twice).
        flops: of convolutions and matrix products, 1 multiply-add = 2 FLOPs.
        field: (height, width) of the input that one output position sees, in pixels and not
            clipped at the border; None is the whole image.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    kernel: tuple[int, int] | None
    stride: tuple[int, int] | None
    padding: tuple[int, int] | None
    parameters: int
    flops: int
    field: tuple[int, int] | None


@dataclass(frozen=True)
class Layers:
    """The rows in the order of execution, and the totals of the network (functions included).

    Args:
        flops: of one image, forward.
        activation_bytes: of all intermediate results of one image, float32; those that are views
            or were computed in place take nothing. Training keeps about as much.
        unused: parameters of layers that ``predict`` leaves out (auxiliary heads).
    """

    rows: list[Row]
    parameters: int
    flops: int
    activation_bytes: int
    unused: int = 0


@torch.no_grad()
def layer_table(
    model: Model, in_channels: int, size: tuple[int, int], proposals: int = 0
) -> Layers:
    """Run ``predict`` once on one image of zeros, (1, in_channels, *size), in eval mode.

    The model is left as it was: mode, weights, running statistics, hooks.

    Args:
        proposals: how many there are in it, spread over the image; for a model that reads them.
    """
    from torch.utils.flop_counter import FlopCounterMode  # imports triton, a second

    first = next(model.parameters(), torch.zeros(()))
    pixels = torch.zeros(1, in_channels, *size, device=first.device, dtype=first.dtype)
    rows: list[Row] = []
    counter, tracker = FlopCounterMode(display=False), FieldTracker()
    with _eval_mode(model), ExitStack() as stack:
        for hook in _hooks(model, counter, tracker, rows):
            stack.callback(hook.remove)
        stack.enter_context(counter)
        stack.enter_context(tracker)
        tracker.start(pixels)
        given = _spread(proposals, size).to(pixels) if model.reads_proposals else None
        model.predict(Images(pixels, [size], [size], given))
        flops = counter.get_total_flops()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Layers(rows, parameters, flops, tracker.activation_bytes, _unused(model, rows))


def _spread(count: int, size: tuple[int, int]) -> Tensor:
    """(1, count, 4): boxes of half the sides of an image (h, w), from corner to corner."""
    h, w = size
    sides = torch.tensor([w, h, w, h]) / 2
    share = torch.linspace(0, 1, count)[:, None]
    corner = torch.tensor([0.0, 0.0, 1.0, 1.0]) * sides
    return (corner + share * sides)[None]


def _leaves(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The layers that have rows, by name."""
    for name, module in model.named_modules():
        if not any(module.children()) and not isinstance(module, (nn.Identity, nn.Sequential)):
            yield name, module


def _unused(model: nn.Module, rows: list[Row]) -> int:
    called = {row.name for row in rows}
    own = {name: list(module.parameters(recurse=False)) for name, module in _leaves(model)}
    used = {id(parameter) for name in called for parameter in own[name]}
    rest = {id(p): p.numel() for name in own.keys() - called for p in own[name]}
    return sum(count for key, count in rest.items() if key not in used)


def _hooks(
    model: Model, counter: FlopCounterMode, tracker: FieldTracker, rows: list[Row]
) -> Iterator[Any]:
    """Hooks on every leaf layer that append its row."""
    counted: set[int] = set()  # parameters that have a row
    before = 0

    def enter(module: nn.Module, inputs: Any) -> None:
        nonlocal before
        before = counter.get_total_flops()

    def leave(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        out = _first_tensor(output)
        if isinstance(module, nn.Linear) and out.dim() > 2:
            # Over (..., features) torch flattens the positions and unflattens them again.
            tracker.fields[out] = tracker.fields[inputs[0]]
        own = {id(p): p.numel() for p in module.parameters(recurse=False) if id(p) not in counted}
        counted.update(own)
        field: Field | None = tracker.fields.get(out)
        rows.append(
            Row(
                name=name,
                kind=type(module).__name__,
                shape=tuple(out.shape[1:]),
                kernel=_pair(module, "kernel_size"),
                stride=_pair(module, "stride"),
                padding=_pair(module, "padding"),
                parameters=sum(own.values()),
                flops=counter.get_total_flops() - before,
                field=field.extent() if field else None,
            )
        )

    for name, module in _leaves(model):
        yield module.register_forward_pre_hook(enter)
        yield module.register_forward_hook(
            lambda module, inputs, output, name=name: leave(name, module, inputs, output)
        )


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in training.items():
            module.training = mode


def _first_tensor(output: Any) -> Tensor:
    while not isinstance(output, Tensor):
        output = next(iter(output.values() if isinstance(output, dict) else output))
    return output


def _pair(module: nn.Module, name: str) -> tuple[int, int] | None:
    """(height, width) of a window's argument, or None where the layer has no window."""
    if not hasattr(module, "kernel_size"):
        return None
    value = getattr(module, name)
    if value in ("same", "valid"):  # convolutions take words for their padding
        sides = zip(module.kernel_size, module.dilation, strict=True)  # pyright: ignore
        height, width = ((k - 1) * d // 2 if value == "same" else 0 for k, d in sides)
        return height, width
    return (value, value) if isinstance(value, int) else (value[0], value[-1])
