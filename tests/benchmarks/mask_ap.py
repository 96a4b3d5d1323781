"""Seconds and memory of the evaluation of masks, from the rows of all images to all figures.

    python tests/benchmarks/mask_ap.py [--images 5000] [--detections 100] [--boundary]

Made masks of 480 x 640 images, with outlines like those of things: about 7 objects of 3 of 80
classes in an image, and detections near them, of which two thirds have the class. Target: at most
60 s for 5,000 images x 100 on two cores. Printed are the seconds of each part, of all, and the most
memory; the first hundredth of the images is compared with pycocotools, which must say the same.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import resource
import time
from typing import Any

import numpy as np
from faster_coco_eval.core import mask as native

from cnnctl.metrics.instance import InstanceEvaluator, Rows
from cnnctl.metrics.mask_ap import COCO_METRICS
from cnnctl.metrics.mask_rows import MaskDetections, MaskTruth, VoidRows, areas, run_lengths

HEIGHT, WIDTH, CLASSES = 480, 640, 80


def outlines(centre: np.ndarray, radius: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(n, 80) polygons x, y, ... around centres (n, 2), of about ``radius`` (n,)."""
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    waves = np.zeros((len(centre), 40))
    for number in (2, 3, 5, 8):
        phase, height = rng.random((2, len(centre), 1))
        waves += 0.5 * height / number * np.sin(number * angle + 2 * np.pi * phase)
    away = radius[:, None] * np.maximum(1 + waves, 0.1)
    points = np.stack([away * np.cos(angle), away * np.sin(angle)], 2) + centre[:, None]
    return points.clip(0, (WIDTH, HEIGHT)).reshape(len(centre), 80)


def counts_of(polygons: np.ndarray) -> np.ndarray:
    return np.array(
        [mask["counts"] for mask in native.frPyObjects(polygons.tolist(), HEIGHT, WIDTH)], object
    )


def made(images: int, detections: int) -> Rows:
    rng = np.random.default_rng(0)
    many = 1 + rng.poisson(6, images)
    image = np.repeat(np.arange(images), many)
    r = len(image)
    labels = rng.integers(0, CLASSES, (images, 3))[image, rng.integers(0, 3, r)]
    centre, radius = rng.random((r, 2)) * (WIDTH, HEIGHT), 6 + 120 * rng.random(r) ** 2
    shapes = outlines(centre, radius, rng)
    counts = counts_of(shapes)
    none = np.zeros(r, bool)
    truth = MaskTruth(image, boxes_of(shapes), labels, none, none, np.zeros(r), sizes_of(r), counts)
    truth = MaskTruth(**{**vars(truth), "area": areas(truth)})

    seen = np.repeat(np.arange(images), detections)
    d = len(seen)
    near = (np.cumsum(many) - many)[seen] + (rng.random(d) * many[seen]).astype(int)
    near = near[np.lexsort((near, seen))]
    said = np.where(rng.random(d) < 0.65, labels[near], rng.integers(0, CLASSES, d))
    moved = shapes[near].reshape(d, 40, 2) + rng.normal(0, 4, (d, 1, 2))
    moved = (moved + rng.normal(0, 1, (d, 40, 2))).clip(0, (WIDTH, HEIGHT)).reshape(d, 80)
    counts = np.concatenate([counts_of(part) for part in np.array_split(moved, max(1, d // 5000))])
    found = MaskDetections(
        seen, boxes_of(moved), rng.random(d).astype(np.float32), said, sizes_of(d), counts
    )
    found = found.at(np.lexsort((-found.scores, seen)))
    void = VoidRows(np.zeros(0, np.int64), sizes_of(0), np.zeros(0, object))
    return Rows(np.arange(images), found, truth, void)


def boxes_of(polygons: np.ndarray) -> np.ndarray:
    points = polygons.reshape(len(polygons), 40, 2)
    return np.hstack([points.min(1), points.max(1)]).astype(np.float32)


def sizes_of(rows: int) -> np.ndarray:
    return np.tile(np.array([HEIGHT, WIDTH], np.int32), (rows, 1))


def by_pycocotools(rows: Rows) -> tuple[list[float], float]:
    """The twelve numbers and the seconds."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def records(of: Any, **more: Any) -> list[dict[str, Any]]:
        columns = {"image_id": of.image.tolist(), "category_id": (of.labels + 1).tolist(), **more}
        columns["segmentation"] = run_lengths(of)
        values = zip(*columns.values(), strict=True)
        return [dict(zip(columns, row, strict=True)) for row in values]

    r = len(rows.truth)
    there: Any = COCO()
    area = rows.truth.area.tolist()
    there.dataset = {
        "images": [{"id": i, "height": HEIGHT, "width": WIDTH} for i in rows.images.tolist()],
        "categories": [{"id": k} for k in range(1, CLASSES + 1)],
        "annotations": records(rows.truth, id=range(1, r + 1), area=area, iscrowd=[0] * r),
    }
    found = records(rows.detections, score=rows.detections.scores.tolist())
    with contextlib.redirect_stdout(io.StringIO()):
        there.createIndex()
        started = time.perf_counter()
        evaluation = COCOeval(there, there.loadRes(found), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats.tolist(), time.perf_counter() - started


def memory() -> float:
    """The most that this process has held so far, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def first_images(rows: Rows, images: int) -> Rows:
    found, there, void = rows.detections, rows.truth, rows.void
    return Rows(
        np.arange(images),
        found.at(found.image < images),
        there.at(there.image < images),
        void.at(void.image < images),
    )


def compared(rows: Rows) -> None:
    evaluator = InstanceEvaluator([str(k) for k in range(CLASSES)])
    evaluator.merge([rows])
    started = time.perf_counter()
    metrics = evaluator.compute()
    seconds = time.perf_counter() - started
    expected, others = by_pycocotools(rows)
    found = [metrics.get(name, -1) for name in COCO_METRICS]
    assert np.allclose(found, expected, rtol=0, atol=1e-12), (found, expected)
    print(f"{len(rows.images):,} images: {seconds:.2f} s, pycocotools' masks alone {others:.2f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in (("images", 5000), ("detections", 100)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--boundary", action="store_true")
    arguments = parser.parse_args()
    rows = made(arguments.images, arguments.detections)
    length = float(np.mean([len(counts) for counts in rows.detections.counts]))
    print(
        f"{arguments.images:,} images, {len(rows.detections):,} detections of {length:.0f} bytes,"
        f" {len(rows.truth):,} objects; {memory():.2f} GB"
    )
    compared(first_images(rows, max(1, arguments.images // 100)))
    evaluator = InstanceEvaluator([str(k) for k in range(CLASSES)], boundary=arguments.boundary)
    evaluator.merge([rows])
    total = 0.0
    for name, part in (("boxes", evaluator.errors), ("masks", evaluator.compute)):
        started, worked = time.perf_counter(), time.process_time()
        found: dict[str, Any] = part()
        seconds = time.perf_counter() - started
        total += seconds
        print(f"    {name}: {seconds:6.1f} s, processor {time.process_time() - worked:6.1f} s")
    print(f"    all:   {total:6.1f} s; {memory():.2f} GB; coco_mask_ap {found['coco_mask_ap']:.4f}")


if __name__ == "__main__":
    main()
