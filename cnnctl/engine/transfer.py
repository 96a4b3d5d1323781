"""Which part of a network is trained, and how fast, when its weights come from elsewhere.

After Yosinski, Clune, Bengio, Lipson, "How transferable are features in deep neural networks?",
arXiv:1411.1792: the deeper a layer, the more it belongs to the task that it was trained for; and
Razavian et al., arXiv:1403.6382: on frozen features a linear classifier goes a long way.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from cnnctl.models.base import (
    ClassificationModel,
    GradientStage,
    Losses,
    Model,
    Stage,
    cross_entropy,
)
from cnnctl.structures import Batch, Images, Targets

MAX_CACHE = 2 * 2**30  # bytes of features that are kept on the device
_NORMS = (nn.modules.batchnorm._BatchNorm,)

Say = Callable[[str], None]


class Transfer(ABC):
    """One way to train a network that has learnt something before.

    Attributes:
        takes_weights: whether ``weights=`` is taken.
    """

    takes_weights: ClassVar[bool] = True

    @abstractmethod
    def stages(self, model: Model, samples: int | None, say: Say) -> Sequence[Stage]:
        """What is trained.

        Args:
            samples: training images, where each looks alike in every epoch and all are at hand, so
                that what a frozen network makes of them can be kept; None where not.
            say: told what a user cannot see otherwise.

        Raises:
            ValueError: the model does not say which layers name its classes, or is not trained by
                gradients alone, or has not so many stages.
        """


class Scratch(Transfer):
    """As the model itself, without ``weights=``: what transfer is compared with in a sweep."""

    takes_weights = False

    def stages(self, model: Model, samples: int | None, say: Say) -> Sequence[Stage]:
        return model.stages()


class Linear(Transfer):
    """A linear probe: the network is frozen as in evaluation, the layer of the classes is trained.

    Args:
        cache: compute what that layer sees once and for all, where that can be.
    """

    def __init__(self, cache: bool = True) -> None:
        self.cache = cache

    def stages(self, model: Model, samples: int | None, say: Say) -> Sequence[Stage]:
        own, heads = _only_stage(model), _heads(model)
        inside = {id(module) for head in heads for module in head.modules()}

        def still() -> list[nn.Module]:
            return [module for module in model.modules() if id(module) not in inside]

        loss, first = own.loss, None
        why = _why_not_cached(model, heads, samples) if self.cache else "transfer.cache=false"
        if why:
            say(f"features of the frozen network are computed in every step: {why}")
        else:
            assert samples is not None
            kept = Features(model, heads[0], samples, say)
            loss, first = kept.loss, kept.fill
        params = list(heads[0].parameters())  # a network that is still asks no auxiliary head
        return [GradientStage("linear", loss, lambda: params, still=still, first=first)]


class _Rated(Transfer):
    """Some of the network is trained, what is not new at a rate of its own.

    Args:
        backbone_rate: of the layers below the one of the classes, as a share of its own rate.
        frozen_norm: batch normalisation keeps its statistics (its scale and shift are trained).

    Raises:
        ValueError: a rate is not positive.
    """

    def __init__(self, backbone_rate: float = 0.1, frozen_norm: bool = False) -> None:
        if not 0 < backbone_rate <= 1e6:
            raise ValueError(f"backbone_rate must be positive, got {backbone_rate}")
        self.backbone_rate = backbone_rate
        self.frozen_norm = frozen_norm

    def _stage(self, model: Model, name: str, frozen: Sequence[nn.Module]) -> GradientStage:
        own, heads = _only_stage(model), _heads(model)
        quick = {id(parameter) for head in heads for parameter in head.parameters()}
        left = {id(parameter) for module in frozen for parameter in module.parameters()}
        params = [p for p in own.params() if id(p) not in left or id(p) in quick]

        def still() -> list[nn.Module]:
            found = [one for module in frozen for one in module.modules()]
            if self.frozen_norm:
                found += [one for one in model.modules() if isinstance(one, _NORMS)]
            return found

        def rate(parameter: nn.Parameter) -> float:
            return 1.0 if id(parameter) in quick else self.backbone_rate

        return GradientStage(name, own.loss, lambda: params, own.view, rate=rate, still=still)


class Last(_Rated):
    """The deepest stages and the layer of the classes are trained, the rest is frozen.

    Args:
        count: how many stages. A stage is a convolution or dense layer with its normalisation, or
            a group of blocks, as the network is put together.
        backbone_rate, frozen_norm: as of ``Full``.

    Raises:
        ValueError: a number is out of range.
    """

    def __init__(
        self, stages: int = 1, backbone_rate: float = 0.1, frozen_norm: bool = False
    ) -> None:
        super().__init__(backbone_rate, frozen_norm)
        if stages < 0:
            raise ValueError(f"stages must be at least 0, got {stages}")
        self.count = stages

    def stages(self, model: Model, samples: int | None, say: Say) -> Sequence[Stage]:
        _heads(model)
        found = depth_order(model)
        if self.count > len(found):
            raise ValueError(
                f"stages is {self.count}, and this network has {len(found)} before its last layer"
            )
        cut = len(found) - self.count
        below, trained = ([n for one in part for n in one] for part in (found[:cut], found[cut:]))
        layers = dict(model.named_modules())
        say(f"trained: {', '.join([*trained, *model.class_layers()])}")
        say(f"frozen: {', '.join(below) or 'nothing'}")
        return [self._stage(model, "last", [layers[name] for name in below])]


class Full(_Rated):
    """All of the network is trained, what is below the layer of the classes more slowly."""

    def stages(self, model: Model, samples: int | None, say: Say) -> Sequence[Stage]:
        return [self._stage(model, "full", [])]


class Features:
    """What the layer of the classes sees of every training image, computed once.

    Args:
        head: the layer.
        samples: training images.
    """

    def __init__(self, model: Model, head: nn.Module, samples: int, say: Say) -> None:
        self.model, self.head, self.samples, self.say = model, head, samples, say
        self.rows: Tensor | None = None  # (M, D) or (M, D, h, w)

    def fill(self, batches: Iterator[Batch]) -> None:
        """Run the network, in evaluation mode, over all images."""
        for batch in batches:
            seen: list[tuple[Tensor, Tensor]] = []
            handle = self.head.register_forward_hook(
                lambda module, inputs, output, seen=seen: seen.append((inputs[0], output))
            )
            logits = self.model(batch.images.pixels)
            handle.remove()
            if len(seen) != 1 or not torch.equal(seen[0][1], logits):
                self.rows = None
                self.say("features are computed in every step: more follows the last layer")
                return
            features = seen[0][0]
            if self.rows is None:
                size = features[0].numel() * features.element_size() * self.samples
                if size > MAX_CACHE:
                    self.say("features are computed in every step: all are too large to keep")
                    return
                self.rows = features.new_empty(self.samples, *features.shape[1:])
            self.rows[batch.targets.image_id] = features
        if self.rows is not None:
            size = self.rows.numel() * self.rows.element_size() / 2**20
            self.say(f"features of {self.samples:,} images computed once, {size:,.1f} MB")

    def loss(self, images: Images, targets: Targets) -> Losses:
        if self.rows is None:
            return self.model.loss(images, targets)
        return cross_entropy(self.head(self.rows[targets.image_id]), targets)


def depth_order(model: Model) -> list[list[str]]:
    """The stages of a network below its last layer, the shallowest first, by the names of layers.

    What holds all the rest is opened, and so is a sequence of single layers; a group of blocks is
    one stage. Normalisation belongs to the layer before it. Auxiliary heads are no stage.
    """
    layers: dict[str, nn.Module] = dict(model.named_modules())
    main, *auxiliary = model.class_layers()
    kept = {id(parameter) for parameter in layers[main].parameters()}

    def below(name: str) -> list[str]:
        start = f"{name}." if name else ""
        names = [start + child for child, _ in layers[name].named_children()]
        return [
            one
            for one in names
            if any(id(parameter) not in kept for parameter in layers[one].parameters())
            and not any(f"{head}.".startswith(f"{one}.") for head in auxiliary)
        ]

    names = below("")
    while len(names) == 1 and len(below(names[0])) > 0:
        names = below(names[0])
    end = [name for name in names if f"{main}.".startswith(f"{name}.")]  # around the last layer
    body = [name for name in names if name not in end]
    while len(body) == 1 and len(below(body[0])) > 0:
        body = below(body[0])
    names = [*body, *end]
    opened = []
    for name in names:
        inside = below(name)
        plain = isinstance(layers[name], nn.Sequential) and not any(map(below, inside))
        opened += inside if plain and inside else [name]
    stages: list[list[str]] = []
    for name in opened:
        if stages and all(parameter.dim() <= 1 for parameter in layers[name].parameters()):
            stages[-1].append(name)
        else:
            stages.append([name])
    return stages


def _heads(model: Model) -> list[nn.Module]:
    layers: dict[str, nn.Module] = dict(model.named_modules())
    heads = [layers[name] for name in model.class_layers()]
    if not heads:
        raise ValueError("transfer needs a model that says which layer names its classes")
    return heads


def _only_stage(model: Model) -> GradientStage:
    stages = model.stages()
    if len(stages) != 1 or not isinstance(stages[0], GradientStage):
        raise ValueError("transfer needs a model that is trained by gradients in a single stage")
    return stages[0]


def _why_not_cached(model: Model, heads: Sequence[nn.Module], samples: int | None) -> str | None:
    if samples is None:
        return "every epoch shows other images (take augmentation=none), or they are read from disk"
    usual = type(model).loss is ClassificationModel.loss  # and no auxiliary head
    return None if usual and len(heads) == 1 else "the loss is not of the last layer alone"
