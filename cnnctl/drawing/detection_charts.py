"""What is true of all images of an evaluation of detection, as charts (H, W, 3) uint8."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cnnctl.data.palette import Colour
from cnnctl.drawing import chart_pictures, pictures
from cnnctl.metrics.detection import DetectionEvaluator


def draw_charts(
    evaluator: DetectionEvaluator, classes: Sequence[str], colours: Sequence[Colour]
) -> dict[str, Tensor]:
    """By what TensorBoard calls them: confusion, errors, curves, scores and sizes."""
    details = evaluator.details()
    curves = never_rising(evaluator.curves())
    scores, sizes = details["scores"], details["sizes"]
    every = list(zip(sizes["objects"], sizes["found"], strict=True))
    last = max([place for place, (count, _) in enumerate(every, 1) if count], default=1)
    confusion = torch.tensor(details["confusion"])
    return {
        "val/confusion": pictures.confusion(confusion, [*classes, "background"]),
        "val/errors": chart_pictures.errors(details["errors"], details["right"]),
        "val/precision_recall": chart_pictures.precision_recall(
            curves, details["per_class"]["voc10_ap"], dict(zip(classes, colours, strict=True))
        ),
        "val/scores": chart_pictures.histogram(
            {"right": scores["right"], "false": scores["wrong"]},
            scores["edges"],
            "detections by their score",
            "score",
            log=True,
        ),
        "val/sizes": chart_pictures.histogram(
            {
                "found": [found for _, found in every[:last]],
                "missed": [count - found for count, found in every[:last]],
            },
            sizes["edges"][: last + 1],
            f"objects by their size (score at least {details['threshold']:g})",
            "root of the area in pixels",
        ),
    }


def never_rising(
    curves: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]],
) -> dict[str, tuple[list[float], list[float]]]:
    """(recall, precision) of each class as average precision sees them."""
    return {
        name: (recall.tolist(), np.maximum.accumulate(precision[::-1])[::-1].tolist())
        for name, (recall, precision) in curves.items()
    }
