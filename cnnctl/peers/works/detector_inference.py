"""The detections of a batch in memory."""

from __future__ import annotations

from cnnctl.peers.works.base import Asked, Side
from cnnctl.peers.works.scenes import Scenes
from cnnctl.peers.works.table import Work


class DetectorInference(Scenes):
    def ours(self) -> Side:
        return self.inference()


def made(work: Work, asked: Asked) -> DetectorInference:
    return DetectorInference.made(work, asked)
