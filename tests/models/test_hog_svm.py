from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.feature import hog
from sklearn.svm import LinearSVC

from cnnctl.models.hog_svm import HogSvm
from cnnctl.ops.linear_svm import NEVER
from cnnctl.structures import Batch, Images, Targets

MEAN, STD = (0.3, 0.4, 0.5), (0.2, 0.25, 0.3)
SIDE = 16


def stripes(labels: torch.Tensor, seed: int) -> Batch:
    """Images whose class is the direction of their stripes, and noise, normalised."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    angle = labels[:, None, None] * torch.pi / 4
    wave = torch.sin((x * angle.cos() + y * angle.sin()) * 1.2)
    noise = torch.rand(len(labels), 3, SIDE, SIDE, generator=generator)
    pixels = ((wave[:, None] + 1) * 60 + noise * 100).round() / 255
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    size = [(SIDE, SIDE)] * len(labels)
    return Batch(
        Images((pixels - mean) / std, size, size), Targets(torch.arange(len(labels)), labels)
    )


def model(**change) -> HogSvm:
    return HogSvm(3, 4, (SIDE, SIDE), MEAN, STD, **({"cell": 4} | change))


def fitted(labels: torch.Tensor, **change) -> HogSvm:
    data, made = stripes(labels, 0), model(**change)
    half = len(labels) // 2
    with torch.no_grad():
        made.fit(iter([data.rows(slice(0, half)), data.rows(slice(half, None))]))
    return made


def test_is_scikit_images_descriptor_and_scikit_learns_svm():
    labels = torch.arange(24) % 4
    made, test = fitted(labels, C=0.5), stripes(labels, 1)

    def described(data: Batch) -> np.ndarray:
        mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
        images = (data.images.pixels * std + mean).mul(255).round().permute(0, 2, 3, 1).numpy()
        cells = {"pixels_per_cell": (4, 4), "cells_per_block": (2, 2)}
        return np.stack([hog(image, channel_axis=-1, **cells) for image in images])

    oracle = LinearSVC(C=0.5, random_state=0).fit(described(stripes(labels, 0)), labels.numpy())
    margins = oracle.decision_function(described(test))
    log_probs = made.predict(test.images).log_probs
    assert log_probs is not None
    expected = torch.from_numpy(margins).float().log_softmax(1)
    torch.testing.assert_close(log_probs, expected, rtol=1e-2, atol=1e-2)
    assert log_probs.argmax(1).tolist() == labels.tolist()


@pytest.mark.parametrize("present", [[2], [1, 3], [0, 1, 3]])
def test_a_class_without_images_is_never_said(present):
    labels = torch.tensor(present)[torch.arange(12) % len(present)]
    made, test = fitted(labels), stripes(labels, 1)
    with torch.no_grad():
        margins = made(test.images.pixels)
    assert margins.argmax(1).tolist() == labels.tolist()
    absent = [label for label in range(4) if label not in present]
    assert (margins[:, absent] == NEVER).all()


def test_before_the_fit_all_classes_are_alike_and_a_fit_comes_back():
    labels = torch.arange(12) % 4
    test = stripes(labels, 1)
    made, fresh = fitted(labels), model()
    with torch.no_grad():
        assert not fresh(test.images.pixels).any()
        fresh.load_state_dict(made.state_dict())
        assert torch.equal(fresh(test.images.pixels), made(test.images.pixels))


def test_sizes_of_the_descriptor():
    """Dalal and Triggs, section 6.4: 64 x 128 windows have 7 x 15 blocks of 36 numbers."""
    with torch.device("meta"):
        person = HogSvm(3, 2, (128, 64), MEAN, STD)
    assert person.classifier.in_features == 7 * 15 * 36 == 3780


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cell": 9}, "2 x 2 cells of 9 x 9 pixels needs images of at least 18 x 18, got 16 x 16"),
        ({"block": 0}, "block must be at least 1, got 0"),
        ({"orientations": 0}, "orientations must be at least 1, got 0"),
        ({"C": 0.0}, r"C must be positive, got 0\.0"),
    ],
)
def test_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        model(**change)
