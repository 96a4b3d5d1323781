"""What every network promises that finds objects with their masks."""

from __future__ import annotations

from cnnctl.models.detection import DetectionModel


class InstanceModel(DetectionModel):
    """A detector that says a mask of each box too, ``Predictions.masks`` and ``sizes``."""
