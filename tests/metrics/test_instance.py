"""The evaluator of instances: the same figures for any batches and processes, and by hand."""

import contextlib
import io
import json
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from cnnctl.metrics import detection
from cnnctl.metrics.detection import DetectionEvaluator
from cnnctl.metrics.instance import METRICS, InstanceEvaluator
from cnnctl.metrics.mask_ap import COCO_METRICS
from cnnctl.ops.masks import cropped, pack
from cnnctl.ops.run_lengths import decode, encode
from cnnctl.structures import Batch, Predictions, Targets, collate

CLASSES = ("cat", "dog", "cow")
Found = tuple[int, float, np.ndarray]  # label, score, mask
There = tuple[Any, ...]  # label, mask, marks
Image = tuple[int, list[Found], list[There], np.ndarray | None]  # id, ..., void


def tight(mask: np.ndarray) -> list[float]:
    return cropped(torch.from_numpy(mask))[1].tolist()


def target_of(there: list[There], void: np.ndarray | None, size: tuple[int, int]) -> dict[str, Any]:
    masks = [mask for _, mask, *_ in there] + [np.zeros(size, bool) if void is None else void]
    crops, frames = zip(*(cropped(torch.from_numpy(mask)) for mask in masks), strict=True)
    bits, where = pack(crops)
    n = len(there)
    return {
        "boxes": torch.tensor([tight(mask) for _, mask, *_ in there]).reshape(-1, 4),
        "labels": torch.tensor([label for label, *_ in there], dtype=torch.int64),
        "crowd": torch.tensor(["crowd" in marks for _, _, *marks in there], dtype=torch.bool),
        "difficult": torch.tensor(["difficult" in m for _, _, *m in there], dtype=torch.bool),
        "area": torch.tensor([float(mask.sum()) for _, mask, *_ in there]),
        "frames": torch.stack(frames)[:n],
        "crops": where[:n],
        "bits": bits,
        "void_frame": frames[-1],
        "void_crop": where[-1],
    }


def batch_of(images: list[Image], sizes: dict[int, tuple[int, int]]) -> tuple[Predictions, Targets]:
    batch: Batch = collate(
        [
            (number, torch.zeros(1, *sizes[number], dtype=torch.uint8), target)
            for number, _, there, void in images
            for target in [target_of(there, void, sizes[number])]
        ]
    )
    most = max(len(found) for _, found, *_ in images)
    boxes, scores = torch.zeros(len(images), most, 4), torch.zeros(len(images), most)
    labels = torch.full((len(images), most), -1)
    masks: list[list[bytes]] = []
    for row, (number, found, *_) in enumerate(images):
        masks.append([encode(mask, 0, 0, sizes[number]) for *_, mask in found])
        for place, (label, score, mask) in enumerate(found):
            boxes[row, place] = torch.tensor(tight(mask))
            scores[row, place], labels[row, place] = score, label
    said = Predictions(
        boxes=boxes, scores=scores, labels=labels, masks=masks, sizes=batch.images.originals
    )
    return said, batch.targets


def rectangle(size: tuple[int, int], x: int, y: int, w: int, h: int) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[y : y + h, x : x + w] = True
    return mask


def random_images(seed: int, count: int) -> tuple[list[Image], dict[int, tuple[int, int]]]:
    """Rectangles with bites, of three classes, with crowds, difficult ones and void."""
    rng = np.random.default_rng(seed)
    images: list[Image] = []
    sizes = {}
    for number in rng.permutation(10 * count)[:count].tolist():
        size = sizes[number] = tuple(rng.choice([30, 130], 2).tolist())
        found: list[Found] = []
        there: list[There] = []
        for _ in range(int(rng.integers(0, 4))):
            x, y = rng.integers(0, 20, 2).tolist()
            w, h = rng.choice([6, 9, 40, 110], 2).tolist()
            mask = rectangle(size, x, y, w, h) & (rng.random(size) < 0.95)
            label, mark = int(rng.integers(0, 3)), rng.random()
            marks = ["crowd"] if mark < 0.1 else ["difficult"] if mark > 0.9 else []
            there.append((label, mask, *marks))
            for _ in range(int(rng.integers(0, 3))):
                said = np.roll(mask, rng.integers(0, 3, 2).tolist(), (0, 1))
                found.append((label, int(rng.integers(1, 9)) / 8, said))
        found.sort(key=lambda row: -row[1])
        void = rng.random(size) < 0.1 if rng.random() < 0.5 else None
        images.append((number, found, there, void))
    return images, sizes


def evaluator_of(
    images: list[Image], sizes: dict[int, tuple[int, int]], **more: Any
) -> InstanceEvaluator:
    evaluator = InstanceEvaluator(CLASSES, **more)
    evaluator.update(*batch_of(images, sizes))
    return evaluator


def test_names():
    assert (*detection.METRICS, *COCO_METRICS, "voc_mask_ap50", "voc_mask_ap70") == METRICS
    assert InstanceEvaluator(CLASSES).names == (*METRICS, "loss")
    assert InstanceEvaluator((), boundary=True).names == (*METRICS, "coco_boundary_ap", "loss")
    everything = evaluator_of(*random_images(0, 30), boundary=True)
    assert (*everything.compute(), "loss") == everything.names
    assert all(0 < value < 1 for value in everything.compute().values())


SIZE = (40, 60)
LEFT, RIGHT = rectangle(SIZE, 0, 0, 20, 20), rectangle(SIZE, 30, 10, 20, 20)
HALF = rectangle(SIZE, 0, 0, 20, 12)  # IoU .6 of LEFT


def test_by_hand():
    """The cat: IoU .6; the dog: wrong with a higher score, then whole; a cow nowhere."""
    found: list[Found] = [(1, 0.9, LEFT), (0, 0.8, HALF), (1, 0.7, RIGHT)]
    images: list[Image] = [
        (4, found, [(0, LEFT), (1, RIGHT)], None),
        (2, [], [], None),
        (9, [], [(1, LEFT, "difficult")], None),
    ]
    evaluator = evaluator_of(images, dict.fromkeys((4, 2, 9), SIZE), boundary=True)
    metrics = evaluator.compute()
    assert metrics["voc_mask_ap50"] == metrics["coco_mask_ap50"] == pytest.approx(0.75)
    assert metrics["voc_mask_ap70"] == pytest.approx(0.25)
    # .50, .55 and .60 of ten thresholds for the cat.
    assert metrics["coco_mask_ap"] == pytest.approx((0.3 + 0.5) / 2)
    assert metrics["coco_mask_ar100"] == pytest.approx((0.3 + 1) / 2)
    # d is 1: of contours of 60 and 76 pixels 20 + 11 + 11 are the same, an IoU of .45.
    assert metrics["coco_boundary_ap"] == pytest.approx((0 + 0.5) / 2)
    assert evaluator.per_class() == {"cat": 1, "dog": 0.5}
    per_class = evaluator.details()["per_class"]
    assert per_class["voc_mask_ap70"] == {"cat": 0, "dog": 0.5}
    assert per_class["coco_mask_ap50"] == {"cat": pytest.approx(1), "dog": pytest.approx(0.5)}
    assert per_class["coco_boundary_ap"] == {"cat": 0, "dog": pytest.approx(0.5)}
    recall, precision = evaluator.mask_curves()["dog"]
    assert (recall.tolist(), precision.tolist()) == ([0, 1], [0, 0.5])
    assert evaluator.mask_curves("voc_mask_ap70")["cat"][1].tolist() == [0]
    assert evaluator.coco_mask_curves()["dog"] == pytest.approx(np.full(101, 0.5))
    assert set(evaluator.mask_curves()) == set(evaluator.coco_mask_curves()) == {"cat", "dog"}


def test_void_does_not_count():
    """A mask of 20 x 12 pixels and 20 x 20 more in void is the object's of 20 x 12."""
    both = HALF | RIGHT
    for void, right in ((RIGHT, 1), (None, 0)):
        evaluator = evaluator_of([(0, [(0, 0.5, both)], [(0, HALF)], void)], {0: SIZE})
        assert evaluator.compute()["coco_mask_ap75"] == right
        assert evaluator.compute()["voc_mask_ap70"] == right
        (result,) = evaluator.results([1, 2, 3], [7])
        exported = result["segmentation"]["counts"].encode()
        assert decode(exported, SIZE).equal(torch.from_numpy(both)), "what was found is exported"


@pytest.mark.parametrize(("batch", "processes"), [(1, 1), (2, 3), (5, 2)])
def test_figures_do_not_depend_on_batches_or_processes(batch, processes):
    images, sizes = random_images(1, 16)
    whole = evaluator_of(sorted(images, key=lambda image: image[0]), sizes)
    parts = [InstanceEvaluator(CLASSES) for _ in range(processes)]
    for number, start in enumerate(range(0, len(images), batch)):
        parts[number % processes].update(*batch_of(images[start : start + batch], sizes))
    last = parts.pop()
    last.merge([pickle.loads(pickle.dumps(part.rows())) for part in parts])
    assert last.compute() == whole.compute()  # to the last bit
    assert last.details() == whole.details()
    assert last.results([1, 2, 3], range(200)) == whole.results([1, 2, 3], range(200))


def test_boxes_are_scored_as_a_detectors():
    images, sizes = random_images(3, 20)
    predictions, targets = batch_of(images, sizes)
    boxes = DetectionEvaluator(CLASSES, 0.25)
    boxes.update(predictions, targets)
    both = evaluator_of(images, sizes, threshold=0.25)
    own = {name: value for name, value in both.compute().items() if name in boxes.names}
    assert own == boxes.compute()
    details, more = boxes.details(), both.details()
    assert json.loads(json.dumps(more)) == more
    masks = more["per_class"].keys() - details["per_class"].keys()
    assert masks == {"coco_mask_ap", "coco_mask_ap50", "voc_mask_ap50", "voc_mask_ap70"}
    for name in masks:
        del more["per_class"][name]
    assert more == details


def test_exported_results_score_the_same_with_pycocotools():
    """With the bbox for boxes, without it for masks: it would be taken for the mask's area."""
    images, sizes = random_images(2, 12)
    evaluator = evaluator_of([(*image[:3], None) for image in images], sizes)
    rows, category_ids = evaluator.rows().truth, [90, 3, 18]
    records = zip(
        *(rows.image.tolist(), rows.labels.tolist(), rows.boxes.tolist(), rows.area.tolist()),
        *(rows.ignored.astype(int).tolist(), rows.sizes.tolist(), rows.counts.tolist()),
        strict=True,
    )
    annotations = [
        {
            "id": number,
            "image_id": image,
            "category_id": category_ids[label],
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "area": area,
            "iscrowd": ignored,
            "segmentation": {"size": size, "counts": counts.decode()},
        }
        for number, (image, label, (x0, y0, x1, y1), area, ignored, size, counts) in enumerate(
            records, 1
        )
    ]
    written = json.dumps(evaluator.results(category_ids, range(120)))
    metrics = evaluator.compute()
    kinds: Any = (("bbox", detection.METRICS[:12]), ("segm", COCO_METRICS))
    for kind, names in kinds:
        with contextlib.redirect_stdout(io.StringIO()):
            there: Any = COCO()
            there.dataset = {
                "images": [{"id": i, "height": h, "width": w} for i, (h, w) in sizes.items()],
                "categories": [{"id": k} for k in category_ids],
                "annotations": annotations,
            }
            there.createIndex()
            results = json.loads(written)
            for row in results:
                row.pop("bbox" if kind == "segm" else "segmentation")
            evaluation = COCOeval(there, there.loadRes(results), kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        found = [metrics.get(name, -1) for name in names]
        assert found == pytest.approx(evaluation.stats.tolist(), abs=1e-14)


def test_truth_is_the_original_mask():
    """Bits of odd shapes at the edges of images, and a frame that was moved."""
    rng = np.random.default_rng(0)
    size = (13, 21)
    whole = rng.random(size) < 0.5
    edge = rng.random(size) < 0.5
    edge[:, :9] = False
    nothing = np.zeros(size, bool)
    evaluator = evaluator_of([(0, [], [(0, whole), (1, edge), (2, nothing)], None)], {0: size})
    masks = [decode(counts, size).numpy() for counts in evaluator.rows().truth.counts]
    assert [mask.tolist() for mask in masks] == [whole.tolist(), edge.tolist(), nothing.tolist()]
    predictions, targets = batch_of([(0, [], [(0, whole)], None)], {0: size})
    assert targets.frames is not None
    targets.frames[0, 0] = torch.tensor([20.5, 0, -0.5, 13])  # mirrored
    mirrored = InstanceEvaluator(CLASSES)
    mirrored.update(predictions, targets)
    (counts,) = mirrored.rows().truth.counts
    expected = np.zeros(size, bool)
    expected[:, :] = whole[:, ::-1]
    assert decode(counts, size).numpy().tolist() == expected.tolist()


def test_exact_truth_of_boxes_leaves_masks():
    images: list[Image] = [(3, [(0, 0.5, LEFT)], [(0, LEFT)], None)]
    exact = {
        "image": np.array([3, 5]),
        "boxes": np.array([[0, 0, 20.25, 20], [0, 0, 1, 1]]),
        "labels": np.array([0, 1]),
        "crowd": np.zeros(2, bool),
        "difficult": np.zeros(2, bool),
        "area": np.array([400.5, 1]),
    }
    evaluator = evaluator_of(images, {3: SIZE}, truth=lambda: exact)
    truth = evaluator.rows().truth
    assert truth.boxes.tolist() == [[0, 0, 20.25, 20]]
    assert decode(truth.counts[0], SIZE).equal(torch.from_numpy(LEFT))
    assert evaluator.compute()["coco_mask_ap"] == pytest.approx(1)


def test_rows_are_small():
    images, sizes = random_images(1, 16)
    rows = evaluator_of(images, sizes).rows()
    bits = sum(len(counts) for part in (rows.detections, rows.truth) for counts in part.counts)
    several = len(rows.detections) + len(rows.truth)
    void = sum(map(len, rows.void.counts))
    assert len(pickle.dumps(rows)) < bits + void + 100 * several + 5000


def test_nothing():
    empty = InstanceEvaluator(CLASSES, boundary=True)
    alone = evaluator_of([(0, [(0, 0.9, LEFT)], [], None)], {0: SIZE}, boundary=True)
    for evaluator in (empty, alone):
        assert evaluator.compute() == {}
        assert evaluator.per_class() == evaluator.mask_curves() == {}
        assert evaluator.details()["images"] == (evaluator is not empty)
    missed = evaluator_of([(0, [], [(0, LEFT)], None)], {0: SIZE}, boundary=True)
    assert set(missed.compute().values()) == {0}
    assert missed.compute()["coco_boundary_ap"] == 0


def test_masks_and_boxes_are_as_many():
    predictions, targets = batch_of([(0, [(0, 0.9, LEFT)], [], None)], {0: SIZE})
    predictions.masks = [[]]
    with pytest.raises(ValueError, match="1 boxes and 0 masks"):
        InstanceEvaluator(CLASSES).update(predictions, targets)
