"""One process or many: the few collective calls that training and evaluation need.

The processes are PyTorch's own (torchrun, or ``trainer.devices`` through the same launcher); with
one process every function here is the identity.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from cnnctl.errors import Exit, UserError

GRACE = 300  # seconds that processes have to finish their step and save, once asked to stop


@dataclass(frozen=True)
class Processes:
    """Which process this is (``rank``) of how many (``world``), and which on its machine."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        return self.rank == 0

    def gather(self, item: Any) -> list[Any]:
        """``item`` of every process in order of rank, in every process."""
        if self.world == 1:
            return [item]
        items: list[Any] = [None] * self.world
        dist.all_gather_object(items, item)
        return items

    def from_first(self, item: Any) -> Any:
        """The first process's ``item``, in every process."""
        if self.world == 1:
            return item
        holder = [item]
        dist.broadcast_object_list(holder, src=0)
        return holder[0]

    def barrier(self) -> None:
        if self.world > 1:
            dist.barrier()


def under_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ and "RANK" in os.environ


def join(device: str) -> Processes:
    """The processes that torchrun (or ``launch``) started, connected; alone, just this one."""
    if not under_torchrun():
        return Processes()
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    local_rank = int(os.environ["LOCAL_RANK"])
    if world == 1:
        return Processes()
    cuda = device != "cpu" and torch.cuda.is_available()
    if cuda and local_rank >= torch.cuda.device_count():
        raise UserError(
            f"this machine has {torch.cuda.device_count()} GPUs, too few for so many processes",
            field="trainer.devices",
            advice="ask for as many processes as there are GPUs, or take trainer.device=cpu",
            code=Exit.MACHINE,
        )
    if cuda:
        torch.cuda.set_device(local_rank)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if cuda else "gloo")
    return Processes(rank, world, local_rank)


def leave() -> None:
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def parallel(module: nn.Module) -> DistributedDataParallel:
    """``module`` with gradients that are reduced where they are, beside the rest of the backward
    pass. Its buffers stay each process's own: sharing them would hold up every step."""
    known = inspect.signature(DistributedDataParallel).parameters
    newer = "forward_sync_buffers" in known  # PyTorch 2.15 warns of the older name
    own: dict[str, Any] = {"forward_sync_buffers" if newer else "broadcast_buffers": False}
    return DistributedDataParallel(module, gradient_as_bucket_view=True, **own)


class LostPeer(UserError):
    """Another process of the run is gone; it has said why itself, if anything could be said."""


@contextlib.contextmanager
def lost_peers_explained() -> Iterator[None]:
    """Turn a collective call that failed because another process ended into a ``LostPeer``."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error).lower():
            raise
        raise LostPeer(
            "another process of this run has ended",
            advice="its own message says why; resume once that is mended",
            code=Exit.MACHINE,
        ) from error


def launch(count: int, entry: Callable[..., None], *arguments: Any) -> int:
    """Run ``entry(*arguments)`` in ``count`` processes on this machine with torchrun's launcher.

    A signal is handed on to them, and they are given time to save.

    Returns:
        the exit code of the process that failed first (it has said why itself), else 0.

    Raises:
        UserError: a process was killed.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        run_id="cnnctl",
        max_restarts=0,
        monitor_interval=0.5,
        start_method="spawn",
        shutdown_timeout=GRACE,
    )
    logging.disable(logging.CRITICAL)  # of the launcher: the processes say what there is to say
    try:
        elastic_launch(config, entry)(*arguments)
    except SignalException as stopped:
        return 128 + stopped.sigval
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode > 0:
            return failure.exitcode
        raise UserError(
            f"process {rank} of {count} was killed by signal {-failure.exitcode}",
            advice="signal 9 is most often a lack of memory; resume goes on from the last save",
            code=Exit.MACHINE,
        ) from None
    finally:
        logging.disable(logging.NOTSET)
    return Exit.DONE
