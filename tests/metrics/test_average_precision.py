"""VOC's average precision by hand, on published cases, and against a plain reading of the kit."""

import math
import os
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

from cnnctl.errors import Exit, UserError
from cnnctl.metrics.average_precision import Curve, area_under, eleven_point, voc_curves
from cnnctl.metrics.box_rows import DetectionRows, TruthRows, best_of, overlap, pairs

BOX = [10, 10, 20, 20]  # 10 x 10 pixels
HALF = [10, 10, 20, 15]  # its upper half: IoU 0.5
FAR = [50, 50, 60, 60]


def truth_of(*rows: tuple) -> TruthRows:
    """(image, label, box[, "difficult" or "crowd"]) of each."""
    boxes = np.array([row[2] for row in rows], np.float64).reshape(-1, 4)
    marks = [row[3] if len(row) > 3 else "" for row in rows]
    return TruthRows(
        np.array([row[0] for row in rows], np.int64),
        boxes,
        np.array([row[1] for row in rows], np.int64),
        np.array([mark == "crowd" for mark in marks], bool),
        np.array([mark == "difficult" for mark in marks], bool),
        (boxes[:, 2:] - boxes[:, :2]).prod(1),
    )


def found(*rows: tuple) -> DetectionRows:
    """(image, label, score, box) of each."""
    return DetectionRows(
        np.array([row[0] for row in rows], np.int64),
        np.array([row[3] for row in rows], np.float64).reshape(-1, 4),
        np.array([row[2] for row in rows], np.float64),
        np.array([row[1] for row in rows], np.int64),
    )


def curve_of(detections: DetectionRows, truth: TruthRows, threshold: float = 0.5) -> Curve:
    (curve,) = voc_curves(detections, truth, 1, threshold)
    return curve


def test_a_table_by_hand():
    """5 truths; right, wrong, right, right, wrong, wrong, right."""
    right = np.array([1, 0, 1, 1, 0, 0, 1], bool)
    curve = Curve(right, np.linspace(1, 0.1, 7), 5)
    assert curve.precision.tolist() == [1, 1 / 2, 2 / 3, 3 / 4, 3 / 5, 3 / 6, 4 / 7]
    assert curve.recall.tolist() == [0.2, 0.2, 0.4, 0.6, 0.6, 0.6, 0.8]
    assert curve.envelope.tolist() == [1, 3 / 4, 3 / 4, 3 / 4, 3 / 5, 4 / 7, 4 / 7]
    assert area_under(curve) == pytest.approx((1 + 3 / 4 + 3 / 4 + 4 / 7) / 5, rel=1e-15)
    # recall 0 to 0.2: 1; to 0.5: 3/4; 3 of 5 are less than 6 * 0.1; to 0.8: 4/7; above: nothing
    assert eleven_point(curve) == pytest.approx((3 * 1 + 3 * 3 / 4 + 3 * 4 / 7) / 11, rel=1e-15)


@pytest.mark.parametrize("tenth", range(11))
def test_a_recall_of_whole_tenths(tenth):
    """0.3, 0.6 and 0.7 are less than 3, 6 and 7 times 0.1."""
    curve = Curve(np.ones(tenth, bool), np.ones(tenth), 10)
    points = tenth + (tenth not in (0, 3, 6, 7))
    assert eleven_point(curve) == pytest.approx(points / 11)


def test_one_match_per_truth():
    truth = truth_of((0, 0, BOX), (0, 0, FAR))
    detections = found((0, 0, 0.9, BOX), (0, 0, 0.8, BOX), (0, 0, 0.7, FAR))
    curve = curve_of(detections, truth)
    assert curve.right.tolist() == [True, False, True]
    assert area_under(curve) == pytest.approx((1 + 2 / 3) / 2)


def test_the_second_one_does_not_fall_to_another_truth():
    """It belongs to the truth that it overlaps most, although that one is taken."""
    near = [12, 10, 22, 20]  # IoU 80 / 120 with BOX
    truth = truth_of((0, 0, BOX), (0, 0, near))
    detections = found((0, 0, 0.9, BOX), (0, 0, 0.8, [10, 10, 21, 20]))
    assert overlap(detections.boxes[[1]], truth.boxes[[1]])[0] > 0.5
    assert curve_of(detections, truth).right.tolist() == [True, False]


def test_difficult_is_neither_demanded_nor_penalised():
    for mark in ("difficult", "crowd"):
        truth = truth_of((0, 0, BOX, mark), (0, 0, FAR))
        detections = found((0, 0, 0.9, BOX), (0, 0, 0.8, BOX), (0, 0, 0.7, FAR))
        curve = curve_of(detections, truth)
        assert curve.right.tolist() == [True]
        assert curve.positives == 1
        assert area_under(curve) == eleven_point(curve) == 1


def test_the_threshold_itself_is_enough():
    truth = truth_of((0, 0, BOX))
    assert curve_of(found((0, 0, 0.9, HALF)), truth).right.tolist() == [True]
    assert curve_of(found((0, 0, 0.9, HALF)), truth, 0.5 + 1e-9).right.tolist() == [False]


def test_images_and_classes_are_kept_apart():
    truth = truth_of((0, 0, BOX), (7, 1, BOX))
    detections = found((0, 1, 0.9, BOX), (7, 0, 0.8, BOX), (7, 1, 0.1, BOX), (3, 1, 0.2, BOX))
    zero, one, two = voc_curves(detections, truth, 3)
    assert zero.right.tolist() == [False]
    assert one.right.tolist() == [False, False, True]
    assert two.right.tolist() == []
    assert math.isnan(area_under(two))
    assert math.isnan(eleven_point(two))


def test_equal_scores_rank_as_given():
    truth = truth_of((0, 0, BOX))
    wrong, right = (0, 0, 0.5, FAR), (0, 0, 0.5, BOX)
    assert curve_of(found(wrong, right), truth).right.tolist() == [False, True]
    assert curve_of(found(right, wrong), truth).right.tolist() == [True, False]


def test_sides_that_are_inclusive():
    """The kit's 1-based 1..10 is 0..10 here, and both are 10 pixels wide."""
    kit, ours = np.array([[1.0, 1, 10, 10]]), np.array([[0.0, 0, 10, 10]])
    half, ours_half = np.array([[1.0, 1, 10, 5]]), np.array([[0.0, 0, 10, 5]])
    assert overlap(kit, half, plus_one=True) == overlap(ours, ours_half) == 0.5
    assert overlap(kit, half) == pytest.approx(4 / 9)


def test_overlaps_by_hand():
    one = np.array([BOX, BOX, BOX, BOX, [0, 0, 0, 0]], np.float32)
    other = np.array([BOX, HALF, FAR, [20, 10, 30, 20], [0, 0, 0, 0]], np.float32)
    assert overlap(one, other).tolist() == [1, 0.5, 0, 0, 0]
    assert overlap(other, one, crowd=np.ones(5, bool)).tolist() == [1, 1, 0, 0, 0]


def test_pairs_by_hand():
    a, b = pairs(np.array([5, 3, 5, 9]), np.array([3, 5, 4, 5, 3]))
    assert list(zip(a.tolist(), b.tolist(), strict=True)) == [
        *((0, 1), (0, 3), (1, 0), (1, 4), (2, 1), (2, 3))
    ]
    assert best_of(a, np.array([0.1, 0.3, 0.2, 0.2, 0.0, 0.0])).tolist() == [1, 2, 4]


def test_nothing_found_and_nothing_there():
    (curve,) = voc_curves(found(), truth_of((0, 0, BOX)), 1)
    assert area_under(curve) == eleven_point(curve) == 0
    for truth in (truth_of(), truth_of((0, 0, BOX, "difficult"))):
        curve = curve_of(found((0, 0, 0.5, BOX)), truth)
        assert math.isnan(area_under(curve))
        assert math.isnan(eleven_point(curve))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_a_number_is_refused(bad):
    fine, there = found((0, 0, 0.5, BOX)), truth_of((4, 0, BOX))
    with pytest.raises(UserError, match="1 of 1 detections") as refused:
        voc_curves(found((0, 0, bad, BOX)), there, 1)
    assert refused.value.code == Exit.DIVERGED
    with pytest.raises(UserError, match="1 of 2 detections"):
        voc_curves(found((0, 0, 0.5, BOX), (0, 0, 0.5, [0, 0, bad, 1])), there, 1)
    with pytest.raises(UserError, match="image 4: a truth box") as refused:
        voc_curves(fine, truth_of((4, 0, [0, bad, 1, 1])), 1)
    assert refused.value.code == Exit.DATA
    with pytest.raises(ValueError, match="labels must be 0 to 1"):
        voc_curves(found((0, 2, 0.5, BOX)), there, 2)


def random_set(seed: int, k: int = 3) -> tuple[DetectionRows, TruthRows]:
    """Whole-pixel boxes of few sizes and scores of few values, so that ties are common."""
    rng = np.random.default_rng(seed)
    images = rng.choice(1000, 6, replace=False)
    there, found = int(rng.integers(0, 25)), int(rng.integers(0, 60))
    low = rng.integers(0, 5, (there, 2)) * 4
    boxes = np.hstack([low, low + rng.integers(2, 5, (there, 2)) * 4]).astype(np.float64)
    truth = TruthRows(
        rng.choice(images, there),
        boxes,
        rng.integers(0, k, there),
        np.zeros(there, bool),
        rng.random(there) < 0.2,
        np.ones(there),
    )
    near = rng.integers(0, there, found) if there else np.zeros(0, np.int64)
    others = boxes[near] + rng.choice([0, 0, 0, 4], (len(near), 4))
    labels = np.where(rng.random(len(near)) < 0.8, truth.labels[near], 0)
    scores = rng.integers(0, 20, len(near)) / 20
    return DetectionRows(truth.image[near], others, scores, labels), truth


def iou(one: list[float], other: list[float]) -> float:
    wide = min(one[2], other[2]) - max(one[0], other[0])
    high = min(one[3], other[3]) - max(one[1], other[1])
    if wide <= 0 or high <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return wide * high / (sum(areas) - wide * high)


def kit(detections: DetectionRows, truth: TruthRows, k: int, least: float) -> tuple[float, float]:
    """VOCevaldet and VOCap, one detection after the other."""
    objects = [i for i in range(len(truth)) if truth.labels[i] == k]
    demanded = sum(not truth.difficult[i] for i in objects)
    ranked = [j for j in range(len(detections)) if detections.labels[j] == k]
    ranked.sort(key=lambda j: -detections.scores[j])
    taken, right, wrong, points = set(), 0, 0, []
    for j in ranked:
        best, owner = -1.0, -1
        for i in objects:
            if truth.image[i] == detections.image[j]:
                share = iou(detections.boxes[j].tolist(), truth.boxes[i].tolist())
                if share > best:
                    best, owner = share, i
        if best >= least and truth.difficult[owner]:
            continue
        if best >= least and owner not in taken:
            taken.add(owner)
            right += 1
        else:
            wrong += 1
        points.append((right, right / (right + wrong)))
    if not demanded:
        return math.nan, math.nan
    eleven = [
        max([p for count, p in points if count / demanded >= t], default=0)
        for t in np.arange(0, 1.1, 0.1)
    ]
    area, before = 0.0, 0
    for number, (count, _) in enumerate(points):
        area += (count - before) / demanded * max(p for _, p in points[number:])
        before = count
    return sum(eleven) / 11, area


@pytest.mark.parametrize("least", [0.3, 0.5, 0.75])
def test_random_sets_score_what_the_kit_defines(least):
    defined = 0
    for seed in range(60):
        detections, truth = random_set(seed)
        for k, curve in enumerate(voc_curves(detections, truth, 3, least)):
            expected = kit(detections, truth, k, least)
            measured = eleven_point(curve), area_under(curve)
            assert measured == pytest.approx(expected, rel=1e-12, nan_ok=True)
            defined += 0 < expected[1] < 1
    assert defined > 50


def reference(folder: str) -> Path:
    root = Path(os.environ.get("CNNCTL_DATA", "nowhere")) / "eval_reference" / folder
    if not root.is_dir():
        pytest.skip(f"$CNNCTL_DATA does not hold eval_reference/{folder}")
    return root


def rows_of_text(folder: Path) -> list[list[str]]:
    """Number of the file and the words of each line."""
    files = sorted(folder.glob("*.txt"))
    return [
        [str(number), *line.split()]
        for number, file in enumerate(files)
        for line in file.read_text().splitlines()
    ]


@pytest.mark.data
def test_published_case_1():
    """Of review_object_detection_metrics: x y w h; boxes end at x + w, and sides count 1 more."""
    root = reference("voc_case1")
    rows = []
    for image, _, *numbers in rows_of_text(root / "dets"):
        score, x, y, w, h = map(float, numbers)
        rows.append((int(image), 0, score, [x, y, x + w, y + h]))
    detections, rows = found(*rows), []
    for image, _, *numbers in rows_of_text(root / "gts"):
        x, y, w, h = map(float, numbers)
        rows.append((int(image), 0, [x, y, x + w, y + h]))
    truth = truth_of(*rows)
    eleven, area = [], []
    for least in (0.1, 0.3, 0.5, 0.75):
        (curve,) = voc_curves(detections, truth, 1, least, plus_one=True)
        eleven.append(eleven_point(curve))
        area.append(area_under(curve))
    given = {"rel": 0, "abs": 1e-10}  # cut off after ten digits
    assert eleven == pytest.approx([0.3333333333, 0.2683982683, 0.0303030303, 0], **given)
    assert area == pytest.approx([0.3371980676, 0.2456866804, 0.0222222222, 0], **given)


@pytest.mark.data
@pytest.mark.parametrize("exclusive", [False, True])
def test_published_toy_example(exclusive):
    """The kit's inclusive sides + 1, and exclusive sides as they are here, are the same."""
    root = reference("voc_toyexample")
    first = [1, 1, 0, 0] if exclusive else [0, 0, 0, 0]
    rows = []
    for image, _, score, *box in rows_of_text(root / "dets_classname_abs_xyx2y2"):
        rows.append((int(image), 0, float(score), np.array(box, float) - first))
    detections, rows = found(*rows), []
    for number, file in enumerate(sorted((root / "gts_vocpascal_format").glob("*.xml"))):
        for thing in ElementTree.parse(file).iter("object"):
            names = ("xmin", "ymin", "xmax", "ymax")
            sides = [float(thing.findtext(f"bndbox/{name}", "")) for name in names]
            rows.append((number, 0, np.array(sides) - first))
    truth = truth_of(*rows)
    assert len(truth) == 12
    scores = []
    for least in (0.5, 0.75):
        (curve,) = voc_curves(detections, truth, 1, least, plus_one=not exclusive)
        scores += [round(100 * eleven_point(curve), 2), round(100 * area_under(curve), 2)]
    assert scores == [88.64, 89.58, 49.24, 50.97]
