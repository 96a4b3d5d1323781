"""A task is a record: what its targets hold, which models do it, how it is scored and drawn."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from cnnctl import mask_pictures, pictures
from cnnctl.data.base import Dataset
from cnnctl.data.mask_counts import count_masks
from cnnctl.metrics.classification import ClassificationEvaluator, predicted_class
from cnnctl.metrics.segmentation import SegmentationEvaluator
from cnnctl.models.base import ClassificationModel, Model, SegmentationModel
from cnnctl.ops.dense import DenseTesting
from cnnctl.ops.losses import SegmentationLoss, frequency_weights
from cnnctl.structures import IGNORE, Batch, Predictions

Description = dict[str, Any]
Palette = Sequence[tuple[int, int, int]]

SHOWN = 32  # images in a picture


@dataclass(frozen=True)
class Task:
    """What the trainer and the commands need to know of a task.

    Args:
        name: as in ``task=``.
        fields: the columns of ``Targets`` that its data must fill.
        model: the class its models derive from.
        evaluator: class names -> an object with update, merge, rows and compute.
        metrics: those that can choose best.pt -> whether larger is better.
        best: the one that does unless ``trainer.monitor`` names another.
        draw_batch: (batch, data) -> named pictures (H, W, 3) uint8 of a training batch.
        draw_evaluation: (some batches and what was predicted of them, evaluator, model, data)
            -> named pictures.
        describe: (predictions, classes, top) -> for each image what ``predict`` says of it, as
            plain values; a tensor (h, w) uint8 among them is a map of classes, kept as a PNG.
        annotate: (image (C, h, w) uint8, its description, classes, palette) -> a picture.
        headline: a description in a few words.
        table: evaluator -> rows (title, value) that the summary adds to the metrics.
        prepare: gives a new model what the task decides for it (its loss, how it is tested).
        learn: what the loss takes from the training data, by its name in the model's state; asked
            for before the first step only.
    """

    name: str
    fields: tuple[str, ...]
    model: type[Model]
    evaluator: Callable[[Sequence[str]], Any]
    metrics: dict[str, bool]
    best: str
    draw_batch: Callable[[Batch, Dataset], dict[str, Tensor]]
    draw_evaluation: Callable[
        [Sequence[tuple[Batch, Predictions]], Any, Model, Dataset], dict[str, Tensor]
    ]
    describe: Callable[[Predictions, Sequence[str], int], list[Description]]
    annotate: Callable[[Tensor, Description, Sequence[str], Palette | None], Tensor]
    headline: Callable[[Description], str]
    table: Callable[[Any], list[tuple[str, str]]]
    prepare: Callable[[Any, Any], None] = lambda model, data: None
    learn: Callable[[Dataset], dict[str, Tensor]] = lambda data: {}


def classify() -> Task:
    """One label for each image."""
    return Task(
        name="classify",
        fields=("label",),
        model=ClassificationModel,
        evaluator=ClassificationEvaluator,
        metrics={"top1": True, "top5": True, "nll": False, "loss": False},
        best="top1",
        draw_batch=_draw_labels,
        draw_evaluation=_draw_classification,
        describe=_ranked_classes,
        annotate=lambda image, said, classes, palette: pictures.annotated(
            image, _class_and_probability(said), [tuple(row.values()) for row in said["top"][:5]]
        ),
        headline=_class_and_probability,
        table=_best_and_worst_class,
    )


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

    def learn(data: Dataset) -> dict[str, Tensor]:
        if class_weights == "none":
            return {}
        counts = count_masks(data)
        weight = frequency_weights(class_weights, counts.pixels, counts.around)
        return {"criterion.weight": weight}

    return Task(
        name="segment",
        fields=("mask",),
        model=SegmentationModel,
        evaluator=lambda classes: SegmentationEvaluator(classes, boundary, suffix),
        metrics={**{f"{name}{suffix}": True for name in names}, "loss": False},
        best=f"mean_iu{suffix}",
        draw_batch=mask_pictures.draw_batch,
        draw_evaluation=mask_pictures.draw_evaluation,
        describe=_shares_of_classes,
        annotate=mask_pictures.annotated,
        headline=_largest_classes,
        table=_best_and_worst_class,
        prepare=prepare,
        learn=learn,
    )


def _draw_labels(batch: Batch, data: Dataset) -> dict[str, Tensor]:
    """The images that a network is trained on, augmented as they are, with their classes."""
    assert batch.targets.label is not None
    images = pictures.displayable(batch.images.pixels[:SHOWN], data.mean, data.std)
    labels = batch.targets.label[:SHOWN].cpu()
    captions = [pictures.label_lines(label, data.classes) for label in labels]
    return {"train/batch": pictures.gallery(list(images), captions)}


def _draw_classification(
    seen: Sequence[tuple[Batch, Predictions]],
    evaluator: ClassificationEvaluator,
    model: Model,
    data: Dataset,
) -> dict[str, Tensor]:
    shape = seen[0][0].images.pixels.shape[1:]
    drawn = {
        "val/predictions": _draw_predictions(seen, data),
        "val/mistakes": _draw_mistakes(evaluator, data),
        "val/confusion": pictures.confusion(evaluator.confusion(), data.classes),
        "val/class_accuracy": pictures.class_accuracies(evaluator.per_class()),
        "weights/first_layer": pictures.first_layer(model, shape, data.classes),
    }
    return {name: picture for name, picture in drawn.items() if picture is not None}


def _draw_predictions(seen: Sequence[tuple[Batch, Predictions]], data: Dataset) -> Tensor:
    """Some images, right (green) or wrong (red), with what was said, the truth, and how likely."""
    images, captions, colours = [], [], []
    for batch, predictions in seen:
        assert batch.targets.label is not None
        assert predictions.log_probs is not None
        images += pictures.displayable(batch.images.pixels, data.mean, data.std)
        probabilities, labels = predictions.log_probs.cpu().exp(), batch.targets.label.cpu()
        for row, label in zip(probabilities, labels, strict=True):
            said = int(predicted_class(row[None], label[None]))
            right = said == int(label)
            truth = _with_probability(data.classes[int(label)], float(row[label]))
            line = _with_probability(data.classes[said], float(row[said]))
            captions.append([line] if right else [line, f"is {truth}"])
            colours.append(pictures.RIGHT if right else pictures.WRONG)
    return pictures.gallery(images, captions, colours)


def _draw_mistakes(evaluator: ClassificationEvaluator, data: Dataset) -> Tensor | None:
    """The wrong ones with the least probability for their class, of all; None without any."""
    rows = evaluator.rows()
    wrong = rows[rows[:, 1] != rows[:, 2]]
    worst = wrong[wrong[:, 4].argsort()][:SHOWN].tolist()
    captions = []
    for _, label, said, _, log_prob in worst:
        truth = _with_probability(data.classes[int(label)], math.exp(log_prob))
        captions.append([f"said {data.classes[int(said)]}", f"is {truth}"])
    images = [pictures.coloured(data[int(row[0])][0]) for row in worst]
    return pictures.gallery(images, captions) if images else None


def _ranked_classes(
    predictions: Predictions, classes: Sequence[str], top: int
) -> list[Description]:
    """The best class of each image, its probability, and the ``top`` best with theirs."""
    assert predictions.log_probs is not None
    best = predictions.log_probs.exp().topk(min(top, len(classes)), dim=1)
    described = []
    for values, order in zip(best.values.tolist(), best.indices.tolist(), strict=True):
        rows = [
            {"class": classes[index], "probability": value}
            for index, value in zip(order, values, strict=True)
        ]
        described.append({**rows[0], "top": rows})
    return described


def _class_and_probability(said: Description) -> str:
    return f"{said['class']} ({pictures.percent(said['probability'])})"


def _with_probability(name: str, probability: float) -> str:
    return f"{name}: {pictures.percent(probability)}"


def _best_and_worst_class(evaluator: Any) -> list[tuple[str, str]]:
    ranked = sorted(evaluator.per_class().items(), key=lambda item: item[1])
    if not ranked:
        return []
    (worst, low), (best, high) = ranked[0], ranked[-1]
    return [("best class", f"{best} {high:.2%}"), ("worst class", f"{worst} {low:.2%}")]


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
