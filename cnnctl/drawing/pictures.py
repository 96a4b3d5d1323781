"""Pictures for people: pure functions from tensors to (H, W, 3) uint8.

Pillow and matplotlib are imported when the first picture is drawn, and not at all in a run without
TensorBoard. Nothing here touches a random number or any state of matplotlib's.
"""

from __future__ import annotations

import importlib.util
import math
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont, ImageFont

SIDE = 128  # pixels of an image in a gallery: 4 x 32, and nearly 5 x 28
RIGHT, WRONG, BLACK = (26, 140, 80), (204, 41, 32), (20, 20, 20)

_GAP, _BORDER, _FONT, _LINE = 8, 5, 14, 18  # pixels
_DPI = 100
_COUNTED, _NAMED = 25, 120  # classes up to which a confusion matrix has its counts, its names
_BARS = 40  # classes that are shown each with a bar


def displayable(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Normalised (N, C, H, W) float on any device -> (N, 3, H, W) uint8 on the CPU.

    Args:
        mean, std: per channel, of pixels scaled to 0..1: what the normalisation used.
    """
    pixels = pixels.detach().cpu().float()
    scale = 255 * torch.tensor(std)[:, None, None]
    shift = 255 * torch.tensor(mean)[:, None, None]
    return coloured((pixels * scale + shift).round().clamp(0, 255).to(torch.uint8))


def coloured(pixels: Tensor) -> Tensor:
    """(..., C, H, W) -> (..., 3, H, W): grey as RGB; of other channel counts the first as grey."""
    if pixels.shape[-3] == 3:
        return pixels
    return pixels[..., :1, :, :].expand(*pixels.shape[:-3], 3, *pixels.shape[-2:])


def gallery(
    images: Sequence[Tensor],
    captions: Sequence[Sequence[str]] = (),
    colours: Sequence[tuple[int, int, int] | None] = (),
    columns: int = 8,
    side: int = SIDE,
) -> Tensor:
    """A grid of images, each with its lines of text below and a border where it has a colour.

    Args:
        images: (3, h, w) uint8 each; small ones are enlarged by whole factors, pixels kept.
        captions: lines for each image; those too long for its width are cut with an ellipsis.
        colours: of border and text; None is no border and black text.
        side: of the square that every image fits into, in pixels.
    """
    from PIL import Image, ImageDraw

    lines = max((len(caption) for caption in captions), default=0)
    columns = max(1, min(columns, len(images)))
    width = side + 2 * _BORDER + _GAP
    height = side + 2 * _BORDER + lines * _LINE + 3 + _GAP
    rows = -(-len(images) // columns)
    canvas = Image.new("RGB", (columns * width + _GAP, rows * height + _GAP), "white")
    pen, font = ImageDraw.Draw(canvas), _font(_FONT)
    for index, pixels in enumerate(images):
        left, top = _GAP + index % columns * width, _GAP + index // columns * height
        picture = _fitted(pixels, side)
        x = left + _BORDER + (side - picture.width) // 2
        y = top + _BORDER + (side - picture.height) // 2
        colour = colours[index] if colours else None
        if colour is not None:
            edge = (x - _BORDER, y - _BORDER, x + picture.width + 4, y + picture.height + 4)
            pen.rectangle(edge, fill=colour)
        canvas.paste(picture, (x, y))
        middle, below = left + width // 2 - _GAP // 2, top + side + 2 * _BORDER + 3
        for line, text in enumerate(captions[index] if captions else ()):
            shown = _cut(text, font, width - 2)
            pen.text((middle, below + line * _LINE), shown, colour or BLACK, font, anchor="mt")
    return _tensor(canvas)


def label_lines(label: Tensor, classes: Sequence[str]) -> list[str]:
    """The class of an integer label; of a soft one (K,) the two largest shares that stand out.

    A second share stands out if it is larger than the third: what label smoothing gives to all
    classes alike is no information.
    """
    if not label.is_floating_point():
        return [classes[int(label)]]
    shares, order = label.sort(descending=True)
    floor = float(shares[2]) if len(shares) > 2 else 0.0
    mixed = len(shares) > 1 and float(shares[1]) > floor + 1e-4
    shown = list(zip(shares.tolist(), order.tolist(), strict=True))[: 1 + mixed]
    return [f"{classes[index]} {share:.2f}" for share, index in shown]


def confusion(counts: Tensor, classes: Sequence[str]) -> Tensor:
    """A confusion matrix (K, K), truth in rows, coloured by the share of the true class.

    Small shares are darker than in proportion, so that single mistakes are seen. Counts are
    written for up to 25 classes, names for up to 120.
    """
    from matplotlib.colors import PowerNorm

    k, counted = len(classes), len(classes) <= _COUNTED
    inches = max(3.0, 0.62 * k) if counted else min(14.0, 5 + 0.12 * k)  # of the square
    size = 11.0 if counted else max(5.0, min(9.0, 0.8 * 72 * inches / k))
    names = [_short(name) for name in classes] if k <= _NAMED else [str(k)]
    label = _inches(names, size)
    axes = _axes(inches, inches, left=label, right=0.0 if counted else 1.1, bottom=label)
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    image = axes.imshow(shares.numpy(), cmap="Blues", norm=PowerNorm(0.5, 0, 1), aspect="auto")
    axes.set_xlabel("predicted", fontsize=13)
    axes.set_ylabel("true", fontsize=13)
    total, right = int(counts.sum()), int(counts.diagonal().sum())
    axes.set_title(f"{right:,} of {total:,} right ({right / max(total, 1):.2%})", fontsize=14)
    if k <= _NAMED:
        axes.set_xticks(range(k), names, rotation=90, fontsize=size)
        axes.set_yticks(range(k), names, fontsize=size)
    if counted:
        for row, column in counts.nonzero().tolist():
            text, colour = f"{int(counts[row, column]):,}", _on_blue(float(shares[row, column]))
            axes.text(column, row, text, ha="center", va="center", color=colour)
    else:
        bar = axes.figure.colorbar(image, cax=axes.inset_axes((1.02, 0.2, 0.02, 0.6)))
        bar.set_ticks([0, 0.01, 0.05, 0.2, 0.5, 1], labels=["0", "1%", "5%", "20%", "50%", "100%"])
        bar.set_label("share of the true class")
    return _drawn(axes)


def _on_blue(share: float) -> str:
    return "white" if share > 0.35 else "black"


def class_accuracies(accuracies: Mapping[str, float]) -> Tensor:
    """A bar for each class, the best on top; of more than 40 classes the 20 best and worst."""
    rows = sorted(accuracies.items(), key=lambda row: row[1])
    half = _BARS // 2
    left_out = len(rows) - _BARS
    if left_out > 0:
        between = [(f"({left_out} more between)", math.nan)]
        rows = [*rows[:half], *between, *rows[-half:]]
    names, values = [_short(name) for name, _ in rows], [value for _, value in rows]
    axes = _axes(6, 0.28 * len(rows), left=_inches(names, 11), right=0.5, bottom=0)
    axes.barh(range(len(rows)), values, color="#4a7fb5")
    axes.set_yticks(range(len(rows)), names, fontsize=11)
    for place, value in enumerate(values):
        if not math.isnan(value):
            axes.text(1.02, place, f"{value:.1%}", va="center", fontsize=11)
    mean = sum(accuracies.values()) / max(len(accuracies), 1)
    axes.axvline(mean, color="#b5532a", linestyle="--", linewidth=1.5)
    axes.set_title(f"accuracy of each class (mean {mean:.2%}, dashed)", fontsize=14)
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25%", "50%", "75%", "100%"])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.spines[["top", "right"]].set_visible(False)
    return _drawn(axes)


def first_layer(model: nn.Module, shape: Sequence[int], classes: Sequence[str]) -> Tensor | None:
    """What a network's first layer looks for; None where that is no picture.

    A convolution's filters as RGB or grey, at most 64 of them; the weights of a linear layer that
    sees the pixels as templates, with their classes where there is one for each. Each is scaled
    by its own largest weight; mid-grey is zero.

    Args:
        shape: (C, H, W) of the network's input.
    """
    found = (m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear)))
    layer = next(found, None)
    captions: list[list[str]] = []
    if isinstance(layer, nn.Conv2d):
        weight = layer.weight  # (O, C, kh, kw)
    elif isinstance(layer, nn.Linear) and layer.in_features == math.prod(shape):
        weight = layer.weight.reshape(-1, *shape)  # (O, C, H, W)
        captions = [[name] for name in classes] if len(weight) == len(classes) else []
    else:
        return None
    if weight.shape[1] not in (1, 3):
        return None
    weight = weight.detach()[:64].cpu().float()
    largest = weight.abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-12)
    pictures = ((weight / largest + 1) * 127.5).round().to(torch.uint8)
    side = SIDE if len(pictures) <= 16 or captions else SIDE // 2
    return gallery(list(coloured(pictures)), captions[:64], side=side)


def annotated(image: Tensor, title: str, ranked: Sequence[tuple[str, float]]) -> Tensor:
    """An image with what was predicted for it below: a title, and a bar for each class.

    Args:
        image: (1 or 3, h, w) uint8; brought to between 256 and 640 pixels.
        ranked: (class, probability), the best first.
    """
    from PIL import Image, ImageDraw

    picture = _fitted(coloured(image), 640 if max(image.shape[-2:]) > 256 else 256)
    width, row = max(picture.width, 320) + 2 * _GAP, _LINE + 5
    height = picture.height + 3 * _GAP + 30 + row * len(ranked)
    canvas = Image.new("RGB", (width, height), "white")
    canvas.paste(picture, ((width - picture.width) // 2, _GAP))
    pen, large, small = ImageDraw.Draw(canvas), _font(22), _font(_FONT)
    y = picture.height + 2 * _GAP
    pen.text((width // 2, y), _cut(title, large, width - 2 * _GAP), BLACK, large, anchor="mt")
    names = width * 2 // 5  # the column of class names
    room = width - names - 3 * _GAP - 60
    for index, (name, probability) in enumerate(ranked):
        top = y + 34 + index * row
        middle = top + row // 2
        pen.text((names, middle), _cut(name, small, names - _GAP), BLACK, small, anchor="rm")
        start = names + _GAP
        bar = (start, top + 3, start + round(room * probability), top + row - 3)
        pen.rectangle(bar, fill=(74, 127, 181))
        pen.text((bar[2] + _GAP, middle), percent(probability), BLACK, small, anchor="lm")
    return _tensor(canvas)


def percent(probability: float) -> str:
    return f"{probability:.0%}" if 0.1 <= probability <= 0.994 else f"{probability:.1%}"


def _fitted(pixels: Tensor, side: int) -> Image:
    """(3, h, w) uint8 in a square of ``side``: enlarged by a whole factor, or shrunk smoothly."""
    from PIL import Image

    picture = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    factor = side // max(picture.size)
    if factor >= 1:
        size = (picture.width * factor, picture.height * factor)
        return picture.resize(size, Image.Resampling.NEAREST)
    picture.thumbnail((side, side))
    return picture


def _tensor(canvas: Image) -> Tensor:
    import numpy as np

    return torch.from_numpy(np.array(canvas))


@cache
def _font(size: int) -> FreeTypeFont | ImageFont:
    """DejaVu Sans, which has Greek, Cyrillic and more, from matplotlib's files; else Pillow's."""
    from PIL import ImageFont

    found = importlib.util.find_spec("matplotlib")  # imports nothing
    if found is not None and found.origin is not None:
        path = Path(found.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
        if path.is_file():
            return ImageFont.truetype(path, size)
    return ImageFont.load_default(size)


def _cut(text: str, font: Any, width: int) -> str:
    """One line of ``text`` that is at most ``width`` pixels wide; a number at its end stays."""
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    head, _, tail = text.rpartition(" ")
    number = head and len(tail) < 8 and any(letter.isdigit() for letter in tail)
    head, end = (head, f"… {tail}") if number else (text, "…")
    while head and font.getlength(f"{head}{end}") > width:
        head = head[:-1]
    return f"{head}{end}"


def _short(name: str, length: int = 20) -> str:
    name = " ".join(name.split())
    return name if len(name) <= length else f"{name[: length - 1]}…"


def _inches(names: Sequence[str], points: float) -> float:
    """About how long the longest of ``names`` is in a font of that size."""
    return max((len(name) for name in names), default=0) * points * 0.65 / 72


def _axes(width: float, height: float, *, left: float, right: float, bottom: float) -> Axes:
    """Axes of that many inches in a figure that leaves room for labels, in inches, around them.

    matplotlib can find the room itself, but takes three times as long. The figure is not pyplot's:
    no backend is chosen and nothing is kept after it is drawn.
    """
    from matplotlib.figure import Figure

    left, right, bottom, top = left + 0.5, right + 0.25, bottom + 0.5, 0.45
    total = (left + width + right, bottom + height + top)
    figure = Figure(figsize=total, dpi=_DPI)
    place = (left / total[0], bottom / total[1], width / total[0], height / total[1])
    return figure.add_axes(place)


def _drawn(axes: Axes) -> Tensor:
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    figure = axes.get_figure(root=True)
    assert figure is not None
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        text.set_parse_math(False)  # a class may be called $x$
    canvas = FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        canvas.draw()
    return torch.from_numpy(np.array(canvas.buffer_rgba())[..., :3].copy())
