"""The bars of a picture of layers are as long as their figures are large."""

from __future__ import annotations

import torch

from cnnctl.drawing.layer_pictures import draw_layers

RED = torch.tensor([0xCC, 0x29, 0x20])
BLUE = torch.tensor([0x4A, 0x7F, 0xB5])


def bars(picture: torch.Tensor, colour: torch.Tensor) -> list[int]:
    """Pixels across of each bar of that colour, from above."""
    widths = (picture.int() == colour).all(2).sum(1).tolist()
    found, before = [], 0
    for width in widths:
        if width and not before:
            found.append(width)
        before = width
    return found


def test_bars():
    names = ("stem", "body", "head")
    figures = {f"gradient/{name}": 10.0**-power for power, name in enumerate(names)}
    figures |= {f"std/{name}": 1.0 for name in names}
    figures |= {"zeros/stem": 0.25, "zeros/body": 1.0}
    picture = draw_layers(figures)
    assert picture.dtype == torch.uint8
    quarter, whole = bars(picture, RED)  # the head has no ReLU
    assert abs(whole / quarter - 4) < 0.1
    first, second, third = bars(picture, BLUE)
    assert abs((first - second) - (second - third)) <= 2  # powers of ten
    assert first > 4 * third


def test_of_a_deep_network_some_layers_are_drawn_and_zeros_do_no_harm():
    deep = draw_layers({f"gradient/layer{i}": 1.0 for i in range(200)})
    assert len(bars(deep, BLUE)) == 50
    assert bars(draw_layers({"gradient/a": 0.0, "gradient/b": 1.0}), BLUE) != []
