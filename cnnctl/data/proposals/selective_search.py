"""Uijlings, van de Sande, Gevers, Smeulders, "Selective search for object recognition", IJCV 2013.

Small segments of an image grow together, the most alike neighbours first; the box of every region
on the way is a proposal. That is done in several colour spaces, from several first segmentations
(Felzenszwalb and Huttenlocher 2004) and by several measures of likeness: colour C, texture T, size
S, fill F. Segments, likeness and growing are opencv's (cv2.ximgproc.segmentation); the colour
spaces, the numbers and the order of the boxes are the paper's, done here: opencv puts the smallest
segments first and draws its order from a generator that cannot be seeded.

Differs from the paper:
- a box's place in its hierarchy, by which it is ranked, is its place by area among all regions of
  one colour space and one segmentation: opencv does not tell the hierarchy;
- an image whose longer side is above 500 pixels is made smaller, instead of every image to a width
  of 500, and in small images the smallest segment is a share of the area, so that scenes of 96 x 96
  pixels are searched as they are;
- opencv's texture is of gradients along eight directions, not of Gaussian derivatives.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch import Tensor

from cnnctl.data.proposals.base import ProposalMethod, chosen
from cnnctl.data.proposals.opencv import corners, opencv, rgb

# Section 5: colour spaces, thresholds k of the first segmentation, measures of likeness.
_FAST = (("HSV", "Lab"), (50, 100), ("CTSF", "TSF"))
_QUALITY = (
    ("HSV", "Lab", "rgI", "H", "I"),
    (50, 100, 150, 300),
    ("CTSF", "TSF", "F", "S"),
)


@dataclass(frozen=True, kw_only=True)
class SelectiveSearch(ProposalMethod):
    """Boxes of the regions that segments of the image grow through.

    Args:
        mode: fast takes 8 strategies, quality the paper's 80.
        count: the most boxes of one image.
        side: the longer side that a larger image is made to first, pixels.
        segment: the smallest first segment in pixels is k, and at most this share of the image.
        smallest: share of the image's shorter side that both sides of a box must have.
        sigma: of the blur before the first segmentation, pixels.
        seed: of the random numbers by which a place in the hierarchy is multiplied for the rank.

    Raises:
        ValueError: a number is out of range.
    """

    mode: Literal["fast", "quality"] = "fast"
    count: int = 2000
    side: int = 500
    segment: float = 0.0025
    smallest: float = 0.05
    sigma: float = 0.8
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.side < 16:
            raise ValueError(f"side must be at least 16 pixels, got {self.side}")
        if not 0 < self.segment <= 1:
            raise ValueError(f"segment must be a share above 0, up to 1, got {self.segment}")
        if not 0 <= self.smallest < 1:
            raise ValueError(f"smallest must be in [0, 1), got {self.smallest}")
        if not self.sigma > 0:
            raise ValueError(f"sigma must be above 0, got {self.sigma}")

    def require(self) -> None:
        opencv()

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "opencv": opencv().__version__}

    def propose(self, image: Tensor) -> Tensor:
        h, w = image.shape[-2:]
        pixels = rgb(image, min(max(h, w), self.side))
        regions = self._regions(pixels)
        boxes = np.concatenate(regions)
        place = np.concatenate([np.arange(1, len(one) + 1) for one in regions])
        rank = np.random.default_rng(self.seed).random(len(boxes)) * place
        scale = np.array([w / pixels.shape[1], h / pixels.shape[0]] * 2, np.float32)
        ranked = boxes[rank.argsort(kind="stable")] * scale
        return chosen(ranked, (h, w), self.count, self.smallest * min(h, w))

    def _regions(self, pixels: np.ndarray) -> list[np.ndarray]:
        """The (M, 4) boxes of each colour space and first segmentation, the largest first."""
        spaces, thresholds, measures = _FAST if self.mode == "fast" else _QUALITY
        most = max(1, round(self.segment * pixels.shape[0] * pixels.shape[1]))
        found = []
        for space in spaces:
            shown = _coloured(pixels, space)
            for k in thresholds:
                found.append(_search(shown, k, min(k, most), self.sigma, measures))
        return found


def _search(
    image: np.ndarray, k: int, segment: int, sigma: float, measures: tuple[str, ...]
) -> np.ndarray:
    """(h, w) or (h, w, 3) uint8 -> (M, 4) boxes, the largest first, then by their corners."""
    kit = opencv().ximgproc.segmentation
    search = kit.createSelectiveSearchSegmentation()
    search.addImage(image)
    search.addGraphSegmentation(kit.createGraphSegmentation(sigma, float(k), segment))
    # Made anew each time: they remember an image by its number in the search, which starts at 0.
    parts = {
        "C": kit.createSelectiveSearchSegmentationStrategyColor(),
        "T": kit.createSelectiveSearchSegmentationStrategyTexture(),
        "S": kit.createSelectiveSearchSegmentationStrategySize(),
        "F": kit.createSelectiveSearchSegmentationStrategyFill(),
    }
    for measure in measures:
        strategy = kit.createSelectiveSearchSegmentationStrategyMultiple()
        for letter in measure:
            strategy.addStrategy(parts[letter], 1.0)
        search.addStrategy(strategy)
    boxes = corners(search.process())
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return boxes[np.lexsort((*boxes.T, -area))]


def _coloured(pixels: np.ndarray, space: str) -> np.ndarray:
    """(h, w, 3) uint8 RGB in a colour space of the paper: (h, w, 3) or, of one part, (h, w)."""
    cv2 = opencv()
    if space == "Lab":
        return cv2.cvtColor(pixels, cv2.COLOR_RGB2Lab)
    if space == "I":
        return cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    if space == "rgI":  # red and green as shares of all three, and the intensity
        values = pixels.astype(np.float32)
        shares = (255 * values[:, :, :2] / values.sum(2, keepdims=True).clip(1)).astype(np.uint8)
        return np.dstack([shares, _coloured(pixels, "I")])
    hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV_FULL)
    return np.ascontiguousarray(hsv[:, :, 0]) if space == "H" else hsv
