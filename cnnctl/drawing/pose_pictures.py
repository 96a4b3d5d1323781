"""Pictures of figures: a skeleton of sticks and points on each image, to (H, W, 3) uint8.

A figure has the colour of its class. A point that is seen, or said with some certainty, is full;
one that is hidden or a guess is a ring. The truth beside what was found is thin and white.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cnnctl.data.base import Dataset
from cnnctl.data.palette import Colour
from cnnctl.drawing import box_pictures, pictures
from cnnctl.drawing.box_marks import WHITE, Mark, class_colours, counted, marked, with_legend
from cnnctl.drawing.box_pictures import COLUMNS, SHOWN, SIDE
from cnnctl.drawing.pictures import BLACK
from cnnctl.metrics.pose import PoseEvaluator
from cnnctl.models.base import Model
from cnnctl.skeleton import Skeleton
from cnnctl.structures import Batch, Predictions

SURE = 0.2  # score from which a point that was found is no guess
_SMALL, _LARGE = 320, 640  # images up to the first are enlarged to at most the second
_LEGEND = 18  # pixels of a letter


@dataclass(frozen=True)
class Figure:
    """A skeleton to draw.

    Args:
        points: J of x, y in pixels of the image, and how sure: 0 is none, 1 a ring, 2 full.
        thin: half as wide.
    """

    points: Sequence[Sequence[float]]
    colour: Colour
    thin: bool = False


def draw_batch(batch: Batch, data: Dataset) -> dict[str, Tensor]:
    """The images that a network is trained on, augmented as they are, with boxes and figures."""
    part = batch.rows(slice(SHOWN))
    colours, skeleton = class_colours(len(data.classes), data.palette), _skeleton(data)
    shown, captions = [], []
    for one in _seen(part, None, data):
        marks = [
            Mark(box, colours[k], data.classes[k], thin=True)
            for box, k in zip(one.truth_boxes.tolist(), one.truth_labels.tolist(), strict=True)
        ]
        figures = [
            Figure(points, colours[k])
            for points, k in zip(one.truth.tolist(), one.truth_labels.tolist(), strict=True)
        ]
        shown.append(with_figures(marked(one.image, marks, SIDE), one.image, figures, skeleton))
        captions.append([counted(len(figures), "figure")])
    picture = pictures.gallery([_chw(one) for one in shown], captions, columns=COLUMNS, side=SIDE)
    return {"train/batch": picture}


def draw_evaluation(
    seen: Sequence[tuple[Batch, Predictions]],
    evaluator: PoseEvaluator,
    model: Model,
    data: Dataset,
) -> dict[str, Tensor]:
    """What a detector draws, and the figures that were found beside the truth."""
    drawn = box_pictures.draw_evaluation(seen, evaluator, model, data)
    images = [one for batch, said in seen for one in _seen(batch, said, data)]
    step = max(1, len(images) // SHOWN)
    chosen = images[::step][:SHOWN]
    return {**drawn, "val/poses": compared(chosen, data, evaluator.threshold)}


@dataclass(frozen=True)
class Seen:
    """One image on the CPU; boxes and points in its own pixels, the most likely first."""

    image: Tensor  # (3, h, w) uint8
    truth: Tensor  # (R, J, 3) x, y, visibility
    truth_boxes: Tensor  # (R, 4)
    truth_labels: Tensor  # (R,)
    found: Tensor  # (D, J, 3) x, y, score
    labels: Tensor  # (D,)
    scores: Tensor  # (D,)


def compared(images: Sequence[Seen], data: Dataset, least: float) -> Tensor:
    """Images with true figures, thin, and those that were found.

    Args:
        least: the score from which a figure is drawn.
    """
    colours, skeleton = class_colours(len(data.classes), data.palette), _skeleton(data)
    shown, captions = [], []
    for one in images:
        figures = [Figure(points, WHITE, thin=True) for points in one.truth.tolist()]
        sure = int((one.scores >= least).sum())
        for points, k in zip(reversed(one.found[:sure]), reversed(one.labels[:sure]), strict=True):
            figures.append(Figure(levels(points.tolist()), colours[int(k)]))
        shown.append(with_figures(marked(one.image, [], SIDE), one.image, figures, skeleton))
        captions.append([f"{counted(len(one.truth), 'figure')}, {sure} found"])
    picture = pictures.gallery([_chw(one) for one in shown], captions, columns=COLUMNS, side=SIDE)
    legend = [
        Mark((), colours[0], f"found, in the colour of its class (score at least {least:g})"),
        Mark((), WHITE, "truth", thin=True),
    ]
    return with_legend(picture, legend, _LEGEND)


def levels(points: Sequence[Sequence[float]]) -> list[tuple[float, float, float]]:
    """Points with scores -> with how sure they are, as ``Figure`` has it."""
    return [(x, y, 2.0 if score >= SURE else 1.0) for x, y, score in points]


def with_figures(
    picture: Tensor, image: Tensor, figures: Sequence[Figure], skeleton: Skeleton
) -> Tensor:
    """(H, W, 3) uint8 with figures on it; those first are below.

    Args:
        picture: ``image`` (C, h, w), maybe of another size; points are in the pixels of that.
    """
    from PIL import Image, ImageDraw

    canvas = Image.fromarray(picture.contiguous().numpy())
    pen = ImageDraw.Draw(canvas)
    across, down = canvas.width / image.shape[-1], canvas.height / image.shape[-2]
    width = max(2, round(max(canvas.size) / 200))
    for figure in figures:
        line = max(1, width // 2) if figure.thin else width
        at = [(x * across, y * down) for x, y, _ in figure.points]
        there = [_drawable(x, y, sure) for x, y, sure in figure.points]
        for a, b in skeleton.sticks:
            if there[a] and there[b]:  # a dark edge: it is seen on any background
                pen.line([*at[a], *at[b]], BLACK, line + 2)
                pen.line([*at[a], *at[b]], figure.colour, line)
        for (x, y), (*_, sure), shown in zip(at, figure.points, there, strict=True):
            if shown:
                _dot(pen, x, y, line + 1, figure.colour, full=sure > 1)
    return pictures._tensor(canvas)


def _drawable(x: float, y: float, sure: float) -> bool:
    return sure > 0 and abs(x) < 1e6 and abs(y) < 1e6  # which is no number, or far: not


def _dot(pen: Any, x: float, y: float, radius: int, colour: Colour, full: bool) -> None:
    pen.ellipse([x - radius - 1, y - radius - 1, x + radius + 1, y + radius + 1], fill=BLACK)
    inner = [x - radius, y - radius, x + radius, y + radius]
    if full:
        pen.ellipse(inner, fill=colour)
    else:
        pen.ellipse(inner, outline=colour)


def annotated(
    image: Tensor,
    said: Mapping[str, Any],
    classes: Sequence[str],
    palette: Sequence[Colour] | None,
    skeleton: Skeleton,
) -> Tensor:
    """``box_pictures.annotated`` with the figures in "keypoints", named points of [x, y, score].

    Args:
        skeleton: whose points those are.
    """
    h, w = image.shape[-2:]
    height, width = said.get("size") or (h, w)
    colours = dict(zip(classes, class_colours(len(classes), palette), strict=True))
    figures = []
    for row in sorted(said["detections"], key=lambda row: row["score"]):
        points = [row["keypoints"][name] for name in skeleton.names]
        inside = [(x * w / width, y * h / height, score) for x, y, score in points]
        figures.append(Figure(levels(inside), colours.get(row["class"], WHITE)))
    large = marked(image, [], _LARGE if max(h, w) <= _SMALL else max(h, w))
    drawn = with_figures(large, image, figures, skeleton)
    return box_pictures.annotated(_chw(drawn), {**said, "size": (height, width)}, classes, palette)


def _seen(batch: Batch, said: Predictions | None, data: Dataset) -> list[Seen]:
    """The images of a batch with truth and figures, all in input pixels."""
    truth, images = batch.targets, batch.images
    assert truth.labels is not None
    assert truth.boxes is not None
    assert truth.keypoints is not None
    pixels = pictures.displayable(images.pixels, data.mean, data.std)
    none = truth.keypoints.new_zeros(0, *truth.keypoints.shape[2:])
    rows = []
    for index, ((h, w), (height, width)) in enumerate(
        zip(images.sizes, images.originals, strict=True)
    ):
        factor = torch.tensor([w / width, h / height, 1.0])
        there = truth.labels[index] >= 0
        found, labels, scores = none, torch.zeros(0).long(), torch.zeros(0)
        if said is not None:
            assert said.labels is not None
            assert said.scores is not None
            assert said.keypoints is not None
            own = said.labels[index] >= 0
            found, labels = said.keypoints[index][own], said.labels[index][own]
            scores = said.scores[index][own]
        rows.append(
            Seen(
                pixels[index, :, :h, :w],
                truth.keypoints[index][there].cpu().float() * factor,
                truth.boxes[index][there].cpu().float() * factor[:2].repeat(2),
                truth.labels[index][there].cpu(),
                found.cpu().float() * factor,
                labels.cpu(),
                scores.cpu().float(),
            )
        )
    return rows


def _skeleton(data: Dataset) -> Skeleton:
    assert data.skeleton is not None, "data of poses has a skeleton"
    return data.skeleton


def _chw(picture: Tensor) -> Tensor:
    return picture.permute(2, 0, 1)
