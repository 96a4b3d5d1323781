"""What was chosen where the user left it open, and why: a line of a run's header."""

from __future__ import annotations

import os
from collections.abc import Iterator

import torch
from torch import nn

from cnnctl.data.base import ArrayDataset
from cnnctl.data.loaders import Loader, ResidentLoader, StreamingLoader
from cnnctl.engine.distributed import Processes
from cnnctl.engine.machine import Machine, cores
from cnnctl.engine.trainer import MAX_RESIDENT, Trainer, resident_bytes
from cnnctl.models.base import Model


def why_chosen(
    trainer: Trainer,
    machine: Machine,
    loader: Loader,
    model: Model,
    processes: Processes,
    fused: bool,
) -> str:
    """As ``device cpu (no GPU here), threads 2 (all cores)``: keys of ``trainer=``.

    Args:
        fused: whether batch norm, addition and ReLU are one where that is known to pay.
    """
    return ", ".join(_chosen(trainer, machine, loader, model, processes, fused))


def has_batch_norm(model: Model) -> bool:
    return any(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def _chosen(
    trainer: Trainer,
    machine: Machine,
    loader: Loader,
    model: Model,
    processes: Processes,
    fused: bool,
) -> Iterator[str]:
    kind = machine.device.type
    if trainer.device == "auto":
        yield f"device {kind}{' (no GPU here)' if kind == 'cpu' else ''}"
    if trainer.precision == "auto":
        native = "native here" if machine.dtype == torch.bfloat16 else "bf16 is not native here"
        yield f"precision {machine.precision()} ({native})"
    reduced = kind == "cpu" and machine.dtype == torch.bfloat16
    if reduced and has_batch_norm(model) and not fused:
        yield "batch norm not fused (no C compiler, or CNNCTL_FUSED=0)"
    if trainer.threads is None:
        yield f"threads {torch.get_num_threads()} ({_threads(processes)})"
    if trainer.loader == "auto":
        yield f"loader {_loader(loader)}"
    if trainer.eval_batch_size is None:
        yield f"eval_batch_size {trainer.evaluation_batch(model, loader.augmentation)}"


def _threads(processes: Processes) -> str:
    if torch.get_num_threads() == cores():
        why = "all cores"
    elif processes.world > 1:
        why = f"{cores()} cores for {processes.world} processes"
    else:
        why = "OMP_NUM_THREADS"
    spin = os.environ.get("GOMP_SPINCOUNT")
    waits = torch.get_num_threads() > 1 and spin is not None
    return f"{why}, GOMP_SPINCOUNT={spin}" if waits else why


def _loader(loader: Loader) -> str:
    size = resident_bytes(loader.dataset, loader.augmentation) / 2**20
    if isinstance(loader, ResidentLoader):
        return f"resident ({size:,.1f} MB)"
    assert isinstance(loader, StreamingLoader)
    held = isinstance(loader.dataset, ArrayDataset)
    large = held and size * 2**20 > MAX_RESIDENT
    why = f"{size:,.0f} MB" if large else "read image by image"
    return f"streaming ({why}; workers {loader.workers})"
