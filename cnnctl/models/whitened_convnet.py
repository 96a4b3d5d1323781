"""A small VGG-like network that is fast to train: Jordan, "94% on CIFAR-10 in 3.29 seconds on a
single GPU", arXiv:2404.00498, sections 3.1 to 3.4. Aims at 94.01 % on CIFAR-10 after 9.9 epochs,
and, twice as wide and with three convolutions in a group, at the author's 96.01 %.

What makes it fast: the first convolution whitens patches of 2 x 2 pixels by the training images'
own statistics and is not trained, but for its bias during the first epochs; all others start as
the identity on the first maps; batch normalisation has no scale, and its bias is trained 64 times
as fast. The rest of the recipe is in conf/experiment/cifar10_speed.yaml.

Differs from the paper: the last pooling is over the whole map, which is its 3 x 3 for images of
32 x 32. With three convolutions it is as the author's later recipe for 96 %, where the activation
follows the shortcut.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnctl.models.base import ClassificationModel, GradientStage
from cnnctl.ops.score_maps import Trunk
from cnnctl.structures import Batch

PATCH = 2  # side of what is whitened, in pixels
SEEN = 5000  # training images whose patches say how to, the first ones
LEAST_VARIANCE = 5e-4  # added to that of each direction, in which small ones are noise


class WhitenedConvNet(ClassificationModel):
    """2x2 conv (2 * 4C) - gelu, then three groups of convolutions that halve the map, a max pool
    over all of it, fc (K).

    Args:
        in_channels: C.
        num_classes: K.
        size: (h, w) of the input, 32 x 32 in the paper; the last maps are an eighth of it.
        widths: maps of each group.
        convolutions: in each group, 2 or 3; of 3 the last two have a shortcut around them.
        norm_momentum: share of the running statistics of batch normalisation that a step keeps.
        bias_rate: how many times as fast as the rest the biases of batch normalisation are trained.
            Their weight decay is not multiplied by it.
        whitening_epochs: for how long the bias of the first convolution is trained.
        divisor: of the logits.

    Raises:
        ValueError: a number is out of range, or the input is too small.
    """

    whitened: Tensor  # () bool: has the first convolution seen the data?

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        size: tuple[int, int],
        widths: Sequence[int] = (64, 256, 256),
        convolutions: int = 2,
        norm_momentum: float = 0.6,
        bias_rate: float = 64.0,
        whitening_epochs: float = 3.0,
        divisor: float = 9.0,
    ) -> None:
        super().__init__()
        if min(size) < 9:
            raise ValueError(
                f"a whitened network needs images of at least 9 x 9, got {size[0]} x {size[1]}"
            )
        if not widths or min(widths) < 1:
            raise ValueError(f"widths must be numbers of maps, at least 1, got {list(widths)}")
        if convolutions not in (2, 3):
            raise ValueError(f"convolutions must be 2 or 3, got {convolutions}")
        if not 0 <= norm_momentum < 1:
            raise ValueError(f"norm_momentum must be at least 0 and below 1, got {norm_momentum}")
        for name, value in (("bias_rate", bias_rate), ("divisor", divisor)):
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive, got {value}")
        if not whitening_epochs >= 0:
            raise ValueError(f"whitening_epochs must not be negative, got {whitening_epochs}")
        self.bias_rate, self.whitening_epochs = bias_rate, whitening_epochs
        maps = 2 * in_channels * PATCH**2
        self.whiten = nn.Conv2d(in_channels, maps, PATCH)  # (N, 24, 31, 31)
        nn.init.zeros_(self.whiten.bias)  # pyright: ignore[reportArgumentType]  # it has one
        self.register_buffer("whitened", torch.tensor(False))
        # (N, 64, 15, 15), (N, 256, 7, 7), (N, 256, 3, 3)
        self.groups = nn.Sequential(
            *(
                Group(before, width, convolutions, norm_momentum)
                for before, width in zip((maps, *widths), widths, strict=False)
            )
        )
        self.pool = nn.AdaptiveMaxPool2d(1)
        self.linear = Divided(widths[-1], num_classes, divisor)

    def features(self, pixels: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, 256, about H / 8, W / 8)."""
        return self.groups(F.gelu(self.whiten(pixels)))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.linear(self.pool(self.features(pixels)).flatten(1))

    def parts(self) -> tuple[Trunk, Sequence[nn.Module]]:
        return self.features, [self.pool, self.linear]

    def stages(self) -> Sequence[GradientStage]:
        norms = [module for module in self.modules() if isinstance(module, nn.BatchNorm2d)]
        fixed = {id(norm.weight) for norm in norms} | {id(self.whiten.weight)}
        fast = {id(norm.bias) for norm in norms}

        def rate(parameter: nn.Parameter) -> float:
            return self.bias_rate if id(parameter) in fast else 1.0

        def epochs(parameter: nn.Parameter) -> float:
            return self.whitening_epochs if parameter is self.whiten.bias else math.inf

        return [
            GradientStage(
                "train",
                self.loss,
                lambda: [p for p in self.parameters() if id(p) not in fixed],
                rate=rate,
                decay=lambda parameter: 1 / rate(parameter),
                epochs=epochs,
                first=self.see,
            )
        ]

    @torch.no_grad()
    def see(self, batches: Iterator[Batch]) -> None:
        """Whiten by the first training images, once: a resumed run goes on with what it has."""
        if self.whitened:
            return
        total, patches, images = torch.zeros(0), 0, 0
        for batch in batches:
            pixels = batch.images.pixels[: SEEN - images]
            moment, count = second_moment(pixels)
            total = total + moment if patches else moment
            patches, images = patches + count, images + len(pixels)
            if images >= SEEN:
                break
        self.whiten.weight.copy_(whitening(total / patches).view_as(self.whiten.weight))
        self.whitened.fill_(True)


class Group(nn.Module):
    """conv - max pool - bn - gelu, then conv - bn - gelu; a third convolution comes with a shortcut
    from before the second to before the last gelu."""

    def __init__(self, inputs: int, outputs: int, convolutions: int, norm_momentum: float) -> None:
        super().__init__()
        before = (inputs, *(outputs for _ in range(convolutions - 1)))
        self.convs = nn.ModuleList(
            nn.Conv2d(maps, outputs, 3, padding=1, bias=False) for maps in before
        )
        self.norms = nn.ModuleList(
            nn.BatchNorm2d(outputs, eps=1e-12, momentum=1 - norm_momentum) for _ in before
        )
        for conv in self.convs:
            assert isinstance(conv, nn.Conv2d)
            nn.init.dirac_(conv.weight.data[: conv.in_channels])

    def forward(self, inputs: Tensor) -> Tensor:
        first, *middle, last = zip(self.convs, self.norms, strict=True)
        start = F.gelu(first[1](F.max_pool2d(first[0](inputs), 2)))
        out = start
        for conv, norm in middle:
            out = F.gelu(norm(conv(out)))
        out = last[1](last[0](out))
        return F.gelu(out + start if middle else out)


class Divided(nn.Linear):
    """A dense layer without a bias, whose outputs are divided by a number."""

    def __init__(self, inputs: int, outputs: int, divisor: float) -> None:
        super().__init__(inputs, outputs, bias=False)
        self.divisor = divisor

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) / self.divisor


def second_moment(pixels: Tensor) -> tuple[Tensor, int]:
    """Of the patches in (N, C, H, W): the sum of their outer products (4C, 4C) float64 on the CPU,
    and how many there are."""
    with torch.autocast(pixels.device.type, enabled=False):
        patches = F.unfold(pixels.float(), PATCH).transpose(0, 1).flatten(1)  # (4C, n)
        return (patches @ patches.T).cpu().double(), patches.shape[1]


def whitening(moment: Tensor) -> Tensor:
    """Filters (2 * D, D) that give directions without correlation variance 1, and their negatives.

    From the direction of the largest variance to that of the smallest. The mean is taken as zero,
    which it is of normalised pixels.

    Args:
        moment: (D, D) float64, the mean of outer products.
    """
    variance, vectors = torch.linalg.eigh(moment)
    # An eigenvector's sign is no part of it: this one is the same on every machine.
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    filters = (vectors * largest.sign() / (variance + LEAST_VARIANCE).sqrt()).T.flip(0)
    return torch.cat([filters, -filters])
