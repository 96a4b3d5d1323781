"""Where the time of a piece of work goes, by the kind of operator (torch.profiler)."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch

CONVOLUTION, NORMALISATION, POOLING = "convolution", "normalisation", "pooling"
PRODUCT, ELEMENTWISE, COPIES = "matrix product", "activation, elementwise", "copies, layout"
OPTIMIZER, COMPILED, OTHER = "optimizer", "compiled", "other"
KINDS: tuple[str, ...] = (CONVOLUTION, NORMALISATION, ELEMENTWISE, PRODUCT, POOLING, COPIES)
KINDS += (OPTIMIZER, COMPILED, OTHER)

# An operator of these is what it is, wherever it is called.
_OWN = (
    (
        COPIES,
        r"^aten::_?(to_copy|copy|clone|contiguous|cat|stack|index|gather|scatter|take|empty|new|zero"
        r"|fill|full|ones|constant_pad|pad|slice|select|narrow|split|unbind|view|reshape|permute"
        r"|transpose|expand|repeat|flip|roll|as_strided|to|t|resize|squeeze|unsqueeze|flatten"
        r"|detach|alias|unsafe_view|reshape_alias|local_scalar_dense|item)(_|\b)|^mem(cpy|set)",
    ),
    (COPIES, r"(copy|clone|view|reshape|permute|transpose|expand|select|slice|index|cat)backward"),
)
# An operator within one of these belongs to it: a batch norm's sums are a batch norm.
_AROUND = (
    (COMPILED, r"compiled|inductor|triton|dynamo|aotdispatch|pregraph"),
    (NORMALISATION, r"norm(?!al)"),
    (POOLING, r"pool|roi_align"),
    (CONVOLUTION, r"conv"),
    (PRODUCT, r"::_?(add|b|badd)?mm|addmv|matmul|linear|einsum|::dot|mmbackward"),
)
_OPTIMIZER = r"^optimizer\."
_ELEMENTWISE = (
    r"relu|gelu|silu|sigmoid|tanh|softmax|softplus|dropout|mish|hardswish|bernoulli"
    r"|::_?(add|sub|mul|div|neg|exp|log|sqrt|rsqrt|pow|abs|sum|mean|max|min|amax|amin|where|clamp"
    r"|threshold|eq|ne|lt|le|gt|ge|lerp|addcmul|addcdiv|square|sign|maximum|minimum|var|std)"
    r"(_|\b|backward)"
)


def shares(work: Callable[[], object], device: torch.device) -> dict[str, float]:
    """Share of each of ``KINDS`` in the time that ``work``'s operators took by themselves, of those
    that took any; on a GPU the time there. What Python takes between them is in none."""
    # The profiler would report on itself, on stderr; it reads this when it first starts.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    from torch.profiler import ProfilerActivity, profile

    gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * gpu]
    with profile(activities=activities, acc_events=True) as seen:
        work()
        if gpu:
            torch.cuda.synchronize(device)
    taken = dict.fromkeys(KINDS, 0.0)
    for event in seen.events() or ():
        own = event.self_device_time_total if gpu else event.self_cpu_time_total
        if own > 0 and event.device_type.name == "CPU":
            taken[kind(_names(event))] += own
    total = sum(taken.values()) or 1.0
    return {name: time / total for name, time in taken.items() if time > 0}


def _names(event: Any) -> list[str]:
    """Its own and of all that it runs in, from the inside."""
    names = []
    while event is not None:
        names.append(event.name)
        event = event.cpu_parent
    return names


def kind(names: Sequence[str]) -> str:
    """Of an operator.

    Args:
        names: its own, then of the operators that it runs in, from the inside out.
    """
    low = [name.lower() for name in names]
    if any(re.search(_OPTIMIZER, name) for name in low):
        return OPTIMIZER
    if found := _first(_OWN, low[:1]):
        return found
    if found := _first(_AROUND, low):
        return found
    return ELEMENTWISE if any(re.search(_ELEMENTWISE, name) for name in low) else OTHER


def _first(table: Sequence[tuple[str, str]], names: Sequence[str]) -> str | None:
    return next((what for name in names for what, how in table if re.search(how, name)), None)
