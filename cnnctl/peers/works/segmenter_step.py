"""The loss of a segmentation network, its gradients and SGD, on a batch in memory."""

from __future__ import annotations

from cnnctl.peers.works.base import Asked, Side
from cnnctl.peers.works.scenes import Scenes
from cnnctl.peers.works.table import Work


class SegmenterStep(Scenes):
    def ours(self) -> Side:
        return self.step()


def made(work: Work, asked: Asked) -> SegmenterStep:
    return SegmenterStep.made(work, asked)
