"""The three things that a run repeats, for ``cnnctl bench``: load, step, evaluate."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace

from cnnctl import build
from cnnctl.commands.bench_subject import Subject
from cnnctl.data.loaders import ResidentLoader
from cnnctl.engine.console import Console
from cnnctl.engine.distributed import Processes
from cnnctl.engine.inference import evaluate
from cnnctl.engine.journal import Journal
from cnnctl.engine.loop import Loop
from cnnctl.engine.processor import size_of
from cnnctl.engine.schedules import Constant
from cnnctl.engine.signals import StopFlag
from cnnctl.errors import UserError
from cnnctl.models.base import GradientStage

_BATCHES = 3  # that the steps go round; a variant with the same batch size sees the same ones
_NO_END = 10**9  # steps


@dataclass
class Work:
    """One of the things that a run repeats.

    Args:
        run: does it once.
        images: that it goes through.
        ready: what must be so before it, and takes no part in it.
        own: bytes that it keeps from turn to turn: weights, gradients, the optimizer's state.
    """

    run: Callable[[], object]
    images: int
    ready: Callable[[], None]
    own: Callable[[], int] = lambda: 0


def loading(subject: Subject) -> Work:
    """The next training batch, augmented and normalised, on the device; where images are read
    one by one, by one core."""
    batch = subject.trainer.batch_size
    batches = subject.train.train(0, _NO_END, batch, 0)
    threads = None if isinstance(subject.train, ResidentLoader) else 1
    return Work(lambda: next(batches), batch, lambda: subject.take_turn(threads))


def stepping(subject: Subject) -> Work:
    """One step of the training loop with a batch that is there: forward, backward, optimizer.

    The learning rate is 0: the network stays as it was drawn, and every turn does the same.
    """
    at_once = subject.trainer.batch_size
    batches, loop = list(subject.train.train(0, _BATCHES, at_once, 0)), _loop(subject)
    loop.prepare()
    step = loop.begin(gradient_stage(subject))
    turn = itertools.count()

    def ready() -> None:
        subject.take_turn()
        loop.progress.pending.clear()  # as a log does now and then

    def own() -> int:
        assert loop.opt is not None
        state = [value for of in loop.opt.state.values() for value in of.values()]
        models = (subject.model, loop.evaluated_model())
        weights = [one for model in models for one in (*model.parameters(), *model.buffers())]
        gradients = [p.grad for p in subject.model.parameters() if p.grad is not None]
        return size_of([*state, *weights, *gradients])

    return Work(lambda: step(batches[next(turn) % _BATCHES]), at_once, ready, own)


def _loop(subject: Subject) -> Loop:
    """That of ``cnnctl train``, but for what it says and saves, and without an end."""
    return Loop(
        trainer=replace(subject.trainer, steps=_NO_END, watch=False),
        model=subject.model,
        machine=subject.machine,
        processes=Processes(),
        train=subject.train,
        val=None,
        optimizer=build.optimizer(subject.config),
        schedule=_Still(),
        evaluator=subject.task.evaluator,
        monitor=subject.task.best,
        larger_is_better=True,
        seed=subject.config.seed,
        describe={},
        journal=Journal(Console(quiet=True), lambda batch: {}, lambda *seen: {}),
        stop=StopFlag(),
    )


def evaluating(subject: Subject) -> Work:
    """The first batch of the evaluation: loss, predictions and metrics."""
    at_once = subject.trainer.evaluation_batch(subject.model, subject.val.augmentation)
    numbered = next(subject.val.in_order(at_once))

    def run() -> None:
        evaluator = subject.task.evaluator(subject.val.dataset)
        evaluate(subject.model, [numbered], evaluator, subject.machine, Processes())

    def own() -> int:
        return size_of([*subject.model.parameters(), *subject.model.buffers()])

    return Work(run, len(numbered[1]), subject.take_turn, own)


class _Still(Constant):
    def curve(self, step: int, warm: int, total: int, per_epoch: int) -> float:
        return 0.0


def gradient_stage(subject: Subject) -> GradientStage:
    """The first of what the model, or ``transfer=``, trains by gradients.

    Raises:
        UserError: there is nothing.
    """
    transfer, model = build.transfer(subject.config), subject.model
    try:
        stages = transfer.stages(model, None, lambda text: None) if transfer else model.stages()
    except ValueError as error:
        raise UserError(str(error), field="transfer", advice="take transfer=none") from None
    found = next((stage for stage in stages if isinstance(stage, GradientStage)), None)
    if found is None:
        raise UserError(
            f"{subject.chosen['model']} is fitted at once: it has no training step to time",
            field="model",
            advice="take parts=[load], or a model that is trained by gradients",
        )
    return found
