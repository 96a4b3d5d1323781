"""A model that meets broken data in one of the processes, at its fifth step."""

from __future__ import annotations

import os

from torch import Tensor

from cnnctl.errors import Exit, UserError
from cnnctl.models.mlp import MLP


class Faulty(MLP):
    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        size: tuple[int, int],
        rank: int,
        widths: list[int],
        activation: str,
        dropout: float,
        batch_norm: bool,
    ) -> None:
        super().__init__(in_channels, num_classes, size, widths=widths)
        self.rank, self.calls = rank, 0

    def forward(self, pixels: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == 5 and os.environ["RANK"] == str(self.rank):
            raise UserError(
                "is cut off",
                file=f"picture {self.rank}.png",
                advice="fetch it again",
                code=Exit.DATA,
            )
        return super().forward(pixels)
