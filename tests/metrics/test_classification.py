"""Metrics against scikit-learn, hand-made tables, and the published scores of thirty networks."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix as sklearn_confusion
from sklearn.metrics import log_loss, top_k_accuracy_score

from cnnctl.metrics.classification import (
    ClassificationEvaluator,
    confusion_matrix,
    predicted_class,
    top_k_hits,
)
from cnnctl.structures import Predictions, Targets

# Recht et al., "Do CIFAR-10 classifiers generalize to CIFAR-10?", arXiv:1806.00451: percent on the
# original test set of the networks whose predictions they published.
PUBLISHED = {
    "alexnet_tf_ben": 81.98,
    "cudaconvnet": 88.54,
    "darc": 96.57,
    "densenet_BC_100_12": 95.54,
    "nas": 95.43,
    "pyramidnet_basic_110_270": 96.34,
    "pyramidnet_basic_110_84": 95.73,
    "random_features_256k_aug": 85.63,
    "random_features_256k_no_aug": 84.20,
    "random_features_32k_aug": 84.97,
    "random_features_32k_no_aug": 83.31,
    "resnet_basic_110": 93.46,
    "resnet_basic_32": 92.52,
    "resnet_basic_44": 93.01,
    "resnet_basic_56": 93.30,
    "resnet_preact_basic_110": 93.38,
    "resnet_preact_bottleneck_164": 94.19,
    "resnetv2_tf": 92.69,
    "resnext_29_4x64d": 96.39,
    "resnext_29_8x64d": 96.23,
    "shake_drop": 96.87,
    "shake_shake_26_2x32d_SSI": 96.59,
    "shake_shake_26_2x64d_SSI_cutout16": 97.11,
    "shake_shake_26_2x64d_SSI": 96.99,
    "shake_shake_26_2x96d_SSI": 97.07,
    "vgg16_keras": 93.59,
    "vgg_15_BN_64": 92.99,
    "wide_resnet_tf": 95.01,
    "wrn_28_10_cutout16": 96.96,
    "wrn_28_10": 95.93,
}


def scores_and_labels(count: int, classes: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, classes, generator=generator)
    return logits.log_softmax(1), torch.randint(classes, (count,), generator=generator)


def evaluator_of(log_probs: torch.Tensor, label: torch.Tensor, ids: torch.Tensor | None = None):
    evaluator = ClassificationEvaluator([f"class {k}" for k in range(log_probs.shape[1])])
    ids = torch.arange(len(label)) if ids is None else ids
    evaluator.update(Predictions(log_probs=log_probs), Targets(ids, label=label))
    return evaluator


@pytest.mark.parametrize("k", [1, 2, 5, 9])
def test_top_k_equals_scikit_learn(k):
    scores, label = scores_and_labels(700, 10)
    expected = top_k_accuracy_score(label, scores, k=k)
    assert top_k_hits(scores, label, k).double().mean().item() == pytest.approx(expected)


def test_figures_equal_scikit_learn():
    log_probs, label = scores_and_labels(500, 12)
    evaluator = evaluator_of(log_probs, label)
    metrics = evaluator.compute()
    classes = range(12)
    assert metrics["top1"] == pytest.approx(top_k_accuracy_score(label, log_probs, k=1))
    assert metrics["top5"] == pytest.approx(top_k_accuracy_score(label, log_probs, k=5))
    probs = log_probs.double().softmax(1)  # sums to one in float64 too
    assert metrics["nll"] == pytest.approx(log_loss(label, probs, labels=list(classes)), rel=1e-6)
    expected = sklearn_confusion(label, log_probs.argmax(1), labels=list(classes))
    np.testing.assert_array_equal(evaluator.confusion(), expected)
    recall = expected.diagonal() / expected.sum(1)
    assert list(evaluator.per_class().values()) == pytest.approx(recall.tolist())


@pytest.mark.parametrize(
    ("scores", "label", "first", "second", "predicted"),
    [
        ([0.1, 0.9, 0.5], 1, True, True, 1),
        ([0.1, 0.9, 0.5], 2, False, True, 1),
        ([0.5, 0.5, 0.5], 0, False, False, 1),  # a constant output knows nothing
        ([0.5, 0.5, 0.5], 2, False, False, 0),
        ([0.5, 0.5, 0.1], 0, False, True, 1),
        ([0.5, 0.5, 0.1], 1, False, True, 0),
        ([0.9, 0.5, 0.5], 2, False, False, 0),
        ([math.nan] * 3, 0, False, False, 1),
        ([math.nan] * 3, 1, False, False, 0),
        ([math.nan, 0.5, 0.1], 0, False, False, 1),
        ([0.5, math.nan, 0.1], 0, False, True, 1),  # ranks before any number, as in argmax
        ([-math.inf, 0.0, -math.inf], 1, True, True, 1),
        ([-math.inf, 0.0, -math.inf], 0, False, False, 1),
        ([-math.inf] * 3, 0, False, False, 1),
        ([-math.inf] * 3, 1, False, False, 0),
        ([math.nan, -math.inf, -math.inf], 0, False, False, 1),
        ([-math.inf, -math.inf, math.nan], 0, False, False, 2),
    ],
)
def test_ties_and_not_a_number(scores, label, first, second, predicted):
    row, truth = torch.tensor([scores]), torch.tensor([label])
    assert top_k_hits(row, truth, 1).item() is first
    assert top_k_hits(row, truth, 2).item() is second
    assert predicted_class(row, truth).item() == predicted


def test_not_a_number_is_never_right_however_many_classes_count():
    scores = torch.full((4, 4), math.nan)
    for k in range(1, 7):
        assert not top_k_hits(scores, torch.arange(4), k).any()


def test_more_places_than_classes_are_always_enough():
    scores, label = scores_and_labels(50, 3)
    assert top_k_hits(scores, label, 3).all()
    assert top_k_hits(scores, label, 5).all()


def test_top1_is_the_diagonal_of_the_confusion_matrix_even_with_ties():
    log_probs, label = scores_and_labels(400, 4)
    coarse = log_probs.round()  # many equal scores
    evaluator = evaluator_of(coarse, label)
    counts = evaluator.confusion()
    assert evaluator.compute()["top1"] == counts.diagonal().sum().item() / 400
    assert evaluator.compute()["top1"] == top_k_hits(coarse, label, 1).double().mean().item()


def test_the_confusion_matrix_has_truth_in_rows():
    counts = confusion_matrix(torch.tensor([0, 0, 1, 2]), torch.tensor([0, 2, 2, 2]), 3)
    assert counts.tolist() == [[1, 0, 1], [0, 0, 1], [0, 0, 1]]


def test_top5_is_left_out_where_it_says_nothing():
    assert set(evaluator_of(*scores_and_labels(9, 5)).compute()) == {"top1", "nll"}
    assert set(evaluator_of(*scores_and_labels(9, 6)).compute()) == {"top1", "top5", "nll"}


def test_nothing_gives_nothing():
    evaluator = ClassificationEvaluator(["a", "b"])
    assert evaluator.compute() == {}
    assert evaluator.per_class() == {}
    assert evaluator.confusion().tolist() == [[0, 0], [0, 0]]
    assert evaluator.rows().shape == (0, 5)


def test_a_class_without_images_has_no_accuracy():
    evaluator = evaluator_of(torch.tensor([[0.0, -9.0, -9.0]]), torch.tensor([0]))
    assert evaluator.per_class() == {"class 0": 1.0}


@pytest.mark.parametrize("batch", [1, 7, 64, 300])
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_figures_do_not_depend_on_batches_processes_or_order(batch, processes):
    log_probs, label = scores_and_labels(300, 10)
    whole = evaluator_of(log_probs, label)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(batch))
    parts = [ClassificationEvaluator(whole.classes) for _ in range(processes)]
    for number, index in enumerate(order.split(batch)):
        predictions = Predictions(log_probs=log_probs[index])
        parts[number % processes].update(predictions, Targets(index, label=label[index]))
    last = parts.pop()
    last.merge([part.rows() for part in parts])
    assert last.compute() == whole.compute()  # to the last bit
    assert torch.equal(last.rows(), whole.rows())
    assert torch.equal(last.confusion(), whole.confusion())


def test_a_divergent_network_scores_zero_and_says_so():
    metrics = evaluator_of(torch.full((6, 10), math.nan), torch.arange(6)).compute()
    assert metrics["top1"] == metrics["top5"] == 0
    assert math.isnan(metrics["nll"])


def test_large_ids_stay_exact():
    log_probs, label = scores_and_labels(3, 10)
    ids = torch.tensor([2**40 + 1, 2**40, 5])
    assert evaluator_of(log_probs, label, ids).rows()[:, 0].tolist() == [5, 2**40, 2**40 + 1]


@pytest.mark.data
@pytest.mark.skipif("CNNCTL_DATA" not in os.environ, reason="CNNCTL_DATA is not set")
@pytest.mark.parametrize("network", PUBLISHED)
def test_published_networks_score_what_was_published(network):
    root = Path(os.environ["CNNCTL_DATA"])
    batch = root / "cifar-10-batches-bin" / "test_batch.bin"
    recorded = root / "eval_reference" / "cifar10_predictions" / f"{network}_predictions.json"
    if not (batch.is_file() and recorded.is_file()):
        pytest.skip(f"{batch} and {recorded} are needed")
    records = np.fromfile(batch, np.uint8).reshape(10_000, 3073)  # label, then 3 x 32 x 32 pixels
    label = torch.from_numpy(records[:, 0]).long()
    predicted = torch.tensor(json.loads(recorded.read_text()))
    evaluator = ClassificationEvaluator([str(k) for k in range(10)])
    for index in torch.arange(10_000).split(333):
        log_probs = torch.full((len(index), 10), -20.0).scatter(1, predicted[index, None], 0.0)
        evaluator.update(Predictions(log_probs=log_probs), Targets(index, label=label[index]))
    assert round(100 * evaluator.compute()["top1"], 2) == PUBLISHED[network]
    expected = sklearn_confusion(label, predicted)
    np.testing.assert_array_equal(evaluator.confusion(), expected)


def test_details_hold_the_confusion_matrix_and_each_class() -> None:
    evaluator = ClassificationEvaluator(("a", "b", "c"))
    scores = torch.tensor([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.6, 0.3, 0.1]]).log()
    targets = Targets(image_id=torch.arange(3), label=torch.tensor([0, 1, 1]))
    evaluator.update(Predictions(log_probs=scores), targets)
    assert evaluator.details() == {
        "classes": ["a", "b", "c"],
        "per_class": {"a": 1.0, "b": 0.5},
        "confusion": [[1, 0, 0], [1, 1, 0], [0, 0, 0]],
    }
