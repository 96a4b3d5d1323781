"""U-Net's equation 2 by hand, and against a reading of it with whole distance maps."""

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from cnnctl.data.border_weights import border_weights


def masked(rows: list[str]) -> torch.Tensor:
    return torch.tensor([[int(letter) for letter in row] for row in rows], dtype=torch.uint8)


def test_between_two_objects_by_hand():
    weights = border_weights(masked(["110001"]), w0=10, sigma=5)
    expected = [1, 1, *(1 + 10 * math.exp(-(4**2) / 50),) * 3, 1]  # 1 + 3, 2 + 2, 3 + 1
    assert weights.dtype == torch.float32
    assert weights[0].tolist() == pytest.approx(expected)


def test_beside_two_objects_by_hand():
    weights = border_weights(masked(["10100"]), w0=4, sigma=2)
    assert weights[0, 3:].tolist() == pytest.approx(
        [1 + 4 * math.exp(-(4**2) / 8), 1 + 4 * math.exp(-(6**2) / 8)]  # 1 + 3, 2 + 4
    )


@pytest.mark.parametrize(
    "rows", [["0000", "0000"], ["0110", "0000"], ["1001", "1111"], ["1000", "0100"]]
)
def test_one_object_or_none_weighs_nothing(rows):
    assert (border_weights(masked(rows)) == 1).all()


def test_objects_of_two_classes_are_two_though_they_touch():
    assert (border_weights(masked(["1200"]), sigma=2)[0, 2:] > 1).all()


def test_void_is_no_object_and_gets_no_weight():
    mask = masked(["10000"])
    mask[0, 4] = 255
    assert (border_weights(mask) == 1).all()
    mask[0, 2] = 1
    assert (border_weights(mask)[0] > 1).tolist() == [False, True, False, True, False]


def by_whole_maps(mask: np.ndarray, w0: float, sigma: float) -> np.ndarray:
    distances = [np.full(mask.shape, np.inf)] * 2
    for value in set(np.unique(mask).tolist()) - {0, 255}:
        numbered = np.empty(mask.shape, np.int32)
        count = int(ndimage.label(mask == value, np.ones((3, 3)), numbered))  # pyright: ignore
        for number in range(1, count + 1):
            distances.append(np.asarray(ndimage.distance_transform_edt(numbered != number)))
    first, second = np.sort(distances, 0)[:2]
    return np.where(mask == 0, 1 + w0 * np.exp(-((first + second) ** 2) / (2 * sigma**2)), 1)


@pytest.mark.parametrize(("w0", "sigma"), [(10, 5), (10, 2), (100, 1), (1e-6, 5), (0, 5)])
def test_of_many_objects(w0, sigma):
    generator = np.random.default_rng(0)
    mask = np.kron(generator.integers(9, size=(14, 12)), np.ones((4, 4), int))
    mask = np.where(mask < 3, mask, 0).astype(np.uint8)
    mask[:5, :9] = 255
    weights = border_weights(torch.from_numpy(mask), w0, sigma)
    np.testing.assert_allclose(weights, by_whole_maps(mask, w0, sigma), rtol=1e-6, atol=2e-4)


@pytest.mark.data
@pytest.mark.skipif("CNNCTL_DATA" not in os.environ, reason="CNNCTL_DATA is not set")
def test_of_cells():
    from PIL import Image

    file = Path(os.environ["CNNCTL_DATA"]) / "membrane/train/label/0.png"
    if not file.is_file():
        pytest.skip(f"{file} is needed")
    mask = (np.array(Image.open(file)) > 127).astype(np.uint8)[:256, :256]
    weights = border_weights(torch.from_numpy(mask))
    np.testing.assert_allclose(weights, by_whole_maps(mask, 10, 5), rtol=1e-6, atol=2e-4)
    assert weights[mask == 0].mean() > 4


@pytest.mark.parametrize(("w0", "sigma"), [(-1, 5), (math.inf, 5), (10, 0), (10, math.nan)])
def test_what_is_refused(w0, sigma):
    with pytest.raises(ValueError, match="w0 must be at least 0 and sigma above 0"):
        border_weights(masked(["10"]), w0, sigma)
