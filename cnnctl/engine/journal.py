"""What a run reports of itself, to metrics.jsonl, TensorBoard and the console at once."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from cnnctl.engine.album import Album, BatchPictures, EvaluationPictures, LayerPicture
from cnnctl.engine.console import Bar, Console
from cnnctl.engine.log import Board, MetricsFile
from cnnctl.engine.signals import StopFlag, Stopped
from cnnctl.models.base import Model
from cnnctl.structures import Batch, Predictions

DRAW_EVERY = 0.1  # seconds between two updates of a progress bar

Report = Callable[[float, dict[str, float]], None]  # (epoch, metrics)


class Journal:
    """Logs of the first process; where ``open`` was not called every method does nothing.

    Args:
        draw_batch, draw_evaluation: named pictures (H, W, 3) uint8 for TensorBoard.
        line: the metrics that an epoch's line shows; all where it is empty.
        draw_layers: a picture of what goes through each layer, where that is watched.
    """

    def __init__(
        self,
        console: Console,
        draw_batch: BatchPictures,
        draw_evaluation: EvaluationPictures,
        line: Sequence[str] = (),
        draw_layers: LayerPicture | None = None,
    ) -> None:
        self.console = console
        self.draw_layers = draw_layers
        self.line = line
        self.metrics: MetricsFile | None = None
        self.board: Board | None = None
        self.album = Album(None, draw_batch, draw_evaluation)
        self.report: Report | None = None  # told every evaluation; may raise to end the run
        self.name, self.per_epoch, self.epochs = "", 1, 0
        self._run: Bar | None = None
        self._bar: Bar | None = None
        self._val: Bar | None = None
        self._images, self._since, self._drawn = 0, time.monotonic(), 0.0
        self._means: dict[str, float] = {}
        self._layers: dict[str, float] = {}
        self._note = ""
        self._step = 0
        self.speed = 0.0  # images a second, over the last logged interval
        self._training_images, self._training_seconds = 0, 0.0

    def open(self, metrics: MetricsFile, board: Board | None) -> None:
        """Write to these from here on; without a board no picture is drawn."""
        self.metrics, self.board = metrics, board
        self.album.board = board

    def close(self) -> None:
        if self.board is not None:
            self.board.close()

    @contextlib.contextmanager
    def stage(self, name: str, total: int, per_epoch: int, done: int) -> Iterator[None]:
        self.name, self.per_epoch = name, per_epoch
        self.epochs = max(1, -(-total // per_epoch))
        self._step = done
        with self.console.progress():
            self._run = self.console.bar(name, total, done)
            self._bar = self.console.bar("epoch", per_epoch, done % per_epoch)
            self._since, self._images = time.monotonic(), 0
            yield
            self.album.finish()
            self._run.close()
            self._bar.close()

    def stepped(self, step: int, images: int) -> None:
        self._images += images
        self._step = step
        now = time.monotonic()
        if now - self._drawn < DRAW_EVERY or self._run is None or self._bar is None:
            return
        self._drawn = now
        speed = self._images / max(now - self._since, 1e-9)
        self._run.advance(step, f"{self._note}{speed:,.0f} images/s  {memory()}")
        self._bar.advance((step - 1) % self.per_epoch + 1)

    def trained(self, total_steps: int, means: dict[str, float], rate: float) -> None:
        """A point of the training curves: mean losses since the last, and the learning rate."""
        now = time.monotonic()
        self._training_images += self._images
        self._training_seconds += now - self._since
        self.speed = self._images / max(now - self._since, 1e-9)
        self._since, self._images = now, 0
        self._means = {"loss": sum(means.values()), **means}
        self._note = f"loss {self._means['loss']:.4f}  "
        scalars = {f"train/{name}": value for name, value in self._means.items()}
        self._write({**self._place(total_steps), "lr": rate, **scalars})
        if self.board is not None:
            speed = {"speed/images_per_second": self.speed, "speed/memory_mb": memory_mb()}
            self.board.scalars({**scalars, "lr": rate, **speed}, total_steps)

    def watched(self, total_steps: int, figures: dict[str, float]) -> None:
        """Figures of each layer in the step just logged, as ``Watch`` names them."""
        self._layers = figures
        scalars = {f"watch/{name}": value for name, value in figures.items()}
        self._write({**self._place(total_steps), **scalars})
        if self.board is not None:
            self.board.scalars(scalars, total_steps)

    def watch(self, images: int, stop: StopFlag) -> Callable[[int, Batch, Predictions], None]:
        """A callback for ``evaluate``: shows progress, keeps images to draw, stops when asked."""
        self.album.begin(images)
        bar = self.console.bar("val", images)
        seen = 0

        def see(number: int, batch: Batch, predictions: Predictions) -> None:
            nonlocal seen
            if stop:
                assert stop.signum is not None
                raise Stopped(stop.signum)
            self.album.keep(batch, predictions)
            seen += len(batch)
            bar.advance(seen)

        self._val = bar
        return see

    def evaluated(
        self,
        total_steps: int,
        metrics: dict[str, float],
        evaluator: Any,
        best: bool,
        model: Model,
        on_train: Mapping[str, float] | None = None,
    ) -> None:
        """An evaluation, and with it that of the training images where they were scored too."""
        if self._val is not None:
            self._val.close()
            self._val = None
        scalars = {f"val/{name}": value for name, value in metrics.items()}
        scalars |= {f"on_train/{name}": value for name, value in (on_train or {}).items()}
        self._write({**self._place(total_steps), **scalars})
        if self.metrics is not None:
            self._say(metrics, best)
        if self.board is not None:
            self.board.scalars(scalars, total_steps)
            self.album.evaluation(evaluator, model, total_steps, best)
            if self._layers and self.draw_layers is not None:
                self.album.layers(self.draw_layers, self._layers, total_steps)
        self._since = time.monotonic()  # evaluation and pictures are not training time
        if self.report is not None:
            self.report(self._step / self.per_epoch, metrics)

    def first_batch(self, batch: Batch, total_steps: int) -> None:
        self.album.training_batch(batch, total_steps)
        self._since = time.monotonic()

    def sync(self) -> int:
        """Length of metrics.jsonl once it is on the disk."""
        if self.board is not None:
            self.board.flush()  # a killed run resumes from here: no gap in its curves
        return self.metrics.sync() if self.metrics is not None else 0

    def mean_speed(self) -> float:
        """Training images a second, evaluation and start-up left out."""
        return self._training_images / max(self._training_seconds, 1e-9)

    def _place(self, total_steps: int) -> dict[str, Any]:
        return {"stage": self.name, "step": total_steps, "epoch": self._step / self.per_epoch}

    def _write(self, record: dict[str, Any]) -> None:
        if self.metrics is not None:
            self.metrics.write(record)

    def _say(self, metrics: dict[str, float], best: bool) -> None:
        epoch = f"{self._step / self.per_epoch:g}"
        width = len(str(self.epochs))
        train = f"train loss {self._means['loss']:.4f}  " if self._means else ""
        wanted = self.line or [name for name in metrics if name not in ("loss", "nll")]
        names = ["loss", *(name for name in wanted if name in metrics)]
        val = "  ".join(f"{name} {show(name, metrics[name])}" for name in names)
        star = "  *" if best else ""
        self.console.say(
            f"epoch {epoch:>{width}}/{self.epochs}  {train}val {val}"
            f"  {self.speed:,.0f} images/s{star}"
        )


def show(name: str, value: float) -> str:
    """Fractions between 0 and 1 as percentages, losses as they are."""
    measure = name.partition("@")[0]  # nll@10crop
    return f"{value:.4f}" if measure.endswith(("loss", "nll", "entropy")) else f"{value:.2%}"


def shown(metrics: dict[str, float]) -> list[tuple[str, str]]:
    """Rows of a table; the loss only where no metric says the same."""
    has_nll = any(name.partition("@")[0] == "nll" for name in metrics)
    names = [name for name in metrics if name != "loss" or not has_nll]
    return [(name, show(name, metrics[name])) for name in names]


def memory_mb() -> float:
    """Peak memory of this process: of the GPU where one is used, else resident."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def memory() -> str:
    return f"{memory_mb() / 1024:.1f} GB"
