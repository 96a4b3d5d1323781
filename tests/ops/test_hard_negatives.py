"""Hard-negative mining: the SVM of all rows from a part of them, against scikit-learn."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.svm import LinearSVC

from cnnctl.ops.hard_negatives import NORM, Mining, chunks, mined_planes
from cnnctl.ops.linear_svm import NEVER

K, D = 3, 8
Data = tuple[Any, Any, Any]


@pytest.fixture(scope="module")
def data() -> Data:
    """3000 rows, 40 positives of each class about a place of its own, the rest about 0."""
    rng = np.random.default_rng(0)
    rows = rng.normal(0, 1, (3000, D))
    own = np.full(3000, -1)
    for number in range(K):
        own[number * 40 : number * 40 + 40] = number
        rows[own == number, number] += 2.5
    blocked = own[:, None] == np.arange(K)
    blocked[rng.random((3000, K)) < 0.1] = True  # proposals that are near an object
    return rows.astype(np.float16), own, blocked


def oracle(data, number: int, mining: Mining) -> tuple[np.ndarray, float]:
    """scikit-learn on all rows, scaled; the plane of rows as they are."""
    rows, own, blocked = data
    scale = NORM / np.linalg.norm(rows.astype(np.float32), axis=1).mean()
    chosen = (own == number) | ~blocked[:, number]
    made: Any = LinearSVC
    svm = made(
        C=mining.C,
        loss="hinge",
        intercept_scaling=10,
        class_weight={1: 2},
        max_iter=100_000,
        tol=1e-7,
    ).fit(rows[chosen].astype(np.float64) * scale, (own == number)[chosen].astype(int))
    return svm.coef_[0] * scale, float(svm.intercept_[0])


def agrees(data, planes, mining: Mining, tolerance: float) -> None:
    for number in range(K):
        weights, bias = oracle(data, number, mining)
        np.testing.assert_allclose(planes[0][number], weights, atol=tolerance)
        assert float(planes[1][number]) == pytest.approx(bias, abs=tolerance)


def test_with_all_negatives_at_once_it_is_linear_svc(data: Data):
    mining = Mining(start=10_000, rounds=0)
    agrees(data, mined_planes(*data, mining), mining, 5e-3)


def test_mining_finds_the_planes_of_all_rows(data: Data):
    mining = Mining(start=60, rounds=20, few=0.0)
    agrees(data, mined_planes(*data, mining), mining, 5e-3)
    started = mined_planes(*data, replace(mining, rounds=0))
    with pytest.raises(AssertionError):  # without mining it does not
        agrees(data, started, mining, 5e-3)


def test_a_few_more_in_each_round_are_enough(data: Data):
    mining = Mining(start=60, rounds=60, few=0.0, most=40)
    agrees(data, mined_planes(*data, mining), mining, 5e-3)


def test_the_scale_of_the_features_is_of_no_account(data: Data):
    rows, own, blocked = data
    plain = mined_planes(rows.astype(np.float32), own, blocked, Mining())
    larger = mined_planes(rows.astype(np.float32) * 8, own, blocked, Mining())
    torch.testing.assert_close(larger[0] * 8, plain[0], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(larger[1], plain[1], rtol=1e-3, atol=1e-4)


def test_rows_are_read_in_chunks_from_a_file(data: Data, tmp_path):
    rows, own, blocked = data
    mapped = np.memmap(tmp_path / "rows", np.float16, "w+", shape=rows.shape)
    mapped[:] = rows
    assert [len(chunk) for _, chunk in chunks(mapped, 1000 * D)] == [1000, 1000, 1000]
    for ours, theirs in zip(
        mined_planes(mapped, own, blocked, Mining()),
        mined_planes(rows, own, blocked, Mining()),
        strict=True,
    ):
        assert ours.equal(theirs)


def test_a_class_without_positives_is_never_said(data: Data):
    rows, own, blocked = data
    without = np.where(own == 1, -1, own)
    with pytest.warns(UserWarning, match="no true box of class two among") as caught:
        weights, biases = mined_planes(rows, without, blocked, Mining(), ("one", "two", "three"))
    assert "it is never found" in str(caught[0].message)
    assert not weights[1].any()
    assert biases[1] == NEVER
    assert weights[0].any()


def test_a_class_without_negatives_is_always_said(data: Data):
    rows, own, _ = data
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        weights, biases = mined_planes(rows, own, np.ones((3000, K), bool), Mining())
    assert not weights.any()
    assert biases.equal(torch.ones(K))


def test_no_rows_at_all():
    nothing: Data = np.empty((0, D), np.float16), np.empty(0, int), np.empty((0, K), bool)
    with pytest.warns(UserWarning, match="class 0, 1, 2 among .* they are never found"):
        weights, biases = mined_planes(*nothing, Mining())
    assert not weights.any()
    assert biases.equal(torch.full((K,), NEVER))
