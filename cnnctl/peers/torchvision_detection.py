"""torchvision's own detectors as its references run them: float32, eager, channels first, images as
a list, truth as a list of dictionaries.

They get the weights of ours under their names; of the transforms inside them only the padding is
left to do, as for ours.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchvision.models import get_model

from cnnctl.models.detection import truth_of
from cnnctl.ops.masks import whole_mask
from cnnctl.peers.works.base import Side, TrainingStep, eager
from cnnctl.peers.works.detector_inference import DetectorInference
from cnnctl.peers.works.scenes import Scenes, found

DOES = ("detector_step", "detector_inference")
PACKAGES = ("torchvision",)
PRECISION = "fp32"

_FIXED = "ssd"  # these have a size of their own
_WITHOUT_BACKGROUND = ("retinanet", "fcos")  # these count classes from 0


def side(job: Scenes) -> Side:
    model, images = network(job), [image.contiguous() for image in job.batch.images.pixels]
    if isinstance(job, DetectorInference):
        return _inference(model.eval(), images)
    truth = listed_truth(job)
    step = TrainingStep(model, lambda: model(images, truth), eager(job.asked.machine.device))
    return step.side()


def network(job: Scenes) -> Any:
    """torchvision's, with the weights of ours."""
    name, side, classes = job.work.theirs, job.work.side, len(job.whole.classes)
    numbers: dict[str, Any] = {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    numbers["_skip_resize"] = True  # in training; in testing it resizes to the size that it has
    if not name.startswith(_FIXED):
        numbers |= {"min_size": side, "max_size": side}
    background = not name.startswith(_WITHOUT_BACKGROUND)
    model = get_model(
        name, weights=None, weights_backbone=None, num_classes=classes + background, **numbers
    )
    model.load_state_dict(job.state)
    return model.to(job.asked.machine.device)


def listed_truth(job: Scenes) -> list[dict[str, Tensor]]:
    """What torchvision's detectors are told of each image, masks as whole maps of it."""
    background = not job.work.theirs.startswith(_WITHOUT_BACKGROUND)
    truth, listed = truth_of(job.batch.images, job.batch.targets), []
    targets = job.batch.targets
    for row, size in enumerate(job.batch.images.sizes):
        there = truth.labels[row] >= 0
        one = {"boxes": truth.boxes[row, there], "labels": truth.labels[row, there] + background}
        if targets.bits is not None and targets.crops is not None and targets.frames is not None:
            bits, parts = targets.bits[row], (targets.crops[row, there], targets.frames[row, there])
            whole = [
                whole_mask(bits, crop, frame, size) for crop, frame in zip(*parts, strict=True)
            ]
            one["masks"] = torch.stack(whole).to(torch.uint8)
        listed.append(one)
    return listed


def _inference(model: Any, images: list[Tensor]) -> Side:
    last: list[dict[str, Tensor]] = []

    @torch.inference_mode()
    def run() -> None:
        last[:] = model(images)

    return Side(run, lambda: found(torch.cat([one["scores"] for one in last])))
