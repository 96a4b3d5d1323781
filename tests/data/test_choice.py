"""Some classes, some images of each."""

from __future__ import annotations

import pytest
import torch

from cnnctl.data.base import ArrayDataset
from cnnctl.data.choice import choose


class Letters(ArrayDataset):
    """Pixel i is image i; labels a b c d, four images of each, one after another."""

    classes = ("a", "b", "c", "d")

    def __init__(self) -> None:
        labels = torch.arange(4).repeat(4)
        super().__init__(torch.arange(16, dtype=torch.uint8).view(16, 1, 1, 1), labels)


def images(data: ArrayDataset) -> list[tuple[int, str]]:
    names = [data.classes[label] for label in data.labels.tolist()]
    return list(zip(data.pixels.flatten().tolist(), names, strict=True))


def test_classes_are_counted_in_the_order_given():
    data = choose(Letters(), ["d", "b"], None)
    assert data.classes == ("d", "b")
    assert images(data) == [(i, "b" if i % 4 == 1 else "d") for i in range(16) if i % 2]
    assert data.labels.tolist() == [1, 0] * 4
    assert data.class_counts() == [4, 4]
    assert data.fingerprint() != Letters().fingerprint()


def test_few_of_each_are_the_same_and_among_more():
    one, again, three = (set(images(choose(Letters(), None, n))) for n in (1, 1, 3))
    assert one == again
    assert one < three < set(images(Letters()))
    assert sorted(name for _, name in one) == ["a", "b", "c", "d"]
    assert len(three) == 12
    assert len(choose(Letters(), None, 9)) == 16


def test_names_may_be_numbers():
    data = Letters()
    data.classes = ("7", "8", "9", "10")
    assert choose(data, [9, 7], 2).class_counts() == [2, 2]


@pytest.mark.parametrize(
    ("only", "per_class", "message"),
    [
        (["a", "z"], None, 'no class "z": choose one of: a, b, c, d'),
        (["a", "a"], None, '"a" twice'),
        (["a"], None, "at least two"),
        (None, 0, "per_class must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_chosen(only, per_class, message):
    with pytest.raises(ValueError, match=message):
        choose(Letters(), only, per_class)


def test_from_the_command_line(command, capsys, tmp_path):
    assert command("info", "model=linear", "data.only=[3,5]", "data.per_class=4") == 0
    assert "-> 2 classes" in capsys.readouterr().out
    assert command("info", "data.only=[3,x]") == 2
    assert 'data: only names no class "x"' in capsys.readouterr().err
    assert command("train", "task=segment", "data=digits", "data.only=[3,5]") == 2
    assert "data.only: chooses among images of one class each" in capsys.readouterr().err
