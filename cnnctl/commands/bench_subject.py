"""What ``cnnctl bench`` compares: a configuration and variants of it, with data, loaders and model
built as ``cnnctl train`` builds them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from cnnctl import build, compose
from cnnctl.commands.proposing import with_proposals
from cnnctl.commands.start import start
from cnnctl.commands.train import placed
from cnnctl.data.augmentations.base import Augmentation
from cnnctl.data.base import Dataset, NoSplit
from cnnctl.data.loaders import Loader
from cnnctl.engine.console import Console
from cnnctl.engine.distributed import Processes
from cnnctl.engine.machine import Machine, faults_explained, set_deterministic
from cnnctl.engine.signals import StopFlag
from cnnctl.engine.trainer import Trainer
from cnnctl.errors import UserError
from cnnctl.models.base import Model
from cnnctl.randomness import key
from cnnctl.tasks.base import Task

BASE = "base"
_WARM = 1 << 14  # numbers, added up by all threads: they exist from then on


@dataclass
class Subject:
    """The configuration, or a variant of it, ready to be timed.

    Args:
        name: ``BASE``, or the variant as it was written.
        threads, deterministic: of the whole process, while it is this one's turn.
        computes: with what, in words; they name the threads, which are the process's.
        train, val: the loaders; without a val split the training images are evaluated.
    """

    name: str
    words: list[str]
    config: DictConfig
    chosen: dict[str, str]
    task: Task
    trainer: Trainer
    machine: Machine
    threads: int
    computes: str
    train: Loader
    val: Loader
    model: Model

    @property
    def deterministic(self) -> bool:
        return self.trainer.deterministic

    def take_turn(self, threads: int | None = None) -> None:
        """Give the process this one's threads and its say on determinism."""
        if torch.are_deterministic_algorithms_enabled() != self.deterministic:
            set_deterministic(self.deterministic)
        wanted = threads or self.threads
        if torch.get_num_threads() != wanted:
            torch.set_num_threads(wanted)
            torch.ones(_WARM * wanted).add_(1).sum()

    def described(self) -> str:
        compiled = ", compiled" if self.trainer.compile else ""
        parts = f" in {self.trainer.accumulate} parts" if self.trainer.accumulate > 1 else ""
        return f"{self.computes}{compiled}, batches of {self.trainer.batch_size}{parts}"

    @contextmanager
    def faults_named(self) -> Iterator[None]:
        """What the machine cannot do is one sentence, and says which variant asked for it."""
        size = self.train.augmentation.size
        with named(self.name), faults_explained(self.trainer.held_at_once(size, Processes())):
            yield


@contextmanager
def named(variant: str) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        if variant != BASE and error.record is None:
            error.record = f'variant "{variant}"'
        raise


@dataclass
class Workshop:
    """Builds subjects; what several of them share is there once.

    Args:
        words: of the command line, those of ``train``.
    """

    words: list[str]
    config_dir: str | None
    console: Console
    stop: StopFlag
    _made: dict[str, Any] = field(default_factory=dict)
    _threads: int = field(default_factory=torch.get_num_threads)

    def subjects(self, variants: list[str]) -> list[Subject]:
        """The configuration and its variants.

        Raises:
            UserError: one does not compose, or cannot be compared with the first.
        """
        names = [BASE, *variants]
        composed = []
        for name in names:
            with named(name):
                composed.append(self._composed("" if name == BASE else name))
                _check_task(composed[0][1], composed[-1][1])
        made: list[Subject] = []
        for name, (words, config, chosen) in zip(names, composed, strict=True):
            with named(name), faults_explained():
                made.append(self._subject(name, words, config, chosen, made[:1]))
        return made

    def _composed(self, variant: str) -> tuple[list[str], DictConfig, dict[str, str]]:
        own = [word for word in compose.split_outside(variant, " ") if word]
        keys = {_key(word) for word in own}
        words = [word for word in self.words if _key(word) not in keys] + own
        composed = compose.compose("train", words, self.config_dir)
        config, chosen = compose.settings(composed), compose.choices(composed)
        build.check(config, chosen)
        if config.resume is not None:
            raise UserError("bench continues no run", field="resume", advice="leave it out")
        if config.trainer.devices > 1:
            raise UserError(
                f"is {config.trainer.devices}, and bench times one process",
                field="trainer.devices",
                advice="take trainer.devices=1",
            )
        return words, config, chosen

    def _subject(
        self,
        name: str,
        words: list[str],
        config: DictConfig,
        chosen: dict[str, str],
        base: list[Subject],
    ) -> Subject:
        torch.set_num_threads(self._threads)
        trainer = build.trainer(config)
        machine = trainer.machine(Processes())
        train, val = self._data(config)
        for one in base:
            _check_classes(one.train.dataset.classes, train.classes)
        trainer.total_steps(len(train))
        augmentation = build.augmentation(config, train)
        model = _model(config, train, augmentation)
        load = replace(trainer, workers=0).load  # what one core does, and nothing beside the others
        where = [str(machine.device), trainer.loader, trainer.batch_size == 1]

        def loader(data: Dataset) -> Loader:
            return self._once(
                [id(data), *_plain(config, "augmentation", "task", "seed"), *where],
                lambda: load(data, augmentation, machine, Processes(), config.seed),
            )

        return Subject(
            name,
            words,
            config,
            chosen,
            build.task(config),
            trainer,
            machine,
            torch.get_num_threads(),
            machine.describe(),
            loader(train),
            loader(train if val is None else val),
            placed(model, trainer, machine),
        )

    def _data(self, config: DictConfig) -> tuple[Dataset, Dataset | None]:
        def read() -> tuple[Dataset, Dataset | None]:
            train = build.dataset(config, "train")
            try:
                splits = [train, build.dataset(config, "val")]
            except NoSplit:
                splits = [train]
            splits = with_proposals(config, splits, Processes(), self.console, self.stop)
            return splits[0], splits[1] if len(splits) > 1 else None

        return self._once(_plain(config, "data", "task", "proposals", "seed"), read)

    def _once(self, what: list[Any], make: Callable[[], Any]) -> Any:
        name = json.dumps(what, sort_keys=True, default=str)
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]


def _model(config: DictConfig, data: Dataset, augmentation: Augmentation) -> Model:
    torch.manual_seed(key(config.seed, "init"))
    build.with_published_weights(config)
    model = build.model(config, data, augmentation.size)
    start(config, model, data.classes, Console(quiet=True))
    return model


def _key(word: str) -> str:
    return word.partition("=")[0].lstrip("+~")


def _plain(config: DictConfig, *names: str) -> list[Any]:
    nodes = [config.get(name) for name in names]
    return [
        OmegaConf.to_container(node) if OmegaConf.is_config(node) else node  # pyright: ignore
        for node in nodes
    ]


def _check_task(base: DictConfig, own: DictConfig) -> None:
    names = [build.task(config).name for config in (own, base)]
    if names[0] != names[1]:
        raise _Incomparable(f"does task={names[0]}, and the configuration task={names[1]}")


def _check_classes(base: Sequence[str], own: Sequence[str]) -> None:
    if tuple(base) != tuple(own):
        counts = f"{len(own)} classes, and the configuration's {len(base)}"
        if len(own) == len(base):
            counts = "other classes than the configuration's"
        raise _Incomparable(f"its data has {counts}")


class _Incomparable(UserError):
    def __init__(self, why: str) -> None:
        super().__init__(f"{why}: they cannot be compared", advice="time it by itself")
