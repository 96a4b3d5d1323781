"""What every model promises: ``loss`` and ``predict``, both valid in train and in eval mode.

Training is a list of stages, so an ordinary network (one gradient stage), a staged detector
(fine-tune, then SVMs) and nearest neighbour (one fit stage, no gradients) look alike to the
trainer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from cnnctl.structures import Batch, Images, Predictions, Targets

Losses = dict[str, Tensor]


def identity(batch: Batch) -> Batch:
    return batch


@dataclass(frozen=True)
class GradientStage:
    """Minimise the sum of ``loss`` over ``params``.

    ``params`` may be a subset, which freezes the rest; ``view`` turns a batch of images into what
    is trained on (patches, regions, crops); ``evaluate=False`` skips validation in this stage.
    """

    name: str
    loss: Callable[[Images, Targets], Losses]
    params: Callable[[], Iterable[nn.Parameter]]
    view: Callable[[Batch], Batch] = identity
    evaluate: bool = True


@dataclass(frozen=True)
class FitStage:
    """Anything without a gradient: memorise, solve an SVM, solve ridge regression.

    ``fit`` gets the training data once, in order and not augmented, as batches on the device.
    """

    name: str
    fit: Callable[[Iterator[Batch]], None]
    evaluate: bool = True


Stage = GradientStage | FitStage


class Model(nn.Module, ABC):
    @abstractmethod
    def loss(self, images: Images, targets: Targets) -> Losses:
        """Named scalar losses, each a mean over the batch; training minimises their sum."""

    @abstractmethod
    def predict(self, images: Images) -> Predictions:
        """What the model says of ``images``, in the columns that its task needs."""

    def loss_and_predict(self, images: Images, targets: Targets) -> tuple[Losses, Predictions]:
        """Both at once, for validation; a model that can share the forward pass overrides it."""
        return self.loss(images, targets), self.predict(images)

    def stages(self) -> Sequence[Stage]:
        return [GradientStage("train", self.loss, self.parameters)]


class ClassificationModel(Model):
    """A network from pixels (N, C, H, W) to logits (N, K): subclasses write ``forward`` only."""

    @abstractmethod
    def forward(self, pixels: Tensor) -> Tensor: ...

    def loss(self, images: Images, targets: Targets) -> Losses:
        return _cross_entropy(self(images.pixels), targets)

    def predict(self, images: Images) -> Predictions:
        return Predictions(log_probs=F.log_softmax(self(images.pixels).float(), dim=1))

    def loss_and_predict(self, images: Images, targets: Targets) -> tuple[Losses, Predictions]:
        logits = self(images.pixels)
        predictions = Predictions(log_probs=F.log_softmax(logits.float(), dim=1))
        return _cross_entropy(logits, targets), predictions


def _cross_entropy(logits: Tensor, targets: Targets) -> Losses:
    assert targets.label is not None, "classification needs the column `label`"
    return {"cross_entropy": F.cross_entropy(logits.float(), targets.label)}
