"""Are two runs the same, bit for bit?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from cnnctl.engine import checkpoint

NOT_COMPARED = ("config", "versions")  # how a run was asked for, and with which torch


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    """Dotted path -> every tensor (as its bytes) and plain value in nested dicts and lists."""
    if isinstance(value, dict):
        return {
            k: v for key, item in value.items() for k, v in leaves(item, f"{path}.{key}").items()
        }
    if isinstance(value, (list, tuple)):
        return {
            k: v for i, item in enumerate(value) for k, v in leaves(item, f"{path}[{i}]").items()
        }
    if isinstance(value, torch.Tensor):
        data = value.detach().cpu().contiguous().view(-1)
        return {path: (str(data.dtype), *value.shape, data.view(torch.uint8).numpy().tobytes())}
    return {path: repr(value)}


def differences(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """The paths at which two checkpoints differ."""
    one, other = leaves(first), leaves(second)
    return sorted(path for path in one.keys() | other.keys() if one.get(path) != other.get(path))


def runs_differ(first: Path, second: Path) -> list[str]:
    """What differs between two run directories: last.pt, best.pt and metrics.jsonl."""
    found = []
    for name in ("last.pt", "best.pt"):
        states = [checkpoint.read(directory / name) for directory in (first, second)]
        for state in states:
            for key in NOT_COMPARED:
                state.pop(key)
        found += [f"{name}: {path}" for path in differences(*states)]
    if (first / "metrics.jsonl").read_bytes() != (second / "metrics.jsonl").read_bytes():
        found.append("metrics.jsonl")
    return found
