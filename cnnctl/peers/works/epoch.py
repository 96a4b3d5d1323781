"""An epoch of a classifier on 32 x 32 images, from the images in memory to the trained weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from cnnctl import build, compose
from cnnctl.data.base import ArrayDataset
from cnnctl.data.digit_scenes import DigitScenes
from cnnctl.data.loaders import Loader, Normalize
from cnnctl.engine.console import Console
from cnnctl.engine.distributed import Processes
from cnnctl.engine.journal import Journal
from cnnctl.engine.loop import Loop
from cnnctl.engine.machine import Machine
from cnnctl.engine.signals import StopFlag
from cnnctl.errors import Exit, UserError
from cnnctl.models.base import Losses, Model
from cnnctl.peers.works.base import Asked, Figures, Side
from cnnctl.peers.works.table import Work
from cnnctl.structures import Images, Targets

_TEST = 1000  # images that say what was learnt
Trained = tuple[torch.nn.Module, Sequence[Tensor]]
Train = Callable[[torch.nn.Module], Trained]


class DigitImages(ArrayDataset):
    """One digit on a textured ground, in colour: where there is no CIFAR-10."""

    classes = DigitScenes.classes[1:]

    def __init__(self, split: Any, images: int, side: int) -> None:
        counts: dict[str, Any] = {f"{split}_images": images}
        drawn = DigitScenes(split, size=side, digits=(1, 1), scale=(0.5, 0.9), **counts)
        super().__init__(drawn.pixels, drawn.scenes.labels[:, 0])
        self.mean, self.std = drawn.mean, drawn.std


class Rows(ArrayDataset):
    """The first ``count`` samples of a data set in memory."""

    def __init__(self, whole: ArrayDataset, count: int) -> None:
        super().__init__(whole.pixels[:count], whole.labels[:count])
        self.classes, self.mean, self.std = whole.classes, whole.mean, whole.std
        self.mirror = whole.mirror


@dataclass
class Epoch:
    """
    Args:
        train, test: the images that are learnt from, and those that say what was learnt.
        model: as it is drawn; every turn of every side begins from a copy.
        padding, flip: of the augmentation.
        data: what the images are, in a few words.
        batch, rate, momentum, decay: of SGD with Nesterov's momentum, weight decay on everything.
    """

    asked: Asked
    config: Any
    train: ArrayDataset
    test: ArrayDataset
    model: Model
    padding: int
    flip: bool
    data: str

    def __post_init__(self) -> None:
        self.trainer, settings = build.trainer(self.config), self.config.optimizer
        self.batch = self.trainer.batch_size
        self.rate, self.momentum = float(settings.lr), float(settings.momentum)
        self.decay = float(settings.weight_decay)
        self.device = self.asked.machine.device

    @property
    def images(self) -> int:
        return len(self.train) // self.batch * self.batch

    def fresh(self) -> Model:
        """The network as it was drawn, in float32, channels first."""
        return copy.deepcopy(self.model)

    def optimizer(self, model: torch.nn.Module, fused: bool = False) -> torch.optim.SGD:
        """
        Args:
            fused: one kernel for all parameters, as ours has on a GPU; else torch decides.
        """
        return torch.optim.SGD(
            model.parameters(),
            self.rate,
            momentum=self.momentum,
            weight_decay=self.decay,
            nesterov=True,
            fused=fused or None,
        )

    @torch.inference_mode()
    def figures(self, model: torch.nn.Module, losses: Sequence[Tensor]) -> Figures:
        """The mean loss of all steps, and the accuracy on the test images after the last, which is
        computed in the same way for every side."""
        model = model.to(self.device, memory_format=torch.contiguous_format).eval()  # pyright: ignore
        normalize, right = Normalize(self.test.mean, self.test.std, self.device), 0
        for rows in torch.arange(len(self.test)).split(250):
            logits = model(normalize(self.test.pixels[rows].to(self.device)))
            right += int((logits.argmax(1).cpu() == self.test.labels[rows]).sum())
        return {"loss": float(torch.stack(list(losses)).mean()), "top1": right / len(self.test)}

    def side(self, train: Train) -> Side:
        """
        Args:
            train: model as it was drawn -> the trained one, the losses of its steps.
        """
        last: list[Any] = []

        def run() -> None:
            last[:] = train(self.fresh())

        return Side(run, lambda: self.figures(*last))

    def ours(self) -> Side:
        """As ``cnnctl train`` does, but that nobody here writes checkpoints."""
        machine, loop = self.asked.machine, loop_maker(self.config, self.asked.machine)
        augmentation, trainer = build.augmentation(self.config, self.train), self.trainer

        def train(model: torch.nn.Module) -> Trained:
            assert isinstance(model, Model)
            losses = _noted(model)
            machine.place(model)
            loop(model, trainer.load(self.train, augmentation, machine, Processes(), 0)).fit()
            return model, losses

        return self.side(train)


def loop_maker(config: Any, machine: Machine) -> Callable[[Model, Loader], Loop]:
    """(model, training data) -> the loop of ``cnnctl train``, one that evaluates, writes and shows
    nothing."""
    trainer, task = build.trainer(config), build.task(config)
    optimizer, schedule = build.optimizer(config), build.schedule(config)
    return lambda model, train: Loop(
        trainer=trainer,
        model=model,
        machine=machine,
        processes=Processes(),
        train=train,
        val=None,
        optimizer=optimizer,
        schedule=schedule,
        evaluator=task.evaluator,
        monitor=task.best,
        larger_is_better=True,
        seed=0,
        describe={},
        journal=Journal(Console(quiet=True), lambda batch: {}, lambda *seen: {}),
        stop=StopFlag(),
    )


def _noted(model: Model) -> list[Tensor]:
    """The loss of every step comes to be in the list, without waiting for it."""
    seen: list[Tensor] = []
    loss = model.loss

    def noting(images: Images, targets: Targets) -> Losses:
        losses = loss(images, targets)
        seen.append(torch.stack(list(losses.values())).sum().detach())
        return losses

    model.loss = noting
    return seen


def made(work: Work, asked: Asked) -> Epoch:
    """CIFAR-10 where it is at hand, else single digits drawn in colour; the network of the work.

    Raises:
        UserError: the work's configuration is wrong, or CIFAR-10 is not where the user says it is.
    """
    count = asked.images or work.images
    fixed = ("trainer.epochs=1", f"augmentation.size={work.side}")  # some networks ask for another
    try:
        root = () if asked.root is None else (f"data.root={compose.quoted(Path(asked.root))}",)
        config = asked.composed(
            work, *fixed, "data=cifar10", "data.validation=0", "data.verify=false", *root
        )
        what = "CIFAR-10"
        splits = [build.dataset(config, split) for split in ("train", "test")]
        train, test = (
            Rows(cast(ArrayDataset, split), least)
            for split, least in zip(splits, (count, _TEST), strict=True)
        )
    except UserError as error:
        if error.code != Exit.DATA or asked.root is not None:
            raise
        config, what = asked.composed(work, *fixed), f"drawn digits, {work.side} x {work.side}"
        train, test = DigitImages("train", count, work.side), DigitImages("test", _TEST, work.side)
    batch = config.trainer.batch_size
    if len(train) < batch:
        raise UserError(f"{len(train)} are less than a batch of {batch}", field="images")
    augmentation = build.augmentation(config, train)
    torch.manual_seed(0)
    model = build.model(config, train, augmentation.size)
    padding, flip = (getattr(augmentation, name, 0) for name in ("padding", "flip"))
    return Epoch(asked, config, train, test, model, int(padding), bool(flip), what)
