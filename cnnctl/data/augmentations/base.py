"""What every augmentation pipeline promises, and the one that changes nothing.

A pipeline has two halves. The first brings images to the pipeline's size: ``sample`` (training)
and ``sample_eval`` in a worker on one streamed image of any size, ``resident`` once on all images
of a data set that fits in memory. The second, ``batch``, runs on the device on whole uint8
training batches, vectorised, each sample with random numbers of its own counter.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from cnnctl.randomness import Draw
from cnnctl.structures import IGNORE, Images, Targets

UNSIZED = 224  # the side of the input where neither the user nor the data sets one
RESIZE_BYTES = 1 << 26  # of pixels that `resident` resizes at a time


Truth = dict[str, Any]  # of one sample: label, mask (h, w) uint8, and so on


class Shown(Protocol):
    """How images are shown to an evaluation that looks at more than the network's input."""

    def resident(self, pixels: Tensor) -> Tensor: ...

    def sample(self, image: Tensor) -> Tensor: ...

    def own(self, image: Tensor) -> Tensor: ...


class Augmentation:
    """Resize to ``size`` and nothing else; the base of every pipeline.

    Args:
        num_classes: K, for soft labels.
        mirror: whether the data's classes survive a mirror.
        native: (h, w) of the data's images, None where they differ.
        size: side of the square input; None is the data's own size, 224 where its images differ.
        label_smoothing: probability taken from the true class and spread over all K
            (Szegedy et al., arXiv:1512.00567, section 7); training only.
        mean: of each channel, of pixels scaled to 0..1: what fills a square around an image whose
            pixels are all to be named. Normalised it is the zero that convolutions pad with, so
            the image looks alike with and without it.
    """

    mixes: ClassVar[bool] = False  # whether what becomes of an image depends on others in its batch
    # Of the truth: what stays true of an image. "boxes" and "masks" stand for all their columns.
    moves: ClassVar[tuple[str, ...]] = (
        *("label", "mask", "boxes", "masks", "keypoints", "proposals"),
    )
    eval_size: tuple[int, int] | None  # (h, w) of what is evaluated; None where that differs
    shown: Shown | None = None  # where evaluation sees more than the input's size; set by the task

    def __init__(
        self,
        num_classes: int,
        mirror: bool,
        native: tuple[int, int] | None,
        size: int | None = None,
        label_smoothing: float = 0.0,
        mean: tuple[float, ...] = (0.0,),
    ) -> None:
        if size is not None and size < 1:
            raise ValueError(f"size must be at least 1, got {size}")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1), got {label_smoothing}")
        self.num_classes = num_classes
        self.mirror = mirror
        # A config's way here makes lists of tuples, which equal no tuple.
        self.native = (native[0], native[1]) if native else None
        self.size = (size, size) if size else self.native or (UNSIZED, UNSIZED)
        self.eval_size = self.size
        self.label_smoothing = label_smoothing
        self.around = torch.tensor(mean).mul(255).round().to(torch.uint8)[:, None, None]

    @property
    def is_plain(self) -> bool:
        """Whether a training image looks alike in every epoch."""
        return type(self) is Augmentation

    def resident(self, pixels: Tensor) -> Tensor:
        """All images of a data set at once, (M, C, h, w) uint8 -> (M, C, *size) uint8.

        Done once, in chunks of bounded memory; the result equals ``sample_eval`` on each image.
        """
        return resize_all(pixels, self.size)

    def resident_shown(self, pixels: Tensor) -> Tensor:
        """As ``resident``, of what evaluation sees."""
        return self.resident(pixels) if self.shown is None else self.shown.resident(pixels)

    def sample(self, image: Tensor) -> Tensor:
        """One training image (C, h, w) uint8 of any size -> (C, *size) uint8, in a worker."""
        return self.sample_eval(image)

    def sample_eval(self, image: Tensor) -> Tensor:
        """One image (C, h, w) uint8 of any size -> (C, *size) uint8, for evaluation.

        Images that all have one size are only resized, as ``resident`` does; others get the
        ImageNet protocol.
        """
        if self.native is not None:
            return resize(image[None], self.size)[0]
        return resized_centre(image, self.size)

    def sample_shown(self, image: Tensor) -> Tensor:
        """As ``sample_eval``, of what evaluation sees."""
        return self.sample_eval(image) if self.shown is None else self.shown.sample(image)

    def sample_own(self, image: Tensor) -> Tensor:
        """One image (C, h, w) uint8 of a user's -> (C, *size) uint8, for prediction.

        As ``sample_shown``, but where the data's images all have one size, another shape loses its
        ends and is not squashed.
        """
        if self.shown is not None:
            return self.shown.own(image)
        if self.native is not None:
            image = centre_of_shape(image, self.native)
        return self.sample_eval(image)

    def as_trained(self) -> Augmentation:
        """This one, whose images for evaluation have the input's size."""
        if self.shown is None:
            return self
        other = copy.copy(self)
        other.shown = None
        return other

    def own(self, image: Tensor, fields: tuple[str, ...]) -> Tensor:
        """One image of a user's for prediction, as a task with those columns wants it.

        Where things are to be found in it, it is seen whole, in its own shape, and magnified as
        the training images were.
        """
        if "label" in fields:
            return self.sample_own(image)
        if self.native is None:
            return self.joint_eval(image, {})[0]
        factors = zip(image.shape[-2:], self.size, self.native, strict=True)
        h, w = (max(1, round(side * to / whole)) for side, to, whole in factors)
        return resize(image[None], (h, w))[0]

    def joint(self, image: Tensor, target: Truth) -> tuple[Tensor, Truth]:
        """One training image and its truth, in a worker; maps of pixels and boxes move with it.

        Here images of many sizes are shrunk or enlarged to fit into ``size`` as they are, and
        what they leave empty is void.
        """
        if "label" in target:
            return self.sample(image), target
        scaled, moved = self._scaled(image), dict(target)
        h, w = scaled.shape[-2:]
        framed = self.around.expand(len(scaled), *self.size).clone()
        framed[:, :h, :w] = scaled
        if "mask" in target:
            mask = resize_mask(target["mask"][None], (h, w))[0]
            moved["mask"] = F.pad(mask, (0, self.size[1] - w, 0, self.size[0] - h), value=IGNORE)
        if "boxes" in target:
            moved |= scaled_boxes(target, (image.shape[-2], image.shape[-1]), (h, w))
        return framed, moved

    def joint_eval(self, image: Tensor, target: Truth) -> tuple[Tensor, Truth]:
        """One image and its truth for evaluation; maps and boxes stay in original pixels."""
        if "label" in target:
            return self.sample_shown(image), target
        return self._scaled(image), target

    def _scaled(self, image: Tensor) -> Tensor:
        """(C, h, w) -> the size where all images have one, else the largest that fits into it."""
        if self.native is not None:
            return resize(image[None], self.size)[0]
        h, w = image.shape[-2:]
        factor = min(self.size[0] / h, self.size[1] / w)
        return resize(image[None], (max(1, round(h * factor)), max(1, round(w * factor))))[0]

    def batch(self, images: Images, targets: Targets, draw: Draw) -> tuple[Images, Targets]:
        """Augment a training batch, on its device; the pixels become uint8 or 0..255 float."""
        if targets.label is None:
            return images, targets
        pixels, label = self.augment(images.pixels, targets.label, draw)
        if self.label_smoothing:
            label = (
                self.soft(label) * (1 - self.label_smoothing)
                + self.label_smoothing / self.num_classes
            )
        images.pixels, targets.label = pixels, label
        return images, targets

    def augment(self, pixels: Tensor, label: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
        """Pixels (N, C, H, W) and label (N,) -> the same, or soft labels (N, K)."""
        return pixels, label

    def soft(self, label: Tensor) -> Tensor:
        """(N,) int64 or (N, K) float -> (N, K) float, each row a distribution."""
        return label if label.is_floating_point() else F.one_hot(label, self.num_classes).float()


def resize(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, C, h, w) uint8 -> (N, C, *size) uint8, bilinear, antialiased when shrinking.

    On the CPU it is Pillow's fixed-point arithmetic, several times faster than floats; other
    devices round floats, at most one grey level away.
    """
    if tuple(pixels.shape[-2:]) == size:
        return pixels
    if pixels.device.type == "cpu":
        return F.interpolate(pixels, size, mode="bilinear", antialias=True)
    scaled = F.interpolate(pixels.float(), size, mode="bilinear", antialias=True)
    return scaled.round_().clamp_(0, 255).to(torch.uint8)


def resize_all(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """``resize`` of many images, some at a time, in memory that their number does not change."""
    if tuple(pixels.shape[-2:]) == size:
        return pixels
    resized = pixels.new_empty(*pixels.shape[:2], *size)
    largest = pixels.shape[1] * max(pixels.shape[2] * pixels.shape[3], math.prod(size))
    rows = max(1, RESIZE_BYTES // largest)
    for part, chunk in zip(resized.split(rows), pixels.split(rows), strict=True):
        part.copy_(resize(chunk, size))
    return resized


def resize_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, h, w) uint8 -> (N, *size) uint8: the class of the nearest pixel's centre, none mixed."""
    if tuple(mask.shape[-2:]) == size:
        return mask
    return F.interpolate(mask[:, None], size, mode="nearest-exact")[:, 0]


def scaled_boxes(target: Truth, before: tuple[int, int], after: tuple[int, int]) -> Truth:
    """Boxes, frames, points and areas (of one image or many) where images (h, w) get ``after``;
    empty where that changes nothing."""
    if before == after:
        return {}
    down, across = after[0] / before[0], after[1] / before[1]
    factors = target["boxes"].new_tensor([across, down, across, down])
    names = ("boxes", "frames", "void_frame", "proposals")
    scaled = {name: once(target[name], lambda t: t * factors) for name in names if name in target}
    if "keypoints" in target:
        scaled["keypoints"] = target["keypoints"] * factors.new_tensor([across, down, 1])
    return scaled | ({"area": target["area"] * (across * down)} if "area" in target else {})


def once(rows: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """``change`` of each row; where they are all one row, expanded, of that row alone."""
    if len(rows) and rows.stride(0) == 0:
        return change(rows[:1]).expand(len(rows), *rows.shape[1:])
    return change(rows)


def centre_of_shape(image: Tensor, shape: tuple[int, int]) -> Tensor:
    """The largest centred part of (C, h, w) with the aspect ratio of ``shape`` (height, width)."""
    h, w = image.shape[-2:]
    rows = max(1, min(h, round(w * shape[0] / shape[1])))
    columns = max(1, min(w, round(h * shape[1] / shape[0])))
    top, left = (h - rows) // 2, (w - columns) // 2
    return image[:, top : top + rows, left : left + columns]


def resized_centre(image: Tensor, size: tuple[int, int], shorter: int | None = None) -> Tensor:
    """(C, h, w) -> (C, *size): shorter side to 256/224 of the size, then the centre.

    The arithmetic of torchvision's Resize(256) and CenterCrop(224) where ``size`` is 224.

    Args:
        shorter: another length of the shorter side.
    """
    image = middle(image)
    h, w = image.shape[-2:]
    shorter = shorter or round(max(size) * 256 / 224)
    scaled = tuple(shorter if side == min(h, w) else shorter * side // min(h, w) for side in (h, w))
    resized = resize(image[None], (scaled[0], scaled[1]))[0]
    top, left = (round((have - want) / 2) for have, want in zip(scaled, size, strict=True))
    return resized[:, top : top + size[0], left : left + size[1]]


def middle(image: Tensor) -> Tensor:
    """The middle of an image longer than four squares: a 1 x 5000 strip must not become 1 GB.

    The centre crop sees less than one square of it; an even number of lines goes, so that the
    centre stays where it was.
    """
    for axis in (-2, -1):
        side, other = image.shape[axis], image.shape[-3 - axis]
        if (extra := side - 4 * other) > 1:
            image = image.narrow(axis, extra // 2, side - 2 * (extra // 2))
    return image
