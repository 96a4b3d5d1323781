"""Seconds of COCO's and VOC's average precision against the usual programs, in one process.

    python tests/benchmarks/average_precision.py [--images 5000] [--detections 100] [--repeats 3]

Columns to figures, on made boxes: COCO of 80 classes with all detections (target: at most 7 s for
5,000 images x 100 on two cores), beside pycocotools on a tenth of the images; VOC of 20 classes
(target: at most 0.2 s) with a tenth of the detections of each image and with all, beside the usual
loop, image by image and detection by detection. Figures must be equal. Prints the best and the
median of the repeats, and the best of the processor's time, which other programs on the machine
disturb less (ours is one thread); runs of ours and of the others take turns.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np

from cnnctl.metrics.average_precision import area_under, voc_curves
from cnnctl.metrics.box_rows import DetectionRows, TruthRows
from cnnctl.metrics.coco_ap import coco_scores
from cnnctl.metrics.detection_errors import confusion_matrix, find_errors


def made(images: int, detections: int, classes: int) -> tuple[DetectionRows, TruthRows]:
    """About 7 objects of 3 classes in an image; of detections two thirds have the class."""
    rng = np.random.default_rng(0)
    many = 1 + rng.poisson(6, images)
    image = np.repeat(np.arange(images), many)
    of_image = rng.integers(0, classes, (images, 3))
    labels = of_image[image, rng.integers(0, 3, len(image))]
    low, size = rng.random((len(image), 2)) * 400, rng.random((len(image), 2)) ** 2 * 200 + 4
    none = np.zeros(len(image), bool)
    boxes = np.hstack([low, low + size]).astype(np.float32)
    truth = TruthRows(image, boxes, labels, none, none, size.prod(1).astype(np.float32))
    seen = np.repeat(np.arange(images), detections)
    first = np.cumsum(many) - many
    near = first[seen] + (rng.random(len(seen)) * many[seen]).astype(int)
    low = low[near] + rng.normal(0, 6, (len(seen), 2))
    size = size[near] * np.exp(rng.normal(0, 0.2, (len(seen), 2)))
    random = rng.integers(0, classes, len(seen))
    said = np.where(rng.random(len(seen)) < 0.65, labels[near], random)
    boxes = np.hstack([low, low + size]).astype(np.float32)
    scores = rng.random(len(seen)).astype(np.float32)
    order = np.lexsort((-scores, seen))
    return DetectionRows(seen, boxes, scores, said).at(order), truth


def first_images(rows: Any, images: int) -> Any:
    return rows.at(rows.image < images)


def by_pycocotools(detections: DetectionRows, truth: TruthRows, images: int, classes: int) -> float:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def records(rows: Any, **more: Any) -> list[dict[str, Any]]:
        boxes = rows.boxes.astype(np.float64)
        boxes[:, 2:] -= boxes[:, :2]
        columns = {"image_id": rows.image, "category_id": rows.labels + 1, "bbox": boxes, **more}
        values = zip(*(column.tolist() for column in columns.values()), strict=True)
        return [dict(zip(columns, row, strict=True)) for row in values]

    there: Any = COCO()
    ids, crowd = np.arange(1, len(truth) + 1), np.zeros(len(truth), int)
    there.dataset = {
        "images": [{"id": image} for image in range(images)],
        "categories": [{"id": k} for k in range(1, classes + 1)],
        "annotations": records(truth, id=ids, area=truth.area, iscrowd=crowd),
    }
    with contextlib.redirect_stdout(io.StringIO()):
        there.createIndex()
        found = there.loadRes(records(detections, score=detections.scores))
        evaluation = COCOeval(there, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0])


def by_coco_scores(detections: DetectionRows, truth: TruthRows, images: int, classes: int) -> float:
    return coco_scores(detections, truth, np.arange(images), classes).metrics["coco_ap"]


def by_curves(detections: DetectionRows, truth: TruthRows, images: int, classes: int) -> float:
    return float(np.mean([area_under(c) for c in voc_curves(detections, truth, classes)]))


def by_loop(detections: DetectionRows, truth: TruthRows, images: int, classes: int) -> float:
    """As in the programs that are handed around: a dictionary of images for each class."""
    figures = []
    for k in range(classes):
        objects: dict[int, list[int]] = defaultdict(list)
        for number in np.flatnonzero(truth.labels == k).tolist():
            objects[int(truth.image[number])].append(number)
        own = {image: truth.boxes[rows].astype(np.float64) for image, rows in objects.items()}
        taken = {image: [False] * len(rows) for image, rows in objects.items()}
        chosen = np.flatnonzero(detections.labels == k)
        chosen = chosen[np.argsort(-detections.scores[chosen], kind="stable")]
        right = np.zeros(len(chosen))
        for place, number in enumerate(chosen.tolist()):
            image, box = int(detections.image[number]), detections.boxes[number].astype(np.float64)
            if image not in own:
                continue
            others = own[image]
            sides = np.minimum(others[:, 2:], box[2:]) - np.maximum(others[:, :2], box[:2])
            shared = np.maximum(sides, 0).prod(1)
            areas = (others[:, 2:] - others[:, :2]).prod(1) + (box[2:] - box[:2]).prod()
            iou = shared / (areas - shared)
            best = int(iou.argmax())
            if iou[best] >= 0.5 and not taken[image][best]:
                taken[image][best] = True
                right[place] = 1
        recall = np.cumsum(right) / len(np.flatnonzero(truth.labels == k))
        precision = np.cumsum(right) / np.arange(1, len(right) + 1)
        envelope = np.maximum.accumulate(precision[::-1])[::-1]
        figures.append(float((np.diff(recall, prepend=0) * envelope).sum()))
    return float(np.mean(figures))


def by_errors(detections: DetectionRows, truth: TruthRows, images: int, classes: int) -> float:
    found = detections.at(detections.scores >= 0.5)
    errors = find_errors(found, truth, classes)
    return float(np.trace(confusion_matrix(found, truth, errors, classes)) - errors.right)


def compared(title: str, ways: dict[str, Callable], repeats: int, *arguments: Any) -> None:
    times: dict[str, list[float]] = {name: [] for name in ways}
    busy: dict[str, list[float]] = {name: [] for name in ways}
    figures: dict[str, float] = {}
    for _ in range(repeats):
        for name, way in ways.items():
            started, worked = time.perf_counter(), time.process_time()
            figures[name] = way(*arguments)
            times[name].append(time.perf_counter() - started)
            busy[name].append(time.process_time() - worked)
    expected, *others = figures.values()
    assert all(abs(figure - expected) < 1e-9 for figure in others), figures
    print(f"{title} ({len(arguments[0]):,} detections, {len(arguments[1]):,} objects)")
    least = min(next(iter(busy.values())))
    for name, values in times.items():
        print(
            f"    {name:14} best {min(values):8.3f} s, median {statistics.median(values):8.3f} s,"
            f" processor {min(busy[name]):8.3f} s, {min(busy[name]) / least:5.1f} x"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in (("images", 5000), ("detections", 100), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    arguments = parser.parse_args()
    images, repeats = arguments.images, arguments.repeats
    part = max(1, images // 10)
    print(f"{images:,} images, {arguments.detections} detections in each")

    found, there = made(images, arguments.detections, 80)
    ours = {"ours": by_coco_scores}
    compared("COCO, 80 classes", ours, repeats, found, there, images, 80)
    some = first_images(found, part), first_images(there, part), part, 80
    both = {**ours, "pycocotools": by_pycocotools}
    compared(f"COCO, {part:,} images of these", both, repeats, *some)

    for many in (max(1, arguments.detections // 10), arguments.detections):
        found, there = made(images, many, 20)
        ways = {"ours": by_curves, "loop": by_loop}
        compared(f"VOC, 20 classes, {many} an image", ways, repeats, found, there, images, 20)
    compared("errors and confusion", {"ours": by_errors}, repeats, found, there, images, 20)


if __name__ == "__main__":
    main()
