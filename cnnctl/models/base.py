"""What every model promises: ``loss`` and ``predict``, both valid in train and in eval mode.

Training is a list of stages, so an ordinary network (one gradient stage), a staged detector
(fine-tune, then SVMs) and nearest neighbour (one fit stage, no gradients) look alike to the
trainer.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnctl.ops.dense import DenseTesting, resized
from cnnctl.ops.score_maps import ScoreMaps, Trunk, flattened, map_shape
from cnnctl.ops.views import Views
from cnnctl.structures import IGNORE, Batch, Images, Predictions, Targets

if TYPE_CHECKING:
    from cnnctl.ops.losses import SegmentationLoss

Losses = dict[str, Tensor]
_LAYERS = (nn.Linear, nn.Conv2d)


def identity(batch: Batch) -> Batch:
    return batch


def whole_rate(parameter: nn.Parameter) -> float:
    return 1.0


def all_epochs(parameter: nn.Parameter) -> float:
    return math.inf


@dataclass(frozen=True)
class GradientStage:
    """Minimise the sum of ``loss`` over ``params``.

    ``params`` may be a subset, which freezes the rest; ``view`` turns a batch of images into what
    is trained on (patches, regions, crops); ``evaluate=False`` skips validation in this stage.
    ``rate`` is the share of the learning rate that a parameter is trained with, ``decay`` that of
    the weight decay, and after ``epochs`` of the stage it stays as it is; modules in
    ``still`` stay in evaluation mode (running statistics, no dropout). ``first`` gets the training
    data once, in order and not augmented, before the first step and again after a resume.
    """

    name: str
    loss: Callable[[Images, Targets], Losses]
    params: Callable[[], Iterable[nn.Parameter]]
    view: Callable[[Batch], Batch] = identity
    evaluate: bool = True
    rate: Callable[[nn.Parameter], float] = whole_rate
    decay: Callable[[nn.Parameter], float] = whole_rate
    epochs: Callable[[nn.Parameter], float] = all_epochs
    still: Callable[[], Iterable[nn.Module]] = tuple
    first: Callable[[Iterator[Batch]], None] | None = None


@dataclass(frozen=True)
class FitStage:
    """Anything without a gradient: memorise, solve an SVM, solve ridge regression.

    ``fit`` gets the training data once, in order and not augmented, as batches on the device.
    """

    name: str
    fit: Callable[[Iterator[Batch]], None]
    evaluate: bool = True


Stage = GradientStage | FitStage


@dataclass(frozen=True)
class Templates:
    """How much a gradient of each orientation, in each cell, speaks for a class.

    Args:
        weights: (K, O, rows, columns); orientation o is between o / O and (o + 1) / O of ``turn``.
        turn: half of one or a whole one.
    """

    weights: Tensor
    turn: float = 0.5


class Model(nn.Module, ABC):
    """
    Attributes:
        eval_pixels: of the images that are evaluated at once, by default.
        rebuilt: the layers that start at random in spite of published weights, by name.
        published: the layers beside the backbone that the backbone's published weights filled.
        trained_shape: (C, h, w) of the images that it is built for; ``build.model`` sets it.
        needs: columns of the truth without which it cannot be built: a task must have them.
        reads_proposals: whether it looks only where ``Images.proposals`` says.
        training_images: of the run; the loop sets it, before the first stage.
    """

    eval_pixels: ClassVar[int] = 1 << 26
    needs: ClassVar[tuple[str, ...]] = ()
    reads_proposals: ClassVar[bool] = False
    rebuilt: tuple[str, ...] = ()
    published: tuple[str, ...] = ()
    trained_shape: tuple[int, int, int] | None = None
    training_images: int | None = None

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

    def translate(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """A state dict from elsewhere (``weights=<file>``) under this model's names, and for pixels
        as they are normalised here; what it does not know it leaves as it is.

        Names are as the file has them; a "module." before all of them is taken off afterwards.
        """
        return state

    def class_layers(self) -> tuple[str, ...]:
        """The layers whose outputs are the classes, by name, the one that predicts first; empty
        where a model does not say."""
        return ()

    def class_buffers(self) -> tuple[str, ...]:
        """Tensors beside those layers that have a row for each class, by name; one without
        dimensions says that all of them are solved."""
        return ()

    def disk_needed(self, images: int, proposals: int) -> int:
        """Bytes that training puts on the disk at most beside its checkpoints, for so many images
        with so many proposals each; 0 where it keeps nothing there."""
        return 0

    def templates(self) -> Templates | None:
        """What each class looks for, to be drawn; None: its weights are no such picture."""
        return None

    def less_memory(self, size: tuple[int, int]) -> str:
        """A setting with which one image, now (h, w) in pixels, is evaluated in less memory."""
        return f"augmentation.size={max(1, min(size) // 2)}"


class ClassificationModel(Model):
    """A network from pixels (N, C, H, W) to logits (N, K): subclasses write ``forward`` only.

    How it is tested (``testing``) belongs to the task, which sets it.
    """

    testing = Views()
    _last_map: tuple[int, ...] | None = None  # shape of a training image's

    @abstractmethod
    def forward(self, pixels: Tensor) -> Tensor: ...

    def class_layers(self) -> tuple[str, ...]:
        """The last dense layer (or convolution) of the part that is called as heads are, or of the
        whole network; a model with auxiliary heads names theirs too."""
        named = [name for name, module in self.named_modules() if isinstance(module, _LAYERS)]
        ends = [name for name in named if name.split(".")[0] in ("classifier", "linear", "fc")]
        return tuple((ends or named)[-1:])

    def loss(self, images: Images, targets: Targets) -> Losses:
        return cross_entropy(self(images.pixels), targets)

    def predict(self, images: Images) -> Predictions:
        if self.testing.is_plain:
            return Predictions(log_probs=F.log_softmax(self(images.pixels).float(), dim=1))
        return self.testing.predict(self, images)

    def loss_and_predict(self, images: Images, targets: Targets) -> tuple[Losses, Predictions]:
        """From one pass; of several views the loss is that of their average."""
        if not self.testing.is_plain:
            predictions = self.predict(images)
            assert predictions.log_probs is not None
            return cross_entropy(predictions.log_probs, targets), predictions
        logits = self(images.pixels)
        predictions = Predictions(log_probs=F.log_softmax(logits.float(), dim=1))
        return cross_entropy(logits, targets), predictions

    def parts(self) -> tuple[Trunk, Sequence[nn.Module]]:
        """(pixels -> the last map, the layers from that map to the logits in order).

        By the names of its parts; a network that has others overrides it. A dense layer with an
        input for each channel of the map, and no pooling before it, sees their means.

        Raises:
            ValueError: there are none of these names.
        """
        trunk: Trunk | None = getattr(self, "features", None)
        found = [getattr(self, name, None) for name in ("avgpool", "classifier", "linear", "fc")]
        layers = [layer for layer in found if isinstance(layer, nn.Module)]
        if trunk is None or not layers:
            raise ValueError("it has no part called features, or no dense layers after it")
        return trunk, layers

    def score_maps(self) -> ScoreMaps:
        """Its fully convolutional form, with the same weights: larger images, logits (N, K, h, w).

        Raises:
            ValueError: it has none.
        """
        assert self.trained_shape is not None, "build.model says what it is built for"
        trunk, layers = self.parts()
        if self._last_map is None:
            self._last_map = map_shape(self, trunk, self.trained_shape)
        return ScoreMaps(trunk, flattened(layers), self._last_map)

    def score_map(self, pixels: Tensor) -> Tensor:
        """(N, C, H, W) -> logits (N, K, h, w): its scores at every place of a larger image.

        Raises:
            ValueError: it has no fully convolutional form, or the images are too small.
        """
        return self.score_maps()(pixels)


def cross_entropy(logits: Tensor, targets: Targets) -> Losses:
    """Of logits (N, K) and the column ``label``, which may be soft."""
    assert targets.label is not None, "classification needs the column `label`"
    return {"cross_entropy": F.cross_entropy(logits.float(), targets.label)}


class SegmentationModel(Model):
    """A network from pixels (N, C, H, W) to logits (N, K, H, W), for every H and W.

    Subclasses write ``forward``, and ``outputs`` where they train auxiliary heads too. What is
    minimised (``criterion``) and how it is tested (``testing``) belongs to the task, which sets
    both. In eval mode no row of a batch may depend on another.

    Attributes:
        auxiliary: share of the loss of each of ``outputs`` but "out", by name.
    """

    eval_pixels = 1 << 19

    def __init__(self) -> None:
        super().__init__()
        self.auxiliary: dict[str, float] = {}
        self.criterion: SegmentationLoss | None = None
        self.testing = DenseTesting()

    @abstractmethod
    def forward(self, pixels: Tensor) -> Tensor: ...

    def outputs(self, pixels: Tensor) -> dict[str, Tensor]:
        """Logits (N, K, H, W) of every head: "out", and those of ``auxiliary``."""
        return {"out": self(pixels)}

    def tiles(self, pixels: Tensor, tile: int) -> Tensor | None:
        """Logits of a large image from parts of about ``tile``, where a network has a way of its
        own; None leaves it to windows that are blended."""
        return None

    def less_memory(self, size: tuple[int, int]) -> str:
        side = min(max(size), self.testing.tile or max(size))
        return f"task.tile={max(8, side // 2)}, which sees larger images in parts"

    def loss(self, images: Images, targets: Targets) -> Losses:
        total: Losses = {}
        for rows, view, size in _alike(images):
            outputs = {
                name: resized(logits, size) for name, logits in self.outputs(view.pixels).items()
            }
            _add(total, self._losses(outputs, *_truth(targets, rows, size)), view, images)
        return total

    def predict(self, images: Images) -> Predictions:
        groups = list(_alike(images))
        masks = [_classes(self.testing(self, view.pixels, size)) for _, view, size in groups]
        return Predictions(mask=_together(masks, groups, images))

    def loss_and_predict(self, images: Images, targets: Targets) -> tuple[Losses, Predictions]:
        """From one pass; of views or tiles the loss is that of their average, heads left out."""
        groups, masks = list(_alike(images)), []
        total: Losses = {}
        for rows, view, size in groups:
            if self.testing.is_plain(view.pixels):
                outputs = {
                    name: resized(logits, size)
                    for name, logits in self.outputs(view.pixels).items()
                }
            else:
                outputs = {"out": self.testing(self, view.pixels, size).clamp(min=1e-8).log()}
            masks.append(_classes(outputs["out"].detach()))
            _add(total, self._losses(outputs, *_truth(targets, rows, size)), view, images)
        return total, Predictions(mask=_together(masks, groups, images))

    def _losses(
        self,
        outputs: dict[str, Tensor],
        truth: Tensor,
        weight: Tensor | None,
        weighted: bool = True,
    ) -> Losses:
        out = outputs["out"]
        criterion = self.criterion
        if criterion is None:
            from cnnctl.ops.losses import SegmentationLoss

            criterion = SegmentationLoss(out.shape[1], {"cross_entropy": 1.0}).to(out.device)
        losses = dict(criterion(out, truth, weight, weighted))
        for name, share in self.auxiliary.items():
            if name not in outputs:
                continue
            named = criterion(outputs[name], truth, weight, weighted)
            losses |= {f"{name}_{term}": share * loss for term, loss in named.items()}
        return losses


def _truth(
    targets: Targets, rows: Tensor | slice, size: tuple[int, int]
) -> tuple[Tensor, Tensor | None]:
    """Masks (n, h, w) and the weights of their pixels, of images of one size."""
    assert targets.mask is not None, "segmentation needs the column `mask`"
    h, w = size
    weight = targets.pixel_weight
    return targets.mask[rows, :h, :w], None if weight is None else weight[rows, :h, :w]


def _add(total: Losses, losses: Losses, part: Images, whole: Images) -> None:
    """Add what a part of a batch contributes to the mean over its images."""
    for name, loss in losses.items():
        share = loss * (len(part) / len(whole))
        total[name] = total[name] + share if name in total else share


def _classes(scores: Tensor) -> Tensor:
    """(N, K, H, W) -> (N, H, W) uint8, 255 where the scores are not numbers."""
    best, index = scores.max(1)
    return index.to(torch.uint8).masked_fill_(best.isnan(), IGNORE)


def _alike(images: Images) -> Iterator[tuple[Tensor | slice, Images, tuple[int, int]]]:
    """(rows, those images without padding, original size), for each pair of sizes there is."""
    kinds = list(zip(images.sizes, images.originals, strict=True))
    for (h, w), original in dict.fromkeys(kinds):
        if len(set(kinds)) == 1:
            rows: Tensor | slice = slice(None)
        else:
            chosen = [row for row, kind in enumerate(kinds) if kind == ((h, w), original)]
            rows = torch.tensor(chosen, device=images.pixels.device)
        pixels = images.pixels[rows][..., :h, :w]
        count = len(pixels)
        yield rows, Images(pixels, [(h, w)] * count, [original] * count), original


def _together(
    masks: Sequence[Tensor],
    groups: Sequence[tuple[Tensor | slice, Images, tuple[int, int]]],
    images: Images,
) -> Tensor:
    """Class maps of groups -> (N, H, W) uint8 in the order of the batch, 255 beyond an image."""
    if len(groups) == 1:
        return masks[0]
    height, width = (max(side) for side in zip(*images.originals, strict=True))
    whole = masks[0].new_full((len(images), height, width), IGNORE)
    for mask, (rows, _, (h, w)) in zip(masks, groups, strict=True):
        whole[rows, :h, :w] = mask
    return whole
