"""The colour map of Pascal VOC: a colour for each class number, far from its neighbours'.

From the VOC development kit (``VOClabelcolormap.m``): bit ``3 i + c`` of the class number is bit
``7 - i`` of channel ``c``. Background is black, and 255 (void) is the light (224, 224, 192).
"""

from __future__ import annotations

Colour = tuple[int, int, int]


def voc_palette(count: int = 256) -> tuple[Colour, ...]:
    """The (red, green, blue) of classes 0 to ``count - 1``.

    Raises:
        ValueError: ``count`` is not from 1 to 256.
    """
    if not 1 <= count <= 256:
        raise ValueError(f"a palette has 1 to 256 colours, not {count}")
    return tuple(_colour(number) for number in range(count))


def _colour(number: int) -> Colour:
    red, green, blue = (
        sum((number >> (3 * i + channel) & 1) << (7 - i) for i in range(3)) for channel in range(3)
    )
    return red, green, blue
