"""How fast a network answers: latency of one image, cost, memory. For ``cnnctl eval``."""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from cnnctl.commands.info import scaled
from cnnctl.data.loaders import Loader
from cnnctl.engine.machine import Machine
from cnnctl.models.base import Model
from cnnctl.structures import Images

_IMAGES, _WARM = 50, 3  # timed one by one, after some that are not
_SECONDS = 20.0  # after which no further image is timed: slow networks are timed on fewer


@dataclass(frozen=True)
class Speed:
    """Of the network alone, one image at a time, from pixels on the device to predictions there.

    Args:
        images: that were timed.
        median, p90, p99: milliseconds of an image.
        parameters: of the network.
        flops: of one image (convolutions and matrix products; a multiply-add counts 2).
        peak_memory: bytes; of the process on a CPU, of the device's allocator on a GPU.
    """

    images: int
    median: float
    p90: float
    p99: float
    parameters: int
    flops: int
    peak_memory: int

    def rows(self) -> list[tuple[str, str]]:
        """For the table of ``eval``."""
        return [
            (
                "network, one image",
                f"{self.median:.3g} ms (p90 {self.p90:.3g}, p99 {self.p99:.3g})",
            ),
            ("parameters", f"{self.parameters:,}"),
            ("FLOPs", f"{scaled(self.flops)} an image (1 multiply-add = 2)"),
            ("peak memory", f"{scaled(self.peak_memory)}B"),
        ]

    def record(self) -> dict[str, Any]:
        return asdict(self)


@torch.inference_mode()
def measured(model: Model, loader: Loader, machine: Machine) -> Speed:
    """Time ``predict`` on the first images of a split, as they are evaluated."""
    from torch.utils.flop_counter import FlopCounterMode

    model.eval()
    seconds: list[float] = []
    flops, started = 0, time.perf_counter()
    for number, (_, batch) in enumerate(loader.in_order(1)):
        if len(seconds) == _IMAGES or (seconds and time.perf_counter() - started > _SECONDS):
            break
        if number == 0:
            with FlopCounterMode(display=False) as counter, machine.autocast():
                model.predict(_copy(batch.images))
            flops = counter.get_total_flops()
        taken = _timed(model, batch.images, machine)
        if number >= _WARM or len(loader.dataset) <= _WARM:
            seconds.append(taken)
    quantiles = torch.tensor(seconds, dtype=torch.float64).quantile(
        torch.tensor([0.5, 0.9, 0.99], dtype=torch.float64)
    )
    median, p90, p99 = (1000 * quantiles).tolist()
    parameters = sum(p.numel() for p in model.parameters())
    return Speed(len(seconds), median, p90, p99, parameters, flops, _peak_memory(machine))


def _copy(images: Images) -> Images:
    return replace(images, pixels=images.pixels.clone())


def _timed(model: Model, images: Images, machine: Machine) -> float:
    gpu = machine.device.type == "cuda"
    if gpu:
        torch.cuda.synchronize(machine.device)
    start = time.perf_counter()
    with machine.autocast():
        model.predict(images)
    if gpu:
        torch.cuda.synchronize(machine.device)
    return time.perf_counter() - start


def _peak_memory(machine: Machine) -> int:
    if machine.device.type == "cuda":
        return torch.cuda.max_memory_allocated(machine.device)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
