"""One label for each image."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from cnnctl import pictures
from cnnctl.data.base import Dataset
from cnnctl.metrics.classification import ClassificationEvaluator, predicted_class
from cnnctl.models.base import ClassificationModel, Model
from cnnctl.structures import Batch, Predictions
from cnnctl.tasks.base import Description, Task, best_and_worst_class

SHOWN = 32  # images in a picture


def classify() -> Task:
    """One label for each image."""
    return Task(
        name="classify",
        fields=("label",),
        model=ClassificationModel,
        evaluator=lambda data: ClassificationEvaluator(data.classes),
        metrics={"top1": True, "top5": True, "nll": False, "loss": False},
        best="top1",
        draw_batch=_draw_labels,
        draw_evaluation=_draw_classification,
        describe=_ranked_classes,
        annotate=lambda image, said, classes, palette: pictures.annotated(
            image, _class_and_probability(said), [tuple(row.values()) for row in said["top"][:5]]
        ),
        headline=_class_and_probability,
        table=best_and_worst_class,
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
