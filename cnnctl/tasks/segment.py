"""A class for every pixel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from cnnctl.data.base import Dataset
from cnnctl.data.mask_counts import count_masks
from cnnctl.drawing import mask_pictures, pictures
from cnnctl.metrics.segmentation import SegmentationEvaluator
from cnnctl.models.base import SegmentationModel
from cnnctl.ops.dense import DenseTesting
from cnnctl.ops.losses import SegmentationLoss, frequency_weights
from cnnctl.structures import IGNORE, Predictions
from cnnctl.tasks.base import Description, Task, Watch, best_and_worst_class


def segment(
    cross_entropy: float = 1.0,
    dice: float = 1.0,
    focal: float = 0.0,
    gamma: float = 2.0,
    class_weights: Literal["none", "inverse", "median"] = "median",
    boundary: bool = False,
    flip: bool = False,
    scales: tuple[float, ...] = (1.0,),
    tile: int | None = None,
    overlap: float = 0.5,
) -> Task:
    """A class for every pixel.

    Args:
        cross_entropy, dice, focal: what each term of the loss counts; 0 leaves it out.
        gamma: of the focal term.
        class_weights: of the pixels of each class, by its frequency in the training images.
        boundary: score boundary IoU too.
        flip, scales, tile, overlap: see ``DenseTesting``, whose name is part of every metric's.
    """
    if not gamma >= 0:
        raise ValueError(f"gamma must be at least 0, got {gamma}")
    testing = DenseTesting(flip, tuple(scales), tile, overlap)
    terms = {"cross_entropy": cross_entropy, "dice": dice, "focal": focal}
    if min(terms.values()) < 0 or not any(terms.values()):
        raise ValueError(f"the loss needs a term above 0 and none below, got {terms}")
    wanted = {name: share for name, share in terms.items() if share}
    names = ("mean_iu", "pixel_accuracy", "mean_accuracy", "fw_iu", *["boundary_iu"] * boundary)
    suffix = f"@{testing.name}" if testing.name else ""

    def prepare(model: SegmentationModel, data: Any) -> None:
        model.criterion = SegmentationLoss(len(data.classes), wanted, gamma)
        model.testing = testing

    def learn(data: Dataset, watch: Watch) -> dict[str, Tensor]:
        if class_weights == "none":
            return {}
        counts = count_masks(data, watch=watch)
        weight = frequency_weights(class_weights, counts.pixels, counts.around)
        return {"criterion.weight": weight}

    return Task(
        name="segment",
        fields=("mask",),
        model=SegmentationModel,
        evaluator=lambda data: SegmentationEvaluator(data.classes, boundary, suffix),
        metrics={**{f"{name}{suffix}": True for name in names}, "loss": False},
        best=f"mean_iu{suffix}",
        draw_batch=mask_pictures.draw_batch,
        draw_evaluation=mask_pictures.draw_evaluation,
        describe=_shares_of_classes,
        annotate=mask_pictures.annotated,
        headline=_largest_classes,
        table=best_and_worst_class,
        prepare=prepare,
        learn=learn,
    )


def _shares_of_classes(
    predictions: Predictions, classes: Sequence[str], top: int
) -> list[Description]:
    """The class of each pixel, and the ``top`` classes with the most of them."""
    assert predictions.mask is not None
    described = []
    for mask in predictions.mask.cpu():
        inside = mask != IGNORE
        mask = mask[: int(inside.any(1).sum()), : int(inside.any(0).sum())]
        counts = torch.bincount(mask.flatten().int(), minlength=len(classes))
        order = counts.argsort(descending=True, stable=True)[:top].tolist()
        rows = [
            {"class": classes[k], "share": int(counts[k]) / mask.numel()}
            for k in order
            if counts[k]
        ]
        described.append({**rows[0], "top": rows, "mask": mask.contiguous()})
    return described


def _largest_classes(said: Description) -> str:
    return ", ".join(f"{row['class']} {pictures.percent(row['share'])}" for row in said["top"][:4])
