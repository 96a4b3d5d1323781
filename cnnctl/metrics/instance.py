"""What was found in a data set, scored by its boxes and by its masks."""

from __future__ import annotations

from collections.abc import Sequence

from cnnctl.metrics.detection import DetectionEvaluator, Truth


class InstanceEvaluator(DetectionEvaluator):
    def __init__(
        self,
        classes: Sequence[str],
        threshold: float = 0.5,
        truth: Truth = None,
        boundary: bool = False,
    ) -> None:
        super().__init__(classes, threshold, truth)
        masks = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
        self.names = (*self.names, *(f"coco_mask_{name}" for name in masks))
