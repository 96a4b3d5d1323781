"""Pictures of class maps: pure functions from tensors to (H, W, 3) uint8.

An image, its truth, what was predicted, where that is wrong, and an overlay stand in a row; below
them a legend of the classes that occur, in the data set's colours. Maps are enlarged by whole
factors and shrunk without blending, so that a colour is always a class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cnnctl.data.augmentations.base import resize_mask
from cnnctl.data.base import Dataset
from cnnctl.data.palette import Colour, voc_palette
from cnnctl.drawing import pictures
from cnnctl.drawing.pictures import BLACK, RIGHT, WRONG, coloured, percent
from cnnctl.metrics.segmentation import SegmentationEvaluator
from cnnctl.models.base import Model
from cnnctl.structures import IGNORE, Batch, Images, Predictions

if TYPE_CHECKING:
    from PIL.Image import Image

VOID: Colour = voc_palette(256)[IGNORE]
SIDE = 224  # pixels of the longer side of an image in a row
ROWS = 8  # of images in a picture

_GAP, _TITLE, _FONT, _LINE, _SWATCH = 8, 15, 14, 22, 14  # pixels
_EDGE = (150, 150, 150)  # round a swatch or a bar, so that a light colour is seen
_BARS = 40  # classes that are shown each with a bar
_NO_CHANGE = (0, 0, 0)  # a background of this colour leaves an overlaid image as it is

Legend = Sequence[tuple[str, Colour]]


def coloured_mask(mask: Tensor, palette: Sequence[Colour]) -> Tensor:
    """(h, w) uint8 classes -> (h, w, 3) uint8; what has no colour in the palette looks void."""
    table = torch.tensor(VOID, dtype=torch.uint8).repeat(IGNORE + 1, 1)
    known = list(palette[:IGNORE])
    if known:
        table[: len(known)] = torch.tensor(known, dtype=torch.uint8)
    return table[mask.cpu().long()]


def overlay(image: Tensor, mask: Tensor, palette: Sequence[Colour], alpha: float = 0.55) -> Tensor:
    """(C, h, w) uint8 under the colours of (h, w) uint8 classes -> (h, w, 3) uint8.

    A background that is black in the palette is left as it is, not darkened, and void too.
    """
    below = coloured(image.cpu()).permute(1, 2, 0)
    colours = coloured_mask(mask, palette)
    mixed = ((1 - alpha) * below + alpha * colours).round().to(torch.uint8)
    plain = mask.cpu() == IGNORE
    if palette and tuple(palette[0]) == _NO_CHANGE:
        plain |= mask.cpu() == 0
    return torch.where(plain[..., None], below, mixed)


def error_map(truth: Tensor, predicted: Tensor) -> Tensor:
    """(h, w) uint8 classes each -> (h, w, 3): green where right, red where wrong, void as void."""
    state = torch.where(truth == predicted, 0, 1).masked_fill(truth == IGNORE, 2)
    return torch.tensor([RIGHT, WRONG, VOID], dtype=torch.uint8)[state.cpu()]


@dataclass(frozen=True)
class Column:
    title: str
    pixels: Sequence[Tensor]  # (h, w, 3) uint8, one for each row
    photograph: bool = False  # is shrunk smoothly; a map keeps its colours


def table(
    columns: Sequence[Column],
    legend: Legend,
    captions: Sequence[str] = (),
    side: int = SIDE,
) -> Tensor:
    """Pictures in rows and titled columns, a line of text below each row, a legend at the end.

    Args:
        side: the longer side of a picture is brought to this: small ones are enlarged by whole
            factors, pixels kept.
    """
    from PIL import Image, ImageDraw

    scaled = [
        [_scaled(one, side, column.photograph) for one in column.pixels] for column in columns
    ]
    cell = max(96, *(picture.width for column in scaled for picture in column))
    width = max(len(columns) * (cell + _GAP) + _GAP, 360)
    lines = _flowing(legend, width - 2 * _GAP)
    spoken = _LINE if captions else 0
    heights = [max(p.height for p in row) + spoken + _GAP for row in zip(*scaled, strict=True)]
    top = _GAP + _LINE
    canvas = Image.new("RGB", (width, top + sum(heights) + len(lines) * _LINE + _GAP), "white")
    pen, font = ImageDraw.Draw(canvas), pictures._font(_TITLE)
    for place, column in enumerate(columns):
        middle = _GAP + place * (cell + _GAP) + cell // 2
        text = pictures._cut(column.title, font, cell)
        pen.text((middle, _GAP + _TITLE // 2), text, BLACK, font, anchor="mm")
        below = top
        for picture, height in zip(scaled[place], heights, strict=True):
            canvas.paste(picture, (middle - picture.width // 2, below))
            below += height
    small = pictures._font(_FONT)
    for caption, end in zip(captions, accumulate(heights), strict=bool(captions)):
        text = pictures._cut(caption, small, width - 2 * _GAP)
        pen.text((_GAP, top + end - _GAP - _LINE // 2), text, BLACK, small, anchor="lm")
    _draw_legend(pen, lines, top + sum(heights))
    return pictures._tensor(canvas)


def _scaled(pixels: Tensor, side: int, smooth: bool) -> Image:
    from PIL import Image

    picture = Image.fromarray(pixels.contiguous().numpy())
    longer = max(picture.size)
    if side >= longer:
        size = (picture.width * (side // longer), picture.height * (side // longer))
        return picture.resize(size, Image.Resampling.NEAREST)
    size = (max(1, picture.width * side // longer), max(1, picture.height * side // longer))
    how = Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST
    return picture.resize(size, how)


def _flowing(legend: Legend, width: int) -> list[list[tuple[int, str, Colour]]]:
    """Lines of (x, text, colour), as many entries in each as fit the width."""
    font = pictures._font(_FONT)
    lines: list[list[tuple[int, str, Colour]]] = []
    x = width
    for name, colour in legend:
        text = pictures._cut(name, font, min(200, width - 3 * _SWATCH))
        long = _SWATCH + 6 + int(font.getlength(text)) + 16
        if not lines or x + long > width + 16:
            lines.append([])
            x = 0
        lines[-1].append((x, text, colour))
        x += long
    return lines


def _draw_legend(pen: Any, lines: Sequence[Sequence[tuple[int, str, Colour]]], top: int) -> None:
    font = pictures._font(_FONT)
    for number, line in enumerate(lines):
        middle = top + number * _LINE + _LINE // 2
        for x, text, colour in line:
            left = _GAP + x
            box = (left, middle - _SWATCH // 2, left + _SWATCH, middle + _SWATCH // 2)
            pen.rectangle(box, fill=tuple(colour), outline=_EDGE)
            pen.text((left + _SWATCH + 6, middle), text, BLACK, font, anchor="lm")


def class_legend(
    masks: Sequence[Tensor], classes: Sequence[str], palette: Sequence[Colour]
) -> list[tuple[str, Colour]]:
    """(name, colour) of the classes that occur in (h, w) uint8 masks, in order, void at the end."""
    found = torch.zeros(IGNORE + 1, dtype=torch.bool)
    for mask in masks:
        found[mask.cpu().flatten().long()] = True
    named = zip(classes, palette, found[: len(classes)].tolist(), strict=False)
    legend = [(name, colour) for name, colour, occurs in named if occurs]
    return [*legend, ("void", VOID)] if found[len(classes) :].any() else legend


def compared(
    images: Sequence[Tensor],
    truths: Sequence[Tensor],
    predicted: Sequence[Tensor],
    classes: Sequence[str],
    palette: Sequence[Colour],
    side: int = SIDE,
) -> Tensor:
    """A row for each image: itself, truth, prediction, errors, overlay, and how much is right.

    Args:
        images: (C, h, w) uint8 each.
        truths, predicted: (h, w) uint8 each, of the sizes of the images.
    """
    columns = [
        Column("image", [coloured(one.cpu()).permute(1, 2, 0) for one in images], True),
        Column("truth", [coloured_mask(mask, palette) for mask in truths]),
        Column("prediction", [coloured_mask(mask, palette) for mask in predicted]),
        Column("errors", [error_map(*pair) for pair in zip(truths, predicted, strict=True)]),
        Column(
            "overlay",
            [overlay(one, mask, palette) for one, mask in zip(images, predicted, strict=True)],
            True,
        ),
    ]
    captions = []
    for truth, said in zip(truths, predicted, strict=True):
        known = truth != IGNORE
        right = int(((truth == said) & known).sum()) / max(int(known.sum()), 1)
        captions.append(f"{right:.1%} of pixels right" if known.any() else "no labelled pixel")
    legend = class_legend([*truths, *predicted], classes, palette)
    legend += [("errors: right", RIGHT), ("errors: wrong", WRONG)]
    return table(columns, legend, captions, side)


def class_ious(ious: Mapping[str, float], palette: Mapping[str, Colour]) -> Tensor:
    """A bar for each class in its colour, the best on top; of more than 40 the 20 best and worst.

    Args:
        ious: of each class, 0 to 1.
        palette: colour of each class.
    """
    from PIL import Image, ImageDraw

    rows: list[tuple[str, float | None]]
    rows = [(name, ious[name]) for name in sorted(ious, key=lambda name: -ious[name])]
    half, left_out = _BARS // 2, len(rows) - _BARS
    if left_out > 0:
        rows = [*rows[:half], (f"({left_out} more between)", None), *rows[-half:]]
    names, room = 160, 360  # pixels of the column of names and of a whole bar
    size = (names + room + 90, 40 + _LINE * len(rows))
    canvas = Image.new("RGB", size, "white")
    pen, font = ImageDraw.Draw(canvas), pictures._font(_FONT)
    mean = sum(ious.values()) / max(len(ious), 1)
    title = f"IU of each class (mean {mean:.2%}, dashed)"
    pen.text((canvas.width // 2, 16), title, BLACK, pictures._font(_TITLE), anchor="mm")
    for place, (name, iu) in enumerate(rows):
        middle = 32 + place * _LINE + _LINE // 2
        shown = pictures._cut(name, font, names - 2 * _GAP)
        pen.text((names - _GAP, middle), shown, BLACK, font, anchor="rm")
        if iu is not None:
            bar = (names, middle - 8, names + max(1, round(room * iu)), middle + 8)
            pen.rectangle(bar, fill=tuple(palette[name]), outline=_EDGE)
            pen.text((names + room + _GAP, middle), f"{iu:.1%}", BLACK, font, anchor="lm")
    x = names + round(room * mean)
    for y in range(32, canvas.height - 8, 8):
        pen.line((x, y, x, y + 4), fill=WRONG, width=2)
    return pictures._tensor(canvas)


def annotated(
    image: Tensor, said: Mapping[str, Any], classes: Sequence[str], palette: Sequence[Colour] | None
) -> Tensor:
    """An image, its predicted map and both together, with the share of each class.

    Args:
        image: (1 or 3, h, w) uint8.
        said: "mask", (h, w) uint8 classes, and "top", rows of "class" and "share".
    """
    mask, colours = said["mask"], palette or voc_palette(len(classes))
    mask = resize_mask(mask[None], (image.shape[1], image.shape[2]))[0]  # a large image is shrunk
    columns = [
        Column("image", [coloured(image.cpu()).permute(1, 2, 0)], True),
        Column("prediction", [coloured_mask(mask, colours)]),
        Column("overlay", [overlay(image, mask, colours)], True),
    ]
    shares = {row["class"]: row["share"] for row in said["top"]}
    legend = [
        (f"{name} {percent(shares[name])}" if name in shares else name, colour)
        for name, colour in class_legend([mask], classes, colours)
    ]
    return table(columns, legend, side=448 if max(mask.shape) > SIDE else 256)


def draw_batch(batch: Batch, data: Dataset) -> dict[str, Tensor]:
    """The images that a network is trained on, augmented as they are, and their masks."""
    assert batch.targets.mask is not None
    part = batch.rows(slice(ROWS))
    assert part.targets.mask is not None
    images, masks = list(_as_scored(part.images, data)), []
    for image, mask in zip(images, part.targets.mask.cpu(), strict=True):
        masks.append(mask[: image.shape[1], : image.shape[2]])
    colours = data.palette or voc_palette(len(data.classes))
    overlaid = [overlay(one, mask, colours) for one, mask in zip(images, masks, strict=True)]
    columns = [
        Column("image", [image.permute(1, 2, 0) for image in images], True),
        Column("truth", [coloured_mask(mask, colours) for mask in masks]),
        Column("overlay", overlaid, True),
    ]
    return {"train/batch": table(columns, class_legend(masks, data.classes, colours))}


def draw_evaluation(
    seen: Sequence[tuple[Batch, Predictions]],
    evaluator: SegmentationEvaluator,
    model: Model,
    data: Dataset,
) -> dict[str, Tensor]:
    """Some images with what was predicted, the confusion matrix, IU of each class, filters."""
    colours = data.palette or voc_palette(len(data.classes))
    images, truths, predicted = [], [], []
    for batch, predictions in seen:
        assert batch.targets.mask is not None
        assert predictions.mask is not None
        images += _as_scored(batch.images, data)
        truths += batch.targets.mask.cpu()
        predicted += predictions.mask.cpu()
    step = max(1, len(images) // ROWS)
    images, truths, predicted = (kept[::step][:ROWS] for kept in (images, truths, predicted))
    for place, image in enumerate(images):
        inside = (slice(image.shape[1]), slice(image.shape[2]))
        truths[place], predicted[place] = truths[place][inside], predicted[place][inside]
    shape = seen[0][0].images.pixels.shape[1:]
    drawn = {
        "val/predictions": compared(images, truths, predicted, data.classes, colours),
        "val/confusion": pictures.confusion(evaluator.confusion(), data.classes),
        "val/class_iu": class_ious(
            evaluator.per_class(), dict(zip(data.classes, colours, strict=False))
        ),
        "weights/first_layer": pictures.first_layer(model, shape, data.classes),
    }
    return {name: picture for name, picture in drawn.items() if picture is not None}


def _as_scored(images: Images, data: Dataset) -> list[Tensor]:
    """(3, h, w) uint8 of each image, without padding and in its original size."""
    shown = []
    pixels = pictures.displayable(images.pixels, data.mean, data.std)
    for row, (h, w), original in zip(pixels, images.sizes, images.originals, strict=True):
        row = row[:, :h, :w]
        if (h, w) != tuple(original):
            resized = F.interpolate(row[None].float(), original, mode="bilinear", antialias=True)
            row = resized[0].round().to(torch.uint8)
        shown.append(row)
    return shown
