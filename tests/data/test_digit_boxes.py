"""Boxes of digit scenes: what is to be seen of each instance, rows aligned."""

from __future__ import annotations

import torch

from cnnctl.data.digit_boxes import DigitBoxes


def test_rows_are_what_is_to_be_seen_of_each_instance():
    data = DigitBoxes("train", size=40, digits=(4, 7), scale=(0.4, 0.9), train_images=60)
    counts = set()
    for index in range(len(data)):
        instances, labels = data.scenes.instances[index], data.scenes.labels[index]
        expected = []
        for number, label in enumerate(labels.tolist(), 1):
            y, x = torch.nonzero(instances == number, as_tuple=True)
            if len(x):
                box = [int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1]
                expected.append((label, box, len(x)))
        truth = data[index][1]
        columns = (truth[name].tolist() for name in ("labels", "boxes", "area"))
        assert list(zip(*columns, strict=True)) == expected
        assert not truth["crowd"].any()
        assert not truth["difficult"].any()
        assert len(truth["crowd"]) == len(truth["difficult"]) == len(expected)
        counts.add((len(expected), int((labels >= 0).sum())))
    assert any(seen < there for seen, there in counts), "one is wholly covered somewhere"
