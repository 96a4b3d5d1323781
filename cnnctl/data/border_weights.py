"""U-Net's weights of pixels: what lies between two objects that nearly touch counts more.

Ronneberger, Fischer and Brox, "U-Net" (arXiv:1505.04597), equation 2:

    w(x) = w_c(x) + w0 exp(-(d1(x) + d2(x))^2 / (2 sigma^2))

with the distances to the border of the nearest and of the second nearest object. The first term,
which balances the classes, is left to the loss's class weights: here it is 1.

Differs from the paper: nothing, as far as equation 2 goes. The paper gives cells by hand; here an
object is a connected component of a foreground class. Only the background between objects is
given extra weight, which is what the paper's figure 3d shows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from cnnctl.structures import IGNORE

BACKGROUND = 0
_ENOUGH = 1e-4  # a weight less than this above 1 is 1


def border_weights(mask: Tensor, w0: float = 10.0, sigma: float = 5.0) -> Tensor:
    """(h, w) uint8 classes -> (h, w) float32 on the CPU: 1, between objects up to 1 + w0.

    Pixels of a class and void ones get 1; void is no object.

    Args:
        w0: what is added where two objects touch.
        sigma: in pixels; at a gap of twice that (d1 + d2 = 2 sigma) exp(-2) w0 is left.

    Raises:
        ValueError: ``sigma`` is not above 0, or ``w0`` is below 0.
    """
    if not (0 <= w0 < math.inf and 0 < sigma < math.inf):
        raise ValueError(f"w0 must be at least 0 and sigma above 0, got {w0} and {sigma}")
    classes = mask.numpy()
    first, second = _two_nearest(classes, _reach(w0, sigma))
    added = w0 * np.exp(-((first + second) ** 2) / (2 * sigma**2))
    return torch.from_numpy(np.where(classes == BACKGROUND, 1 + added, 1).astype(np.float32))


def _reach(w0: float, sigma: float) -> int:
    """Pixels beyond which the second nearest object adds nothing that counts."""
    if w0 <= _ENOUGH:
        return 0
    return math.ceil(sigma * math.sqrt(2 * math.log(w0 / _ENOUGH)))


def _two_nearest(classes: np.ndarray, reach: int) -> tuple[np.ndarray, np.ndarray]:
    """(h, w) each: distance to the nearest and second nearest object, inf beyond ``reach``.

    The distance to one object is worked out in its own box, widened by the reach: the cost is
    that of the objects' areas, not of the image for each of them.
    """
    first = np.full(classes.shape, np.inf, np.float32)
    second = first.copy()
    for objects in _objects(classes):
        for number, box in enumerate(ndimage.find_objects(objects), 1):
            wide = tuple(slice(max(0, side.start - reach), side.stop + reach) for side in box)
            away = np.asarray(ndimage.distance_transform_edt(objects[wide] != number))
            near, next_near = first[wide], second[wide]
            np.minimum(next_near, np.maximum(near, away), out=next_near)
            np.minimum(near, away, out=near)
    return first, second


def _objects(classes: np.ndarray) -> Iterator[np.ndarray]:
    """For each foreground class, its components numbered from 1; corners connect."""
    corners = np.ones((3, 3))
    for value in np.unique(classes):
        if value not in (BACKGROUND, IGNORE):
            objects = np.empty(classes.shape, np.int32)
            ndimage.label(classes == value, corners, objects)
            yield objects
