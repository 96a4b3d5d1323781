"""What the numbers or colours in a mask mean: which class, or void; everything else is refused."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from cnnctl.data.palette import Colour
from cnnctl.structures import IGNORE

MOST_CLASSES = 255  # 0 to 254; 255 is void


class Values:
    """Numbers in a file -> classes 0..K-1 and 255.

    Args:
        values: the number that stands for each class, in order (``range(21)``: as it is).
        void: the number that stands for no class, or None.

    Raises:
        ValueError: a number is not in 0..255, stands for two things, or there are too many.
    """

    def __init__(self, values: Sequence[int], void: int | None = IGNORE) -> None:
        every = [*values] if void is None else [*values, void]
        if not 1 <= len(values) <= MOST_CLASSES:
            raise ValueError(f"there must be 1 to {MOST_CLASSES} classes, not {len(values)}")
        if wrong := [value for value in every if not 0 <= value <= 255]:
            raise ValueError(f"a value in a mask is 0 to 255, not {wrong[0]}")
        if twice := sorted({value for value in every if every.count(value) > 1}):
            raise ValueError(f"value {twice[0]} cannot stand for two classes, or a class and void")
        self.void = void
        self.values = tuple(values)
        self._table = np.full(256, IGNORE, np.uint8)
        self._table[list(values)] = np.arange(len(values))
        self._known = np.zeros(256, bool)
        self._known[every] = True
        self._same = self.values == tuple(range(len(values))) and void in (None, IGNORE)

    def classes(self, mask: Tensor) -> Tensor:
        """(h, w) uint8 -> the class of each pixel, (h, w) uint8.

        Raises:
            ValueError: a value stands for nothing; the sentence names it and where it is.
        """
        found = mask.numpy()
        if self._same:  # nothing to translate: two comparisons, no look-up
            wrong = found >= len(self.values)
            if self.void is not None:
                wrong &= found != self.void
        else:
            wrong = ~self._known[found]
        if wrong.any():
            raise ValueError(self._refusal(found, wrong))
        return mask if self._same else torch.from_numpy(self._table[found])

    def _refusal(self, found: np.ndarray, wrong: np.ndarray) -> str:
        row, column = np.argwhere(wrong)[0]
        count = len(self.values)
        void = "" if self.void is None else f", void is {self.void}"
        return (
            f"value {found[row, column]} at row {row}, column {column} ({wrong.sum():,} pixels are "
            f"wrong) is no class: the {count} are {_listed(self.values)}{void}"
        )


class Colours:
    """RGB in a file -> classes 0..K-1 and 255.

    Args:
        colours: of each class, in order.
        void: those that stand for no class.

    Raises:
        ValueError: a colour stands for two things, is none, or there are too many classes.
    """

    def __init__(self, colours: Sequence[Colour], void: Sequence[Colour] = ()) -> None:
        if not 1 <= len(colours) <= MOST_CLASSES:
            raise ValueError(f"there must be 1 to {MOST_CLASSES} classes, not {len(colours)}")
        every = [*colours, *void]
        if wrong := [colour for colour in every if not all(0 <= level <= 255 for level in colour)]:
            raise ValueError(f"a colour is three numbers from 0 to 255, not {list(wrong[0])}")
        if twice := sorted({colour for colour in every if every.count(colour) > 1}):
            raise ValueError(f"colour {list(twice[0])} cannot stand for two classes")
        # Class + 1 of each of the 16 million colours: zeros are memory that is never touched.
        self._table = np.zeros(1 << 24, np.uint8)
        self.count = len(colours)
        for number, colour in enumerate(colours):
            self._table[_code(*colour)] = number + 1
        self._void = np.array([_code(*colour) for colour in void], np.int32)

    def classes(self, colours: Tensor) -> Tensor:
        """(h, w, 3) uint8 -> the class of each pixel, (h, w) uint8.

        Raises:
            ValueError: a colour stands for nothing; the sentence names it and where it is.
        """
        codes = _code(*colours.numpy().astype(np.int32).transpose(2, 0, 1))
        found = self._table[codes] - np.uint8(1)  # unknown: 0 - 1 is 255
        unknown = found == IGNORE
        if len(self._void) and unknown.any():
            unknown &= ~np.isin(codes, self._void)
        if unknown.any():
            row, column = np.argwhere(unknown)[0]
            raise ValueError(
                f"colour {colours[row, column].tolist()} at row {row}, column {column} "
                f"({unknown.sum():,} pixels are wrong) is none of the {self.count} classes'"
            )
        return torch.from_numpy(found)


def _code(red, green, blue):
    return red << 16 | green << 8 | blue


def _listed(values: tuple[int, ...]) -> str:
    """``0 to 20`` or ``0, 128, 255``, cut short where there are many."""
    if len(values) > 2 and values == tuple(range(values[0], values[0] + len(values))):
        return f"{values[0]} to {values[-1]}"
    shown = ", ".join(str(value) for value in values[:8])
    return f"{shown}, ..." if len(values) > 8 else shown
