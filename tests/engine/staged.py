"""A model of three stages for the tests: one fitted, two trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from cnnctl.models.base import ClassificationModel, FitStage, GradientStage, Losses, Stage
from cnnctl.structures import Batch, Images, Targets


class Staged(ClassificationModel):
    """Pixels minus their mean (fitted), a hidden layer with batch norm, then the head alone."""

    def __init__(self, in_channels: int, num_classes: int, size: tuple[int, int]) -> None:
        super().__init__()
        pixels = in_channels * size[0] * size[1]
        self.mean: Tensor
        self.register_buffer("mean", torch.zeros(pixels))
        self.seen: Tensor
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.hidden = nn.Sequential(nn.Linear(pixels, 16), nn.BatchNorm1d(16), nn.ReLU())
        self.head = nn.Linear(16, num_classes)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(self.hidden(pixels.flatten(1) - self.mean))

    def whiten(self, batches: Iterator[Batch]) -> None:
        everything = torch.cat([batch.images.pixels.flatten(1) for batch in batches])
        self.mean.copy_(everything.mean(0))
        self.seen.fill_(len(everything))

    def stages(self) -> Sequence[Stage]:
        return [
            FitStage("whiten", self.whiten),
            GradientStage("features", self.loss, self.parameters),
            GradientStage("head", self.loss, self.head.parameters),
        ]


class Agreed(Staged):
    """Its last stage begins with the same batch statistics in every process, or not at all."""

    agreed = False

    def loss(self, images: Images, targets: Targets) -> Losses:
        resting = not next(self.hidden.parameters()).requires_grad
        if resting and not self.agreed:
            own = self.get_buffer("hidden.1.running_mean")
            every = [torch.zeros_like(own) for _ in range(torch.distributed.get_world_size())]
            torch.distributed.all_gather(every, own)
            assert own.abs().sum() > 0
            assert all(torch.equal(other, own) for other in every), every
            self.agreed = True
        return super().loss(images, targets)

    def stages(self) -> Sequence[Stage]:
        whiten, _, head = super().stages()
        return [whiten, GradientStage("features", self.loss, self.parameters, evaluate=False), head]
