"""check and measure: all faults are found, and figures agree with plain arithmetic."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cnnctl.data.base import ArrayDataset
from cnnctl.data.digits import Digits
from cnnctl.data.folder import Folder
from cnnctl.data.inspection import check, measure

RNG = np.random.default_rng(0)


class Arrays(ArrayDataset):
    classes = ("a", "b", "c")
    mean = std = (0.5,)


def arrays(labels: list[int], first: int = 0) -> Arrays:
    """Each image of one value, so that two are alike where their values are."""
    values = torch.arange(first, first + len(labels), dtype=torch.uint8)
    return Arrays(values[:, None, None, None].repeat(1, 1, 4, 4), torch.tensor(labels))


def run(**splits):
    ticks = []
    report = check(splits, lambda split, done: ticks.append((split, done)))
    return report, ticks


def test_nothing_to_complain_of():
    report, ticks = run(train=arrays([0, 1, 2]), val=arrays([2, 1], first=3))
    assert (report.faults, report.warnings, report.remarks) == ([], [], [])
    assert report.read == {"train": 3, "val": 2}
    assert ticks == [("train", 3), ("val", 2)]


def test_labels_out_of_range_are_all_named():
    report, _ = run(train=arrays([0, 3, 1, -1, 2]))
    assert report.faults == [
        "train: sample 1: label is 3, must be 0 to 2",
        "train: sample 3: label is -1, must be 0 to 2",
    ]


def test_a_class_that_is_only_in_val():
    report, _ = run(train=arrays([0, 1]), val=arrays([2, 0], first=2))
    assert report.faults == ["val: class c is not in train"]


def test_identical_pictures_in_two_splits_are_counted():
    report, _ = run(
        train=arrays([0, 1, 2, 0]), val=arrays([2, 0, 1], first=2), test=arrays([1], first=4)
    )
    assert report.faults == []
    assert report.warnings == [
        "2 image(s) of val also in train: sample 0 = sample 2; sample 1 = sample 3",
        "1 image(s) of test also in val: sample 0 = sample 2",
    ]


def test_identical_pictures_with_two_labels():
    data = arrays([0, 1, 2])
    data.pixels[2] = data.pixels[0]
    report, _ = run(train=data)
    assert report.warnings == ["1 image(s) with two labels or more: train sample 0, train sample 2"]


class Boxed(Arrays):
    """Two copies of one picture, with one box each."""

    fields = ("boxes",)

    def __init__(self, *kinds: str) -> None:
        super().__init__(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(2).long())
        self.kinds = kinds

    def __getitem__(self, index):
        target = {
            "boxes": torch.tensor([[0.0, 0, 2, 2]]),
            "labels": torch.tensor([1]),
            "area": torch.tensor([4.0]),
        }
        for name in ("crowd", "difficult"):
            target[name] = torch.tensor([self.kinds[index] == name])
        return self.pixels[index], target


@pytest.mark.parametrize("kinds", [("", "crowd"), ("difficult", ""), ("crowd", "difficult")])
def test_boxes_that_differ_in_their_kind_alone_are_two_truths(kinds):
    report, _ = run(train=Boxed(*kinds))
    assert report.warnings == ["1 image(s) with two labels or more: train sample 0, train sample 1"]
    report, _ = run(train=Boxed(kinds[0], kinds[0]))
    assert report.warnings == []


def test_without_train_no_class_is_missed_in_it():
    report, _ = run(val=arrays([0, 3, 1]))
    assert report.faults == ["val: sample 1: label is 3, must be 0 to 2"]
    assert report.read == {"val": 3}


def picture(path: Path, size=(8, 6)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = RNG.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def test_every_broken_file_is_named(tmp_path):
    for name in "ab":
        for i in range(8):
            picture(tmp_path / "train" / name / f"{i}.png")
    bad = [tmp_path / "train" / "a" / "2.png", tmp_path / "train" / "b" / "7.png"]
    bad[0].write_bytes(b"<html>")
    bad[1].write_bytes(bad[1].read_bytes()[:80])
    report, _ = run(train=Folder("train", str(tmp_path), validation=0))
    assert len(report.faults) == 2
    assert report.faults[0] == f"train: {bad[0]}: is a web page or XML, not an image"
    assert report.faults[1].startswith(f"train: {bad[1]}: does not decode")
    # Skipped ones are faults of the data all the same, and named.
    report, _ = run(train=Folder("train", str(tmp_path), validation=0, skip_broken=True))
    assert report.faults == ["train: 2 broken samples were skipped"]
    assert [str(path) in line for path, line in zip(bad, report.remarks, strict=True)] == [True] * 2


def test_measured_figures_are_numpys(tmp_path):
    data = Digits("train")
    measured = measure(data)
    scaled = data.pixels.numpy() / 255
    assert measured.mean == pytest.approx((scaled.mean(),), abs=1e-12)
    assert measured.std == pytest.approx((scaled.std(),), abs=1e-12)
    assert (measured.images, measured.sizes) == (1078, "height 8, width 8")

    sizes = [(8, 6), (30, 4), (5, 5), (8, 60)]
    for i, size in enumerate(sizes):
        picture(tmp_path / "train" / "ab"[i % 2] / f"{i}.png", size)
    folder = Folder("train", str(tmp_path), validation=0)
    measured = measure(folder)
    every = np.concatenate([folder[i][0].flatten(1).numpy() for i in range(4)], axis=1) / 255
    assert measured.mean == pytest.approx(every.mean(1).tolist(), abs=1e-12)
    assert measured.std == pytest.approx(every.std(1).tolist(), abs=1e-12)
    assert measured.sizes == "height 4 to 60, width 5 to 30"
