"""Pictures of instance segmentation: pure functions from tensors to (H, W, 3) uint8."""

from __future__ import annotations

from cnnctl.box_pictures import annotated, draw_batch, draw_evaluation

__all__ = ["annotated", "draw_batch", "draw_evaluation"]
