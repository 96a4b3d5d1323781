"""Measures of class maps by hand, against scikit-learn and against a plain reading of VOC's kit."""

import itertools
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage
from sklearn.metrics import confusion_matrix as sklearn_confusion
from sklearn.metrics import jaccard_score
from torch import Tensor

from cnnctl.errors import UserError
from cnnctl.metrics import segmentation
from cnnctl.metrics.segmentation import (
    SegmentationEvaluator,
    boundary_counts,
    boundary_iu,
    confusion_matrix,
    frequency_weighted_iu,
    mean_accuracy,
    mean_iu,
    pair_counts,
    per_class_iu,
    pixel_accuracy,
)
from cnnctl.structures import Predictions, Targets


def masks(count: int, h: int, w: int, k: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Truth with a tenth of void, and a prediction that is right about half the time."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randint(k, (count, h, w), generator=generator)
    predicted = torch.randint(k, truth.shape, generator=generator)
    chance = torch.rand(truth.shape, generator=generator)
    predicted = torch.where(chance < 0.5, truth, predicted)
    return torch.where(chance > 0.9, 255, truth).byte(), predicted.byte()


def updated(evaluator: SegmentationEvaluator, truth: Tensor, predicted: Tensor):
    ids = torch.arange(len(truth))
    evaluator.update(Predictions(mask=predicted), Targets(ids, mask=truth))
    return evaluator


def evaluator_of(truth: Tensor, predicted: Tensor, k: int, boundary: bool = False):
    evaluator = SegmentationEvaluator([f"class {i}" for i in range(k)], boundary)
    return updated(evaluator, truth, predicted)


# Truth in rows: 10 pixels, 6 + 3 + 1 by truth, 6 + 2 + 2 by prediction.
TABLE = torch.tensor([[5, 1, 0], [1, 1, 1], [0, 0, 1]])


def test_the_papers_measures_of_a_table_by_hand():
    assert pixel_accuracy(TABLE) == 7 / 10
    assert mean_accuracy(TABLE) == pytest.approx((5 / 6 + 1 / 3 + 1) / 3)
    assert per_class_iu(TABLE).tolist() == [5 / 7, 1 / 4, 1 / 2]
    assert mean_iu(TABLE) == pytest.approx((5 / 7 + 1 / 4 + 1 / 2) / 3)
    assert frequency_weighted_iu(TABLE) == pytest.approx(0.6 * 5 / 7 + 0.3 / 4 + 0.1 / 2)


def test_a_class_that_is_nowhere_is_left_out():
    counts = torch.zeros(4, 4, dtype=torch.int64)
    counts[:3, :3] = TABLE
    assert math.isnan(per_class_iu(counts)[3])
    for measure in (pixel_accuracy, mean_accuracy, mean_iu, frequency_weighted_iu):
        assert measure(counts) == measure(TABLE)


def test_a_class_that_is_only_predicted_has_an_iu_of_zero_and_no_accuracy():
    counts = torch.tensor([[3, 1], [0, 0]])
    assert per_class_iu(counts).tolist() == [3 / 4, 0]
    assert mean_iu(counts) == 3 / 8
    assert mean_accuracy(counts) == 3 / 4
    assert frequency_weighted_iu(counts) == 3 / 4


def test_one_image_by_hand():
    truth = torch.tensor([[[0, 0, 1], [255, 1, 2]]], dtype=torch.uint8)
    predicted = torch.tensor([[[0, 1, 1], [2, 1, 0]]], dtype=torch.uint8)
    assert confusion_matrix(truth, predicted, 3).tolist() == [[1, 1, 0], [0, 2, 0], [1, 0, 0]]
    metrics = evaluator_of(truth, predicted, 3).compute()
    assert metrics == {
        "mean_iu": pytest.approx((1 / 3 + 2 / 3 + 0) / 3),
        "pixel_accuracy": 3 / 5,
        "mean_accuracy": pytest.approx((1 / 2 + 1 + 0) / 3),
        "fw_iu": pytest.approx((2 * (1 / 3) + 2 * (2 / 3)) / 5),
    }


@pytest.mark.parametrize("k", [2, 15, 21, 150, 180, 181, 255])
@pytest.mark.parametrize(("h", "w"), [(1, 1), (3, 5), (40, 37)])
def test_counts_equal_scikit_learn(k, h, w):
    truth, predicted = masks(3, h, w, k, seed=k)
    valid = truth != 255
    expected = sklearn_confusion(truth[valid], predicted[valid], labels=range(k))
    counts = confusion_matrix(truth, predicted, k)
    assert counts.dtype == torch.int64
    np.testing.assert_array_equal(counts, expected)


def test_counts_of_more_pixels_than_are_looked_at_once(monkeypatch):
    truth, predicted = masks(4, 30, 33, 5)
    expected = pair_counts(truth, predicted, 5)
    monkeypatch.setattr(segmentation, "_AT_ONCE", 100)
    assert torch.equal(pair_counts(truth, predicted, 5), expected)
    transposed = pair_counts(truth.mT, predicted.mT, 5)  # not contiguous
    assert torch.equal(transposed, expected)


def test_iu_equals_scikit_learn():
    truth, predicted = masks(2, 50, 50, 7)
    valid = truth != 255
    counts = confusion_matrix(truth, predicted, 7)
    for k, iu in enumerate(per_class_iu(counts).tolist()):
        assert iu == pytest.approx(jaccard_score(truth[valid] == k, predicted[valid] == k))
    weighted = jaccard_score(truth[valid], predicted[valid], labels=range(7), average="weighted")
    assert frequency_weighted_iu(counts) == pytest.approx(weighted)


@pytest.mark.parametrize("seed", range(5))
def test_properties(seed):
    k = 3 + seed
    truth, predicted = masks(3, 20, 21, k, seed)
    counts = confusion_matrix(truth, predicted, k)
    assert counts.sum() == (truth != 255).sum()
    order = torch.randperm(k, generator=torch.Generator().manual_seed(seed))
    named = torch.cat([order, torch.full((256 - k,), 255)]).byte()
    renamed = confusion_matrix(named[truth.long()], named[predicted.long()], k)
    for measure in (pixel_accuracy, mean_accuracy, mean_iu, frequency_weighted_iu):
        assert 0 < measure(counts) < 1
        assert measure(renamed) == pytest.approx(measure(counts))  # classes have no order
        assert measure(3 * counts) == pytest.approx(measure(counts))
        assert measure(torch.diag(counts.sum(1))) == pytest.approx(1)
    assert mean_iu(counts.T) == pytest.approx(mean_iu(counts))  # truth and prediction are alike
    assert (per_class_iu(counts) <= counts.diagonal() / counts.sum(1)).all()


@pytest.mark.parametrize("boundary", [False, True])
@pytest.mark.parametrize(("batch", "processes"), [(1, 1), (2, 3), (5, 2), (7, 1)])
def test_figures_do_not_depend_on_batches_or_processes(boundary, batch, processes):
    truth, predicted = masks(7, 24, 31, 6)
    whole = evaluator_of(truth, predicted, 6, boundary)
    parts = [SegmentationEvaluator(whole.classes, boundary) for _ in range(processes)]
    for number, index in enumerate(torch.arange(7).split(batch)):
        updated(parts[number % processes], truth[index], predicted[index])
    last = parts.pop()
    last.merge([part.rows() for part in parts])
    assert torch.equal(last.rows(), whole.rows())
    assert last.compute() == whole.compute()  # to the last bit
    assert last.details() == whole.details()


def test_padding_of_a_batch_changes_nothing():
    sizes = [(20, 30), (30, 20), (9, 40)]
    k, pairs = 4, [masks(1, h, w, 4, seed=h) for h, w in sizes]
    alone = SegmentationEvaluator("abcd", boundary=True)
    together = torch.full((2, 3, 30, 40), 255, dtype=torch.uint8)
    for row, (pair, (h, w)) in enumerate(zip(pairs, sizes, strict=True)):
        updated(alone, *pair)
        together[:, row, :h, :w] = torch.cat(pair)
    padded = evaluator_of(together[0], together[1], k, boundary=True)
    assert padded.compute() == alone.compute()


def test_the_memory_of_an_evaluator_is_one_matrix():
    truth, predicted = masks(1, 8, 8, 3)
    evaluator = SegmentationEvaluator("abc")
    for _ in range(50):
        updated(evaluator, truth, predicted)
    held = [t for t in vars(evaluator).values() if isinstance(t, Tensor)]
    assert [tuple(t.shape) for t in held] == [(1, 4, 4)]
    assert evaluator.rows()[0, :-1].sum() == 50 * (truth != 255).sum()
    assert evaluator._merged == []


def test_counts_taken_in_inference_mode_can_be_added_to_outside():
    truth, predicted = masks(1, 8, 8, 3)
    evaluator = SegmentationEvaluator("abc")
    with torch.inference_mode():
        updated(evaluator, truth.clone(), predicted.clone())
    updated(evaluator, truth, predicted)
    evaluator.merge([evaluator.rows()])
    assert evaluator.confusion().sum() == 4 * (truth != 255).sum()


def test_a_labelled_pixel_without_a_predicted_class_is_refused():
    truth = torch.tensor([[[0, 1, 255]]], dtype=torch.uint8)
    predicted = torch.tensor([[[0, 255, 255]]], dtype=torch.uint8)
    with pytest.raises(UserError, match="1 labelled pixels have no predicted class"):
        confusion_matrix(truth, predicted, 2)
    evaluator = evaluator_of(truth, predicted, 2)  # does not wait for the device
    with pytest.raises(UserError, match="no predicted class"):
        evaluator.compute()


@pytest.mark.parametrize("boundary", [False, True])
def test_nothing_gives_nothing(boundary):
    evaluator = SegmentationEvaluator(("a", "b"), boundary)
    assert evaluator.compute() == {}
    assert evaluator.per_class() == {}
    assert evaluator.confusion().tolist() == [[0, 0], [0, 0]]
    void = torch.full((1, 4, 4), 255, dtype=torch.uint8)
    updated(evaluator, void, torch.zeros_like(void))
    assert evaluator.compute() == {}
    assert evaluator.details()["void_pixels"] == 16


def test_names_are_those_of_the_figures():
    truth, predicted = masks(1, 8, 8, 3)
    for boundary, suffix in itertools.product([False, True], ["", "[flip]"]):
        evaluator = updated(SegmentationEvaluator("abc", boundary, suffix), truth, predicted)
        assert evaluator.names == (*evaluator.compute(), "loss")
        assert ("boundary_iu" + suffix in evaluator.names) is boundary


def test_details_are_plain_values():
    truth = torch.tensor([[[0, 0], [1, 255]]], dtype=torch.uint8)
    predicted = torch.tensor([[[0, 1], [1, 1]]], dtype=torch.uint8)
    details = evaluator_of(truth, predicted, 3).details()
    assert details == {
        "classes": ["class 0", "class 1", "class 2"],
        "per_class": {"class 0": 0.5, "class 1": 0.5},
        "confusion": [[1, 1, 0], [0, 1, 0], [0, 0, 0]],
        "labelled_pixels": 3,
        "void_pixels": 1,
    }
    assert json.loads(json.dumps(details)) == details


def rim_of_one_class(region: np.ndarray, radius: int) -> np.ndarray:
    """As in the paper's program: what a square takes away from a mask with nothing around it."""
    square = np.ones((3, 3), bool)
    padded = np.pad(region, 1)
    inside = np.asarray(ndimage.binary_erosion(padded, square, radius, border_value=1), bool)
    return (padded & ~inside)[1:-1, 1:-1]


@pytest.mark.parametrize(("h", "w"), [(40, 60), (61, 33), (2, 90), (1, 1)])
def test_boundary_iu_equals_an_erosion_of_each_class(h, w):
    generator = np.random.default_rng(h)
    blocks = np.kron(generator.integers(3, size=(8, 12)), np.ones((8, 8), int))
    truth, predicted = blocks[:h, :w], np.roll(blocks, 2, 1)[:h, :w]
    radius = max(1, round(0.02 * math.hypot(h, w)))
    expected = []
    for k in range(3):
        one, other = (rim_of_one_class(mask == k, radius) for mask in (truth, predicted))
        if (one | other).any():
            expected.append((one & other).sum() / (one | other).sum())
    one, other = (torch.from_numpy(mask.astype(np.uint8)) for mask in (truth, predicted))
    counts = boundary_counts(one, other, 3)
    assert boundary_iu(counts) == pytest.approx(np.mean(expected))


def test_boundary_iu_by_hand():
    """A square of 4 in 10 x 10 (radius 1), predicted one to the right."""
    truth = torch.zeros(10, 10, dtype=torch.uint8)
    truth[3:7, 3:7] = 1
    predicted = truth.roll(1, 1)
    # The square's rim has 12 pixels. Moved by one, 3 + 3 of the top and bottom rows are shared;
    # the left column of one lies in the other's inside or out of it.
    counts = boundary_counts(truth, predicted, 2)
    assert int(counts[1].sum()) == int(counts[:, 1].sum()) == 12
    assert int(counts[1, 1]) == 6
    assert boundary_counts(truth, truth, 2)[1, 1] == 12


def test_boundary_iu_forgives_what_void_hides():
    truth = torch.zeros(1, 60, 60, dtype=torch.uint8)
    truth[:, 20:40, 20:40] = 255
    truth[:, 23:37, 23:37] = 1
    predicted = torch.zeros_like(truth)
    predicted[:, 21:38, 21:38] = 1  # its contour is within the void
    metrics = evaluator_of(truth, predicted, 2, boundary=True).compute()
    assert metrics["boundary_iu"] == metrics["mean_iu"] == 1
    predicted[:, 21:36, 21:38] = 1
    predicted[:, 36] = 0
    missed = evaluator_of(truth, predicted, 2, boundary=True).compute()
    assert missed["boundary_iu"] < missed["mean_iu"] < 1


@pytest.mark.gpu
@pytest.mark.parametrize("k", [2, 21, 255])
def test_counts_on_a_gpu_equal_those_on_the_cpu_and_do_not_wait(k):
    truth, predicted = masks(3, 64, 61, k)
    expected = pair_counts(truth, predicted, k)
    truth, predicted = truth.cuda(), predicted.cuda()
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        counts = pair_counts(truth, predicted, k)
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    assert torch.equal(counts.cpu(), expected)


def devkit_ius(pairs: list[tuple[np.ndarray, np.ndarray]], k: int) -> list[float]:
    """VOC's definition, class by class: true positives over true, false and missed pixels."""
    ius = []
    for c in range(k):
        both = either = 0
        for truth, predicted in pairs:
            known = truth != 255
            both += int(((truth == c) & (predicted == c) & known).sum())
            either += int((((truth == c) | (predicted == c)) & known).sum())
        ius.append(both / either)
    return ius


@pytest.mark.data
@pytest.mark.skipif("CNNCTL_DATA" not in os.environ, reason="CNNCTL_DATA is not set")
def test_predictions_of_voc_score_what_its_kit_defines():
    from PIL import Image

    folder = Path(os.environ["CNNCTL_DATA"]) / "VOCdevkit/VOC2012/SegmentationClass"
    files = sorted(folder.glob("*.png"))[::6]
    if not files:
        pytest.skip(f"{folder} is needed")
    pairs = []
    for number, file in enumerate(files):
        truth = np.array(Image.open(file))
        predicted = np.roll(np.where(truth == 255, 0, truth), (number % 7, -(number % 5)), (0, 1))
        predicted[: number % 40] = number % 21
        pairs.append((truth, predicted))
    evaluator = SegmentationEvaluator([str(k) for k in range(21)])
    for truth, predicted in pairs:
        updated(evaluator, torch.from_numpy(truth)[None], torch.from_numpy(predicted)[None])
    expected = devkit_ius(pairs, 21)
    assert list(evaluator.per_class().values()) == expected
    assert evaluator.compute()["mean_iu"] == pytest.approx(np.mean(expected), rel=1e-12)
    assert 0.5 < np.mean(expected) < 0.95
