"""What the numbers in a map of instances mean: which instance, of which class, or nobody's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cnnctl.data.index_maps import Objects, find_objects

_LEAST = 2  # numbers that a class must have: one of its crowd or none, and an instance


@dataclass(frozen=True)
class Found:
    """What a map holds: R instances, with the position of its class and crowd or not of each."""

    objects: Objects
    labels: list[int]
    crowd: list[bool]
    void: Tensor | None  # (h, w) bool; None: the numbers have none
    gaps: bool  # are numbers left out between 1 and the last?


class Numbers:
    """Numbers in a map -> instances.

    Without ``per_class`` all are of one class: 0 is the background, any other an instance. With it
    a number is ``class * per_class + instance``, as in Cityscapes (Cordts et al., arXiv:1604.01685)
    and its tools; one below ``per_class`` that is a class by itself is a crowd of that, any other
    below is background.

    Args:
        classes: their names.
        per_class: numbers that a class has; None: there is one class.
        values: the number of each class, with ``per_class``; None: 1 to K.
        void: the number of the pixels that belong to nobody and are not judged. 0: there is none.
            None: there is none either, but a map with its highest possible number (255 of 8 bits,
            65,535 of 16) and not the one before that is refused, as it could be meant.

    Raises:
        ValueError: they do not go together, or one is out of range.
    """

    def __init__(
        self,
        classes: Sequence[str],
        per_class: int | None = None,
        values: Sequence[int] | None = None,
        void: int | None = None,
    ) -> None:
        if void is not None and void < 0:
            raise ValueError(
                f"void must be a number in a mask, or 0 where there is none, not {void}"
            )
        if per_class is None:
            if values is not None:
                raise ValueError("values goes with per_class: without it there is one class")
            if len(classes) != 1:
                raise ValueError(
                    f"there are {len(classes)} classes, and nothing says which one a number is of: "
                    "per_class=1000 where it is class * 1000 + instance"
                )
        elif per_class < _LEAST:
            raise ValueError(f"per_class must be at least {_LEAST}, got {per_class}")
        values = tuple(range(1, len(classes) + 1)) if values is None else tuple(values)
        if len(values) != len(classes):
            raise ValueError(
                f"values must have a number for each of the {len(classes)} classes, "
                f"got {len(values)}"
            )
        if len(set(values)) < len(values) or min(values) < 1:
            raise ValueError(f"values must be different and above 0, got {list(values)}")
        self.classes, self.per_class, self.values, self.void = classes, per_class, values, void
        self._label = {value: label for label, value in enumerate(values)}

    def read(self, numbers: Tensor) -> Found:
        """The instances of a map (h, w), uint8 or int32.

        Raises:
            ValueError: a number is of no class, or it is not clear what it is.
        """
        objects = find_objects(numbers, nobody=self._nobody(numbers))
        own = objects.numbers.tolist()
        self._refuse_doubtful(set(own), deep=numbers.dtype != torch.uint8)
        labels, crowd = [0] * len(own), [False] * len(own)
        if self.per_class is not None:
            labels = [self._class_of(row, objects) for row in range(len(own))]
            crowd = [number < self.per_class for number in own]
        # Not in uint8, where torch makes 256 a 0.
        void = numbers.int() == self.void if self.void else None
        gaps = self.per_class is None and bool(own) and own[-1] != len(own)
        return Found(objects, labels, crowd, void, gaps)

    def _nobody(self, numbers: Tensor) -> set[int]:
        nobody = {0} if self.void is None else {0, self.void}
        if self.per_class is not None:
            below = numbers[numbers.int() < self.per_class].unique().tolist()
            nobody |= {number for number in below if number not in self._label}
        return nobody

    def _class_of(self, row: int, objects: Objects) -> int:
        assert self.per_class is not None
        number = int(objects.numbers[row])
        value = number if number < self.per_class else number // self.per_class
        if value in self._label:
            return self._label[value]
        left, top = objects.boxes[row, :2].tolist()
        column = left + int(objects.crops[row][0].argmax())
        raise ValueError(
            f"number {number} at row {top}, column {column} ({objects.areas[row]:,} pixels) is of "
            f"class {number} // {self.per_class} = {value}, which is none: the {len(self.values)} "
            f"are {_listed(self.values)}"
        )

    def _refuse_doubtful(self, own: set[int], *, deep: bool) -> None:
        """Raise ValueError where the numbers may not suffice, or the last may be void."""
        highest = 65_535 if deep else 255
        if self.void is None and highest in own and highest - 1 not in own:
            raise ValueError(
                f"holds the number {highest} and not {highest - 1}: it could be an instance, or a "
                "border that belongs to nobody"
            )
        room = highest - (self.void is not None and 0 < self.void <= highest)
        if not deep and self.per_class is None and len(own) == room:
            raise ValueError(
                f"uses all {room} numbers that 8 bits have for instances, so more of them would "
                "share one: a 16-bit PNG has 65,535"
            )

    def advice(self) -> str:
        """What to do about a map that is refused."""
        if self.per_class is None:
            return "correct the mask; data.void=255 for borders in it, data.void=0 for none"
        return "correct the mask, or name every class: data.classes, data.values"


def _listed(values: Sequence[int]) -> str:
    if len(values) > 2 and list(values) == list(range(values[0], values[0] + len(values))):
        return f"{values[0]} to {values[-1]}"
    return ", ".join(map(str, values))
