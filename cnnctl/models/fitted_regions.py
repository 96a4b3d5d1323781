"""A linear SVM and a box regressor for each class, on what a network says of regions.

Girshick, Donahue, Darrell, Malik, "Rich feature hierarchies for accurate object detection and
semantic segmentation", arXiv:1311.2524, sections 2.2 and 2.3, appendices B and C; SPP-net (He et
al., arXiv:1406.4729, section 4.1) solves the same on other features.

Neither is trained by a gradient: each is a stage that is solved at once (``FitStage``), on features
that are computed once and kept on the disk meanwhile.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnctl.models.base import FitStage
from cnnctl.models.detection import Truth
from cnnctl.models.feature_cache import ROWS, Columns, FeatureStore, row_bytes
from cnnctl.models.region_features import Chosen, Describe, FeatureExtraction, Parts
from cnnctl.models.region_fitting import Fitting
from cnnctl.ops.box_ridge import ridge
from cnnctl.ops.boxes import encode, iou
from cnnctl.ops.hard_negatives import NORM, mined_planes, total_norm
from cnnctl.structures import Batch

NEAR = 0.25  # share of the proposals near a true box, where a size is told beforehand
READ = 1 << 24  # numbers of the rows that ridge regression reads at a time


class FittedRegions(nn.Module):
    """The planes (K, D) of the SVMs and the regressors (K, 4, E), as buffers.

    Before they are solved every margin is 0 and no box is moved; ``solved`` says so.

    Args:
        num_classes: K.
        named, placed: D and E.
        fitting: how they are solved.
        classes: their names, for warnings.
    """

    planes: Tensor
    biases: Tensor
    regressors: Tensor
    offsets: Tensor
    solved: Tensor

    def __init__(
        self,
        num_classes: int,
        named: int,
        placed: int,
        fitting: Fitting,
        classes: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        self.num_classes, self.fitting, self.classes = num_classes, fitting, classes
        self.widths = named, placed
        self.register_buffer("solved", torch.zeros((), dtype=torch.bool))  # the SVMs
        if fitting.svm:
            self.register_buffer("planes", torch.zeros(num_classes, named))
            self.register_buffer("biases", torch.zeros(num_classes))
        if fitting.regress:
            self.register_buffer("regressors", torch.zeros(num_classes, 4, placed))
            self.register_buffer("offsets", torch.zeros(num_classes, 4))

    def scores(self, named: Tensor) -> Tensor:
        """(B, D) -> (B, K) from 0 to 1: the logistic function of the margins.

        It is the same for all classes, whose SVMs are trained alike (one C, features scaled once),
        so margins and scores rank alike, within a class and across classes; 0.5 is on the plane.
        """
        return exactly(self.biases, named, self.planes).sigmoid()

    def codes(self, placed: Tensor) -> Tensor | None:
        """(B, E) -> (B, K, 4) what moves a box, for each class; None: boxes are not moved."""
        if not self.fitting.regress:
            return None
        flat = exactly(self.offsets.flatten(), placed, self.regressors.flatten(0, 1))
        return flat.unflatten(1, (-1, 4))

    def said(
        self, parts: Parts, logits: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        """(B, K) scores and (B, K, 4) codes of B regions; None: boxes are not moved.

        Args:
            parts: of all regions, at least one, which may be empty.
            logits: (b, D) -> (b, K + 1): whose softmax says what a region is before and without
                SVMs.
        """
        solved = self.fitting.svm and bool(self.solved)  # asked once, as a GPU is waited for
        order, scores, codes = [], [], []
        for rows, one in parts:
            order.append(rows)
            if solved:
                scores.append(self.scores(one.named))
            else:
                scores.append(logits(one.named).float().softmax(1)[:, : self.num_classes])
            if (code := self.codes(one.placed)) is not None:
                codes.append(code)
        back = torch.cat(order).argsort()
        return torch.cat(scores)[back], torch.cat(codes)[back] if codes else None

    def stages(
        self,
        describe: Describe,
        network: Callable[[], Iterable[Tensor]],
        settings: str,
        images: Callable[[], int | None],
    ) -> list[FitStage]:
        """ "svm" and "boxes", those that are asked for.

        Args:
            network: all weights and statistics that decide on the features.
            settings: all other things that do, as text.
            images: how many the training data has, None where that is not known.
        """
        data = FeatureExtraction(
            self.fitting, self.num_classes, images, describe, network, settings
        )
        made = [("svm", self._fit_svm)] * self.fitting.svm
        made += [("boxes", self._fit_boxes)] * self.fitting.regress

        def stage(
            name: str, fit: Callable[[FeatureExtraction, Iterator[Batch], bool], None]
        ) -> FitStage:
            last = name == made[-1][0]
            return FitStage(name, lambda batches: fit(data, batches, last), evaluate=last)

        return [stage(name, fit) for name, fit in made]

    def disk_needed(self, images: int, proposals: int) -> int:
        """Bytes at most of the features of so many images with so many proposals each."""
        data = FeatureExtraction(self.fitting, self.num_classes, lambda: images)
        kinds = (self._svm_columns(), self._boxes_columns())
        needed = [
            data.bytes(proposals, share, row_bytes(width, columns))
            for width, share, columns in (
                (self.widths[0], 1.0, kinds[0]),
                (self.widths[1], NEAR, kinds[1]),
            )
        ]
        wanted = (self.fitting.svm, self.fitting.regress)
        return max((n for n, there in zip(needed, wanted, strict=True) if there), default=0)

    def _fit_svm(self, data: FeatureExtraction, batches: Iterator[Batch], last: bool) -> None:
        folder, done = data.folder(), False
        store = folder.store("svm", self.widths[0], self._svm_columns())
        try:
            data.fill(store, batches, 1.0, self._all_regions, lambda said: said.named)
            rows, own, blocked = (store.column(name) for name in (ROWS, "own", "blocked"))
            planes, biases = mined_planes(rows, own, blocked, self.fitting.mining, self.classes)
            self.planes.copy_(planes)
            self.biases.copy_(biases)
            self.solved.fill_(True)
            done = True
        finally:
            store.close()
            folder.close(remove=done and last)

    def _fit_boxes(self, data: FeatureExtraction, batches: Iterator[Batch], last: bool) -> None:
        folder, done = data.folder(), False
        folder.drop("svm")  # a checkpoint has the SVMs
        store = folder.store("boxes", self.widths[1], self._boxes_columns())
        try:
            data.fill(store, batches, NEAR, self._near_regions, lambda said: said.placed)
            self._solve_boxes(store)
            done = True
        finally:
            store.close()
            folder.close(remove=done and last)

    def _svm_columns(self) -> Columns:
        return {"own": ((), "int16"), "blocked": ((self.num_classes,), "bool")}

    def _boxes_columns(self) -> Columns:
        return {"own": ((), "int16"), "code": ((4,), "float32")}

    def _solve_boxes(self, store: FeatureStore) -> None:
        rows, own, codes = store.column(), np.asarray(store.column("own")), store.column("code")
        scale = NORM * max(1, len(rows)) / max(total_norm(rows), 1e-12)
        device = self.regressors.device
        step = max(1, READ // self.widths[1])
        self.regressors.zero_()
        self.offsets.zero_()
        for number in range(self.num_classes):
            chosen = (own == number).nonzero()[0]
            if not len(chosen):
                continue  # its boxes stay as they were proposed
            parts = np.array_split(chosen, math.ceil(len(chosen) / step))
            weights, bias = ridge(
                (
                    (
                        torch.from_numpy(rows[part].astype(np.float32)).to(device) * scale,
                        torch.from_numpy(codes[part]).to(device),
                    )
                    for part in parts
                ),
                self.fitting.penalty,
            )
            self.regressors[number] = weights * scale
            self.offsets[number] = bias

    def _all_regions(self, boxes: Tensor, there: Tensor, truth: Truth) -> Chosen:
        """All proposals and true boxes of N images; of each its class where it is true, and the
        classes of which it is no negative."""
        own = torch.full_like(there, -1, dtype=torch.int64)
        boxes, own = torch.cat([boxes, truth.boxes.to(boxes)], 1), torch.cat([own, truth.labels], 1)
        there = torch.cat([there, truth.labels >= 0], 1)
        overlaps = iou(boxes, truth.boxes.to(boxes)) >= self.fitting.negative  # (N, P + R, R)
        kinds = torch.arange(self.num_classes, device=own.device)
        of_class = truth.labels[:, :, None] == kinds  # (N, R, K)
        blocked = torch.bmm(overlaps.float(), of_class.float()) > 0
        return boxes, there, own >= 0, {"own": own, "blocked": blocked}

    def _near_regions(self, boxes: Tensor, there: Tensor, truth: Truth) -> Chosen:
        """The proposals of N images that are near a true box; the class and the code of that."""
        n, p, _ = boxes.shape
        if not truth.labels.shape[1]:
            nothing = {"own": boxes.new_zeros(n, p), "code": torch.zeros_like(boxes)}
            return boxes, torch.zeros_like(there), torch.zeros_like(there), nothing
        overlap = iou(boxes, truth.boxes.to(boxes))
        most, row = overlap.masked_fill((truth.labels < 0)[:, None], -1.0).max(2)  # (N, P)
        theirs = truth.boxes.gather(1, row[:, :, None].expand(-1, -1, 4))
        code = encode(theirs.to(boxes), boxes)
        own = truth.labels.gather(1, row)
        chosen = there & (most > self.fitting.near)
        return boxes, chosen, torch.zeros_like(there), {"own": own, "code": code}


def exactly(biases: Tensor, rows: Tensor, planes: Tensor) -> Tensor:
    """(B, D) -> (B, K), in float32 where autocast is on too: in bf16 most margins would be ties."""
    with torch.autocast(rows.device.type, enabled=False):
        return F.linear(rows.float(), planes, biases)
