"""Pictures of instance segmentation: pure functions from tensors to (H, W, 3) uint8.

A colour is a class, and objects of a class differ in how light theirs is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from cnnctl.data.base import Dataset
from cnnctl.data.palette import Colour
from cnnctl.drawing import box_pictures, chart_pictures, detection_charts, pictures
from cnnctl.drawing.box_marks import Mark, class_colours, counted, sized, with_legend
from cnnctl.drawing.box_pictures import _LARGE, _LEGEND, _SMALL, COLUMNS, SHOWN, SIDE, Seen, verdict
from cnnctl.drawing.instance_mistakes import Case, cases_of, decoded, draw_mistakes, with_pixels
from cnnctl.drawing.mask_target_pictures import draw_batch_targets, stacked
from cnnctl.drawing.shape_marks import Shape, drawn, over, shades, shapes_of, smallest_first
from cnnctl.metrics.instance import InstanceEvaluator
from cnnctl.models.base import Model
from cnnctl.structures import Batch, Predictions, Targets

VOID: Colour = (224, 224, 192)
_PAIR, _PAIRS = 400, 8  # pixels of an image beside its truth, and how many such pairs


def draw_batch(batch: Batch, data: Dataset) -> dict[str, Tensor]:
    """The images that a network is trained on, augmented as they are, with boxes and masks."""
    part = batch.rows(slice(SHOWN))
    colours = class_colours(len(data.classes), data.palette)
    shown, captions = [], []
    factors = [factor.tolist()[:2] for _, factor in box_pictures._factors(part.images)]
    for row, one in enumerate(box_pictures._seen(part, None, data)):
        shapes, void = (
            [shape.scaled(*factors[row]) for shape in some]
            for some in _shapes_of_batch(part.targets, row)
        )
        shown.append(_truth(one, shapes, void, data.classes, colours, SIDE))
        captions.append([counted(len(shapes), "mask")])
    picture = pictures.gallery(shown, captions, columns=COLUMNS, side=SIDE)
    kinds = box_pictures._kinds_of_truth(part.targets)
    if part.targets.void_crop is not None:
        kinds.append(Mark((), VOID, "belongs to nobody"))
    return {"train/batch": with_legend(picture, kinds, _LEGEND)}


def draw_sample(image: Tensor, truth: Mapping[str, Any], data: Dataset, side: int) -> Tensor:
    """(3, H, W): one image of a data set and its objects, without their names.

    Args:
        image: (C, h, w) uint8, truth: as the data set gives them.
    """
    colours = class_colours(len(data.classes), data.palette)
    shapes = shapes_of(truth["bits"], truth["crops"], truth["frames"])
    shapes, own = smallest_first(shapes, shades(truth["labels"].tolist(), colours))
    if "void_crop" in truth:
        shapes += shapes_of(truth["bits"], truth["void_crop"][None], truth["void_frame"][None])
        own.append(VOID)
    return drawn(image, shapes, own, [], side)


def draw_evaluation(
    seen: Sequence[tuple[Batch, Predictions]],
    evaluator: InstanceEvaluator,
    model: Model,
    data: Dataset,
) -> dict[str, Tensor]:
    """Some images with what was found, those with most mistakes, and charts of all images."""
    colours = class_colours(len(data.classes), data.palette)
    cases = cases_of(evaluator)
    some = [with_pixels(one, data) for one in cases[:: max(1, len(cases) // _PAIRS)][:_PAIRS]]
    named: dict[str, Tensor | None] = {
        "val/predictions": compared(some, data.classes, colours, evaluator.threshold),
        "val/mistakes": draw_mistakes(evaluator, data, cases),
        "weights/first_layer": pictures.first_layer(
            model, seen[0][0].images.pixels.shape[1:], data.classes
        ),
        **detection_charts.draw_charts(evaluator, data.classes, colours),
        "val/mask_precision_recall": chart_pictures.precision_recall(
            detection_charts.never_rising(evaluator.mask_curves()),
            evaluator.per_class(),
            dict(zip(data.classes, colours, strict=True)),
            "precision and recall of each class, by masks",
        ),
    }
    if targets := draw_batch_targets(model, seen[0][0], data):
        named["val/mask_targets"] = stacked(targets)
    return {name: picture for name, picture in named.items() if picture is not None}


def compared(
    images: Sequence[Case], classes: Sequence[str], colours: Sequence[Colour], least: float
) -> Tensor:
    """Truth on the left and what was found on the right of each pair, and how much is right.

    Args:
        least: the score from which a detection is drawn.
    """
    shown, captions = [], []
    for one in images:
        right, _, false = verdict(one, least)
        shapes, void = (decoded(counts, one.size) for counts in (one.truth_counts, one.void))
        shown.append(_truth(one, shapes, void, classes, colours, _PAIR))
        shown.append(_said(one, classes, colours))
        found = f"{int(right.sum())} of {int(one.plain.sum())} found, {int(false.sum())} false"
        captions += [["truth"], [f"prediction: {found}"]]
    picture = pictures.gallery(shown, captions, columns=4, side=_PAIR)
    text = f"a colour is a class, lighter and darker ones its objects (score at least {least:g})"
    legend = [Mark((), colours[0], text)]
    if any(one.void for one in images):
        legend.append(Mark((), VOID, "belongs to nobody"))
    return with_legend(picture, legend, _LEGEND)


def annotated(
    image: Tensor, said: Mapping[str, Any], classes: Sequence[str], palette: Sequence[Colour] | None
) -> Tensor:
    """An image with what was found in it, and below it how many of each class.

    Args:
        image: (1 or 3, h, w) uint8; a small one is enlarged, a large one keeps its size.
        said: as ``box_pictures.annotated`` has it; "segmentation" of each row is COCO's run
            lengths, and "size", (h, w) of the image that they are of, must be there.
    """
    longer = max(image.shape[-2:])
    picture = sized(image, _LARGE if longer <= _SMALL else longer)
    rows = sorted(said["detections"], key=lambda row: -row["score"])
    places = {name: place for place, name in enumerate(classes)}
    colours = shades([places[row["class"]] for row in rows], class_colours(len(classes), palette))
    height, width = said["size"]
    shapes = decoded([row["segmentation"]["counts"].encode() for row in rows], (height, width))
    across, down = picture.shape[2] / width, picture.shape[1] / height
    scaled = [shape.scaled(across, down) for shape in shapes]
    picture = over(picture, *smallest_first(scaled, colours))
    return box_pictures.annotated(picture, said, classes, palette)


def _truth(
    one: Seen,
    shapes: Sequence[Shape],
    void: Sequence[Shape],
    classes: Sequence[str],
    colours: Sequence[Colour],
    side: int,
) -> Tensor:
    """(3, H, W): the objects of an image; what belongs to nobody is pale."""
    labels: list[int] = one.truth_labels.tolist()
    names = [str(classes[k]) for k in labels]
    rows = zip(one.truth.tolist(), labels, names, one.crowd.tolist(), strict=True)
    marks = [Mark(box, colours[k], name, thin=True, hatched=crowd) for box, k, name, crowd in rows]
    shapes, own = smallest_first(shapes, shades(labels, colours))
    own += [VOID] * len(void)
    return drawn(one.image, [*shapes, *void], own, box_pictures._smallest_on_top(marks), side)


def _said(one: Case, classes: Sequence[str], colours: Sequence[Colour]) -> Tensor:
    """(3, H, W): what was found."""
    labels: list[int] = one.labels.tolist()
    rows = zip(one.boxes.tolist(), labels, one.scores.tolist(), strict=True)
    marks = [Mark(box, colours[k], f"{classes[k]} {s:.2f}", thin=True) for box, k, s in rows]
    shapes, own = smallest_first(decoded(one.counts, one.size), shades(labels, colours))
    return drawn(one.image, shapes, own, marks[::-1], _PAIR)


def _shapes_of_batch(truth: Targets, row: int) -> tuple[list[Shape], list[Shape]]:
    """The objects of an image, and what belongs to nobody, in original pixels.

    An augmentation may have left less of an object than its mask says: what its box holds.
    """
    assert truth.labels is not None
    assert truth.boxes is not None
    assert truth.bits is not None
    assert truth.crops is not None
    assert truth.frames is not None
    there = (truth.labels[row] >= 0).cpu()
    bits = truth.bits[row]
    whole = shapes_of(bits, truth.crops[row].cpu()[there], truth.frames[row].cpu()[there])
    boxes = truth.boxes[row].cpu()[there].tolist()
    shapes = [Shape(s.mask, s.frame, tuple(box)) for s, box in zip(whole, boxes, strict=True)]
    if truth.void_crop is None or truth.void_frame is None:
        return shapes, []
    return shapes, shapes_of(bits, truth.void_crop[row, None], truth.void_frame[row, None])
