"""A whole training by a recipe on CIFAR-10, from images on the device to the trained network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from cnnctl import build, compose
from cnnctl.data.base import ArrayDataset
from cnnctl.data.loaders import Loader
from cnnctl.engine.distributed import Processes
from cnnctl.engine.inference import evaluate
from cnnctl.models.base import Model
from cnnctl.peers.works.base import Asked, Figures, Side
from cnnctl.peers.works.epoch import Rows, loop_maker
from cnnctl.peers.works.table import Work


@dataclass
class Recipe:
    """
    Args:
        train, test: of CIFAR-10.
    """

    asked: Asked
    config: Any
    train: ArrayDataset
    test: ArrayDataset

    @property
    def images(self) -> int:
        """Of all epochs."""
        trainer = build.trainer(self.config)
        return trainer.total_steps(len(self.train))[0] * trainer.batch_size

    @property
    def data(self) -> str:
        return "CIFAR-10"

    def ours(self) -> Side:
        train, test = self._loader(self.train), self._loader(self.test)
        make = loop_maker(self.config, self.asked.machine)
        last: list[Model] = []

        def run() -> None:
            torch.manual_seed(0)
            model = build.model(self.config, self.train, train.augmentation.size)
            self.asked.machine.place(model)
            loop = make(model, train)
            loop.fit()
            last[:] = [loop.evaluated_model()]

        return Side(run, lambda: self._figures(last[0], test))

    def _loader(self, data: ArrayDataset) -> Loader:
        trainer, machine = build.trainer(self.config), self.asked.machine
        return trainer.load(data, build.augmentation(self.config, data), machine, Processes(), 0)

    def _figures(self, model: Model, test: Loader) -> Figures:
        """With the recipe's views of each image."""
        task, trainer = build.task(self.config), build.trainer(self.config)
        batches = test.in_order(trainer.evaluation_batch(model, test.augmentation))
        machine, evaluator = self.asked.machine, task.evaluator(self.test)
        return {"top1": evaluate(model, batches, evaluator, machine, Processes())[task.best]}


def made(work: Work, asked: Asked) -> Recipe:
    """
    Raises:
        UserError: CIFAR-10 is not at hand.
    """
    root = () if asked.root is None else (f"data.root={compose.quoted(Path(asked.root))}",)
    config = asked.composed(work, "data.verify=false", *root)
    train, test = (cast(ArrayDataset, build.dataset(config, split)) for split in ("train", "test"))
    return Recipe(asked, config, Rows(train, asked.images or work.images), test)
