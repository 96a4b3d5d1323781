"""A picture of a data set: a row of images for each class, with their truth on them."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from cnnctl.data.base import Dataset, classes_in
from cnnctl.randomness import permutation

_ROWS, _TITLE = 100, 150  # of the grid; the second in pixels
_GRID = (12, 72)  # images in a row and pixels of a cell
_WITH_TRUTH = (6, 144)  # likewise where something is drawn on them
_EDGE = 4  # pixels of a cell that stay white

DrawSample = Callable[[Tensor, Mapping[str, Any], Dataset, int], Tensor]


def class_grid(data: Dataset, draw: DrawSample | None = None) -> bytes:
    """A PNG with a row for each class (the first 100), its name and images in a fixed order.

    Args:
        draw: puts its truth on an image, as ``Task.draw_sample``; None: the images alone.
    """
    from PIL import Image, ImageDraw

    rows = min(len(data.classes), _ROWS)
    columns, cell = _GRID if draw is None else _WITH_TRUTH
    canvas = Image.new("RGB", (_TITLE + columns * cell, rows * cell), "white")
    pen = ImageDraw.Draw(canvas)
    for row, members in enumerate(_members(data, rows, columns)):
        # The built-in font has western letters only.
        name = data.classes[row].encode("latin-1", "replace").decode("latin-1")
        pen.text((4, row * cell + cell // 2 - 6), name[:24], fill="black")
        for column, index in enumerate(members):
            pixels, truth = data[index]
            if draw is not None:
                pixels = draw(pixels, truth, data, cell - _EDGE)
            image = _thumbnail(pixels, cell - _EDGE)
            canvas.paste(image, (_TITLE + column * cell, row * cell))
    encoded = io.BytesIO()
    canvas.save(encoded, "PNG")
    return encoded.getvalue()


def _members(data: Dataset, rows: int, columns: int) -> list[list[int]]:
    """Positions of up to ``columns`` samples of each of the first ``rows`` classes."""
    members: list[list[int]] = [[] for _ in range(rows)]
    labels = getattr(data, "labels", None) if "label" in data.fields else None
    for index in permutation(len(data), "show").tolist():
        classes = classes_in(data[index][1]) if labels is None else {int(labels[index])}
        for label in classes:
            if label < rows and len(members[label]) < columns:
                members[label].append(index)
        if all(len(found) == columns for found in members):
            break
    return members


def _thumbnail(pixels: Tensor, room: int):
    """(C, H, W) uint8 -> RGB that fits ``room``; small ones enlarged by whole factors."""
    from PIL import Image

    array = pixels.permute(1, 2, 0).contiguous().numpy()
    image = Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array).convert("RGB")
    factor = room // max(image.size)
    if factor > 1:
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    image.thumbnail((room, room))
    return image
