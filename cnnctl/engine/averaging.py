"""The averaged weights of a run: a copy of the model that follows it, and that is evaluated."""

from __future__ import annotations

from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from cnnctl.engine.checkpoint import State
from cnnctl.engine.lookahead import approach, kept, look_ahead
from cnnctl.models.base import Model


class Average:
    """A moving average of weights and running statistics.

    Args:
        decay: what of it stays in a step.
        every: steps after which training goes on from it; None: never.
    """

    def __init__(self, model: Model, decay: float, every: int | None) -> None:
        self.decay, self.every = decay, every
        self.averaged = AveragedModel(model, use_buffers=True)

    @property
    def model(self) -> Model:
        return self.averaged.module  # pyright: ignore[reportReturnType]

    def follow(self, model: Model, step: int, total: int) -> None:
        """Bring it up to the ``step`` (of ``total``) that the model has just made."""
        if not self.averaged.n_averaged:  # it holds what the model was before training
            self.averaged.update_parameters(model)
        elif self.every is None:
            approach(self.averaged, model, 1 - self.decay)
            self.averaged.n_averaged += 1
        elif step % self.every == 0 or step in (1, total):
            look_ahead(self.averaged, model, kept(self.decay, self.every, step, total))

    def state_dict(self) -> dict[str, Tensor]:
        return self.averaged.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.averaged.load_state_dict(state)


def weights(state: State) -> dict[str, Tensor]:
    """The weights of a checkpoint that evaluation uses: the averaged ones where there are any."""
    if state["ema"] is None:
        return state["model"]
    prefix = "module."
    return {
        name[len(prefix) :]: value
        for name, value in state["ema"].items()
        if name.startswith(prefix)
    }
