"""Detections of any program, from a file of results in COCO's format.

Each is a record of image_id, category_id, bbox (x, y, width, height) and score, which is checked
against the data set that it is of; and of segmentation or keypoints, where these are scored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cnnctl.data import result_masks, result_points
from cnnctl.data.base import Dataset
from cnnctl.data.coco_json import Faults, Wrong, parse, records, whole, without_collection
from cnnctl.data.coco_shapes import check_four, kind
from cnnctl.data.image_file import printable
from cnnctl.errors import Exit, UserError
from cnnctl.structures import Predictions

_ADVICE = "it must be COCO's results format: a list of {image_id, category_id, bbox, score}"
_MASK_ADVICE = (
    "it must be COCO's results format: a list of {image_id, category_id, segmentation, score}"
)
_POINT_ADVICE = (
    "it must be COCO's results format: a list of {image_id, category_id, keypoints, score}"
)
Columns = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]
_LARGEST = 1e30  # of a number of a box: its corners must be finite in float32


@dataclass(frozen=True)
class Results:
    """D detections in N images: by image, the most likely first, equal ones in the file's order.

    Args:
        images: N.
        image: (D,) int64 position of the image in its data set.
        boxes: (D, 4) float64 xyxy in pixels, as the file says them: past the edge too.
        scores: (D,) float64, any finite numbers.
        labels: (D,) int64 position in the data set's classes.
        sizes: (N, 2) int64 height and width of each image, and
        counts: (D,) bytes, the compressed run lengths of each mask; None where boxes are scored.
        points: (D, J, 3) float64 of each figure; None where it has none.
    """

    images: int
    image: NDArray[np.int64]
    boxes: NDArray[np.float64]
    scores: NDArray[np.float64]
    labels: NDArray[np.int64]
    sizes: NDArray[np.int64] | None = None
    counts: NDArray[np.object_] | None = None
    points: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.image)

    def predictions(self, start: int, stop: int) -> Predictions:
        """Those of the images from ``start`` to ``stop``, padded to the most that one of them has.

        Returns:
            boxes (N, D, 4) and scores (N, D) in float64, with the file's own digits; labels (N, D)
            int64 with -1 = none; masks and sizes, or keypoints, where there are some.
        """
        first, last = np.searchsorted(self.image, (start, stop))
        row = self.image[first:last] - start  # (d,) int64
        counts = np.bincount(row, minlength=stop - start)  # (N,)
        place = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
        shape = (stop - start, int(counts.max(initial=0)))
        boxes, scores = np.zeros((*shape, 4)), np.zeros(shape)
        labels = np.full(shape, -1, np.int64)
        boxes[row, place] = self.boxes[first:last]
        scores[row, place] = self.scores[first:last]
        labels[row, place] = self.labels[first:last]
        found = Predictions(
            boxes=torch.from_numpy(boxes),
            scores=torch.from_numpy(scores),
            labels=torch.from_numpy(labels),
        )
        if self.counts is not None and self.sizes is not None:
            own = np.split(self.counts[first:last], np.cumsum(counts)[:-1])
            found.masks = [masks.tolist() for masks in own]
            found.sizes = [(h, w) for h, w in self.sizes[start:stop].tolist()]
        if self.points is not None:
            points = np.zeros((*shape, *self.points.shape[1:]))
            points[row, place] = self.points[first:last]
            found.keypoints = torch.from_numpy(points)
        return found


def read_results(file: Path, data: Dataset, masks: bool = False, points: int = 0) -> Results:
    """The detections in a file, of the images and classes of ``data``.

    The file holds a list of results, or an object with that list under "annotations". An image
    without results has no detections; equal results are several detections, as the COCO API has it.

    Args:
        masks: every result must have one; without a bbox, it is the one around its mask.
        points: every result must have that many; without a bbox, it is the one around them.

    Raises:
        UserError: it cannot be read, or records in it are wrong; the first is named (code 3).
    """
    images, categories = ids_of(data)
    sizes = sizes_of(data) if masks else None
    try:
        raw = file.read_bytes()
    except OSError as error:
        problem = f"cannot be read: {error.strerror}"
        raise UserError(problem, file=printable(file), code=Exit.DATA) from None
    with without_collection():
        advice = _POINT_ADVICE if points else _MASK_ADVICE if masks else _ADVICE
        rows, name = _list(file, parse(file, raw, advice))
        known = _Known(images, categories, sizes, points)
        found = _read(rows, known)
        if found is None:
            _check_each(rows, name, known).tell(file)
            found = _read(rows, known)
    assert found is not None
    (image, category, boxes, scores), counts, figures = found
    boxes[:, 2:] += boxes[:, :2]
    image, label = _places(image, images), _places(category, categories)
    order = np.lexsort((-scores, image))  # stable
    if counts is not None:
        counts = counts[order]
    if figures is not None:
        figures = figures[order]
    columns = (image[order], boxes[order], scores[order], label[order])
    return Results(len(images), *columns, sizes, counts, figures)


class _Known:
    """What a result may say.

    Args:
        images: (N,) ids, categories: (K,) ids.
        sizes: (N, 2) height and width of each image; None where masks are not looked at.
        points: J; 0 where points are not looked at.
    """

    def __init__(
        self,
        images: NDArray[np.int64],
        categories: NDArray[np.int64],
        sizes: NDArray[np.int64] | None,
        points: int = 0,
    ) -> None:
        self.images, self.categories, self.points = images, categories, points
        self.sizes = (
            None if sizes is None else dict(zip(images.tolist(), sizes.tolist(), strict=True))
        )


def _read(
    rows: list[Any], known: _Known
) -> tuple[Columns, NDArray[np.object_] | None, NDArray[np.float64] | None] | None:
    """The columns of all results, the run lengths of masks and points; None if some are wrong."""
    counts = points = None
    if known.points:
        points = result_points.points_of(rows, known.points)
        if points is None:
            return None
        rows = result_points.boxed(rows, points)
    if known.sizes is not None:
        counts = result_masks.counts_of(rows, known.sizes)
        if counts is None:
            return None
        rows = _boxed(rows, counts, known.sizes)
    columns = _columns(rows)
    if columns is None or not _are_right(columns, known.images, known.categories):
        return None
    return columns, counts, points


def _boxed(
    rows: list[Any], counts: NDArray[np.object_], sizes: result_masks.Sizes
) -> list[dict[str, Any]]:
    """The results, each with a box."""
    bare = [place for place, row in enumerate(rows) if "bbox" not in row]
    boxes = result_masks.boxes_of(counts[bare], [sizes[rows[p]["image_id"]] for p in bare])
    rows = list(rows)
    for place, box in zip(bare, boxes, strict=True):
        rows[place] = {**rows[place], "bbox": box}
    return rows


def sizes_of(data: Any) -> NDArray[np.int64]:
    """(N, 2) height and width of each image; pixels are read where nothing else says them."""

    def size(index: int) -> tuple[int, int]:
        if data.size is not None:
            return data.size
        if hasattr(data, "image_size"):
            return data.image_size(index)
        h, w = data[index][0].shape[1:]
        return h, w

    return np.array([size(index) for index in range(len(data))], np.int64).reshape(-1, 2)


def ids_of(data: Dataset) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(N,) id of each image and (K,) of each class in files: the data's own, else from 1 up."""
    images = getattr(data, "image_ids", range(1, len(data) + 1))
    categories = getattr(data, "category_ids", range(1, len(data.classes) + 1))
    return np.array(images, np.int64), np.array(categories, np.int64)


def _list(file: Path, content: Any) -> tuple[list[Any], str]:
    """The results, and what to call the list."""
    if isinstance(content, list):
        return content, "results"
    rows = content.get("annotations") if isinstance(content, dict) else None
    if isinstance(rows, list):
        return rows, "annotations"
    raise UserError(
        f"holds {kind(content)}, must hold a list of results",
        file=printable(file),
        advice=_ADVICE,
        code=Exit.DATA,
    )


def _columns(rows: Sequence[Mapping[str, Any]]) -> Columns | None:
    """Image and category ids (D,), boxes (D, 4) xywh and scores (D,); None if some are wrong."""
    try:
        images = [row["image_id"] for row in rows]
        categories = [row["category_id"] for row in rows]
        boxes = [row["bbox"] for row in rows]
        scores = [row["score"] for row in rows]
        if set(map(len, boxes)) - {4} or set(map(type, boxes)) - {list}:
            return None
        numbers = list(chain.from_iterable(boxes))
        if set(map(type, chain(images, categories))) - {int}:
            return None
        if set(map(type, chain(numbers, scores))) - {int, float}:
            return None
        return (
            np.array(images, np.int64),
            np.array(categories, np.int64),
            np.array(numbers, np.float64).reshape(-1, 4),
            np.array(scores, np.float64),
        )
    except (TypeError, KeyError, OverflowError):
        return None


def _are_right(columns: Columns, images: NDArray[np.int64], categories: NDArray[np.int64]) -> bool:
    image, category, boxes, scores = columns
    return bool(
        np.isin(image, images).all()
        and np.isin(category, categories).all()
        and (np.abs(boxes) <= _LARGEST).all()
        and (boxes[:, 2:] >= 0).all()
        and (np.abs(scores) <= _LARGEST).all()
    )


def _check_each(rows: list[Any], name: str, known: _Known) -> Faults:
    """Every fault of every record, as words."""
    faults = Faults()
    images, categories = set(known.images.tolist()), set(known.categories.tolist())
    for record, row in records(rows, name, faults):
        try:
            _check(row, images, categories, known)
        except ValueError as wrong:
            faults.add(record, str(wrong))
    return faults


def _check(row: dict[str, Any], images: set[int], categories: set[int], wanted: _Known) -> None:
    for key, known, what in (
        ("image_id", images, "of an image of this split"),
        ("category_id", categories, f"of a class: {_range(categories)}"),
    ):
        number = whole(row, key)
        if number not in known:
            raise Wrong(f"{key}: {number} is no id {what}")
    if wanted.sizes is not None:
        result_masks.check_mask(row, wanted.sizes)
    if wanted.points:
        result_points.check_result(row, wanted.points)
    if "bbox" in row or (wanted.sizes is None and not wanted.points):
        _check_box(row)
    score = row.get("score")
    if isinstance(score, bool) or not isinstance(score, int | float):
        raise Wrong(f"score: is {kind(score) if 'score' in row else 'missing'}, must be a number")
    if not -_LARGEST <= score <= _LARGEST:
        raise Wrong("score: is not finite")


def _check_box(row: dict[str, Any]) -> None:
    if "bbox" not in row:
        raise Wrong("bbox: is missing")
    box = check_four(row["bbox"])
    if max(map(abs, box)) > _LARGEST:
        raise Wrong(f"bbox: {box} is beyond any image")
    if min(box[2:]) < 0:
        raise Wrong(f"bbox: {box} has a negative width or height")


def _range(ids: set[int]) -> str:
    gaps = ", with gaps" if max(ids) - min(ids) >= len(ids) else ""
    return f"{min(ids)} to {max(ids)}{gaps}"


def _places(values: NDArray[np.int64], ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """The position in ``ids`` of each value, all of which are there."""
    order = np.argsort(ids)
    return order[np.searchsorted(ids[order], values)]
