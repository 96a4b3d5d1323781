"""What ``proposals=`` says, made for the data at hand: kept ones, or new ones with a bar."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from omegaconf import DictConfig, OmegaConf

from cnnctl import build, compose
from cnnctl.data.base import Dataset
from cnnctl.data.proposal_cache import Kept, keep
from cnnctl.data.proposals.base import ProposalMethod
from cnnctl.data.proposals.rpn import RPN
from cnnctl.data.proposed import proposed
from cnnctl.engine.console import Console
from cnnctl.engine.distributed import Processes
from cnnctl.engine.machine import cores
from cnnctl.engine.signals import StopFlag, Stopped


def with_proposals(
    config: DictConfig,
    data: Sequence[Dataset],
    processes: Processes,
    console: Console,
    stop: StopFlag | None = None,
) -> list[Dataset]:
    """The data sets with what ``proposals=`` proposes in their images; as they are where it is
    none.

    Raises:
        Stopped: ``stop`` was set; what is made by then is kept.
        UserError: as ``proposal_cache.keep``.
    """
    method = method_of(config, processes)
    if method is None:
        return list(data)
    for remark in method.remarks():
        console.say(remark)
    if not method.looks:
        return [proposed(one, method) for one in data]
    found = []
    for one in data:
        kept = made(config, one, method, processes, console, stop)
        if len(kept) and not kept.counts().any():
            console.say(
                f"warning: {config_name(config)} proposes nothing in any of {len(kept):,} images"
            )
        found.append(proposed(one, method, kept))
    return found


def method_of(config: DictConfig, processes: Processes) -> ProposalMethod | None:
    """The method, ready to propose; None: ``proposals=none``.

    Raises:
        UserError: what it needs is absent.
    """
    method = build.proposals(config)
    if isinstance(method, RPN):
        from cnnctl.commands.rpn_network import (
            with_network,
        )  # which evaluates, as this file's users

        return with_network(method, config, processes)
    return method


def config_name(config: DictConfig) -> str:
    """What the method is called: of the options of its class the one that has most of its values;
    of a user's own class its module."""
    said, folder = config.proposals, compose.conf_dir() / "proposals"
    alike = {}
    for name in compose.groups()["proposals"]:
        option = cast(DictConfig, OmegaConf.load(folder / f"{name}.yaml"))
        if option.get("_target_") == said._target_:
            alike[name] = sum(said.get(key) == value for key, value in option.items())
    if not alike:
        return str(said._target_).rsplit(".", 2)[-2]
    return max(alike, key=lambda name: alike[name])


def made(
    config: DictConfig,
    data: Dataset,
    method: ProposalMethod,
    processes: Processes,
    console: Console,
    stop: StopFlag | None = None,
    split: str = "",
) -> Kept:
    """What is kept of one data set; the first process of each machine makes what is not there.

    Raises:
        Stopped: ``stop`` was set; what is made by then is kept.
        UserError: as ``proposal_cache.keep``.
    """
    workers = config.trainer.workers
    name = f"{config_name(config)} of {build.data_class(config).option()}"
    with console.bar_if_slow("images") as show:

        def watch(done: int, total: int) -> None:
            show(done, total)
            if stop:
                raise Stopped(stop.signum or 0)

        return keep(
            data,
            method,
            watch,
            workers=cores() if workers is None else min(workers, cores()),
            first=processes.local_rank == 0,
            name=f"{name}, {split}" if split else name,
        )
