"""Scores for every pixel: brought to another size, averaged over views, put together from tiles."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Scorer = Callable[[Tensor], Tensor]  # pixels (N, C, H, W) -> logits (N, K, H, W)


def resized(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, K, h, w) -> (N, K, *size), bilinear; itself where it has that size."""
    if tuple(logits.shape[-2:]) == size:
        return logits
    return F.interpolate(logits.float(), size, mode="bilinear", align_corners=False)


@dataclass(frozen=True)
class DenseTesting:
    """How a picture is looked at when it is scored: once as it is, or several times, or in parts.

    Args:
        flip: average with the mirror image.
        scales: average over the image enlarged by these factors.
        tile: side in pixels of the windows that a larger image is cut into; None is the whole
            image at once.
        overlap: share of a tile that the next one sees again. Where tiles overlap their
            probabilities are averaged, a pixel near a tile's border counting less.
    """

    flip: bool = False
    scales: tuple[float, ...] = (1.0,)
    tile: int | None = None
    overlap: float = 0.5

    def __post_init__(self) -> None:
        if not self.scales or not all(0.1 <= scale <= 10 for scale in self.scales):
            raise ValueError(f"scales must be factors from 0.1 to 10, got {list(self.scales)}")
        if self.tile is not None and self.tile < 8:
            raise ValueError(f"tile must be at least 8 pixels, got {self.tile}")
        if not 0 <= self.overlap < 1:
            raise ValueError(f"overlap must be in [0, 1), got {self.overlap}")

    @property
    def name(self) -> str:
        """What it adds to the name of a metric: "" where an image is looked at once, whole."""
        words = ["flip"] * self.flip
        words += [f"x{scale:g}" for scale in self.scales if self.scales != (1.0,)]
        words += [f"tile{self.tile}"] if self.tile else []
        words += [f"overlap{self.overlap:g}"] if self.tile and self.overlap != 0.5 else []
        return "+".join(words)

    def is_plain(self, pixels: Tensor) -> bool:
        """Whether these are looked at once and whole."""
        views = self.flip or self.scales != (1.0,)
        return not views and not (self.tile and self.tile < max(pixels.shape[-2:]))

    def __call__(self, score: Scorer, pixels: Tensor, size: tuple[int, int]) -> Tensor:
        """(N, K, *size): logits of one view, or the probabilities averaged over several.

        A scorer that has ``tiles(pixels, tile)`` puts tiles together in its own way.
        """
        if self.is_plain(pixels):
            return resized(score(pixels), size)
        total: Tensor | None = None
        views = len(self.scales) * (2 if self.flip else 1)
        for view, back in self._views(pixels):
            if self.tile and self.tile < max(view.shape[-2:]):
                own = getattr(score, "tiles", None)
                logits = None if own is None else own(view, self.tile)
                if logits is not None:
                    probabilities = logits.float().softmax(1)
                else:
                    probabilities = tiled(score, view, self.tile, self.overlap)
            else:
                probabilities = score(view).float().softmax(1)
            probabilities = resized(back(probabilities), size)
            total = probabilities if total is None else total.add_(probabilities)
        assert total is not None
        return total.div_(views)

    def _views(self, pixels: Tensor) -> Iterator[tuple[Tensor, Scorer]]:
        """(what is looked at, how its scores are turned back)."""
        h, w = pixels.shape[-2:]
        for scale in self.scales:
            view = pixels
            if scale != 1:
                size = (max(1, round(h * scale)), max(1, round(w * scale)))
                view = F.interpolate(
                    pixels.float(), size, mode="bilinear", align_corners=False, antialias=scale < 1
                )
            yield view, lambda scores: scores
            if self.flip:
                yield view.flip(3), lambda scores: scores.flip(3)


def tiled(score: Scorer, pixels: Tensor, tile: int, overlap: float) -> Tensor:
    """(N, K, H, W) probabilities of overlapping windows, blended; memory of one window's features.

    A window lies wholly within the image, so that no border is made up where there is none; only
    an image smaller than the window is seen as it is.
    """
    height, width = pixels.shape[-2:]
    h, w = min(tile, height), min(tile, width)
    ramp = _ramp(h, pixels.device)[:, None] * _ramp(w, pixels.device)  # (h, w)
    total: Tensor | None = None
    weight = pixels.new_zeros(height, width, dtype=torch.float32)
    for top in _starts(height, h, overlap):
        for left in _starts(width, w, overlap):
            window = (..., slice(top, top + h), slice(left, left + w))
            probabilities = score(pixels[window]).float().softmax(1)
            if total is None:
                shape = (*probabilities.shape[:2], height, width)
                total = probabilities.new_zeros(shape)
            total[window] += probabilities * ramp
            weight[window] += ramp
    assert total is not None
    return total / weight


def _starts(length: int, tile: int, overlap: float) -> list[int]:
    """Where windows begin: evenly spaced, the last one at the end, at least ``overlap`` shared."""
    if tile >= length:
        return [0]
    stride = max(1, int(tile * (1 - overlap)))
    count = -(-(length - tile) // stride) + 1
    return [round(i * (length - tile) / (count - 1)) for i in range(count)]


def _ramp(length: int, device: torch.device) -> Tensor:
    """(length,): 1 in the middle, falling to nearly 0 at both ends."""
    place = torch.arange(length, device=device, dtype=torch.float32) + 0.5
    return torch.minimum(place, length - place) / (length / 2)
