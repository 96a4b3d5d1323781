"""Pictures of detection: pure functions from tensors to (H, W, 3) uint8.

A colour is a class. What is wrong is dashed: a false detection in red, a missed object in yellow,
whatever its class.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cnnctl.data.base import Dataset
from cnnctl.data.palette import Colour
from cnnctl.drawing import detection_charts, pictures
from cnnctl.drawing.box_marks import WHITE, Mark, class_colours, counted, marked, with_legend
from cnnctl.drawing.pictures import BLACK, WRONG
from cnnctl.drawing.template_pictures import draw_templates
from cnnctl.metrics.detection import DetectionEvaluator
from cnnctl.models.base import Model
from cnnctl.ops.boxes import intersection, iou
from cnnctl.structures import Batch, Images, Predictions, Targets

OVERLAP = 0.5  # IoU from which a detection is right
SIDE, COLUMNS, SHOWN = 512, 3, 9  # pixels of an image's longer side, images in a row, in all
MISSED: Colour = (255, 222, 0)

_LEGEND = 18  # pixels of a letter
_SMALL, _LARGE = 320, 640  # images up to the first are enlarged to at most the second to annotate


@dataclass(frozen=True)
class Seen:
    """One image of an evaluation on the CPU; boxes in its own pixels, the most likely first."""

    image: Tensor  # (3, h, w) uint8
    truth: Tensor  # (R, 4)
    truth_labels: Tensor  # (R,)
    plain: Tensor  # (R,) bool: neither a crowd nor difficult, so that it must be found
    crowd: Tensor  # (R,) bool
    boxes: Tensor  # (D, 4)
    labels: Tensor  # (D,)
    scores: Tensor  # (D,)

    def overlaps(self) -> tuple[Tensor, Tensor]:
        """(D, R) IoU of each detection with each object, and the share of it that lies in that."""
        area = (self.boxes[:, 2:] - self.boxes[:, :2]).prod(1, keepdim=True).clamp(min=1e-6)
        return iou(self.boxes, self.truth), intersection(self.boxes, self.truth) / area


def draw_batch(batch: Batch, data: Dataset) -> dict[str, Tensor]:
    """The images that a network is trained on, augmented as they are, and their boxes."""
    part = batch.rows(slice(SHOWN))
    colours = class_colours(len(data.classes), data.palette)
    shown, captions = [], []
    for one in _seen(part, None, data):
        rows = (one.truth, one.truth_labels, one.plain, one.crowd)
        marks = [
            Mark(box, colours[k], data.classes[k], thin=not (plain or crowd), hatched=crowd)
            for box, k, plain, crowd in zip(*(column.tolist() for column in rows), strict=True)
        ]
        shown.append(_chw(marked(one.image, _smallest_on_top(marks), SIDE)))
        captions.append([counted(len(marks), "box", "boxes")])
    picture = pictures.gallery(shown, captions, columns=COLUMNS, side=SIDE)
    return {"train/batch": with_legend(picture, _kinds_of_truth(part.targets), _LEGEND)}


def draw_sample(image: Tensor, truth: Mapping[str, Any], data: Dataset, side: int) -> Tensor:
    """(3, H, W): one image of a data set and its boxes, without their names.

    Args:
        image: (C, h, w) uint8, truth: as the data set gives them.
    """
    colours = class_colours(len(data.classes), data.palette)
    rows = zip(*(truth[name].tolist() for name in ("boxes", "labels", "crowd")), strict=True)
    marks = [Mark(box, colours[k], thin=True, hatched=crowd) for box, k, crowd in rows]
    return _chw(marked(image, _smallest_on_top(marks), side))


def _kinds_of_truth(targets: Targets) -> list[Mark]:
    """What a legend says of hatched and thin boxes, where there are any."""
    kinds = []
    if targets.crowd is not None and targets.crowd.any():
        kinds.append(Mark((), BLACK, "crowd: not trained on", hatched=True))
    if targets.difficult is not None and targets.difficult.any():
        kinds.append(Mark((), WHITE, "difficult: not trained on", thin=True))
    return kinds


def draw_evaluation(
    seen: Sequence[tuple[Batch, Predictions]],
    evaluator: DetectionEvaluator,
    model: Model,
    data: Dataset,
) -> dict[str, Tensor]:
    """Some images with what was found, those with most mistakes, and charts of all images."""
    images = [one for batch, said in seen for one in _seen(batch, said, data)]
    colours = class_colours(len(data.classes), data.palette)
    step, least = max(1, len(images) // SHOWN), evaluator.threshold
    drawn: dict[str, Tensor | None] = {
        "val/predictions": compared(images[::step][:SHOWN], data.classes, colours, least),
        "weights/first_layer": pictures.first_layer(
            model, seen[0][0].images.pixels.shape[1:], data.classes
        ),
        "weights/templates": draw_templates(model.templates(), data.classes),
        **detection_charts.draw_charts(evaluator, data.classes, colours),
    }
    mistakes = [(_mistakes(one, least), -place) for place, one in enumerate(images)]
    worst = [images[-place] for wrong, place in sorted(mistakes, reverse=True)[:SHOWN] if wrong]
    if worst:
        drawn["val/mistakes"] = compared(worst, data.classes, colours, least)
    return {name: picture for name, picture in drawn.items() if picture is not None}


def compared(
    images: Sequence[Seen], classes: Sequence[str], colours: Sequence[Colour], least: float
) -> Tensor:
    """Images with truth and what was found, and below each how much of it is right.

    Args:
        least: the score from which a detection is drawn.
    """
    shown, captions = [], []
    for one in images:
        right, missed, false = verdict(one, least)
        marks = [
            Mark(box.tolist(), WHITE, thin=True, hatched=crowd)
            for box, lost, crowd in zip(one.truth, missed.tolist(), one.crowd.tolist(), strict=True)
            if not lost
        ]
        marks += [
            Mark(box, MISSED, f"{classes[k]} missed", dashed=True)
            for box, k in zip(
                one.truth[missed].tolist(), one.truth_labels[missed].tolist(), strict=True
            )
        ]
        sure = int((one.scores >= least).sum())
        for place in reversed(range(sure)):  # the most likely on top
            k, wrong = int(one.labels[place]), bool(false[place])
            text = f"{classes[k]} {float(one.scores[place]):.2f}"
            colour: Colour = WRONG if wrong else colours[k]
            marks.append(Mark(one.boxes[place].tolist(), colour, text, dashed=wrong))
        shown.append(_chw(marked(one.image, marks, SIDE)))
        found = f"{int(right.sum())} of {int(one.plain.sum())} found"
        captions.append([f"{found}, {int(false.sum())} false"])
    picture = pictures.gallery(shown, captions, columns=COLUMNS, side=SIDE)
    legend = [
        Mark((), colours[0], f"found, in the colour of its class (score at least {least:g})"),
        Mark((), WRONG, "false", dashed=True),
        Mark((), MISSED, "missed", dashed=True),
        Mark((), WHITE, "truth (with nothing on it: difficult, need not be found)", thin=True),
    ]
    if all((one.plain | one.crowd).all() for one in images):
        legend[-1] = Mark((), WHITE, "truth", thin=True)
    if any(one.crowd.any() for one in images):
        legend.append(Mark((), WHITE, "crowd", thin=True, hatched=True))
    return with_legend(picture, legend, _LEGEND)


def verdict(one: Seen, least: float) -> tuple[Tensor, Tensor, Tensor]:
    """(D,) right, (R,) missed, (D,) false: bool, of the detections that are likely enough.

    As VOC and COCO match: the most likely first, each with the free object of its class that it
    overlaps most. What falls on a crowd or on a difficult object is neither right nor false.
    """
    right = torch.zeros(len(one.boxes), dtype=torch.bool)
    false, free = right.clone(), one.plain.clone()
    overlap, inside = one.overlaps()
    other = one.labels[:, None] != one.truth_labels  # (D, R)
    overlap = overlap.masked_fill(other, 0)
    excused = torch.where(one.crowd, inside, overlap)  # a crowd's box holds many
    excused = excused.masked_fill(other | one.plain, 0)
    for place in range(int((one.scores >= least).sum())):
        candidates = overlap[place] * free
        if len(candidates) and float(candidates.max()) >= OVERLAP:
            right[place] = True
            free[candidates.argmax()] = False
        else:
            false[place] = not (excused[place] >= OVERLAP).any()
    return right, free, false


def _mistakes(one: Seen, least: float) -> int:
    _, missed, false = verdict(one, least)
    return int(missed.sum() + false.sum())


def annotated(
    image: Tensor, said: Mapping[str, Any], classes: Sequence[str], palette: Sequence[Colour] | None
) -> Tensor:
    """An image with what was found in it, and below it how many of each class.

    Args:
        image: (1 or 3, h, w) uint8; a small one is enlarged, a large one keeps its size.
        said: "detections", rows of "class", "score" and "box" (xyxy). "size", (h, w) of the image
            whose pixels the boxes are in, where ``image`` is a smaller copy of it.
    """
    h, w = image.shape[-2:]
    longer = max(h, w)
    height, width = said.get("size") or (h, w)
    colours = dict(zip(classes, class_colours(len(classes), palette), strict=True))
    rows = sorted(said["detections"], key=lambda row: row["score"])
    marks = []
    for row in rows:
        left, top, right, bottom = row["box"]
        box = (left * w / width, top * h / height, right * w / width, bottom * h / height)
        text = f"{row['class']} {row['score']:.2f}"
        marks.append(Mark(box, colours.get(row["class"], WHITE), text))
    picture = marked(image, marks, _LARGE if longer <= _SMALL else longer)
    counts = Counter(row["class"] for row in reversed(rows))  # the likeliest class first
    best = {row["class"]: row["score"] for row in rows}  # the last is the likeliest
    legend = [
        Mark((), colours.get(name, WHITE), f"{name} {best[name]:.2f}" + _others(count - 1))
        for name, count in counts.items()
    ]
    if not legend:
        side = max(picture.shape[:2])
        return pictures.gallery([_chw(picture)], [["nothing found"]], side=side)
    return with_legend(picture, legend, max(14, round(max(picture.shape[:2]) / 45)))


def _seen(batch: Batch, said: Predictions | None, data: Dataset) -> list[Seen]:
    """The images of a batch with truth and detections, all in input pixels."""
    truth = batch.targets
    assert truth.boxes is not None
    assert truth.labels is not None
    pixels = pictures.displayable(batch.images.pixels, data.mean, data.std)
    crowd = _flags(truth.crowd, truth.labels)
    plain = ~(crowd | _flags(truth.difficult, truth.labels))
    rows = []
    for index, ((h, w), factor) in enumerate(_factors(batch.images)):
        there = (truth.labels[index] >= 0).cpu()
        boxes, labels, scores = torch.zeros(0, 4), torch.zeros(0).long(), torch.zeros(0)
        if said is not None:
            assert said.boxes is not None
            assert said.labels is not None
            assert said.scores is not None
            found = (said.labels[index] >= 0).cpu()
            boxes = said.boxes[index].cpu().float()[found] * factor
            labels, scores = said.labels[index].cpu()[found], said.scores[index].cpu()[found]
        rows.append(
            Seen(
                pixels[index, :, :h, :w],
                truth.boxes[index].cpu().float()[there] * factor,
                truth.labels[index].cpu()[there],
                plain[index][there],
                crowd[index][there],
                boxes,
                labels,
                scores.float(),
            )
        )
    return rows


def _flags(column: Tensor | None, like: Tensor) -> Tensor:
    return (torch.zeros_like(like) if column is None else column).cpu().bool()


def _factors(images: Images) -> list[tuple[tuple[int, int], Tensor]]:
    """(h, w) of each image inside the padding, and what takes original to input pixels."""
    return [
        ((h, w), torch.tensor([w / before[1], h / before[0]]).repeat(2))
        for (h, w), before in zip(images.sizes, images.originals, strict=True)
    ]


def _smallest_on_top(marks: list[Mark]) -> list[Mark]:
    return sorted(marks, key=lambda m: -(m.box[2] - m.box[0]) * (m.box[3] - m.box[1]))


def _others(count: int) -> str:
    return f" and {count} more" if count else ""


def _chw(picture: Tensor) -> Tensor:
    return picture.permute(2, 0, 1)
