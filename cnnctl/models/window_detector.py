"""A classifier over windows of all places, sizes and shapes, without proposals: Vaillant, Monrocq,
LeCun, "Original approach for the localisation of objects in images", IEE Proc. Vision 141(4), 1994;
all windows of a pyramid in one pass: Sermanet et al., "OverFeat", arXiv:1312.6229, sections 3.3 and
3.5 (without its regression of boxes, section 4).

Differs from the papers: a small network that is trained for detection from scratch, with background
as a class; the pyramid is stretched too, so that windows have several shapes; overlapping windows
go by non-maximum suppression, OverFeat merges them.

Cost: an image of H x W has about H W / (step_y step_x) windows of every size and shape, where steps
are 4 / (window - 2 context) of a window's sides: 2,092 windows of a scene of 96 x 96, some 19,000
of an image of 600 x 800, by default.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnctl.models.base import GradientStage, Losses, Stage
from cnnctl.models.detection import DetectionModel, Truth, truth_of
from cnnctl.models.one_stage import SMALL, require_counts, require_shares
from cnnctl.ops.boxes import Detections, best_of_classes
from cnnctl.ops.clock import POST_PROCESSING, REGIONS, timed
from cnnctl.ops.matching import NEGATIVE, match, taken
from cnnctl.structures import Batch, Images, Targets

# Sides of windows as shares of the image's shorter side, and shapes, where none are set: scenes of
# digits below 256 pixels, photographs above.
FEW_SIDES, SIDES = (0.21, 0.26, 0.32), (0.1, 0.16, 0.25, 0.4, 0.63, 1.0)
FEW_RATIOS, RATIOS = (1.4, 2.1), (0.5, 1.0, 2.0)
CHUNK = 1 << 22  # numbers in the largest map of the windows that are looked at together: 16 MB
UNDECIDED = -1


@dataclass
class Windows:
    """Of every window of N images; W windows, level after level.

    Args:
        logits: (N, W, K + 1), background last.
        boxes: (W, 4) in input pixels.
    """

    logits: Tensor
    boxes: Tensor


@dataclass(frozen=True)
class Level:
    """An image brought to (h, w), so that windows of one size and shape are the network's own."""

    h: int
    w: int
    rows: int  # of windows
    columns: int


class WindowDetector(DetectionModel):
    """The class of every window of a pyramid, or background, by a small network without padding.

    The network sees a square of ``window`` pixels, of which an object fills all but ``context`` on
    each side; beyond an image there are zeros. For each of ``sides`` and ``ratios`` the image is
    rescaled so that such objects get that size; a level's size is rounded so that the last window
    ends with it. Windows lie as far apart as the network's poolings have it. An image smaller than
    a window is one window.

    Trained on ``per_image`` windows of each image of a batch, drawn at random.

    Args:
        in_channels: C.
        num_classes: K.
        size: (h, w) of the training input.
        window: side of what the network sees.
        context: pixels of it on each side that lie outside of the object.
        sides: of objects, in pixels of the image: the root of their area; None: shares of the
            shorter side of ``size``.
        ratios: height / width of objects; None: 1.4 and 2.1 where ``size`` is below 256, where
            digits are expected, else 0.5, 1, 2.
        widths: channels of the convolutions, each followed by batch normalisation and ReLU.
        kernels: side of each of them; 2x2 max pooling follows all but the last.
        dense: units of the hidden dense layer.
        per_image: windows of each image in a training step.
        positives: share of them that show an object; each object of an image equally often.
        hard: of so many times as many windows of background those are trained on that look least
            like it; 1 takes them as they come.
        high: from this IoU on a window shows an object.
        low: below this IoU it is background; between the two it is not trained on.
        shared: run the network over each level as a convolution. False cuts every window out and
            classifies one after another: the same scores, many times slower.
        score, overlap, detections: see ``best_of_classes``.

    Raises:
        ValueError: a number is out of range, or the window is too small for its layers.
    """

    eval_pixels = 1 << 18

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        size: tuple[int, int],
        window: int = 32,
        context: int = 4,
        sides: tuple[float, ...] | None = None,
        ratios: tuple[float, ...] | None = None,
        widths: tuple[int, ...] = (24, 48, 96),
        kernels: tuple[int, ...] = (5, 3, 3),
        dense: int = 192,
        per_image: int = 32,
        positives: float = 0.5,
        hard: int = 2,
        high: float = 0.6,
        low: float = 0.4,
        shared: bool = True,
        score: float = 0.05,
        overlap: float = 0.3,
        detections: int = 100,
    ) -> None:
        super().__init__()
        require_counts(per_image=per_image, hard=hard, dense=dense, detections=detections)
        require_shares(positives=positives, high=high, low=low, score=score, overlap=overlap)
        if low > high:
            raise ValueError(f"low must be at most high, got {low:g} and {high:g}")
        if context < 0 or window <= 2 * context:
            raise ValueError(
                f"context must be at least 0 and below half of window, got {context} of {window}"
            )
        small = min(size) < SMALL
        if sides is None:
            sides = tuple(share * min(size) for share in (FEW_SIDES if small else SIDES))
        ratios = ratios if ratios is not None else FEW_RATIOS if small else RATIOS
        if not (sides and ratios and min(*sides, *ratios) > 0):
            raise ValueError(
                f"sides and ratios must be above 0, got {list(sides)} and {list(ratios)}"
            )
        self.sides, self.ratios = tuple(sides), tuple(ratios)
        self.num_classes, self.window, self.context = num_classes, window, context
        self.stride = 2 ** (len(widths) - 1)
        self.network = _network(in_channels, num_classes + 1, window, widths, kernels, dense)
        self.per_image, self.positives, self.hard = per_image, int(per_image * positives), hard
        self.high, self.low, self.shared = high, low, shared
        self.score, self.overlap, self.most = score, overlap, detections
        self.at_once = max(1, CHUNK // (max(in_channels, widths[0]) * window**2))

    def stages(self) -> Sequence[Stage]:
        return [GradientStage("train", self.window_loss, self.parameters, view=self.windows)]

    def class_layers(self) -> tuple[str, ...]:
        return (f"network.{len(self.network) - 1}",)

    def features(self, pixels: Tensor) -> Windows:
        size = (pixels.shape[2], pixels.shape[3])
        scan = self._scan if self.shared else self._one_by_one
        levels = self.levels(size)
        logits = [scan(self._level(pixels, level)) for level in levels]
        return Windows(torch.cat(logits, 1), self.boxes(levels, size, pixels.device))

    def losses(self, features: Windows, images: Images, truth: Truth) -> Losses:
        """Of all windows of an image; objects and background count half each."""
        labels = self._labels(truth, features.boxes)[0]
        each = _cross_entropy(features.logits, labels)  # (N, W)
        kinds = ((labels >= 0) & (labels < self.num_classes), labels == self.num_classes)
        means = [(each * kind).sum(1) / kind.sum(1).clamp(min=1) for kind in kinds]
        return {"cross_entropy": torch.stack(means).mean()}

    def detect(self, features: Windows, images: Images) -> Detections:
        with timed(POST_PROCESSING):
            scores = features.logits.float().softmax(2)[..., : self.num_classes]
            return best_of_classes(
                features.boxes.expand(len(scores), -1, -1),
                scores,
                score=self.score,
                overlap=self.overlap,
                most=self.most,
            )

    def levels(self, size: tuple[int, int]) -> list[Level]:
        """The pyramid of an image of (h, w): the smallest objects first."""
        levels = []
        inner = self.window - 2 * self.context
        for side in self.sides:
            for ratio in self.ratios:
                objects = (side * ratio**0.5, side / ratio**0.5)
                rows, columns = (
                    max(0, round((whole * inner / one - inner) / self.stride))
                    for whole, one in zip(size, objects, strict=True)
                )
                h, w = (inner + self.stride * steps for steps in (rows, columns))
                levels.append(Level(h, w, rows + 1, columns + 1))
        return levels

    def boxes(self, levels: Sequence[Level], size: tuple[int, int], device: torch.device) -> Tensor:
        """(W, 4) in pixels of an image of (h, w): what windows look for objects in, row by row."""
        inner, parts = self.window - 2 * self.context, []
        for level in levels:
            up, left = size[0] / level.h, size[1] / level.w
            y = torch.arange(level.rows, device=device) * self.stride
            x = torch.arange(level.columns, device=device) * self.stride
            y, x = torch.meshgrid(y, x, indexing="ij")
            sides = [x * left, y * up, (x + inner) * left, (y + inner) * up]
            parts.append(torch.stack(sides, 2).flatten(0, 1))
        return torch.cat(parts)

    def _level(self, pixels: Tensor, level: Level) -> Tensor:
        size = (level.h, level.w)
        small = F.interpolate(pixels, size=size, mode="bilinear", antialias=True)
        return F.pad(small, (self.context,) * 4)

    def _scan(self, level: Tensor) -> Tensor:
        """(N, rows * columns, K + 1) of all windows at once."""
        return self.network(level).flatten(2).transpose(1, 2)

    def _one_by_one(self, level: Tensor) -> Tensor:
        with timed(REGIONS):
            views = self._views(level)
            n, rows, columns = views.shape[:3]
            place = torch.arange(n * rows * columns, device=level.device)
            logits = []
            for part in place.split(self.at_once):
                image, inside = part // (rows * columns), part % (rows * columns)
                windows = views[image, inside // columns, inside % columns]
                logits.append(self.classify(windows))
            return torch.cat(logits).unflatten(0, (n, rows * columns))

    def _views(self, level: Tensor) -> Tensor:
        """(N, rows, columns, C, window, window), of which nothing is copied."""
        views = level.unfold(2, self.window, self.stride).unfold(3, self.window, self.stride)
        return views.permute(0, 2, 3, 1, 4, 5)

    def classify(self, windows: Tensor) -> Tensor:
        """(M, C, window, window) -> (M, K + 1) logits, background last."""
        return self.network(windows).flatten(1)

    def windows(self, batch: Batch) -> Batch:
        """A batch of N images -> one of N * per_image windows, each with a label: its class, K for
        background, -1 where an image has neither.

        They are drawn with torch's own generator, which the loop seeds for every step.
        """
        images, pixels = batch.images, batch.images.pixels
        size = (pixels.shape[2], pixels.shape[3])
        levels = self.levels(size)
        boxes = self.boxes(levels, size, pixels.device)
        labels, objects = self._labels(truth_of(images, batch.targets), boxes)
        labels = labels.masked_fill(~_within(boxes, images.sizes), UNDECIDED)
        shown = objects.where(labels >= 0, objects.new_zeros(()))
        ground = (labels == self.num_classes).float()
        few, many = self.positives, (self.per_image - self.positives) * self.hard
        drawn = torch.cat([_drawn(shown, few, ground), _drawn(ground, many, ground)], 1)
        pyramid = [self._level(pixels, level) for level in levels]
        cut = self._cut(pyramid, drawn)  # (N, few + many, C, window, window)
        if self.hard > 1 and many:
            kept = few + self._least_like_ground(cut[:, few:], self.per_image - few)
            first = torch.arange(few, device=kept.device).expand(len(kept), -1)
            kept = torch.cat([first, kept], 1)  # (N, per_image)
            drawn = drawn.gather(1, kept)
            cut = cut[torch.arange(len(cut), device=kept.device)[:, None], kept]
        count, sides = drawn.numel(), (self.window, self.window)
        return Batch(
            Images(cut.flatten(0, 1), [sides] * count, [sides] * count),
            Targets(
                batch.targets.image_id.repeat_interleave(self.per_image),
                label=labels.gather(1, drawn).flatten(),
            ),
        )

    def window_loss(self, images: Images, targets: Targets) -> Losses:
        """Of windows (M, C, window, window) with labels (M,)."""
        assert targets.label is not None
        each = _cross_entropy(self.classify(images.pixels), targets.label)
        return {"cross_entropy": each.sum() / (targets.label >= 0).sum().clamp(min=1)}

    def _labels(self, truth: Truth, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """(N, W) int64: the class of each window, K for background, -1 between the two; and (N, W)
        1 / how many windows show the same object, 0 where none is shown."""
        matched = match(truth.boxes, truth.labels, boxes, self.high, self.low)
        labels = taken(truth.labels, matched).masked_fill(matched < 0, UNDECIDED)
        labels = labels.masked_fill(matched == NEGATIVE, self.num_classes)
        rows = (matched + 1).clamp(min=0)  # 0: no object
        many = torch.zeros(len(rows), truth.labels.shape[1] + 1, device=rows.device)
        many = many.scatter_add_(1, rows, torch.ones_like(rows, dtype=many.dtype))
        return labels, many.reciprocal().gather(1, rows).masked_fill(matched < 0, 0)

    def _cut(self, pyramid: Sequence[Tensor], drawn: Tensor) -> Tensor:
        """(N, P, C, window, window) of windows (N, P) among all levels', in memory with the
        channels last, as the network has them: its first layer need not turn them round."""
        shape = (*drawn.shape, self.window, self.window, pyramid[0].shape[1])
        cut, first = pyramid[0].new_empty(shape), 0
        for level in pyramid:
            views = self._views(level).movedim(3, 5)
            rows, columns = views.shape[1:3]
            inside = drawn - first
            image, place = ((inside >= 0) & (inside < rows * columns)).nonzero(as_tuple=True)
            at = inside[image, place]
            cut[image, place] = views[image, at // columns, at % columns]
            first += rows * columns
        return cut.movedim(4, 2)

    @torch.no_grad()
    def _least_like_ground(self, windows: Tensor, count: int) -> Tensor:
        """(N, count): of windows (N, M, ...) those with the least probability of background."""
        modes = [(module, module.training) for module in self.network.modules()]
        self.network.eval()
        scores = [self.classify(part) for part in windows.flatten(0, 1).split(self.at_once)]
        for module, training in modes:  # layers that are not trained were in evaluation mode
            module.training = training
        ground = torch.cat(scores).softmax(1)[:, -1].unflatten(0, windows.shape[:2])
        return ground.topk(count, dim=1, largest=False).indices


def _network(
    channels: int,
    outputs: int,
    window: int,
    widths: Sequence[int],
    kernels: Sequence[int],
    dense: int,
) -> nn.Sequential:
    """(N, C, h, w) -> (N, outputs, rows, columns), 1 x 1 for a window."""
    if not widths or len(widths) != len(kernels):
        raise ValueError(
            f"widths and kernels must be as long, got {len(widths)} and {len(kernels)}"
        )
    require_counts(widths=min(widths), kernels=min(kernels))
    layers, side = [], window
    for place, ((given, made), kernel) in enumerate(
        zip(pairwise((channels, *widths)), kernels, strict=True)
    ):
        if place:
            if side % 2:
                raise ValueError(
                    f"a window of {window} leaves a line over at a pooling of a side of {side}:"
                    " choose window and kernels so that all are even"
                )
            layers.append(nn.MaxPool2d(2))
            side //= 2
        layers += [nn.Conv2d(given, made, kernel, bias=False), nn.BatchNorm2d(made), nn.ReLU()]
        side -= kernel - 1
        if side < 1:
            raise ValueError(f"a window of {window} is too small for the kernels {list(kernels)}")
    layers += [nn.Conv2d(widths[-1], dense, side, bias=False), nn.BatchNorm2d(dense), nn.ReLU()]
    layers += [nn.Conv2d(dense, outputs, 1)]
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    nn.init.zeros_(layers[-1].bias)
    return nn.Sequential(*layers)


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """(..., K + 1) and (...) -> (...), 0 where there is no label."""
    flat = F.cross_entropy(
        logits.flatten(0, -2).float(), labels.flatten(), reduction="none", ignore_index=UNDECIDED
    )
    return flat.view_as(labels)


def _drawn(weight: Tensor, count: int, otherwise: Tensor) -> Tensor:
    """(N, count) positions, drawn by ``weight`` (N, W); where all are 0, by ``otherwise``; where
    they are too, any."""
    if not count:
        return weight.new_zeros(len(weight), 0, dtype=torch.int64)
    for other in (otherwise, torch.ones_like(weight)):
        weight = torch.where(weight.any(1, keepdim=True), weight, other)
    return torch.multinomial(weight, count, replacement=True)


def _within(boxes: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
    """(N, W): does the window lie in the image, and not in what fills it up?"""
    ends = torch.tensor([(w, h) for h, w in sizes], device=boxes.device)  # (N, 2)
    return (boxes[:, 2:] <= ends[:, None] + 1).all(2)
