"""How the weights of convolutions and dense layers start, whatever the model would do itself."""

from __future__ import annotations

from collections.abc import Callable, Container
from functools import partial
from typing import Literal

from torch import Tensor, nn

Init = Literal["model", "xavier", "he", "orthogonal", "gaussian"]

GAUSSIAN = 0.01  # deviation of the small Gaussian, as of AlexNet (Krizhevsky et al. 2012, 5)

_WAYS: dict[str, Callable[[Tensor], object]] = {
    # Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural
    # networks", AISTATS 2010, equation 16: variance 2 / (fan in + fan out).
    "xavier": nn.init.xavier_uniform_,
    # He et al., arXiv:1502.01852, equation 10: variance 2 / fan in.
    "he": partial(nn.init.kaiming_normal_, nonlinearity="relu"),
    # Saxe, McClelland, Ganguli, arXiv:1312.6120: the rows (or columns) are orthonormal.
    "orthogonal": nn.init.orthogonal_,
    "gaussian": partial(nn.init.normal_, std=GAUSSIAN),
}
LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.Linear)


def initialise(model: nn.Module, how: Init, kept: Container[str] = ()) -> None:
    """Draw the weights of torch's convolutions and dense layers anew; their biases become zero.

    A model's own layers (the partly connected one of 1998's LeNet) stay as they are.

    Args:
        how: "model" leaves all as it is.
        kept: tensors that stay, by name: loaded ones.
    """
    if how == "model":
        return
    for name, layer in model.named_modules():
        if not isinstance(layer, LAYERS):
            continue
        if f"{name}.weight" not in kept:
            _WAYS[how](layer.weight)
        if layer.bias is not None and f"{name}.bias" not in kept:
            nn.init.zeros_(layer.bias)
