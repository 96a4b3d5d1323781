"""lightning's trainer with the loader of ``reference_loop``: ``Trainer.fit`` for an epoch in 32
bit, with its logger, bars and checkpoints left out.
"""

from __future__ import annotations

import importlib
import logging
import warnings
from typing import Any

import torch.nn.functional as F
from torch import nn

from cnnctl.peers.reference_loop import PilImages, loader
from cnnctl.peers.works.base import Side
from cnnctl.peers.works.epoch import Epoch, Trained

DOES = ("epoch",)
PACKAGES = ("lightning", "torchvision")
PRECISION = "fp32"


def side(job: Epoch) -> Side:
    library: Any = importlib.import_module("lightning")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)  # it tells of tips and devices
    data = PilImages(job)

    class Module(library.LightningModule):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network, self.losses = network, []

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            images, labels = batch
            loss = F.cross_entropy(self.network(images), labels)
            self.losses.append(loss.detach())
            return loss

        def configure_optimizers(self) -> Any:
            return job.optimizer(self.network)

    def train(model: nn.Module) -> Trained:
        trainer = library.Trainer(
            max_epochs=1,
            accelerator="gpu" if job.device.type == "cuda" else "cpu",
            devices=1,
            precision="32-true",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=str(job.asked.folder),
        )
        module = Module(model)
        with warnings.catch_warnings():  # of the number of workers, which is as for all
            warnings.simplefilter("ignore")
            trainer.fit(module, loader(job, data))
        return model, module.losses

    return job.side(train)
