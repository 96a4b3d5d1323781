"""A batch of scenes of digits in memory, and a network with weights drawn here that all begin from.

What is timed on it is a training step, or what the network finds; scenes of one size leave nobody
anything to resize or to pad.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from cnnctl import build
from cnnctl.data.base import Dataset
from cnnctl.data.loaders import Normalize
from cnnctl.models.base import Model
from cnnctl.peers.works.base import Asked, Figures, Side, TrainingStep
from cnnctl.peers.works.table import Work
from cnnctl.structures import Batch, collate


@dataclass
class Scenes:
    """
    Args:
        whole: where the images come from.
        batch: on the device, normalised, channels first.
        state: of the network as it was drawn.
    """

    asked: Asked
    work: Work
    config: Any
    whole: Dataset
    batch: Batch
    state: dict[str, Tensor]

    @classmethod
    def made(cls, work: Work, asked: Asked) -> Self:
        count, device = asked.images or work.images, asked.machine.device
        config = asked.composed(
            work, "data=digit_scenes", f"data.size={work.side}", f"data.train_images={count}"
        )
        whole = build.dataset(config, "train")
        batch = collate([(index, *whole[index]) for index in range(count)]).to(device)
        batch.images.pixels = Normalize(whole.mean, whole.std, device)(batch.images.pixels)
        torch.manual_seed(0)
        state = build.model(config, whole, (work.side, work.side)).state_dict()
        return cls(asked, work, config, whole, batch, state)

    @property
    def images(self) -> int:
        return len(self.batch)

    @property
    def data(self) -> str:
        return f"drawn scenes, {self.work.side} x {self.work.side}"

    def model(self) -> Model:
        """Ours, with the weights that all begin from, in float32, channels first."""
        model = build.model(self.config, self.whole, (self.work.side, self.work.side))
        model.load_state_dict(self.state)
        return model.to(self.asked.machine.device)

    def placed(self) -> tuple[Model, Batch]:
        """Model and batch as ours computes with them."""
        machine, model, images = self.asked.machine, self.model(), self.batch.images
        machine.place(model)
        if machine.channels_last:
            pixels = images.pixels.contiguous(memory_format=torch.channels_last)
            images = replace(images, pixels=pixels)
        return model, Batch(images, self.batch.targets)

    def step(self) -> Side:
        model, batch = self.placed()

        def losses() -> dict[str, Tensor]:
            return model.loss(batch.images, batch.targets)

        return TrainingStep(model, losses, self.asked.machine).side()

    def inference(self) -> Side:
        model, batch = self.placed()
        model.eval()
        last: list[Tensor] = []

        @torch.inference_mode()
        def run() -> None:
            with self.asked.machine.autocast():
                seen = model.predict(batch.images)
            assert seen.labels is not None
            assert seen.scores is not None
            last[:] = [seen.scores[seen.labels >= 0]]

        return Side(run, lambda: found(last[0]))


def found(scores: Tensor) -> Figures:
    """What is said of detections, of which no network at random finds the right ones."""
    return {"found": len(scores), "mean score": float(scores.float().sum()) / max(len(scores), 1)}
