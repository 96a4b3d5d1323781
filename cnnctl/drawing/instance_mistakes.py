"""What is right and wrong in each image of an evaluation, by the overlap of masks, and pictures of
the worst: a colour is a verdict."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cnnctl.data.base import Dataset
from cnnctl.data.palette import Colour
from cnnctl.drawing import pictures
from cnnctl.drawing.box_marks import Mark, faded, with_legend
from cnnctl.drawing.box_pictures import (
    _LEGEND,
    COLUMNS,
    MISSED,
    OVERLAP,
    SHOWN,
    SIDE,
    Seen,
    verdict,
)
from cnnctl.drawing.pictures import WRONG, coloured
from cnnctl.drawing.shape_marks import Shape, drawn
from cnnctl.metrics.instance import InstanceEvaluator
from cnnctl.metrics.mask_rows import without_void
from cnnctl.ops.run_lengths import decode_cropped

CONFUSED: Colour = (170, 60, 220)
FOUND: Colour = (60, 190, 110)


@dataclass(frozen=True)
class Case(Seen):
    """One image in its own pixels and what counts of it; masks are decoded when they are drawn.

    Args:
        image_id: its position in the data set.
        size: (h, w).
        truth_counts, counts: R and D run lengths.
        void: run lengths of pixels that belong to nobody, one at most.
    """

    image_id: int
    size: tuple[int, int]
    truth_counts: Sequence[bytes]
    counts: Sequence[bytes]
    void: Sequence[bytes]

    def overlaps(self) -> tuple[Tensor, Tensor]:
        """Of masks."""
        from faster_coco_eval.core import mask

        if not self.counts or not self.truth_counts:
            nothing = torch.zeros(len(self.counts), len(self.truth_counts))
            return nothing, nothing
        found, truth = (
            [{"size": [*self.size], "counts": one} for one in counts]
            for counts in (self.counts, self.truth_counts)
        )
        crowd = [[kind] * len(truth) for kind in (0, 1)]  # 1: over the area of what was found
        both = [torch.from_numpy(mask.iou(found, truth, kinds)).float() for kinds in crowd]
        return both[0], both[1]


@dataclass(frozen=True)
class Verdict:
    """What became of D detections and R objects.

    Args:
        right: (D,) bool; false: (D,) bool; missed: (R,) bool.
        instead: (D,) the object that a false detection says to be of another class, or -1. That
            object is not missed.
    """

    right: Tensor
    false: Tensor
    missed: Tensor
    instead: Tensor

    @property
    def mistakes(self) -> int:
        return int(self.missed.sum() + self.false.sum())


def cases_of(evaluator: InstanceEvaluator) -> list[Case]:
    """All images of an evaluation, with what was found of the evaluator's threshold at least."""
    rows = evaluator.rows()
    found = without_void(rows.detections, rows.void)
    found = found.at(found.scores >= evaluator.threshold)
    found = found.at(np.lexsort((-found.scores, found.image)))
    tables = (found, rows.truth, rows.void)
    ends = [np.searchsorted(one.image, [rows.images, rows.images + 1]) for one in tables]
    cases = []
    for n, image in enumerate(rows.images.tolist()):
        at = [np.arange(*end[:, n]) for end in ends]
        own, truth, void = found.at(at[0]), rows.truth.at(at[1]), rows.void.at(at[2])
        sizes = np.concatenate([own.sizes, truth.sizes, void.sizes, [[0, 0]]])
        columns = (truth.boxes, truth.labels, ~truth.ignored, truth.crowd)
        columns = (*columns, own.boxes, own.labels, own.scores)
        cases.append(
            Case(
                torch.zeros(3, 0, 0, dtype=torch.uint8),
                *(torch.from_numpy(column) for column in columns),
                image_id=image,
                size=(int(sizes[0, 0]), int(sizes[0, 1])),
                truth_counts=truth.counts.tolist(),
                counts=own.counts.tolist(),
                void=void.counts.tolist(),
            )
        )
    return cases


def with_pixels(one: Case, data: Dataset) -> Case:
    return dataclasses.replace(one, image=coloured(data[one.image_id][0]))


def judged(one: Seen, least: float) -> Verdict:
    """As ``box_pictures.verdict``, and which false detections are only of another class.

    Args:
        least: the score from which a detection counts.
    """
    right, missed, false = verdict(one, least)
    overlap, _ = one.overlaps()
    instead = torch.full((len(right),), -1)
    for place in false.nonzero()[:, 0].tolist():  # the most likely first
        candidates = overlap[place] * missed
        if len(candidates) and float(candidates.max()) >= OVERLAP:
            instead[place] = candidates.argmax()
            missed[instead[place]] = False
    return Verdict(right, false, missed, instead)


def draw_mistakes(
    evaluator: InstanceEvaluator, data: Dataset, cases: Sequence[Case] | None = None
) -> Tensor | None:
    """The images with the most mistakes, the worst first, coloured by verdict; None: there are no
    mistakes.

    Args:
        cases: those of ``cases_of``, where they are known.
    """
    least = evaluator.threshold
    verdicts = [(one, judged(one, least)) for one in (cases or cases_of(evaluator))]
    worst = sorted(verdicts, key=lambda pair: -pair[1].mistakes)[:SHOWN]
    worst = [(one, said) for one, said in worst if said.mistakes]
    if not worst:
        return None
    shown = [_coloured(with_pixels(one, data), said, data.classes) for one, said in worst]
    captions = [[_caption(one, said)] for one, said in worst]
    picture = pictures.gallery(shown, captions, columns=COLUMNS, side=SIDE)
    legend = [
        Mark((), FOUND, f"found (score at least {least:g})"),
        Mark((), WRONG, "false: not there, or found twice"),
        Mark((), CONFUSED, "of another class (said > is)"),
        Mark((), MISSED, "missed"),
    ]
    return with_legend(picture, legend, _LEGEND)


def _caption(one: Case, said: Verdict) -> str:
    confused = int((said.instead >= 0).sum())
    parts = {
        "missed": int(said.missed.sum()),
        "false": int(said.false.sum()) - confused,
        "of another class": confused,
    }
    wrong = [f"{count} {what}" for what, count in parts.items() if count]
    return ", ".join([f"{int(said.right.sum())} of {int(one.plain.sum())} found", *wrong])


def decoded(counts: Sequence[bytes], size: tuple[int, int]) -> list[Shape]:
    shapes = []
    for mask, left, top in (decode_cropped(one, size) for one in counts):
        shapes.append(Shape(mask, (left, top, left + mask.shape[1], top + mask.shape[0])))
    return shapes


def _coloured(one: Case, said: Verdict, classes: Sequence[str]) -> Tensor:
    """(3, H, W): what is missed above what is false above what is right."""
    shapes, marks = [], []
    lost, wrong, good = (
        kind.nonzero()[:, 0].tolist() for kind in (said.missed, said.false, said.right)
    )
    shapes += decoded([one.truth_counts[row] for row in lost], one.size)
    for row in lost:
        text = f"{classes[int(one.truth_labels[row])]} missed"
        marks.append(Mark(one.truth[row].tolist(), MISSED, text, thin=True))
    shapes += decoded([one.counts[row] for row in [*wrong, *good]], one.size)
    for row in wrong:
        name, owner = classes[int(one.labels[row])], int(said.instead[row])
        if owner >= 0:
            name = f"{name} > {classes[int(one.truth_labels[owner])]}"
        text, colour = f"{name} {float(one.scores[row]):.2f}", WRONG if owner < 0 else CONFUSED
        marks.append(Mark(one.boxes[row].tolist(), colour, text, thin=True))
    marks += [Mark(one.boxes[row].tolist(), FOUND, thin=True) for row in good]
    return drawn(faded(one.image), shapes, [mark.colour for mark in marks], marks[::-1], SIDE)
