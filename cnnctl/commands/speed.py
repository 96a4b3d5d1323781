"""How fast a network answers: latency of one image, cost, memory. For ``cnnctl eval``."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import median
from typing import Any

import torch

from cnnctl.commands.info import scaled
from cnnctl.data.loaders import Loader
from cnnctl.data.proposals.base import ProposalMethod
from cnnctl.engine.machine import Machine
from cnnctl.models.base import Model
from cnnctl.ops.clock import OTHER, PROPOSALS, Clock, in_order, timed
from cnnctl.structures import Images

_IMAGES, _WARM = 50, 3  # timed one by one, after some that are not
_SECONDS = 20.0  # after which no further image is timed: slow networks are timed on fewer


@dataclass(frozen=True)
class Speed:
    """Of the network alone, one image at a time, from pixels on the device to predictions there;
    of a network that is told where to look, with the time that takes.

    Args:
        images: that were timed.
        median, p90, p99: milliseconds of an image.
        parameters: of the network.
        flops: of one image (convolutions and matrix products; a multiply-add counts 2).
        peak_memory: bytes; of the process on a CPU, of the device's allocator on a GPU.
        parts: milliseconds of each part of a prediction, their medians; empty: it names none.
        told: whether proposals from outside the network are among them.
    """

    images: int
    median: float
    p90: float
    p99: float
    parameters: int
    flops: int
    peak_memory: int
    parts: dict[str, float] = field(default_factory=dict)
    told: bool = False

    def rows(self) -> list[tuple[str, str]]:
        """For the table of ``eval``."""
        what = "proposals and network, one image" if self.told else "network, one image"
        parts = ", ".join(f"{part} {taken:.3g}" for part, taken in self.parts.items())
        return [
            (what, f"{self.median:.3g} ms (p90 {self.p90:.3g}, p99 {self.p99:.3g})"),
            *[("of it, ms", parts)] * bool(parts),
            ("parameters", f"{self.parameters:,}"),
            ("FLOPs", f"{scaled(self.flops)} an image (1 multiply-add = 2)"),
            ("peak memory", f"{scaled(self.peak_memory)}B"),
        ]

    def record(self) -> dict[str, Any]:
        return asdict(self)


@torch.inference_mode()
def measured(
    model: Model, loader: Loader, machine: Machine, method: ProposalMethod | None = None
) -> Speed:
    """Time ``predict`` on the first images of a split, as they are evaluated.

    Args:
        method: that proposes where the model is to look. It is timed too, on the image as it was
            read: what the loader brings along may have been made long before.
    """
    from torch.utils.flop_counter import FlopCounterMode

    model.eval()
    seconds: list[float] = []
    parts: list[dict[str, float]] = []
    flops, started = 0, time.perf_counter()
    for number, (_, batch) in enumerate(loader.in_order(1)):
        if len(seconds) == _IMAGES or (seconds and time.perf_counter() - started > _SECONDS):
            break
        if number == 0:
            with FlopCounterMode(display=False) as counter, machine.autocast():
                model.predict(_copy(batch.images))
            flops = counter.get_total_flops()
        taken, shares = _timed(model, batch.images, machine)
        if method is not None:
            image = loader.dataset[int(batch.targets.image_id)][0]
            proposing = _seconds(lambda image=image: method.propose(image), machine)
            taken += proposing
            shares[PROPOSALS] = shares.get(PROPOSALS, 0.0) + proposing
        if number >= _WARM or len(loader.dataset) <= _WARM:
            seconds.append(taken)
            parts.append(shares)
    quantiles = torch.tensor(seconds, dtype=torch.float64).quantile(
        torch.tensor([0.5, 0.9, 0.99], dtype=torch.float64)
    )
    middle, p90, p99 = (1000 * quantiles).tolist()
    parameters = sum(p.numel() for p in model.parameters())
    return Speed(
        len(seconds),
        middle,
        p90,
        p99,
        parameters,
        flops,
        _peak_memory(machine),
        medians(parts),
        method is not None,
    )


def medians(parts: Sequence[dict[str, float]]) -> dict[str, float]:
    """Milliseconds of each part over the seconds of several images; empty where nothing has a
    name."""
    names = in_order(name for shares in parts for name in shares)
    if names == [OTHER]:
        return {}
    return {name: 1000 * median(shares.get(name, 0.0) for shares in parts) for name in names}


def _copy(images: Images) -> Images:
    return replace(images, pixels=images.pixels.clone())


def _timed(model: Model, images: Images, machine: Machine) -> tuple[float, dict[str, float]]:
    """Seconds of a prediction, and of its parts."""
    with machine.autocast():
        with Clock() as clock, timed(OTHER):
            model.predict(images)
        if machine.device.type != "cuda":
            return sum(clock.seconds.values()), clock.seconds
        # A clock waits for the device after every part, which a prediction left alone does not.
        return _seconds(lambda: model.predict(images), machine), clock.seconds


def _seconds(compute: Callable[[], object], machine: Machine) -> float:
    gpu = machine.device.type == "cuda"
    if gpu:
        torch.cuda.synchronize(machine.device)
    start = time.perf_counter()
    compute()
    if gpu:
        torch.cuda.synchronize(machine.device)
    return time.perf_counter() - start


def _peak_memory(machine: Machine) -> int:
    if machine.device.type == "cuda":
        return torch.cuda.max_memory_allocated(machine.device)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
