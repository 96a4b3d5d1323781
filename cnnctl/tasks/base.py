"""A task is a record: what its targets hold, which models do it, how it is scored and drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from cnnctl.data.base import Dataset
from cnnctl.models.base import Model
from cnnctl.structures import Batch, Predictions

Description = dict[str, Any]
Table = tuple[str, Sequence[str], Sequence[Sequence[str]]]
Palette = Sequence[tuple[int, int, int]]
Watch = Callable[[int, int], None]


@dataclass(frozen=True)
class Task:
    """What the trainer and the commands need to know of a task.

    Args:
        name: as in ``task=``.
        fields: the columns of ``Targets`` that its data must fill.
        model: the class its models derive from.
        evaluator: the data to be evaluated (whatever has ``classes``) -> an object with update,
            merge, rows and compute.
        metrics: those that can choose best.pt -> whether larger is better.
        best: the one that does unless ``trainer.monitor`` names another.
        line: those that an epoch's line on the console shows; all where it is empty.
        draw_batch: (batch, data) -> named pictures (H, W, 3) uint8 of a training batch.
        draw_evaluation: (some batches and what was predicted of them, evaluator, model, data)
            -> named pictures.
        describe: (predictions, classes, top) -> for each image what ``predict`` says of it, as
            plain values; a tensor (h, w) uint8 among them is a map of classes, kept as a PNG.
        annotate: (image (C, h, w) uint8, its description, classes, palette) -> a picture.
        headline: a description in a few words.
        table: evaluator -> rows (title, value) that the summary adds to the metrics.
        tables: evaluator -> (title, columns, rows) of tables that ``eval`` prints below it.
        results: (evaluator, data) -> records of what was predicted, for other programs to score,
            and for ``eval predictions=``.
        mistakes: (evaluator, data) -> a picture (H, W, 3) of the images with the most mistakes;
            None where there is none.
        draw_sample: (image (C, h, w) uint8, its truth, data, longer side in pixels) -> a picture
            (3, H, W) for ``data show``; None where the image alone says enough.
        held: (training data, images of a batch) -> bytes that the truth takes, first as it is held
            and then in other ways, each by what ``info`` calls it.
        knowing: facts of the data -> the task, where what it describes and draws needs more of
            them than the classes (the names of points).
        show: says to a new augmentation how images are seen in evaluation, where a protocol of the
            task's wants more of them than training.
        average: what several models say of the same images -> what they say together.
        prepare: gives a new model what the task decides for it (its loss, how it is tested).
        learn: (training data, watch) -> what the loss takes from it, by its name in the model's
            state; asked for before the first step only. It calls ``watch(done, total)`` as it goes,
            which may raise to end it.
    """

    name: str
    fields: tuple[str, ...]
    model: type[Model]
    evaluator: Callable[[Any], Any]
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
    show: Callable[[Any], None] = lambda augmentation: None
    average: Callable[[Sequence[Predictions]], Predictions] | None = None
    prepare: Callable[[Any, Any], None] = lambda model, data: None
    learn: Callable[[Dataset, Watch], dict[str, Tensor]] = lambda data, watch: {}
    line: tuple[str, ...] = ()
    tables: Callable[[Any], list[Table]] = lambda evaluator: []
    results: Callable[[Any, Dataset], list[dict[str, Any]]] | None = None
    knowing: Callable[[Any], Task] | None = None

    def takes(self, model: type[Model]) -> bool:
        """Can a model of that class do it?"""
        return issubclass(model, self.model) and set(model.needs) <= set(self.fields)

    mistakes: Callable[[Any, Dataset], Tensor | None] | None = None
    draw_sample: Callable[[Tensor, Mapping[str, Any], Dataset, int], Tensor] | None = None
    held: Callable[[Dataset, int], dict[str, int]] | None = None


def best_and_worst_class(evaluator: Any) -> list[tuple[str, str]]:
    ranked = sorted(evaluator.per_class().items(), key=lambda item: item[1])
    if not ranked:
        return []
    (worst, low), (best, high) = ranked[0], ranked[-1]
    return [("best class", f"{best} {high:.2%}"), ("worst class", f"{worst} {low:.2%}")]
