"""Averaged weights that training returns to: Zhang, Lucas, Hinton, Ba, "Lookahead optimizer",
arXiv:1907.08610, algorithm 1, with a share that changes: Jordan, arXiv:2404.00498, section 3.4.

Differs from the first paper: its share is the same all the time; here running statistics are
averaged as weights are. A run ends with the average of the last return, and so without the steps
after it, as the first paper's slow weights and the second author's scripts have it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

POWER = 3  # of the share of the run that is over


def kept(decay: float, every: int, step: int, total: int) -> float:
    """The share of the average that stays in it at ``step`` of ``total``.

    Next to nothing at first, so that training is hardly held back, and decay ** every at the end.
    Between two returns: all of it, or nothing before the first, when there is no average yet.

    Args:
        decay: of one step.
        every: steps from one return to the next.
    """
    if step % every:
        return float(step > every)
    return decay**every * (step / total) ** POWER


@torch.no_grad()
def approach(average: AveragedModel, model: nn.Module, share: float) -> None:
    """Move the average towards the model by ``share``; a GPU is not waited for.

    What is no floating-point number (a count) is taken from the model as it is.
    """
    slow, fast = _numbers(average.module), _numbers(model)
    torch._foreach_lerp_(slow, fast, share)  # pyright: ignore[reportPrivateImportUsage]
    for counted, count in zip(average.module.buffers(), model.buffers(), strict=True):
        if not count.is_floating_point():
            counted.copy_(count)


@torch.no_grad()
def look_ahead(average: AveragedModel, model: nn.Module, share: float) -> None:
    """Move the average towards the model but for ``share``, and the model to where that is."""
    if not average.n_averaged:  # it holds what the model was before training
        average.update_parameters(model)
        return
    approach(average, model, 1 - share)
    slow, fast = _numbers(average.module), _numbers(model)
    torch._foreach_copy_(fast, slow)  # pyright: ignore[reportPrivateImportUsage]


def _numbers(module: nn.Module) -> list[Tensor]:
    everything = (*module.parameters(), *module.buffers())
    return [tensor for tensor in everything if tensor.is_floating_point()]
