"""What this machine computes with, in words, and what it had to hold for a piece of work."""

from __future__ import annotations

import ctypes
import os
import platform
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cnnctl.engine.machine import cores

# What of a CPU decides how fast it multiplies, by torch's names; the first of each row says it all.
_FEATURES = (
    ("amx_bf16", "amx_int8"),
    ("avx512_bf16",),
    ("avx512_f", "avx512", "avx2"),
    ("sve_bf16", "sve", "bf16"),
)
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # proc(5): of clear_refs, the largest resident size


def described(device: torch.device) -> list[tuple[str, str]]:
    """Rows (what, which): the CPU, the GPU if that is the device, torch, and who else computes."""
    features = ", ".join(cpu_features()) or "no vector unit that torch knows"
    rows = [("cpu", f"{cpu_model()}, {cores()} cores ({features})")]
    if device.type == "cuda":
        held = torch.cuda.get_device_properties(device).total_memory
        rows.append(("gpu", f"{torch.cuda.get_device_name(device)}, {held / 2**30:.0f} GiB"))
    built = f", CUDA {torch.version.cuda}" if torch.version.cuda else ""
    rows.append(("torch", f"{torch.__version__.partition('+')[0]}{built}"))
    busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if busy > cores() / 2:
        rows.append(("beware", f"others compute here too: {busy:.1f} threads in the last minute"))
    return rows


def cpu_model() -> str:
    """By name, as far as the system tells it."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    named = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", text, re.MULTILINE)
    return named[1].strip() if named else platform.processor() or platform.machine()


def cpu_features() -> list[str]:
    able = torch.cpu.get_capabilities()
    found = (next((name for name in row if able.get(name)), None) for row in _FEATURES)
    return [name for name in found if name]


def held_for(work: Callable[[], object], device: torch.device) -> int | None:
    """Bytes that ``work`` had at once at most, beyond what was there before it; None where the
    system does not say. On a CPU what is free but not given back counts with neither."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    if device.type != "cpu" or not _trimmed():
        work()
        return None
    before = _resident("VmRSS")
    work()
    return max(0, _resident("VmHWM") - before)


def _trimmed() -> bool:
    """Give free memory back and forget the peak so far; False where a system has no such thing."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
        _CLEAR.write_text(_RESET_PEAK)
    except (OSError, AttributeError):
        return False
    return True


def _resident(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    assert found is not None, "proc(5) has it"
    return int(found[1]) * 1024


def size_of(things: Iterable[Any]) -> int:
    """Bytes of the tensors among ``things``, each once, however often it is named."""
    tensors = {id(thing): thing for thing in things if isinstance(thing, Tensor)}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
