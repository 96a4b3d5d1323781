"""The evaluator of poses: the same figures for any batches and processes; results as COCO's."""

from __future__ import annotations

import contextlib
import io
import pickle
from typing import Any

import numpy as np
import pytest
import torch

from cnnctl.data.digit_points import SKELETON
from cnnctl.metrics.detection import DetectionEvaluator
from cnnctl.metrics.pose import METRICS, PoseEvaluator
from cnnctl.structures import Predictions, Targets

CLASSES = ("cat", "dog")
IMAGES, MOST = 6, 3


def made() -> tuple[Predictions, Targets]:
    """Of six images: truth of up to three figures, each found with some noise, and a false one."""
    generator = torch.Generator().manual_seed(0)
    count = torch.tensor([3, 1, 0, 2, 3, 2])
    place = 300 * torch.rand(IMAGES, MOST, 1, 2, generator=generator)
    points = place + 80 * torch.rand(IMAGES, MOST, 5, 2, generator=generator)
    seen = torch.randint(0, 3, (IMAGES, MOST, 5, 1), generator=generator).float()
    points = torch.cat([points, seen], 3) * (seen > 0)
    points = points.round()
    boxes = torch.cat([place[:, :, 0], place[:, :, 0] + 80], 2).round()
    there = torch.arange(MOST) < count[:, None]
    labels = torch.randint(0, 2, (IMAGES, MOST), generator=generator).masked_fill(~there, -1)
    crowd = torch.zeros(IMAGES, MOST, dtype=torch.bool)
    crowd[4, 2] = True
    truth = Targets(
        torch.arange(IMAGES),
        boxes=boxes,
        labels=labels,
        crowd=crowd,
        difficult=torch.zeros_like(crowd),
        area=torch.full((IMAGES, MOST), 4000.0),
        keypoints=points,
    )
    noise = 3 * torch.randn(IMAGES, MOST, 5, 2, generator=generator)
    noise[3] *= 5
    found = torch.cat([points[..., :2] + noise, torch.rand(*seen.shape, generator=generator)], 3)
    said = Predictions(
        boxes=boxes + 1,
        scores=torch.rand(IMAGES, MOST, generator=generator),
        labels=labels.clone(),
        keypoints=found,
    )
    return said, truth


def rows(said: Predictions, truth: Targets, chosen: slice) -> tuple[Predictions, Targets]:
    def part(record):
        return type(record)(
            **{name: column[chosen] for name, column in vars(record).items() if column is not None}
        )

    return part(said), part(truth)


def scored(*batches: slice) -> PoseEvaluator:
    evaluator = PoseEvaluator(CLASSES, SKELETON)
    for chosen in batches:
        evaluator.update(*rows(*made(), chosen))
    return evaluator


def test_figures_do_not_depend_on_batches_and_processes():
    whole = scored(slice(None))
    expected = whole.compute()
    assert {"coco_ap", "coco_oks_ap", "pck20", "pcp50"} <= expected.keys() <= set(METRICS)
    assert 0 < expected["coco_oks_ap"] < 1
    assert 0 < expected["pck20"] < 1
    assert scored(slice(4, 6), slice(0, 3), slice(3, 4)).compute() == expected
    first = scored(slice(1, 4))
    others = [
        pickle.loads(pickle.dumps(scored(part).rows())) for part in (slice(4, 6), slice(0, 1))
    ]
    first.compute()  # what was scored before is forgotten
    first.merge(others)
    assert first.compute() == expected
    assert first.details() == whole.details()


def test_boxes_are_scored_as_a_detectors():
    boxes = DetectionEvaluator(CLASSES)
    boxes.update(*made())
    own = scored(slice(None)).compute()
    assert {name: own[name] for name in boxes.compute()} == boxes.compute()


def test_details_and_classes():
    evaluator = scored(slice(None))
    details, metrics = evaluator.details(), evaluator.compute()
    assert np.mean(list(evaluator.per_class().values())) == pytest.approx(metrics["coco_oks_ap"])
    assert details["per_class"]["coco_oks_ap"] == evaluator.per_class()
    assert set(details["per_point"]["pck20"]) == set(SKELETON.names)
    assert set(details["per_stick"]["pcp50"]) <= {
        "top_left - top_right",
        "top_right - bottom_right",
        "bottom_right - bottom_left",
        "bottom_left - top_left",
    }


def test_without_truth_there_is_no_figure():
    nothing = scored(slice(2, 3))
    assert nothing.compute() == {}
    assert PoseEvaluator(CLASSES, SKELETON).compute() == {}
    assert nothing.results([1, 2], list(range(IMAGES))) == []


def test_results_are_scored_by_pycocotools_with_the_same_figures():
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    evaluator = scored(slice(None))
    results = evaluator.results([3, 8], [10 * n for n in range(IMAGES)])
    truth: Any = COCO()
    there = evaluator.rows().truth
    truth.dataset = {
        "info": {},
        "images": [{"id": 10 * n} for n in range(IMAGES)],
        "categories": [{"id": 3}, {"id": 8}],
        "annotations": [
            {
                "id": n + 1,
                "image_id": 10 * int(there.image[n]),
                "category_id": [3, 8][there.labels[n]],
                "bbox": [*there.boxes[n, :2].tolist(), *(there.boxes[n, 2:] - there.boxes[n, :2])],
                "area": float(there.area[n]),
                "iscrowd": int(there.crowd[n]),
                "keypoints": there.points[n].flatten().tolist(),
                "num_keypoints": int((there.points[n, :, 2] > 0).sum()),
            }
            for n in range(len(there))
        ],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        found = COCOeval(truth, truth.loadRes(results), "keypoints")
        found.params.kpt_oks_sigmas = np.array(SKELETON.sigmas)
        found.evaluate()
        found.accumulate()
        found.summarize()
    metrics = evaluator.compute()
    assert found.stats[0] == pytest.approx(metrics["coco_oks_ap"], abs=1e-12)
    assert found.stats[5] == pytest.approx(metrics["coco_oks_ar"], abs=1e-12)
