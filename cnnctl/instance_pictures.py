"""Pictures of instance segmentation: pure functions from tensors to (H, W, 3) uint8.

A colour is a class, and objects of a class differ in how light theirs is. Where errors are drawn a
colour is a verdict: found, missed, false, of another class. What counts there is the overlap of
masks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cnnctl import box_pictures, pictures
from cnnctl.box_marks import Mark, class_colours, counted, faded, marked, sized, with_legend
from cnnctl.box_pictures import _LARGE, _LEGEND, _SMALL, COLUMNS, MISSED, SHOWN, SIDE, Seen, verdict
from cnnctl.data.base import Dataset
from cnnctl.data.palette import Colour
from cnnctl.metrics.instance import InstanceEvaluator
from cnnctl.models.base import Model
from cnnctl.ops.run_lengths import decode, encode
from cnnctl.pictures import WRONG
from cnnctl.shape_marks import Shape, first_on_top, painted, shades, shape_of, shapes_of
from cnnctl.structures import Batch, Predictions

CONFUSED: Colour = (170, 60, 220)
FOUND: Colour = (60, 190, 110)
VOID: Colour = (224, 224, 192)
_PAIR, _PAIRS = 400, 8  # pixels of an image beside its truth, and how many such pairs


@dataclass(frozen=True)
class SeenShapes(Seen):
    """One image of an evaluation, in its own pixels."""

    truth_shapes: Sequence[Shape]  # R
    shapes: Sequence[Shape]  # D
    void: Sequence[Shape]  # one, or none: pixels that belong to nobody
    shared: tuple[Tensor, Tensor]  # (D, R) each, as ``overlaps`` has them, of masks

    def overlaps(self) -> tuple[Tensor, Tensor]:
        return self.shared


def draw_batch(batch: Batch, data: Dataset) -> dict[str, Tensor]:
    """The images that a network is trained on, augmented as they are, with boxes and masks."""
    part = batch.rows(slice(SHOWN))
    colours = class_colours(len(data.classes), data.palette)
    shown, captions = [], []
    for one in _seen(part, None, data):
        shown.append(_truth(one, data.classes, colours, SIDE))
        captions.append([counted(len(one.truth_shapes), "mask")])
    picture = pictures.gallery(shown, captions, columns=COLUMNS, side=SIDE)
    kinds = box_pictures._kinds_of_truth(part.targets)
    return {"train/batch": with_legend(picture, kinds, _LEGEND)}


def draw_evaluation(
    seen: Sequence[tuple[Batch, Predictions]],
    evaluator: InstanceEvaluator,
    model: Model,
    data: Dataset,
) -> dict[str, Tensor]:
    """Some images with what was found, those with most mistakes, and charts of all images."""
    images = [one for batch, said in seen for one in _seen(batch, said, data)]
    colours = class_colours(len(data.classes), data.palette)
    step, least = max(1, len(images) // _PAIRS), evaluator.threshold
    drawn: dict[str, Tensor | None] = {
        "val/predictions": compared(images[::step][:_PAIRS], data.classes, colours, least),
        "val/mistakes": mistakes(images, data.classes, least),
        "weights/first_layer": pictures.first_layer(
            model, seen[0][0].images.pixels.shape[1:], data.classes
        ),
        **box_pictures._charts(evaluator, data.classes, colours),
    }
    return {name: picture for name, picture in drawn.items() if picture is not None}


def compared(
    images: Sequence[SeenShapes], classes: Sequence[str], colours: Sequence[Colour], least: float
) -> Tensor:
    """Truth on the left and what was found on the right of each pair, and how much is right.

    Args:
        least: the score from which a detection is drawn.
    """
    shown, captions = [], []
    for one in images:
        right, _, false = verdict(one, least)
        shown += [_truth(one, classes, colours, _PAIR), _said(one, classes, colours, least)]
        found = f"{int(right.sum())} of {int(one.plain.sum())} found, {int(false.sum())} false"
        captions += [["truth"], [f"prediction: {found}"]]
    picture = pictures.gallery(shown, captions, columns=4, side=_PAIR)
    text = f"a colour is a class, lighter and darker ones its objects (score at least {least:g})"
    return with_legend(picture, [Mark((), colours[0], text)], _LEGEND)


def mistakes(
    images: Sequence[SeenShapes], classes: Sequence[str], least: float, most: int = SHOWN
) -> Tensor | None:
    """Those with the most mistakes, the worst first, coloured by verdict; None: there are none."""
    judged = [(one, *sorted_out(one, least)) for one in images]
    wrong = [int(missed.sum() + false.sum()) for _, _, missed, false, _ in judged]
    order = sorted((-count, place) for place, count in enumerate(wrong) if count)[:most]
    if not order:
        return None
    shown, captions = [], []
    for _, place in order:
        one, right, missed, false, instead = judged[place]
        shown.append(_judged(one, right, missed, false, instead, classes))
        confused = int((instead >= 0).sum())
        parts = {"missed": int(missed.sum()), "false": int(false.sum()) - confused}
        parts["of another class"] = confused
        said = [f"{count} {what}" for what, count in parts.items() if count]
        captions.append([", ".join([f"{int(right.sum())} of {int(one.plain.sum())} found", *said])])
    picture = pictures.gallery(shown, captions, columns=COLUMNS, side=SIDE)
    legend = [
        Mark((), FOUND, f"found (score at least {least:g})"),
        Mark((), WRONG, "false: nothing there, or found twice"),
        Mark((), CONFUSED, "of another class (said > is)"),
        Mark((), MISSED, "missed"),
    ]
    return with_legend(picture, legend, _LEGEND)


def sorted_out(one: Seen, least: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(D,) right, (R,) missed, (D,) false: bool, and (D,) which object a false one confuses, or -1.

    A missed object that a false detection of another class overlaps by half is that one's, and is
    not missed.
    """
    right, missed, false = verdict(one, least)
    overlap, _ = one.overlaps()
    instead = torch.full((len(right),), -1)
    for place in false.nonzero()[:, 0].tolist():  # the most likely first
        candidates = overlap[place] * missed
        if len(candidates) and float(candidates.max()) >= box_pictures.OVERLAP:
            instead[place] = candidates.argmax()
            missed[instead[place]] = False
    return right, missed, false, instead


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
    labels = [places[row["class"]] for row in rows]
    own = shades(labels, class_colours(len(classes), palette))
    height, width = said["size"]
    shapes = [
        shape_of(decode(row["segmentation"]["counts"].encode(), (height, width))) for row in rows
    ]
    across, down = picture.shape[2] / width, picture.shape[1] / height
    picture = _painted(picture, [shape.scaled(across, down) for shape in shapes], own)
    return box_pictures.annotated(picture, said, classes, palette)


def _truth(one: SeenShapes, classes: Sequence[str], colours: Sequence[Colour], side: int) -> Tensor:
    """(3, H, W): the objects of an image; what belongs to nobody is pale."""
    labels = one.truth_labels.tolist()
    own = [*shades(labels, colours), *[VOID] * len(one.void)]
    names, tints = [classes[k] for k in labels], [colours[k] for k in labels]
    rows = zip(one.truth.tolist(), tints, names, one.crowd.tolist(), strict=True)
    marks = [Mark(box, tint, name, thin=True, hatched=crowd) for box, tint, name, crowd in rows]
    return _drawn(
        one.image, [*one.truth_shapes, *one.void], own, box_pictures._smallest_on_top(marks), side
    )


def _said(
    one: SeenShapes, classes: Sequence[str], colours: Sequence[Colour], least: float
) -> Tensor:
    sure = int((one.scores >= least).sum())
    labels = one.labels[:sure].tolist()
    rows = zip(one.boxes[:sure].tolist(), labels, one.scores.tolist()[:sure], strict=True)
    marks = [
        Mark(box, colours[k], f"{classes[k]} {score:.2f}", thin=True) for box, k, score in rows
    ]
    return _drawn(one.image, one.shapes[:sure], shades(labels, colours), marks[::-1], _PAIR)


def _judged(
    one: SeenShapes,
    right: Tensor,
    missed: Tensor,
    false: Tensor,
    instead: Tensor,
    classes: Sequence[str],
) -> Tensor:
    shapes, colours, marks = [], [], []

    def take(shape: Shape, box: Tensor, colour: Colour, text: str) -> None:
        shapes.append(shape)
        colours.append(colour)
        marks.append(Mark(box.tolist(), colour, text, thin=True))

    for place in missed.nonzero()[:, 0].tolist():  # on top
        name = classes[int(one.truth_labels[place])]
        take(one.truth_shapes[place], one.truth[place], MISSED, f"{name} missed")
    for place in false.nonzero()[:, 0].tolist():
        name, score = classes[int(one.labels[place])], float(one.scores[place])
        owner = int(instead[place])
        if owner >= 0:
            name = f"{name} > {classes[int(one.truth_labels[owner])]}"
        colour = WRONG if owner < 0 else CONFUSED
        take(one.shapes[place], one.boxes[place], colour, f"{name} {score:.2f}")
    for place in right.nonzero()[:, 0].tolist():
        take(one.shapes[place], one.boxes[place], FOUND, "")
    return _drawn(faded(one.image), shapes, colours, marks[::-1], SIDE)


def _drawn(
    image: Tensor,
    shapes: Sequence[Shape],
    colours: Sequence[Colour],
    marks: Sequence[Mark],
    side: int,
) -> Tensor:
    """(C, h, w) -> (3, H, W) uint8: shapes and boxes, both in pixels of the image, enlarged."""
    picture = sized(image, side)
    across, down = picture.shape[2] / image.shape[2], picture.shape[1] / image.shape[1]
    picture = _painted(picture, [shape.scaled(across, down) for shape in shapes], colours)
    placed = []
    for mark in marks:
        left, top, right, bottom = mark.box
        box = (left * across, top * down, right * across, bottom * down)
        placed.append(dataclasses.replace(mark, box=box))
    return marked(picture, placed, max(picture.shape[1:])).permute(2, 0, 1)


def _painted(picture: Tensor, shapes: Sequence[Shape], colours: Sequence[Colour]) -> Tensor:
    """A picture with shapes in its own pixels, the first on top."""
    h, w = picture.shape[1:]
    return painted(picture, first_on_top(shapes, (h, w)), colours, max(1, round(max(h, w) / 300)))


def _seen(batch: Batch, said: Predictions | None, data: Dataset) -> list[SeenShapes]:
    """The images of a batch with truth and detections, all in input pixels."""
    seen = []
    factors = [factor.tolist()[:2] for _, factor in box_pictures._factors(batch.images)]
    for row, one in enumerate(box_pictures._seen(batch, said, data)):
        truth, void = _truth_shapes(batch, row, cut=said is None)
        size = batch.images.originals[row]
        counts = [] if said is None or said.masks is None else said.masks[row]
        found = [shape_of(decode(count, size)) for count in counts]
        shared = _shared(counts, [_encoded(shape, size) for shape in truth], size)
        scaled = [[shape.scaled(*factors[row]) for shape in some] for some in (truth, found, void)]
        columns = {field.name: getattr(one, field.name) for field in dataclasses.fields(one)}
        seen.append(
            SeenShapes(
                **columns, truth_shapes=scaled[0], shapes=scaled[1], void=scaled[2], shared=shared
            )
        )
    return seen


def _truth_shapes(batch: Batch, row: int, cut: bool) -> tuple[list[Shape], list[Shape]]:
    """The objects of an image, and what belongs to nobody, in original pixels.

    Args:
        cut: an augmentation may have left less of an object than its mask says: what its box holds.
    """
    truth = batch.targets
    assert truth.labels is not None
    assert truth.bits is not None
    assert truth.crops is not None
    assert truth.frames is not None
    there = (truth.labels[row] >= 0).cpu()
    bits = truth.bits[row]
    shapes = shapes_of(bits, truth.crops[row].cpu()[there], truth.frames[row].cpu()[there])
    if cut:
        assert truth.boxes is not None
        boxes = truth.boxes[row].cpu()[there].tolist()
        shapes = [Shape(s.mask, s.frame, tuple(b)) for s, b in zip(shapes, boxes, strict=True)]
    if truth.void_crop is None or truth.void_frame is None:
        return shapes, []
    return shapes, shapes_of(bits, truth.void_crop[row, None], truth.void_frame[row, None])


def _encoded(shape: Shape, size: tuple[int, int]) -> bytes:
    """The run lengths of a shape whose frame is whole pixels of an image of ``size``."""
    left, top, _, _ = shape.frame
    return encode(shape.mask, round(left), round(top), size)


def _shared(
    found: Sequence[bytes], truth: Sequence[bytes], size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """(D, R) IoU of masks, and the share of each of D that lies in each of R."""
    from faster_coco_eval.core import mask

    if not found or not truth:
        return torch.zeros(len(found), len(truth)), torch.zeros(len(found), len(truth))
    one, other = (
        [{"size": [*size], "counts": counts} for counts in some] for some in (found, truth)
    )
    both = [mask.iou(one, other, [crowd] * len(other)) for crowd in (0, 1)]
    return torch.from_numpy(both[0]).float(), torch.from_numpy(both[1]).float()
