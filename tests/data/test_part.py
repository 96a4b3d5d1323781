"""A part of a data set is a data set."""

import numpy as np
import pytest
import torch

from cnnctl.data.base import ArrayDataset
from cnnctl.data.part import Part


class Ten(ArrayDataset):
    classes = ("even", "odd")
    mean, std = (0.5,), (0.25,)
    mirror = False


@pytest.fixture
def whole() -> Ten:
    pixels = torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1).expand(10, 1, 2, 2)
    return Ten(pixels.contiguous(), torch.arange(10) % 2)


def test_samples_are_spread_over_the_whole(whole):
    part = Part(whole, 4)
    assert [int(part[i][0][0, 0, 0]) for i in range(len(part))] == [0, 2, 5, 7]
    assert [part[i][1]["label"] for i in range(4)] == [0, 0, 1, 1]
    assert part.sample_name(2) == whole.sample_name(5)
    assert part.class_counts() == [2, 2]


def test_its_facts_are_the_wholes(whole):
    part = Part(whole, 3)
    for name in ("classes", "channels", "mean", "std", "size", "mirror", "palette"):
        assert getattr(part, name) == getattr(whole, name)
    assert part.fingerprint() != whole.fingerprint() != Part(whole, 4).fingerprint()


def test_truth_of_its_own_samples(whole):
    assert Part(whole, 4).all_truth() is None, "the whole has none to give"
    image = np.array([0, 2, 2, 3, 7, 9])
    whole.all_truth = lambda: {"image": image, "area": image / 10}
    every = Part(whole, 4).all_truth()  # samples 0, 2, 5 and 7
    assert every is not None
    assert every["image"].tolist() == [0, 1, 1, 3]
    assert every["area"].tolist() == [0, 0.2, 0.2, 0.7]
    half = Part(Part(whole, 4), 2).all_truth()  # 0 and 5
    assert half is not None
    assert half["image"].tolist() == [0]


@pytest.mark.parametrize("count", [0, 11])
def test_not_more_than_there_are(whole, count):
    with pytest.raises(ValueError, match=f"{count} images are wanted of 10"):
        Part(whole, count)
