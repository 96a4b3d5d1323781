"""Which pictures of a run are drawn, and when, so that they cost a run next to nothing."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from cnnctl.engine.log import Board
from cnnctl.models.base import Model
from cnnctl.structures import Batch, Predictions

SHOWN = 32  # images of an evaluation that are kept to be drawn
SELDOM = 10.0  # seconds, at least, between two evaluations that are drawn
SHARE = 0.05  # of the time, at most, that goes into pictures between the first and the last

Pictures = dict[str, Tensor]  # name -> (H, W, 3) uint8
BatchPictures = Callable[[Batch], Pictures]
LayerPicture = Callable[[dict[str, float]], Tensor]
EvaluationPictures = Callable[[Sequence[tuple[Batch, Predictions]], Any, Model], Pictures]


class Album:
    """Pictures for TensorBoard: the first training batch, and evaluations now and then.

    The first evaluation of a process is drawn, then a new best one where the last pictures are
    some time ago, and the last one of a stage. What goes wrong in a picture is a warning.

    Args:
        board: None where nothing is to be drawn.
        clock: seconds.
    """

    def __init__(
        self,
        board: Board | None,
        draw_batch: BatchPictures,
        draw_evaluation: EvaluationPictures,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.board = board
        self._draw_batch, self._draw_evaluation, self._clock = draw_batch, draw_evaluation, clock
        self._every, self._seen = 1, 0
        self._kept: list[tuple[Batch, Predictions]] = []
        self._held: tuple[Callable[[], Pictures], int] | None = None
        self._next: float | None = None  # when the next evaluation may be drawn

    def training_batch(self, batch: Batch, step: int) -> None:
        self._draw(lambda: self._draw_batch(batch), step)

    def layers(self, draw: LayerPicture, figures: dict[str, float], step: int) -> None:
        """What goes through each layer, as ``Watch`` names the figures."""
        self._draw(lambda: {"watch/layers": draw(figures)}, step)

    def begin(self, images: int) -> None:
        """An evaluation of that many images begins."""
        self._every, self._seen = max(1, -(-images // SHOWN)), 0
        self._kept, self._held = [], None

    def keep(self, batch: Batch, predictions: Predictions) -> None:
        """Take a copy of some images, evenly spaced over the evaluation: data may be in order."""
        first = -self._seen % self._every
        self._seen += len(batch)
        if self.board is not None and first < len(batch):
            rows = slice(first, None, self._every)
            self._kept.append((batch.rows(rows), predictions.rows(rows)))

    def evaluation(self, evaluator: Any, model: Model, step: int, best: bool) -> None:
        """Draw the evaluation that has just ended, or hold it in case it is the last."""
        kept = self._kept

        def pictures() -> Pictures:
            with _as_evaluated(model):
                return self._draw_evaluation(kept, evaluator, model)

        self._held = pictures, step
        if self._next is None or (best and self._clock() >= self._next):
            self.finish()

    def finish(self) -> None:
        """Draw what is held, with the model as it is now: nothing has been trained since."""
        if self._held is None:
            return
        (pictures, step), self._held = self._held, None
        start = self._clock()
        self._draw(pictures, step)
        end = self._clock()
        self._next = end + max(SELDOM, (end - start) / SHARE)

    def _draw(self, pictures: Callable[[], Pictures], step: int) -> None:
        if self.board is None:
            return
        try:
            drawn = pictures()
        except Exception as error:  # no picture is worth a run
            self.board = None
            with contextlib.suppress(OSError):
                problem = f"{type(error).__name__}: {error}"
                print(f"warning: no pictures from here on: {problem}", file=sys.stderr)
            return
        for name, picture in drawn.items():
            self.board.picture(name, picture, step)


@contextlib.contextmanager
def _as_evaluated(model: Model) -> Iterator[None]:
    """A picture may ask the model: in train mode that would move its running statistics, and the
    weights that are saved would not be those that were scored."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module, training in modes:
            module.training = training
