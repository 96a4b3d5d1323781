"""One function evaluates every task: same batches, same figures, on any number of processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from cnnctl.engine.distributed import Processes
from cnnctl.engine.machine import Held, Machine, faults_explained
from cnnctl.models.base import Model
from cnnctl.randomness import key, seed_torch
from cnnctl.structures import Batch, Predictions

Watch = Callable[[int, Batch, Predictions], None]


def held_at_once(model: Model, during: str) -> Held:
    """What batches of ``evaluation_batch`` images take, and the settings that make it less."""

    def less(images: int, size: tuple[int, int]) -> str:
        if images > 1:
            return f"take trainer.eval_batch_size={images // 2}"
        return f"take {model.less_memory(size)}"

    return Held(during, less)


@torch.inference_mode()
def evaluate(
    model: Model,
    batches: Iterable[tuple[int, Batch]],
    evaluator: Any,
    machine: Machine,
    processes: Processes,
    watch: Watch | None = None,
) -> dict[str, float]:
    """Score ``model``; the evaluator is left holding the rows of all processes.

    Args:
        batches: this process's (number, batch); the numbers of all processes make up the split.
        watch: called with each batch and what was predicted (for progress and pictures).

    Returns:
        the evaluator's metrics, ``loss`` (the sum of the model's losses, a mean over images).

    Raises:
        UserError: memory ran out (code 5).
    """
    training = model.training
    model.eval()
    losses: list[tuple[int, int, torch.Tensor]] = []
    held = held_at_once(model, "evaluation")
    with faults_explained(held):
        for number, batch in batches:
            held.see(batch.images)
            seed_torch(key("evaluation", number), machine.device)  # a loss may sample its regions
            with machine.autocast():
                named, predictions = model.loss_and_predict(batch.images, batch.targets)
            evaluator.update(predictions, batch.targets)
            losses.append((number, len(batch), torch.stack([*named.values()]).sum().float()))
            if watch is not None:
                watch(number, batch, predictions)
    model.train(training)
    # In order of batch number, so that the sum rounds alike on any number of processes.
    own = [(number, count, float(loss)) for number, count, loss in losses]
    gathered = processes.gather((own, evaluator.rows()))
    for rank, (_, rows) in enumerate(gathered):
        if rank != processes.rank:
            evaluator.merge([rows])
    everything = sorted(row for part, _ in gathered for row in part)
    total = sum(count for _, count, _ in everything)
    mean_loss = sum(count * loss for _, count, loss in everything) / total if total else 0.0
    return {**evaluator.compute(), "loss": mean_loss}
