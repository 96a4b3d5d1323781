"""What every kind of work, and every peer, is made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from cnnctl import compose
from cnnctl.engine.machine import Machine
from cnnctl.peers.works.table import AMX, CUDA, PLAIN, Work

Figures = dict[str, float]  # what is printed beside the speed: a loss, an accuracy, a count


@dataclass(frozen=True)
class Asked:
    """What the command line says of all rows.

    Args:
        machine: that ours runs on; a peer has its device, and decides the rest itself.
        folder: for files that only last as long as the comparison.
        images: of each turn; None: the work's own number.
        root: where real data is looked for; None: $CNNCTL_DATA.
        workers: processes of a peer's loader.
    """

    machine: Machine
    folder: Path
    images: int | None = None
    root: str | None = None
    workers: int = 0

    def composed(self, work: Work, *more: str) -> Any:
        """The configuration of ``train`` for a work."""
        return compose.settings(compose.compose("train", [*work.overrides, *more]))


@dataclass(frozen=True)
class Side:
    """One way to do a work.

    Args:
        run: all of a turn, on the same images every time. A training begins from the same weights
            every time; a single step goes on from the one before it.
        figures: of the last turn, asked for when all are done.
    """

    run: Callable[[], object]
    figures: Callable[[], Figures]


class Job(Protocol):
    """A work with its data and weights made, from which the sides are."""

    @property
    def images(self) -> int:
        """That a turn goes through."""
        ...

    @property
    def data(self) -> str:
        """What the images are, in a few words."""
        ...

    def ours(self) -> Side: ...


class Peer(Protocol):
    """A module of ``cnnctl/peers``: found by the name of its file."""

    DOES: tuple[str, ...]  # kinds of work
    PACKAGES: tuple[str, ...]  # that it is made of beside torch, as they are imported and installed
    PRECISION: str  # that it computes in
    # DEVICES, where it does not run on all: their types

    @staticmethod
    def side(job: Any) -> Side: ...


def machine_kind(device: torch.device) -> str:
    """Which of a work's targets counts."""
    if device.type == "cuda":
        return CUDA
    return AMX if torch.cpu.get_capabilities().get("amx_bf16") else PLAIN


@dataclass
class TrainingStep:
    """The losses, their gradients and SGD, on one batch; a turn goes on from the one before it.

    Args:
        losses: of the batch, by name.
    """

    model: nn.Module
    losses: Callable[[], Mapping[str, Tensor]]
    machine: Machine
    rate: float = 1e-5
    loss: float = math.nan  # of the last turn

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.SGD(self.model.parameters(), self.rate, momentum=0.9)

    def run(self) -> None:
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        with self.machine.autocast():
            total = torch.stack([loss.float() for loss in self.losses().values()]).sum()
        total.backward()
        self.optimizer.step()
        self.loss = total.item()

    def side(self) -> Side:
        return Side(self.run, self.figures)

    def figures(self) -> Figures:
        """The loss says that the forward pass is the same; the norm of the gradient of all weights
        that the backward pass is."""
        norms = [p.grad.float().norm() for p in self.model.parameters() if p.grad is not None]
        return {"loss": self.loss, "gradient": float(torch.stack(norms).norm())}


def eager(device: torch.device) -> Machine:
    """As a plain loop computes: float32, channels first."""
    return Machine(device, torch.float32, channels_last=False)
