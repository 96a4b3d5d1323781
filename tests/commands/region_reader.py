"""A model that reads proposals and answers with the first of them; methods to make them with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cnnctl.data.proposals.base import ProposalMethod
from cnnctl.models.detection import DetectionModel, given_proposals
from cnnctl.ops.boxes import Detections


class RegionReader(DetectionModel):
    reads_proposals = True

    def __init__(self, in_channels: int, shown: int = 3) -> None:
        super().__init__()
        self.shown = shown
        self.layer = nn.Conv2d(in_channels, 1, 1)

    def features(self, pixels):
        return self.layer(pixels).mean((1, 2, 3))

    def losses(self, features, images, truth):
        there = (self._given(images)[..., 2:] > 0).all(2).float().mean()
        return {"reading": features.square().mean() * (1 + there.nan_to_num())}

    def detect(self, features, images):
        found = self._given(images)[:, : self.shown]
        there = (found[..., 2:] > found[..., :2]).all(2)
        scores = torch.linspace(0.9, 0.6, found.shape[1]) * there
        return Detections(found, scores, torch.where(there, 0, -1))

    def disk_needed(self, images, proposals):
        return images * proposals * 1000

    def _given(self, images) -> Tensor:
        boxes = given_proposals(images)
        assert boxes is not None
        assert len(boxes) == len(images)
        return boxes


@dataclass(frozen=True)
class Corner(ProposalMethod):
    """One box at each of the first corners."""

    count: int = 2

    def propose(self, image: Tensor) -> Tensor:
        h, w = image.shape[-2:]
        corners = [[0, 0, w / 2, h / 2], [w / 2, h / 2, w, h]]
        return torch.tensor(corners)[: self.count]


@dataclass(frozen=True)
class Nowhere(ProposalMethod):
    """Nothing, in any image."""

    count: int = 1

    def propose(self, image: Tensor) -> Tensor:
        return torch.zeros(0, 4)
