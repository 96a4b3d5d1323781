"""One label for each image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from cnnctl.data.augmentations.base import Augmentation
from cnnctl.data.augmentations.shown import Shown
from cnnctl.data.base import Dataset
from cnnctl.drawing import pictures
from cnnctl.errors import UserError
from cnnctl.metrics.classification import ClassificationEvaluator, predicted_class
from cnnctl.models.base import ClassificationModel, Model
from cnnctl.ops.views import Views, average
from cnnctl.structures import IGNORE, Batch, Predictions
from cnnctl.tasks.base import Description, Task, best_and_worst_class

SHOWN = 32  # images in a picture


def classify(
    view: Literal["whole", "shifted", "ten_crop", "dense"] = "whole",
    flip: bool | None = None,
    scales: tuple[float, ...] = (1.0,),
    pool: Literal["average", "max", "none"] = "average",
) -> Task:
    """One label for each image.

    Args:
        view, flip, scales, pool: see ``Views``, whose name is part of every metric's.
    """
    views = Views(view, flip, tuple(scales), pool)
    suffix = f"@{views.name}" if views.name else ""

    def evaluator(data: Any) -> ClassificationEvaluator:
        if views.pool == "none":
            raise UserError(
                "a map of scores says no one class of an image, so none can be scored",
                field="task.pool",
                advice="take average or max; none is for cnnctl predict",
            )
        return ClassificationEvaluator(data.classes, suffix)

    def show(augmentation: Augmentation) -> None:
        if not views.is_whole:
            Shown.by(views, augmentation)

    return Task(
        name="classify",
        fields=("label",),
        model=ClassificationModel,
        evaluator=evaluator,
        metrics={
            **{f"{name}{suffix}": name != "nll" for name in ("top1", "top5", "nll")},
            "loss": False,
        },
        best=f"top1{suffix}",
        draw_batch=_draw_labels,
        draw_evaluation=_draw_classification,
        describe=_ranked_classes,
        annotate=lambda image, said, classes, palette: pictures.annotated(
            image, _class_and_probability(said), [tuple(row.values()) for row in said["top"][:5]]
        ),
        headline=_class_and_probability,
        table=best_and_worst_class,
        show=show,
        prepare=lambda model, data: _prepare(model, data, views),
        average=average,
    )


def _prepare(model: ClassificationModel, data: Any, views: Views) -> None:
    """Tell a new model how it is tested.

    Raises:
        UserError: it cannot be, or the data's images cannot.
    """
    if views.is_plain:
        return
    name = type(model).__name__
    if views.mirrors and not data.mirror:
        raise UserError(
            "a mirror image of this data is of another class",
            field="task.flip" if views.flip else "task.view",
            advice="take task.flip=false",
        )
    if type(model).predict is not ClassificationModel.predict:
        raise UserError(
            f"{name} has its own way to predict and looks at an image once",
            field="task.view",
            advice="take task.view=whole and leave task.flip out",
        )
    assert model.trained_shape is not None
    _, *size = model.trained_shape
    if views.view == "dense":
        try:
            model.score_maps()
        except ValueError as error:
            raise UserError(
                f"{name} has no fully convolutional form: {error}",
                field="task.view",
                advice="take task.view=whole or ten_crop",
            ) from None
    model.testing = replace(views, uniform=data.size is not None)
    h, w = model.testing.frame((size[0], size[1]), (size[0], size[1]), min(views.scales))
    if h < size[0] or w < size[1]:
        raise UserError(
            f"{min(views.scales):g} gives images of {h} x {w}, and the network sees {size[0]} x "
            f"{size[1]}",
            field="task.scales",
            advice="take larger ones",
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
    shape = getattr(model, "trained_shape", None) or seen[0][0].images.pixels.shape[1:]
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
    """The best class of each image, its probability, and the ``top`` best with theirs; where it
    was asked for, the best class at each place."""
    assert predictions.log_probs is not None
    best = predictions.log_probs.exp().topk(min(top, len(classes)), dim=1)
    described = []
    for values, order in zip(best.values.tolist(), best.indices.tolist(), strict=True):
        rows = [
            {"class": classes[index], "probability": value}
            for index, value in zip(order, values, strict=True)
        ]
        described.append({**rows[0], "top": rows})
    for said, scores in zip(described, predictions.places or (), strict=False):
        best_there = scores.argmax(0)  # (h, w)
        said["place"] = best_there.to(torch.uint8 if len(classes) <= IGNORE else torch.int32)
    return described


def _class_and_probability(said: Description) -> str:
    return f"{said['class']} ({pictures.percent(said['probability'])})"


def _with_probability(name: str, probability: float) -> str:
    return f"{name}: {pictures.percent(probability)}"
