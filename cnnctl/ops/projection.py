"""Which pixels of a map a window of the image covers: He, Zhang, Ren, Sun, "Spatial pyramid pooling
in deep convolutional networks", arXiv:1406.4729, appendix A.

Pixel i of a map stands for the place in the image that its receptive field is centred at, ``centre
+ stride * i``. A window has those pixels whose place lies within it, its sides excluded:

    first = floor((x1 - centre) / stride) + 1,  last = ceil((x2 - centre) / stride) - 1

RoI pooling (``roi_pool``) rounds x1 / stride and x2 / stride instead, and takes both ends: it has
the pixels that are nearest to the sides, inside or outside, and knows no centre. A window from 100
to 300 at stride 16 with its first centre at 0 has the pixels 7 to 18 here, 6 to 19 there.
"""

from __future__ import annotations

import torch
from torch import Tensor


def projected(
    boxes: Tensor, stride: int, size: tuple[int, int], centre: tuple[float, float] | float = 0.0
) -> Tensor:
    """(B, 4) int64: the first and the last column and row, both included, as x1 y1 x2 y2.

    A window without such a pixel has the one whose place is nearest to its middle; none leaves the
    map.

    Args:
        boxes: (B, 4) xyxy in pixels of the image.
        stride: pixels of the image from one pixel of the map to the next.
        size: (h, w) of the map.
        centre: place of the map's first pixel, in pixels of the image, from its left and its upper
            side; or one for both.
    """
    x, y = centre if isinstance(centre, tuple) else (centre, centre)
    shift = boxes.new_tensor([x, y], dtype=torch.float64)
    low, high = ((boxes.double() - shift.repeat(2)) / stride).split(2, 1)  # (B, 2) each
    first, last = low.floor() + 1, high.ceil() - 1
    nearest = ((low + high) / 2).round()
    none = first > last
    last_pixel = boxes.new_tensor([size[1] - 1, size[0] - 1], dtype=torch.float64)
    cells = torch.cat([torch.where(none, nearest, first), torch.where(none, nearest, last)], 1)
    return cells.clamp(min=0).minimum(last_pixel.repeat(2)).long()
