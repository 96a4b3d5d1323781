"""A linear classifier on raw pixels: the baseline of LeCun, Bottou, Bengio, Haffner,
"Gradient-based learning applied to document recognition", Proc. IEEE 86(11), 1998, section III.C.1
(12.0 % test error on MNIST). Its weights are a template of each class: TensorBoard shows them.

Differs from the paper: softmax and cross-entropy for ten separate output units; by option the
multi-class hinge loss of Weston, Watkins, "Support vector machines for multi-class pattern
recognition", ESANN 1999.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from cnnctl.models.base import ClassificationModel, Losses
from cnnctl.ops.score_maps import Trunk
from cnnctl.structures import Images, Predictions, Targets


class Linear(ClassificationModel):
    """One matrix from all pixels to K scores.

    Args:
        in_channels: C.
        num_classes: K.
        size: (h, w) of the input.
        loss: "softmax" is cross-entropy, "hinge" that of a support vector machine, whose weight
            decay is the optimizer's; probabilities are the softmax of its scores all the same.

    Raises:
        ValueError: there is no such loss.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        size: tuple[int, int],
        loss: Literal["softmax", "hinge"] = "softmax",
    ) -> None:
        super().__init__()
        if loss not in ("softmax", "hinge"):
            raise ValueError(f'loss must be "softmax" or "hinge", got "{loss}"')
        self.hinge = loss == "hinge"
        self.classifier = nn.Linear(in_channels * math.prod(size), num_classes)

    def parts(self) -> tuple[Trunk, Sequence[nn.Module]]:
        """The pixels are its map, and the matrix is a convolution as large as the input."""
        return nn.Identity(), [self.classifier]

    def forward(self, pixels: Tensor) -> Tensor:
        return self.classifier(pixels.flatten(1))  # (N, C * H * W) -> (N, K)

    def loss(self, images: Images, targets: Targets) -> Losses:
        if not self.hinge:
            return super().loss(images, targets)
        assert targets.label is not None, "classification needs the column `label`"
        return {"hinge": hinge_loss(self(images.pixels).float(), targets.label)}

    def loss_and_predict(self, images: Images, targets: Targets) -> tuple[Losses, Predictions]:
        if not self.hinge or not self.testing.is_plain:
            return super().loss_and_predict(images, targets)
        return self.loss(images, targets), self.predict(images)


def hinge_loss(scores: Tensor, label: Tensor) -> Tensor:
    """What each class lacks of being 1 below the true one, summed over the others, a mean over N.

    Args:
        scores: (N, K).
        label: (N,) int64; or (N, K) shares of the classes, whose losses then have those shares.
    """
    if not label.is_floating_point():
        true = scores.gather(1, label[:, None])
        return (F.relu(1 + scores - true).sum(1) - 1).mean()  # the true one lacks 1 itself
    lacks = F.relu(1 + scores[:, None, :] - scores[:, :, None]).sum(2) - 1  # (N, K) if it were true
    return (label * lacks).sum(1).mean()
