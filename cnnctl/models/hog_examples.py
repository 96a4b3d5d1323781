"""What the SVMs of ``HogDetector`` learn from: objects, and windows that are none, within memory.

Dalal, Triggs, "Histograms of oriented gradients for human detection", CVPR 2005, section 4: random
windows at first, then those that the first detector takes for objects.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from cnnctl.errors import UserError
from cnnctl.models.detection import Truth
from cnnctl.ops.boxes import iou
from cnnctl.ops.linear_svm import NEVER
from cnnctl.ops.svm_on_rows import squared_hinge_planes

_CROPS = 256  # objects that are cut out together
HIGH, LOW = 0.5, 0.3  # IoU from which a window is a class's, and below which it is not


class Templates(Protocol):
    """What is asked of the detector; see there."""

    template: nn.Conv2d
    num_classes: int
    cells: int
    cell: int
    C: float
    mined: int
    negatives: int
    seed: int

    def sides(self) -> Tensor: ...

    def scales(self, size: tuple[int, int]) -> list[float]: ...

    def images_at_once(self, size: tuple[int, int]) -> int: ...

    def level(self, raw: Tensor, scale: float) -> Tensor: ...

    def blocks(self, pixels: Tensor) -> Tensor: ...

    def margins(self, blocks: Tensor) -> Tensor: ...

    def boxes(self, size: tuple[int, int], scale: float) -> Tensor: ...


class Kept:
    """Training images as whole numbers, and what is on them, in order; those beyond ``limit`` bytes
    are not kept.

    Attributes:
        images: (C, h, w) uint8 each, truth: boxes (R, 4) and labels (R,) of each.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.images: list[Tensor] = []
        self.truth: list[tuple[Tensor, Tensor]] = []
        self._bytes = 0

    def add(self, raw: Tensor, sizes: Sequence[tuple[int, int]], truth: Truth) -> bool:
        """Images (N, C, H, W) of 0 to 255 that have (h, w) ``sizes`` without what fills them up;
        False: there is no room for more."""
        for image, (h, w), boxes, labels in zip(
            raw.round().to(torch.uint8), sizes, truth.boxes, truth.labels, strict=True
        ):
            own = image[:, :h, :w].clone()
            self._bytes += own.numel()
            if self._bytes > self.limit:
                return False  # and from now on
            self.images.append(own)
            self.truth.append((boxes[labels >= 0], labels[labels >= 0]))
        return True

    def require_some(self, megabytes: int, images: int | None) -> None:
        """Warn where there were more; ``images``: how many the training data has, where known.

        Raises:
            UserError: none is kept.
        """
        if not self.images:
            raise UserError(
                f"memory={megabytes} (megabytes) holds no training image",
                field="model.memory",
                advice="take more, or make images smaller with augmentation.size=",
            )
        if self._bytes > self.limit:
            among = "" if images is None else f" of {images:,}"
            warnings.warn(
                f"the first {len(self.images):,}{among} training images are learnt from, as no more"
                f" fit into model.memory={megabytes}",
                stacklevel=2,
            )

    def objects(self) -> tuple[Tensor, Tensor]:
        """All boxes (R, 4) and labels (R,)."""
        boxes, labels = zip(*self.truth, strict=True)
        return torch.cat(boxes), torch.cat(labels)

    def alike(
        self, chosen: Sequence[int], count: Callable[[tuple[int, int]], int]
    ) -> Iterator[tuple[Tensor, Truth]]:
        """Of ``chosen`` images (n, C, h, w), of one size at a time, and their truth.

        Args:
            count: size (h, w) -> how many at most.
        """
        by_size: dict[tuple[int, int, int], list[int]] = {}
        for index in chosen:
            c, h, w = self.images[index].shape
            by_size.setdefault((c, h, w), []).append(index)
        for (_, h, w), rows in by_size.items():
            several = count((h, w))
            for first in range(0, len(rows), several):
                some = rows[first : first + several]
                truth = Truth(
                    pad_sequence([self.truth[index][0] for index in some], True),
                    pad_sequence([self.truth[index][1] for index in some], True, -1),
                )
                yield torch.stack([self.images[index] for index in some]).float(), truth


class Examples:
    """Descriptors (M, D) and what they are to each class, and the planes between them.

    At most half of the rows are objects, drawn at random where there are more. Where false
    detections no longer fit, those rows go that are furthest on the right side of all planes.

    Args:
        limit: bytes of descriptors.
    """

    def __init__(self, model: Templates, kept: Kept, limit: int) -> None:
        self.model, self.kept = model, kept
        self.generator = torch.Generator().manual_seed(model.seed)
        weight, classes = model.template.weight, model.num_classes
        most, width = max(2, limit // (4 * weight[0].numel())), weight[0].numel()
        self.rows, self.signs = weight.new_empty(most, width), weight.new_empty(most, classes)
        self.weight, self.bias = weight.new_zeros(classes, width), weight.new_zeros(classes)
        self.count = 0
        self._take_objects()
        self.objects = self.count

    def planes(self, hard: bool) -> tuple[Tensor, Tensor]:
        """Add windows that are no objects, at random or ``hard`` the present planes' mistakes, and
        solve: weights (K, D), biases (K,). A class without objects is ``NEVER`` said."""
        self._search(hard)
        rows, said = self.rows[: self.count], self.signs[: self.count]
        self.weight, self.bias = squared_hinge_planes(
            rows, said, self.model.C, self.weight, self.bias
        )
        present = (said > 0).any(0)
        return self.weight * present[:, None], self.bias.masked_fill(~present, NEVER)

    def _order(self) -> list[int]:
        return torch.randperm(len(self.kept.images), generator=self.generator).tolist()

    def _take_objects(self) -> None:
        """Descriptors of objects, centred, and brought to the area of their class's boxes."""
        for raw, truth in self.kept.alike(self._order(), self.model.images_at_once):
            image, row = (truth.labels >= 0).nonzero(as_tuple=True)
            room = len(self.rows) // 2 - self.count
            image, row = image[:room], row[:room]
            if not len(row):
                continue
            boxes, labels = truth.boxes[image, row], truth.labels[image, row]
            for some in torch.arange(len(boxes), device=boxes.device).split(_CROPS):
                windows = self.windows(boxes[some], labels[some])
                rows = self.described(raw, image[some], windows)
                said = self._signs_of(truth.at(image[some]), windows)
                self._add(rows, said.scatter(1, labels[some][:, None], 1.0))

    def windows(self, boxes: Tensor, labels: Tensor) -> Tensor:
        """(B, 4): around boxes (B, 4), so large that they have the area of their class's."""
        model = self.model
        area = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1).prod(1)
        scale = (model.sides().prod(1)[labels] / area).sqrt()
        centre = (boxes[:, :2] + boxes[:, 2:]) / 2
        half = model.cells * model.cell / 2 / scale[:, None]
        return torch.cat([centre - half, centre + half], 1)

    def described(self, raw: Tensor, image: Tensor, windows: Tensor) -> Tensor:
        """(B, D) of windows (B, 4) of images (n, C, h, w), which may reach beyond them."""
        from torchvision.ops import roi_align

        model, (h, w) = self.model, raw.shape[2:]
        # A cell more around, as a level has, so that gradients at the border are there.
        cell = (windows[:, 2:] - windows[:, :2]) / model.cells
        windows = torch.cat([windows[:, :2] - cell, windows[:, 2:] + cell], 1)
        over = torch.cat([-windows[:, :2], windows[:, 2:] - windows.new_tensor([w, h])])
        around = int(over.max().clamp(min=0)) + 2
        framed = F.pad(raw, (around,) * 4, mode="replicate")
        regions = torch.cat([image[:, None].float(), windows + around], 1)
        side = (model.cells + 2) * model.cell
        return model.blocks(roi_align(framed, regions, side, 1.0, -1, True)).flatten(1)

    def _signs_of(self, truth: Truth, windows: Tensor) -> Tensor:
        """(B, K) what windows (B, 4) of an image each are: nothing is an example of a class that it
        merely overlaps."""
        model = self.model
        centre = (windows[:, None, :2] + windows[:, None, 2:]) / 2
        scale = model.cells * model.cell / (windows[:, 2:] - windows[:, :2])[:, None]
        half = model.sides() / 2 / scale  # (B, K, 2)
        boxes = torch.cat([centre - half, centre + half], 2)
        return signs(boxes[:, None], truth)[:, 0].clamp(max=0)

    def _search(self, hard: bool) -> None:
        """Add windows of some images that are no objects."""
        model = self.model
        for raw, truth in self.kept.alike(self._order()[: model.mined], model.images_at_once):
            size = (raw.shape[2], raw.shape[3])
            found = [
                self._mistakes(model.level(raw, scale), model.boxes(size, scale), truth, hard)
                for scale in model.scales(size)
            ]
            if not found:
                continue
            wrong, rows, said = (torch.cat(column, 1) for column in zip(*found, strict=True))
            top, place = wrong.topk(min(model.negatives, wrong.shape[1]), 1)
            image, rank = (top > -torch.inf).nonzero(as_tuple=True)
            place = place[image, rank]
            self._add(rows[image, place], said[image, place])

    def _mistakes(
        self, blocks: Tensor, boxes: Tensor, truth: Truth, hard: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Of a level of n images the windows with the largest mistakes: how large (n, c),
        descriptors (n, c, D), signs (n, c, K)."""
        said = signs(boxes[None], truth)  # (n, B, K)
        n, _, rows, columns = (margins := self.model.margins(blocks)).shape
        if hard:
            wrong = margins.flatten(2).transpose(1, 2).masked_fill(said >= 0, -torch.inf).amax(2)
            peaks = F.max_pool2d(wrong.view(n, 1, rows, columns), 3, 1, 1).flatten(1)
            wrong = wrong.masked_fill((wrong < peaks) | (wrong < -1), -torch.inf)
        else:
            lots = torch.rand(n, rows * columns, generator=self.generator).to(margins.device)
            wrong = lots.masked_fill(~(said < 0).any(2), -torch.inf)
        top, place = wrong.topk(min(self.model.negatives, wrong.shape[1]), 1)
        side = self.model.template.weight.shape[2]
        views = blocks.unfold(2, side, 1).unfold(3, side, 1)  # (n, D', rows, columns, b, b)
        image = torch.arange(n, device=place.device)[:, None]
        described = views[image, :, place // columns, place % columns].flatten(2)
        return top, described, said[image, place].clamp(max=0)

    def _add(self, rows: Tensor, said: Tensor) -> None:
        if self.count + len(rows) > len(self.rows):
            self._forget(len(self.rows) * 3 // 4)
        room = len(self.rows) - self.count
        rows, said = rows[:room], said[:room]
        after = self.count + len(rows)
        self.rows[self.count : after], self.signs[self.count : after] = rows, said
        self.count = after

    def _forget(self, left: int) -> None:
        """Leave out the windows that are no objects and far from being taken for any."""
        rows, said = (column[self.objects : self.count] for column in (self.rows, self.signs))
        margins = (rows @ self.weight.T + self.bias).masked_fill(said == 0, -torch.inf).amax(1)
        kept = margins.topk(min(len(rows), max(0, left - self.objects))).indices.sort().values
        self.count = self.objects + len(kept)
        self.rows[self.objects : self.count] = rows[kept]
        self.signs[self.objects : self.count] = said[kept]


def signs(boxes: Tensor, truth: Truth) -> Tensor:
    """(N, B, K): 1 where a class's box is one of its objects, -1 where it is not, 0 between.

    Args:
        boxes: (N, B, K, 4), or (1, B, K, 4) of all images alike.
    """
    n, classes = len(truth.labels), boxes.shape[2]
    most = boxes.new_zeros(n, classes + 1, boxes.shape[1])  # the last: of rows without an object
    if truth.labels.shape[1]:
        labels = truth.labels.masked_fill(truth.labels < 0, classes)
        image = torch.arange(n, device=labels.device)[:, None]
        each = boxes.transpose(1, 2).expand(n, -1, -1, -1)
        own = each[image, labels.clamp(max=classes - 1)]  # (N, R, B, 4)
        overlap = iou(truth.boxes[:, :, None], own)[:, :, 0]  # (N, R, B)
        most.scatter_reduce_(1, labels[:, :, None].expand_as(overlap), overlap, "amax")
    most = most[:, :classes].transpose(1, 2)
    return (most >= HIGH).to(most.dtype) - (most < LOW).to(most.dtype)
