"""Kinds of errors by hand, and against a plain reading of the definitions; histograms."""

import numpy as np
import pytest

from cnnctl.metrics import detection_errors
from cnnctl.metrics.box_rows import DetectionRows, TruthRows, overlap
from cnnctl.metrics.detection_errors import (
    KINDS,
    RIGHT,
    UNCOUNTED,
    Errors,
    confusion_matrix,
    find_errors,
    score_histogram,
    size_histogram,
)

BOX = [10.0, 10, 20, 20]  # 10 x 10
HALF = [10.0, 10, 20, 15]  # IoU .5 with BOX
SOME = [10.0, 10, 20, 13]  # IoU .3
TENTH = [10.0, 10, 20, 11]  # IoU .1
TOUCH = [10.0, 10, 19, 11]  # IoU .09
FAR = [50.0, 50, 60, 60]


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


def kinds(detections: DetectionRows, truth: TruthRows) -> list[str]:
    names = {**dict(enumerate(KINDS)), RIGHT: "right", UNCOUNTED: "uncounted"}
    return [names[kind] for kind in find_errors(detections, truth, 3).kind.tolist()]


@pytest.mark.parametrize(
    ("label", "box", "kind", "missed"),
    [
        (0, BOX, "right", False),
        (0, HALF, "right", False),
        (0, SOME, "localisation", False),
        (0, TENTH, "localisation", False),
        (0, TOUCH, "background", True),
        (0, FAR, "background", True),
        (1, BOX, "classification", False),
        (1, HALF, "classification", False),
        (1, SOME, "both", True),
        (1, TENTH, "background", True),
        (1, FAR, "background", True),
    ],
)
def test_each_kind(label, box, kind, missed):
    errors = find_errors(found((0, label, 0.9, box)), truth_of((0, 0, BOX)), 2)
    assert errors.counts == {
        **dict.fromkeys(KINDS, 0),
        **({kind: 1} if kind in KINDS else {}),
        "missed": int(missed),
    }
    assert errors.right == (kind == "right")


def test_duplicates_are_those_of_lower_score():
    truth = truth_of((0, 0, BOX))
    assert kinds(found((0, 0, 0.5, BOX), (0, 0, 0.9, HALF)), truth) == ["duplicate", "right"]
    assert kinds(found((0, 0, 0.5, BOX), (0, 0, 0.5, HALF)), truth) == ["right", "duplicate"]


def test_the_second_one_takes_what_is_left():
    """As in COCO, and not in VOC: both overlap both."""
    near = [12.0, 10, 22, 20]
    truth = truth_of((0, 0, BOX), (0, 0, near))
    errors = find_errors(found((0, 0, 0.8, BOX), (0, 0, 0.9, [10, 10, 21, 20])), truth, 1)
    assert errors.taken.tolist() == [1, 0]


def test_an_image_without_truth_and_one_without_detections():
    errors = find_errors(found((0, 0, 0.9, BOX)), truth_of((1, 0, BOX)), 1)
    assert errors.counts == {**dict.fromkeys(KINDS, 0), "background": 1, "missed": 1}
    nothing = find_errors(found(), truth_of(), 1)
    assert nothing.counts == dict.fromkeys(KINDS, 0)
    assert nothing.right == 0


def test_what_is_not_demanded_excuses_detections_of_its_class():
    crowd = truth_of((0, 0, [0, 0, 100, 100], "crowd"))
    detections = found((0, 0, 0.9, BOX), (0, 0, 0.8, FAR), (0, 1, 0.7, BOX))
    assert kinds(detections, crowd) == ["uncounted", "uncounted", "background"]
    difficult = truth_of((0, 0, BOX, "difficult"), (0, 0, FAR))
    detections = found((0, 0, 0.9, HALF), (0, 0, 0.8, SOME), (0, 0, 0.7, FAR))
    assert kinds(detections, difficult) == ["uncounted", "background", "right"]
    assert not find_errors(detections, difficult, 1).missed.any()


def test_confusion_by_hand():
    truth = truth_of(
        *((0, 0, BOX), (0, 1, FAR), (1, 2, BOX), (1, 1, BOX, "crowd"), (2, 0, BOX), (2, 0, FAR))
    )
    detections = found(
        (0, 0, 0.9, BOX),  # right
        (0, 1, 0.8, BOX),  # of another class, but that truth is taken: background
        (0, 0, 0.7, FAR),  # a 1 taken for a 0
        (1, 1, 0.9, BOX),  # in a crowd: not counted
        (1, 0, 0.6, HALF),  # a 2 taken for a 0
        (1, 0, 0.6, BOX),  # once only
        (2, 2, 0.5, TOUCH),
    )
    errors = find_errors(detections, truth, 3)
    assert confusion_matrix(detections, truth, errors, 3).tolist() == [
        [1, 0, 0, 2],
        [1, 0, 0, 0],
        [1, 0, 0, 0],
        [1, 1, 1, 0],
    ]


def random_set(seed: int) -> tuple[DetectionRows, TruthRows]:
    rng = np.random.default_rng(seed)
    there, seen = int(rng.integers(1, 30)), int(rng.integers(0, 80))
    low = rng.integers(0, 4, (there, 2)) * 4
    boxes = np.hstack([low, low + rng.integers(2, 5, (there, 2)) * 4]).astype(np.float64)
    mark = rng.random(there)
    truth = TruthRows(
        rng.integers(0, 4, there) * 10,
        boxes,
        rng.integers(0, 3, there),
        mark < 0.1,
        mark > 0.9,
        np.ones(there),
    )
    near = rng.integers(0, there, seen)
    others = boxes[near] + rng.integers(-1, 2, (seen, 4)) * rng.choice([0, 1, 2, 4], (seen, 1))
    labels = np.where(rng.random(seen) < 0.7, truth.labels[near], rng.integers(0, 3, seen))
    image = np.where(rng.random(seen) < 0.9, truth.image[near], 10)
    return DetectionRows(image, others, rng.integers(0, 20, seen) / 20, labels), truth


class Plainly:
    """The definitions, one detection after the other.

    Afterwards: ``kinds`` of detections, what is ``missed``, and ``pairs`` (truth, said) of classes
    for the confusion, 3 for the background.
    """

    def __init__(self, detections: DetectionRows, truth: TruthRows) -> None:
        self.detections, self.truth = detections, truth
        self.taken: set[int] = set()
        self.pairs: list[tuple[int, int]] = []
        self.demanded = [i for i in range(len(truth)) if not truth.ignored[i]]
        self.ignored = [i for i in range(len(truth)) if truth.ignored[i]]
        ranked = sorted(range(len(detections)), key=lambda j: -detections.scores[j])
        right = {j for j in ranked if self.take(j, True)}
        self.covered = set(self.taken)
        self.kinds = ["right" if j in right else self.wrong(j) for j in range(len(ranked))]
        for j in ranked:
            counts = self.kinds[j] not in ("right", "uncounted")
            if counts and not self.take(j, False):
                self.pairs.append((3, int(detections.labels[j])))
        left = [i for i in self.demanded if i not in self.taken]
        self.pairs += [(int(truth.labels[i]), 3) for i in left]
        seen = self.covered | set(self.ignored)
        self.missed = [i not in seen for i in range(len(truth))]

    def share(self, j: int, i: int) -> float:
        one, other = self.detections.boxes[[j]], self.truth.boxes[[i]]
        return float(overlap(one, other, self.truth.crowd[[i]])[0])

    def of(self, j: int, things: list[int], same: bool) -> list[int]:
        """Those in its image that are of its class, or of another."""
        image, label = self.detections.image[j], self.detections.labels[j]
        there = [i for i in things if self.truth.image[i] == image]
        return [i for i in there if (self.truth.labels[i] == label) == same]

    def take(self, j: int, same: bool) -> bool:
        allowed = [i for i in self.of(j, self.demanded, same) if i not in self.taken]
        enough = [i for i in allowed if self.share(j, i) >= 0.5]
        if enough:
            best = max(enough, key=lambda i: self.share(j, i))
            self.taken.add(best)
            self.pairs.append((int(self.truth.labels[best]), int(self.detections.labels[j])))
        return bool(enough)

    def wrong(self, j: int) -> str:
        def largest(same: bool) -> tuple[float, int]:
            things = self.of(j, self.demanded, same)
            return max([(self.share(j, i), -i) for i in things], default=(0.0, 0))

        own, other = largest(True), largest(False)
        if any(self.share(j, i) >= 0.5 for i in self.of(j, self.ignored, True)):
            return "uncounted"
        if 0.1 <= own[0] < 0.5:
            self.covered.add(-own[1])
            return "localisation"
        if other[0] >= 0.5:
            self.covered.add(-other[1])
            return "classification"
        if own[0] >= 0.5:
            return "duplicate"
        return "background" if max(own[0], other[0]) <= 0.1 else "both"


@pytest.mark.parametrize("at_once", [1, 1 << 20])
def test_random_sets_are_sorted_as_defined(at_once, monkeypatch):
    monkeypatch.setattr(detection_errors, "_AT_ONCE", at_once)
    seen: dict[str, int] = {}
    for seed in range(25):
        detections, truth = random_set(seed)
        expected = Plainly(detections, truth)
        assert kinds(detections, truth) == expected.kinds
        errors = find_errors(detections, truth, 3)
        assert errors.missed.tolist() == expected.missed
        counts = np.zeros((4, 4), int)
        np.add.at(counts, tuple(np.array(expected.pairs, int).reshape(-1, 2).T), 1)
        assert confusion_matrix(detections, truth, errors, 3).tolist() == counts.tolist()
        assert errors.counts["missed"] == sum(expected.missed)
        for kind in expected.kinds:
            seen[kind] = seen.get(kind, 0) + 1
    assert set(seen) == {"right", "uncounted", *KINDS[:-1]}
    assert min(seen.values()) >= 5, seen


def test_every_detection_and_every_object_is_counted_once():
    detections, truth = random_set(7)
    errors: Errors = find_errors(detections, truth, 3)
    confusion = confusion_matrix(detections, truth, errors, 3)
    assert confusion[:, :-1].sum() == (errors.kind != UNCOUNTED).sum()
    assert confusion[:-1].sum() == (~truth.ignored).sum()
    assert np.trace(confusion) == errors.right
    assert confusion[-1, -1] == 0


def test_histograms_by_hand():
    counts, edges = score_histogram(np.array([0, 0.09, 0.1, 0.55, 1.0]), bins=10)
    assert counts == [2, 1, 0, 0, 0, 1, 0, 0, 0, 1]
    assert edges == pytest.approx(np.arange(11) / 10)
    assert score_histogram(np.array([0.3, 0.55], np.float32)) == score_histogram(
        np.array([0.3, 0.55], np.float32).astype(np.float64)
    ), "from a network or from a file"
    counts, edges = size_histogram(np.array([1.0, 15.9, 16, 32**2, 1e9]))
    assert edges == [0, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048]
    assert counts == [2, 1, 0, 0, 1, 0, 0, 0, 0, 1]
