"""Histograms of oriented gradients and linear SVMs as a detector: Dalal, Triggs, "Histograms of
oriented gradients for human detection", CVPR 2005, sections 4 to 6: a template for each class over
a pyramid with steps of 1.05, with a round of hard negatives.

Differs from the paper: K classes, each with its template, instead of people. All templates see the
same square of cells, so that a descriptor serves all of them; within it a class has boxes of its
own shape, the mean of its objects', and an object is brought to the area of such a box, its shape
unchanged. Cells of 4 pixels and objects of some 32, the paper's are 8 and 96. The squared hinge
loss; no vote of a pixel for several cells or orientations (cnnctl/ops/oriented_gradients.py), and
no square root of the colours. Detections go by non-maximum suppression, not by mean shift in place
and scale. Scores are the sigmoid of the margins, which keeps their order and is no probability.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnctl.models.base import FitStage, Losses, Stage, Templates
from cnnctl.models.detection import DetectionModel, Truth, truth_of
from cnnctl.models.hog_examples import Examples, Kept, signs
from cnnctl.models.one_stage import require_counts, require_shares
from cnnctl.ops.boxes import Detections, best_of_classes
from cnnctl.ops.clock import POST_PROCESSING, timed
from cnnctl.ops.linear_svm import NEVER
from cnnctl.ops.oriented_gradients import cell_histograms, normalised_blocks
from cnnctl.ops.raw_pixels import RawPixels
from cnnctl.structures import Batch, Images

BLOCK = 2  # side in cells
LARGEST = 1 << 21  # pixels of a level: what would have to be enlarged beyond it is not found
NOISE = 0.01  # of 255: what resizing leaves on one grey by rounding, which blocks would blow up
AT_ONCE = 1 << 22  # pixels of levels of several images that are looked at together


@dataclass
class Margins:
    """Of every window of N images; B windows, level after level.

    Args:
        values: (N, B, K).
        boxes: (B, K, 4) in input pixels: where an object of each class would be.
    """

    values: Tensor
    boxes: Tensor


class HogDetector(DetectionModel):
    """A template of gradients for each class, looked for at all places of a pyramid.

    A window has ``cells`` x ``cells`` cells, of which ``margin`` on each side lie around the
    object. The pyramid goes from the smallest to the largest object of the training data. Windows
    lie a cell apart and may reach beyond the image, whose border is continued.

    While it is fitted, at most ``memory`` megabytes of descriptors are held, and as much again of
    images: the first 19,000 of 96 x 96 pixels, or 370 of 600 x 800. Those beyond are left out; a
    smaller ``augmentation.size`` or more memory has more of them.

    Args:
        num_classes: K.
        mean, std: of each channel, of pixels scaled to 0..1, which the pixels come normalised by.
        cells: side of the template.
        margin: cells around an object.
        cell: side in pixels.
        orientations: bins of a gradient's direction.
        signed: from dark to bright is another direction than from bright to dark.
        C: weight of the losses against the margin.
        step: ratio of the sizes of two levels, above 1.
        rounds: how often false detections are searched for and learnt from.
        mined: images that are searched in a round.
        negatives: windows of an image that a search adds at most; as many at random before.
        memory: megabytes.
        score, overlap, detections: see ``best_of_classes``; a score is the sigmoid of a margin.

    Raises:
        ValueError: a number is out of range.
    """

    eval_pixels = 1 << 18

    def __init__(
        self,
        num_classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        cells: int = 10,
        margin: int = 1,
        cell: int = 4,
        orientations: int = 9,
        signed: bool = False,
        C: float = 0.01,
        step: float = 1.1,
        rounds: int = 2,
        mined: int = 800,
        negatives: int = 10,
        memory: int = 512,
        score: float = 0.25,
        overlap: float = 0.3,
        detections: int = 100,
    ) -> None:
        super().__init__()
        require_counts(
            cell=cell,
            orientations=orientations,
            mined=mined,
            negatives=negatives,
            memory=memory,
            detections=detections,
        )
        require_shares(score=score, overlap=overlap)
        if margin < 0 or cells < 2 * margin + BLOCK:
            raise ValueError(
                f"cells must be at least {2 * margin + BLOCK} for a margin of {margin}, got {cells}"
            )
        if C <= 0 or step <= 1:
            raise ValueError(f"C must be positive and step above 1, got {C:g} and {step:g}")
        if rounds < 0:
            raise ValueError(f"rounds must be at least 0, got {rounds}")
        self.num_classes, self.cells, self.margin, self.cell = num_classes, cells, margin, cell
        self.orientations, self.signed, self.C, self.step = orientations, signed, C, step
        self.rounds, self.mined, self.negatives, self.memory = rounds, mined, negatives, memory
        self.score, self.overlap, self.most = score, overlap, detections
        self.seed = torch.initial_seed() % 2**31
        self.beyond = cells // 3  # cells that a window may lie outside of the image
        self.raw = RawPixels(mean, std)
        blocks = cells - BLOCK + 1
        self.template = nn.Conv2d(BLOCK**2 * orientations, num_classes, blocks)
        nn.init.zeros_(self.template.weight)
        nn.init.constant_(self.template.bias, NEVER)  # pyright: ignore[reportArgumentType]
        self.ratio: Tensor  # (K,) height / width of a class's boxes
        self.register_buffer("ratio", torch.ones(num_classes))
        self.range: Tensor  # (2,) smallest and largest root of the area of an object, in pixels
        self.register_buffer("range", torch.full((2,), float(self._side)))

    @property
    def _side(self) -> int:
        """Pixels that the longer side of an object fills."""
        return (self.cells - 2 * self.margin) * self.cell

    def stages(self) -> Sequence[Stage]:
        return [FitStage("svm", self.fit)]

    def class_layers(self) -> tuple[str, ...]:
        return ("template",)

    def class_buffers(self) -> tuple[str, ...]:
        return ("ratio",)

    def features(self, pixels: Tensor) -> Margins:
        size = (pixels.shape[2], pixels.shape[3])
        scales = self.scales(size)
        if not scales:  # the image is far smaller than a window
            boxes = pixels.new_zeros(0, self.num_classes, 4)
            return Margins(pixels.new_zeros(len(pixels), 0, self.num_classes), boxes)
        parts = []
        for raw in self.raw(pixels).split(self.images_at_once(size)):
            levels = [self.margins(self.level(raw, scale)).flatten(2) for scale in scales]
            parts.append(torch.cat(levels, 2).transpose(1, 2))
        boxes = torch.cat([self.boxes(size, scale) for scale in scales])
        return Margins(torch.cat(parts), boxes)

    def losses(self, features: Margins, images: Images, truth: Truth) -> Losses:
        """The squared hinge loss of all windows and classes; objects and others count half each."""
        said = signs(features.boxes[None], truth)
        lacks = (1 - said * features.values).clamp(min=0).square() * (said != 0)
        kinds = (said > 0, said < 0)
        means = [(lacks * kind).sum() / kind.sum().clamp(min=1) for kind in kinds]
        return {"squared_hinge": torch.stack(means).mean()}

    def detect(self, features: Margins, images: Images) -> Detections:
        with timed(POST_PROCESSING):
            return best_of_classes(
                features.boxes.expand(len(features.values), -1, -1, -1),
                features.values.sigmoid(),
                score=self.score,
                overlap=self.overlap,
                most=self.most,
            )

    def fit(self, batches: Iterator[Batch]) -> None:
        """Learn from the images of all batches, or from as many as ``memory`` holds.

        Raises:
            UserError: it holds none.
        """
        kept = Kept(self.memory << 20)
        for batch in batches:
            truth = truth_of(batch.images, batch.targets)
            if not kept.add(self.raw(batch.images.pixels), batch.images.sizes, truth):
                break  # no further image is read
        kept.require_some(self.memory, self.training_images)
        self._measure(kept)
        examples = Examples(self, kept, self.memory << 20)
        self.template.weight.zero_()
        self.template.bias.fill_(NEVER)  # pyright: ignore[reportOptionalMemberAccess]
        for search in range(self.rounds + 1):
            weight, bias = examples.planes(hard=search > 0)
            self.template.weight.copy_(weight.view_as(self.template.weight))
            self.template.bias.copy_(bias)  # pyright: ignore[reportOptionalMemberAccess]

    def _measure(self, kept: Kept) -> None:
        """The mean shape of each class, and the sizes there are; all are squares without any."""
        self.ratio.fill_(1.0)
        self.range.fill_(float(self._side))
        boxes, labels = kept.objects()
        if not len(boxes):
            return
        w, h = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1).unbind(1)
        for label in labels.unique():
            self.ratio[label] = (h / w)[labels == label].log().mean().exp()
        size = (h * w).sqrt() / self.sides().prod(1).sqrt()[labels]
        share = torch.tensor([0.02, 0.98], device=size.device)
        few = size[torch.linspace(0, len(size) - 1, min(len(size), 1 << 20)).long()]
        self.range.copy_(few.quantile(share) * self._side)

    def sides(self) -> Tensor:
        """(K, 2) w, h in pixels of a class's boxes within a window: the longer fills the inside."""
        shape = torch.stack([self.ratio.reciprocal(), torch.ones_like(self.ratio)], 1)
        return shape / shape.amax(1, keepdim=True) * self._side

    def scales(self, size: tuple[int, int]) -> list[float]:
        """By which an image of (h, w) is multiplied, the smallest objects' first."""
        least, most = (float(value) for value in self._side / self.range)
        most = min(least, (LARGEST / (size[0] * size[1])) ** 0.5), most
        scale, last = most
        found = []
        while scale > last / self.step**0.5:
            if min(self._windows(size, scale)) > 0:
                found.append(scale)
            scale /= self.step
        return found

    def images_at_once(self, size: tuple[int, int]) -> int:
        """Images of (h, w) whose largest level takes as much memory as is meant for it."""
        largest = max([1.0, *self.scales(size)])
        return max(1, int(AT_ONCE / (size[0] * size[1] * largest**2)))

    def _cells(self, size: tuple[int, int], scale: float) -> tuple[int, int]:
        """Rows and columns of cells of a level."""
        h, w = (max(1, round(side * scale / self.cell)) for side in size)
        return h, w

    def _windows(self, size: tuple[int, int], scale: float) -> tuple[int, int]:
        """Rows and columns of windows of a level."""
        down, right = self._cells(size, scale)
        beyond = 2 * self.beyond - self.cells + 1
        return down + beyond, right + beyond

    def level(self, raw: Tensor, scale: float) -> Tensor:
        """Images (N, C, h, w) of 0 to 255 -> blocks (N, D', rows, columns) at a scale, and of what
        lies beyond the images."""
        down, right = self._cells((raw.shape[2], raw.shape[3]), scale)
        size = (down * self.cell, right * self.cell)
        pixels = F.interpolate(raw, size=size, mode="bilinear", antialias=True)
        around = (self.beyond + 1) * self.cell  # a cell more: at a border there is no gradient
        return self.blocks(F.pad(pixels, (around,) * 4, mode="replicate"))

    def blocks(self, pixels: Tensor) -> Tensor:
        """(N, C, h, w) of 0 to 255 -> (N, D', h / cell - 3, w / cell - 3) blocks of all cells but
        the outermost; D' = 4 x orientations."""
        cells = cell_histograms(pixels, self.cell, self.orientations, self.signed)
        cells = cells * (cells > NOISE)
        return normalised_blocks(cells[..., 1:-1, 1:-1], BLOCK).permute(0, 3, 1, 2)

    def margins(self, blocks: Tensor) -> Tensor:
        """(N, D', rows, columns) of blocks -> (N, K, rows', columns') of windows."""
        with torch.autocast(blocks.device.type, enabled=False):
            return self.template(blocks)

    def boxes(self, size: tuple[int, int], scale: float) -> Tensor:
        """(rows * columns, K, 4): the box of each class in each window of a level, in pixels of
        images of (h, w), cut off at them."""
        h, w = size
        down, right = self._cells(size, scale)
        by = self.range.new_tensor([right * self.cell / w, down * self.cell / h])
        first = (self.cells / 2 - self.beyond) * self.cell  # the centre of the first window
        y, x = (torch.arange(n, device=by.device) for n in self._windows(size, scale))
        y, x = torch.meshgrid(y * self.cell + first, x * self.cell + first, indexing="ij")
        centre = torch.stack([x, y], 2).flatten(0, 1)[:, None]  # (B, 1, 2)
        half = self.sides() / 2
        boxes = torch.cat([centre - half, centre + half], 2) / by.repeat(2)
        return torch.minimum(boxes.clamp(min=0), boxes.new_tensor([w, h, w, h]))

    def templates(self) -> Templates | None:
        """What the weights of all blocks say of a cell; None before the fit."""
        weight = self.template.weight.detach()  # (K, D', b, b)
        if not weight.any():
            return None
        whole = weight.new_zeros(len(weight), self.orientations, self.cells, self.cells)
        blocks = weight.shape[2]
        for place, part in enumerate(weight.split(self.orientations, 1)):
            y, x = divmod(place, BLOCK)
            whole[:, :, y : y + blocks, x : x + blocks] += part
        return Templates(whole, 1.0 if self.signed else 0.5)
