"""ResNet for CIFAR: He, Zhang, Ren, Sun, "Deep residual learning for image recognition",
arXiv:1512.03385, section 4.2. Aims at table 6: 8.75, 7.51, 7.17, 6.97, 6.43 and 7.93 % test error
on CIFAR-10 with 20, 32, 44, 56, 110 and 1202 layers.

Differs from the paper: nothing in the network by default. Shortcut "B" (projection) is the paper's
ImageNet option; its section 4.2 uses "A" throughout.

The names of the weights are those of the widely used weights of akamaster/pytorch_resnet_cifar10,
which ``weights`` reads: they expect pixels normalised by ImageNet's mean and deviation.
"""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnctl.errors import Exit, UserError
from cnnctl.models.base import ClassificationModel

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of what published weights expect


class CifarResNet(ClassificationModel):
    """3x3 conv (16), then three groups of n blocks with 16, 32, 64 maps, average pool, fc (K).

    Args:
        in_channels: C.
        num_classes: K.
        size: (h, w) of the input, 32 x 32 in the paper; the last maps are a quarter of it.
        depth: layers with weights, 6n + 2.
        shortcut: where a block changes the shape, "A" subsamples and pads with zero maps (no
            parameters), "B" is a strided 1x1 convolution with batch normalisation.
        plain: leave all shortcuts out: the paper's plain networks.
        weights: a file of published weights of this depth; None starts at random. With other than
            ten classes ``linear`` starts at random.
        mean, std: of each channel, by which the data's pixels are normalised.

    Attributes:
        rebuilt: the layers that start at random in spite of ``weights``, by name.

    Raises:
        ValueError: depth is not 6n + 2, the shortcut is unknown, the input is too small, or the
            weights are of another network.
        UserError: there is no such file, or it holds no weights.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        size: tuple[int, int],
        depth: int,
        shortcut: Literal["A", "B"] = "A",
        plain: bool = False,
        weights: str | None = None,
        mean: tuple[float, ...] = _MEAN,
        std: tuple[float, ...] = _STD,
    ) -> None:
        super().__init__()
        if depth < 8 or depth % 6 != 2:
            raise ValueError(f"depth must be 6n + 2 (8, 14, 20, ... 110, ... 1202), got {depth}")
        if shortcut not in ("A", "B"):
            raise ValueError(f'shortcut must be "A" or "B", got "{shortcut}"')
        if min(size) < 4:
            raise ValueError(
                f"a CIFAR ResNet needs images of at least 4 x 4, got {size[0]} x {size[1]}"
            )
        blocks = (depth - 2) // 6
        kind = None if plain else shortcut
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _group(16, 16, blocks, 1, kind)  # (N, 16, 32, 32)
        self.layer2 = _group(16, 32, blocks, 2, kind)  # (N, 32, 16, 16)
        self.layer3 = _group(32, 64, blocks, 2, kind)  # (N, 64, 8, 8)
        self.linear = nn.Linear(64, num_classes)
        self.apply(_initialise)
        if weights is not None:
            self._load(read_weights(Path(weights)), depth, (mean, std))

    def features(self, pixels: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, 64, about H / 4, W / 4)."""
        out = F.relu_(self.bn1(self.conv1(pixels)))
        return self.layer3(self.layer2(self.layer1(out)))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.linear(self.features(pixels).mean((2, 3)))

    def _load(
        self, state: dict[str, Tensor], depth: int, normal: tuple[tuple[float, ...], ...]
    ) -> None:
        own = self.state_dict()
        if not own.keys() & state.keys():
            name = next(iter(state), "none")
            raise ValueError(
                f"no tensor of these weights is one of a CIFAR ResNet: the first is {name}"
            )
        theirs = _depth(state)
        if theirs != depth:
            raise ValueError(f"these weights are of depth {theirs}, the network of {depth}")
        _fit_pixels(state, self.conv1.in_channels, *normal)
        if len(state.get("linear.bias", ())) != self.linear.out_features:
            self.rebuilt = ("linear",)
        # Files of older versions of torch count no batches, which only a moving average needs.
        left_out = (*self.rebuilt, "num_batches_tracked")
        wanted, kept = (
            {key: v for key, v in tensors.items() if not any(part in key for part in left_out)}
            for tensors in (own, state)
        )
        unlike = [key for key in wanted if key in kept and kept[key].shape != wanted[key].shape]
        if unlike or (unlike := sorted(wanted.keys() ^ kept.keys())):
            raise ValueError(f"these weights do not fit: {unlike[0]} is of another network")
        self.load_state_dict(kept, strict=False)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a file of ``torch.save``: a state dict, or one under "state_dict".

    Names are without the "module." of a network that was trained in parallel. Nothing but tensors
    and plain values is read.

    Raises:
        UserError: the file cannot be read or holds no state dict (code 4).
    """

    def bad(problem: str) -> UserError:
        advice = "name a file of torch.save with a state dict"
        return UserError(problem, file=path, advice=advice, code=Exit.CHECKPOINT)

    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise bad(f"cannot be read: {error.strerror}") from None
    except pickle.UnpicklingError:
        raise bad("holds more than tensors, or none, and is not opened") from None
    except Exception as error:  # what a harmed file raises has no one type
        reason = str(error).split("\n")[0] or type(error).__name__
        raise bad(f"is damaged or holds no weights: {reason}") from None
    state = held.get("state_dict", held) if isinstance(held, dict) else None
    if not isinstance(state, dict):
        raise bad("holds no state dict")
    tensors = {str(key): value for key, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise bad("holds no tensors by name")
    return {name.removeprefix("module."): value for name, value in tensors.items()}


def _depth(state: dict[str, Tensor]) -> int:
    """Layers with weights: two for each block, the stem and the last."""
    return 2 + 2 * sum(bool(re.fullmatch(r"layer[123]\.\d+\.conv1\.weight", key)) for key in state)


def _fit_pixels(
    state: dict[str, Tensor], in_channels: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    """Make the first convolution and its normalisation take pixels normalised otherwise.

    At the border, where pixels are zeros in both, this is right but for the difference of the
    means. Grey pixels count as three equal channels.
    """
    if in_channels not in (1, 3):
        raise ValueError(f"these weights are of 3 channels, the data has {in_channels}")
    weight, moving = state["conv1.weight"], state["bn1.running_mean"]  # (16, 3, 3, 3), (16,)
    own_mean, own_std, their_mean, their_std = (
        torch.tensor(part).expand(3) for part in (mean, std, _MEAN, _STD)
    )
    shift = (weight * ((own_mean - their_mean) / their_std)[:, None, None]).sum((1, 2, 3))
    weight = weight * (own_std / their_std)[:, None, None]
    state["bn1.running_mean"] = moving - shift
    state["conv1.weight"] = weight if in_channels == 3 else weight.sum(1, keepdim=True)


class Block(nn.Module):
    """conv - bn - relu - conv - bn, plus the shortcut, relu; ``kind`` None is a plain block."""

    def __init__(self, inputs: int, outputs: int, stride: int, kind: str | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.plain = kind is None
        self.shortcut: nn.Module = nn.Sequential()  # the identity
        if stride != 1 and kind == "A":
            self.shortcut = PadShortcut(stride, outputs - inputs)
        elif stride != 1 and kind == "B":
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, inputs: Tensor) -> Tensor:
        out = F.relu_(self.bn1(self.conv1(inputs)))
        out = self.bn2(self.conv2(out))
        if not self.plain:
            out += self.shortcut(inputs)  # in place: batch norm keeps its input, not its output
        return F.relu_(out)


class PadShortcut(nn.Module):
    """Option A: every ``stride``-th pixel, and ``maps`` maps of zeros, half before, half after."""

    def __init__(self, stride: int, maps: int) -> None:
        super().__init__()
        self.stride = stride
        self.maps = maps

    def forward(self, inputs: Tensor) -> Tensor:
        # inputs[:, :, ::stride, ::stride], as a pooling of one pixel: the backward of a strided
        # slice is slow enough to be 10 % of a training step of ResNet-20 on a CPU.
        kept = F.avg_pool2d(inputs, 1, self.stride)
        return F.pad(kept, (0, 0, 0, 0, self.maps // 2, self.maps - self.maps // 2))


def _group(inputs: int, outputs: int, blocks: int, stride: int, kind: str | None) -> nn.Sequential:
    first = Block(inputs, outputs, stride, kind)
    return nn.Sequential(first, *(Block(outputs, outputs, 1, kind) for _ in range(blocks - 1)))


def _initialise(module: nn.Module) -> None:
    """He et al., arXiv:1502.01852, equation 10; batch norm starts at scale 1 and shift 0."""
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
