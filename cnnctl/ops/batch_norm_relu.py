"""Batch norm, an addition and ReLU in one: half of the passes over memory, in bfloat16 on a CPU.

torch reads and writes a map for each of the three, and twice more for the statistics, forward and
backward. Here forward reads it twice and writes it once, in C (batch_norm_relu.c) that is compiled
when first used and kept; sums are float and double, and no number of threads changes a bit.

What is computed is what ``F.relu(bn(x) + added)`` computes, with one rounding instead of three.
Wherever the kernel does not pay or does not apply (another device or type, evaluation, frozen
statistics, hooks, torch.compile, no C compiler, CNNCTL_FUSED=0) it is exactly that.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from cnnctl.user_cache import user_cache

_SOURCE = Path(__file__).with_suffix(".c")
_FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp")
_SHARED = ("-shared", "-fPIC")
_PATIENCE = 120  # seconds for the compiler; it needs one
_NHWC = torch.channels_last


def batch_norm_relu(norm: nn.BatchNorm2d, x: Tensor, added: Tensor | None = None) -> Tensor:
    """relu(norm(x) + added) of (N, C, H, W); what ``norm`` makes is overwritten."""
    if _applies(norm, x, added):
        return _fused(norm, x, added)
    out = norm(x)
    if added is not None:
        out += added  # in place: batch norm keeps its input, not its output
    return F.relu_(out)


def _applies(norm: nn.BatchNorm2d, x: Tensor, added: Tensor | None) -> bool:
    if x.dtype != torch.bfloat16 or x.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    if type(x) is not Tensor:  # one without memory, that only counts
        return False
    usual = type(norm) is nn.BatchNorm2d and norm.training and norm.momentum is not None
    affine = norm.weight is not None and norm.bias is not None
    if not usual or not affine or norm.running_mean is None or _hooked(norm):
        return False
    alike = added is None or (added.dtype == x.dtype and added.shape == x.shape)
    return (
        alike
        and norm.weight.dtype == norm.bias.dtype == norm.running_mean.dtype == torch.float32
        and x.shape[1] == norm.num_features
        and x.numel() > x.shape[1]  # else torch says what is wrong
        and x.is_contiguous(memory_format=_NHWC)
        and _kernel() is not None
    )


def _hooked(module: nn.Module) -> bool:
    """Whether something looks at what the module itself returns or is given."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, kind) for kind in kinds)


def _fused(norm: nn.BatchNorm2d, x: Tensor, added: Tensor | None) -> Tensor:
    if added is not None:
        added = added.contiguous(memory_format=_NHWC)
    out, statistics = _BatchNormReLU.apply(x, norm.weight, norm.bias, added, norm.eps)  # pyright: ignore
    rows = x.numel() // x.shape[1]
    momentum = norm.momentum
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    assert momentum is not None
    with torch.no_grad():
        norm.running_mean.lerp_(statistics[0], momentum)
        norm.running_var.lerp_(statistics[1] * (rows / (rows - 1)), momentum)
        norm.num_batches_tracked += 1
    return out


class _BatchNormReLU(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, added: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor]:
        """The map, and (3, C) float: mean, biased variance and inverse deviation."""
        channels = x.shape[1]
        out = torch.empty_like(x, memory_format=_NHWC)
        statistics = x.new_empty(3, channels, dtype=torch.float32)
        weight, bias = weight.contiguous(), bias.contiguous()
        failed = _loaded().forward(
            *(_at(x), _at(added), _at(out), x.numel() // channels, channels),
            *(_at(weight), _at(bias), eps, *map(_at, statistics.unbind())),
            torch.get_num_threads(),
        )
        if failed:
            raise MemoryError
        ctx.mark_non_differentiable(statistics)
        ctx.save_for_backward(x, out, weight, statistics)
        ctx.adds = added is not None
        return out, statistics

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, gradient: Tensor, _: Tensor
    ) -> tuple[Tensor | None, ...]:
        x, out, weight, statistics = ctx.saved_tensors
        channels = x.shape[1]
        gradient = gradient.contiguous(memory_format=_NHWC)
        of_x = torch.empty_like(x, memory_format=_NHWC)
        of_added = torch.empty_like(of_x) if ctx.adds else None
        of_weight, of_bias = torch.empty_like(weight), torch.empty_like(weight)
        failed = _loaded().backward(
            *(_at(gradient), _at(out), _at(x), _at(of_x), _at(of_added)),
            *(x.numel() // channels, channels, _at(weight)),
            *(_at(statistics[0]), _at(statistics[2]), _at(of_weight), _at(of_bias)),
            torch.get_num_threads(),
        )
        if failed:
            raise MemoryError
        return of_x, of_weight, of_bias, of_added, None


def _at(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _loaded() -> ctypes.CDLL:
    kernel = _kernel()
    assert kernel is not None  # _applies has looked
    return kernel


def kernel_name() -> str | None:
    """Of the compiled source, which its bits depend on; None where the kernel is not used."""
    return None if _kernel() is None else _library(*_command())


@functools.cache
def _kernel() -> ctypes.CDLL | None:
    """The compiled source; None where it is not wanted, or nothing here can compile it."""
    if os.environ.get("CNNCTL_FUSED") == "0":
        return None
    try:
        kernel = _opened()
    except (OSError, subprocess.SubprocessError, ValueError):  # a CC that is no command
        return None
    p, n, i = ctypes.c_void_p, ctypes.c_long, ctypes.c_int
    kernel.forward.argtypes = [p, p, p, n, n, p, p, ctypes.c_double, p, p, p, i]
    kernel.backward.argtypes = [p, p, p, p, p, n, n, p, p, p, p, p, i]
    return kernel


def _opened() -> ctypes.CDLL:
    """The library, made for this source, compiler and processor where it is not kept.

    Raises:
        OSError, SubprocessError: there is no compiler, or it fails.
    """
    command = _command()
    kept = user_cache("kernels") / _library(*command)
    try:
        if not kept.exists():
            kept.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
                # Moved when whole: others may be at it too.
                _compile(command, Path(folder, kept.name)).replace(kept)
        return ctypes.CDLL(str(kept))
    except OSError:  # a cache that cannot be written, or that nothing may be loaded from
        with tempfile.TemporaryDirectory() as folder:
            return ctypes.CDLL(str(_compile(command, Path(folder, kept.name))))


def _compile(command: Sequence[str], library: Path) -> Path:
    command = [*command, *_SHARED, str(_SOURCE), "-o", str(library), "-lm"]
    subprocess.run(command, check=True, capture_output=True, timeout=_PATIENCE)
    return library


def _command() -> list[str]:
    """The compiler with its own words ($CC may have some) and ours."""
    found = shutil.which("cc") or shutil.which("gcc")
    compiler = shlex.split(os.environ.get("CC", "")) or [found or ""]
    if not compiler[0]:
        raise FileNotFoundError("no C compiler")
    wide = ["-mprefer-vector-width=512"] if platform.machine() == "x86_64" else []
    return [*compiler, *_FLAGS, *wide]


def _library(*command: str) -> str:
    made_for = repr((_SOURCE.read_text(), command, torch.cpu.get_capabilities()))
    name = hashlib.blake2b(made_for.encode(), digest_size=12).hexdigest()
    return f"{_SOURCE.stem}-{name}.so"
