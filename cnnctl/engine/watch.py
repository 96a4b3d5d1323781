"""What goes through each layer in some training steps: do gradients vanish, do units die?

Only reads: a run that is watched has the same bits as one that is not. In a step that is not
watched nothing is hooked, and nothing costs anything.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from cnnctl.engine.initialisation import LAYERS

_RELUS: tuple[Any, ...] = (
    *(F.relu, F.relu_, F.relu6, F.hardtanh, F.hardtanh_),  # nn.ReLU6 is a hardtanh
    *(torch.relu, torch.relu_, Tensor.relu, Tensor.relu_),
)
KINDS = ("gradient", "mean", "std", "zeros")


class Watch:
    """Figures of every convolution and dense layer, of one training step.

    ``gradient/<layer>`` is the norm of its weight's gradient, before it is clipped;
    ``mean/<layer>`` and ``std/<layer>`` are of what it gives out (N, ...), over all of that;
    ``zeros/<layer>`` is the share of zeros after the ReLU that is the next to follow it. Of a batch
    in parts they are means over the parts; of several processes, the first one's own images.
    """

    def __init__(self, model: nn.Module) -> None:
        self.layers = {
            name: layer for name, layer in model.named_modules() if isinstance(layer, LAYERS)
        }
        self._found: dict[str, list[Tensor]] = {}
        self._last: str | None = None  # the layer that ran last, whose ReLU is yet to come

    @contextlib.contextmanager
    def forward(self) -> Iterator[None]:
        """Look at what is computed in this block; several blocks make up a step."""
        handles = [
            layer.register_forward_hook(self._hook(name)) for name, layer in self.layers.items()
        ]
        try:
            with _Listening(self._rectified):
                yield
        finally:
            for handle in handles:
                handle.remove()
            self._last = None

    def gradients(self) -> None:
        """Look at the gradients, once they are whole."""
        for name, layer in self.layers.items():
            if isinstance(layer.weight.grad, Tensor):
                self._add("gradient", name, layer.weight.grad.float().norm())

    def figures(self) -> dict[str, float]:
        """Those of the step, each kind in the order of the layers; the next step begins anew."""
        means = {key: float(torch.stack(rows).mean()) for key, rows in self._found.items()}
        self._found = {}
        wanted = (f"{kind}/{name}" for kind in KINDS for name in self.layers)
        return {key: means[key] for key in wanted if key in means}

    def _hook(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def look(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                std, mean = torch.std_mean(output.detach().float(), correction=0)
                self._add("mean", name, mean)
                self._add("std", name, std)
                self._last = name

        return look

    def _rectified(self, output: Tensor) -> None:
        if self._last is not None:
            self._add("zeros", self._last, (output.detach() == 0).float().mean())
            self._last = None

    def _add(self, kind: str, name: str, figure: Tensor) -> None:
        self._found.setdefault(f"{kind}/{name}", []).append(figure)


class _Listening(TorchFunctionMode):
    """Tells of the results of rectifiers, which a network may call without a module."""

    def __init__(self, tell: Callable[[Tensor], None]) -> None:
        super().__init__()
        self.tell = tell

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _RELUS and isinstance(result, Tensor):
            self.tell(result)
        return result
