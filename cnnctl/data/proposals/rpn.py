"""An objectness that was learnt: the region proposal network of a trained detector.

Ren, He, Girshick, Sun, "Faster R-CNN", arXiv:1506.01497, sections 3.1 to 3.3.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from cnnctl.data.proposals.base import ProposalMethod, chosen
from cnnctl.errors import UserError

Network = Callable[[Tensor], Tensor]  # image (C, h, w) uint8 -> boxes (P, 4) in its pixels


@dataclass(frozen=True)
class RPN(ProposalMethod):
    """The boxes that a network finds likeliest to hold something, of any class.

    Args:
        checkpoint: where its weights are; whoever uses the method gives it the network
            (``with_network``), because a data set builds none.
    """

    checkpoint: str | None = None
    count: int = 300
    forks: ClassVar[bool] = False
    network: Network | None = field(default=None, init=False, repr=False, compare=False)
    digest: str = field(default="", init=False, repr=False)

    def require(self) -> None:
        if self.checkpoint is None:
            raise UserError(
                "names no network",
                field="proposals.checkpoint",
                advice="name a run of model=faster_rcnn, or a checkpoint of it",
            )

    def with_network(self, network: Network, digest: str) -> RPN:
        """The same with what answers for it.

        Args:
            digest: of its weights: other weights, other proposals.
        """
        ready = copy.copy(self)
        object.__setattr__(ready, "network", network)
        object.__setattr__(ready, "digest", digest)
        return ready

    def propose(self, image: Tensor) -> Tensor:
        assert self.network is not None, "with_network comes first"
        boxes = self.network(image).cpu().numpy()
        return chosen(boxes, (image.shape[-2], image.shape[-1]), self.count)

    def settings(self) -> dict[str, Any]:
        assert self.digest, "with_network comes first"
        return {"method": self.name(), "weights": self.digest, "count": self.count}
