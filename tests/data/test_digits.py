"""The embedded digits: scikit-learn's own pixels, each in one split."""

from __future__ import annotations

import pytest
import torch
from sklearn.datasets import load_digits

from cnnctl.data.digits import Digits


def test_the_splits_hold_every_digit_once():
    train, val, test = (Digits(split) for split in ("train", "val", "test"))
    assert [len(train), len(val), len(test)] == [1078, 359, 360]
    images, labels = load_digits(return_X_y=True)
    expected = sorted(
        (int(label), *(image * 255 / 16).round().astype(int).tolist())
        for image, label in zip(images, labels, strict=True)
    )
    found = sorted(
        (int(label), *pixels.flatten().tolist())
        for data in (train, val, test)
        for pixels, label in zip(data.pixels, data.labels, strict=True)
    )
    # numpy rounds halves to even, as torch does
    assert found == expected


def test_every_class_is_in_proportion():
    whole = torch.tensor([178, 182, 177, 183, 181, 182, 181, 179, 174, 180])
    for data in (Digits("train"), Digits("val"), Digits("test")):
        counts = torch.tensor(data.class_counts())
        assert (counts - whole * len(data) / 1797).abs().max() < 2


def test_facts():
    data = Digits("train")
    assert (data.size, data.channels, data.mirror) == ((8, 8), 1, False)
    assert (Digits.size, Digits.channels) == ((8, 8), 1)  # known without reading it
    pixels = data.pixels.double() / 255
    assert pixels.mean().item() == pytest.approx(Digits.mean[0], abs=5e-5)
    assert pixels.std().item() == pytest.approx(Digits.std[0], abs=5e-5)
    image, target = data[5]
    assert image.dtype == torch.uint8
    assert target == {"label": int(data.labels[5])}


def test_the_fingerprint_changes_with_pixels_and_labels():
    data, other = Digits("val"), Digits("val")
    assert data.fingerprint() == other.fingerprint() != Digits("test").fingerprint()
    other.labels[3] += 1
    assert data.fingerprint() != other.fingerprint()


def test_nothing_is_fetched():
    assert Digits.home(None) is None
    assert Digits.missing(None) == []
    assert "scikit-learn" in Digits.fetch(None)
