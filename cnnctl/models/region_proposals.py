"""The region proposal network of Faster R-CNN: Ren, He, Girshick, Sun, arXiv:1506.01497, section 3.

A small network slides over every map and says of each anchor whether it holds an object and how to
move it. Names of weights are torchvision's, so that published ones load.

Differs from the paper: both losses are divided by the anchors that were sampled; in equation 1 the
second is divided by the number of positions and multiplied by 10, which is about the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnctl.models.base import Losses
from cnnctl.models.detection import Truth
from cnnctl.ops import anchors
from cnnctl.ops.boxes import clip, decode, encode, suppressed, together
from cnnctl.ops.clock import PROPOSALS, timed
from cnnctl.ops.levels import TiledLevels
from cnnctl.ops.matching import IGNORED, match, sample, taken
from cnnctl.structures import Images

_NARROWEST = 1e-3  # pixels: what is thinner after clipping is no box
_SIDES = (128, 256, 512)  # of the paper's anchors, in pixels of an image
_SHORTER = 600  # whose shorter side is this


@dataclass(frozen=True)
class ProposalSettings:
    """Numbers of section 3 of the paper, and of its code where the paper has none.

    Args:
        high, low: overlap from which an anchor is an object, and below which it is background.
        anchors: sampled of each image for the loss, half of them objects where there are as many.
        inside: anchors that cross the border of the image are not trained on (the paper's way;
            with a pyramid they are).
        overlap: above which the less likely of two proposals goes.
        before: proposals of a map that are compared, in training and in testing.
        after: proposals that are kept of an image, in training and in testing.
    """

    high: float = 0.7
    low: float = 0.3
    anchors: int = 256
    inside: bool = False
    overlap: float = 0.7
    before: tuple[int, int] = (2000, 1000)
    after: tuple[int, int] = (2000, 1000)


@dataclass
class Said:
    """What the head says of the A anchors of all maps, the finest map first.

    Args:
        logits: (N, A) of there being an object, deltas: (N, A, 4), anchors: (A, 4) in input pixels.
        counts: anchors of each map.
    """

    logits: Tensor
    deltas: Tensor
    anchors: Tensor
    counts: list[int]


@dataclass
class Proposals:
    """
    Args:
        boxes: (N, P, 4) in input pixels, the most likely first, without gradient.
        scores: (N, P) logits; -inf where an image has fewer proposals.
    """

    boxes: Tensor
    scores: Tensor

    @property
    def there(self) -> Tensor:
        """(N, P) bool: which rows are proposals."""
        return self.scores > -torch.inf


def sides_for(size: tuple[int, int]) -> tuple[float, ...]:
    """Sides of anchors on a single map, for training images of (h, w): shares of the shorter side.

    The paper has 128, 256 and 512 pixels on images whose shorter side is 600; on an image of
    96 x 96 that is 20.5, 41 and 82.
    """
    return tuple(side * min(size) / _SHORTER for side in _SIDES)


class RegionProposals(nn.Module):
    """
    Args:
        width: channels of every map.
        scales: sides of the anchors of each map, in pixels.
        ratios: height / width of the anchors, on every map.
        hidden: channels of the 3x3 convolution; None is as many as a map has.
    """

    def __init__(
        self,
        width: int,
        scales: Sequence[Sequence[float]],
        ratios: Sequence[float],
        settings: ProposalSettings,
        hidden: int | None = None,
    ) -> None:
        super().__init__()
        self.settings = settings
        self.anchors = TiledLevels([anchors.shapes(sides, ratios).round() for sides in scales])
        self.head = _Head(width, len(scales[0]) * len(ratios), hidden or width)

    @timed(PROPOSALS)
    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Said:
        """
        Args:
            size: (h, w) of the pixels that the maps were made of; see ``TiledLevels``.
        """
        logits, deltas = self.head(maps)
        places, counts = self.anchors(maps, size)
        return Said(torch.cat(logits, 1).float(), torch.cat(deltas, 1).float(), places, counts)

    @torch.no_grad()
    @timed(PROPOSALS)
    def propose(self, said: Said, images: Images) -> Proposals:
        """The best of each map, less those that a likelier one of that map overlaps."""
        before = self.settings.before[0 if self.training else 1]
        after = self.settings.after[0 if self.training else 1]
        chosen, level, start = [], [], 0
        for number, count in enumerate(said.counts):
            best = said.logits[:, start : start + count].topk(min(before, count), dim=1).indices
            chosen.append(best + start)
            level.append(torch.full_like(best, number))
            start += count
        place, levels = torch.cat(chosen, 1), torch.cat(level, 1)  # (N, B)
        scores = said.logits.gather(1, place)
        boxes = decode(taken(said.deltas, place), said.anchors[place])
        boxes = clip(boxes, torch.tensor(images.sizes, device=boxes.device))
        wide = (boxes[..., 2:] - boxes[..., :2]).amin(-1) >= _NARROWEST
        image, row = wide.nonzero(as_tuple=True)
        found, values = boxes[image, row], scores[image, row]
        groups = image * len(said.counts) + levels[image, row]
        keep = suppressed(found, values, groups, self.settings.overlap)
        keep = keep[image[keep].argsort(stable=True)]
        kept = together(len(scores), image[keep], found[keep], values[keep], groups[keep], after)
        return Proposals(kept.boxes, kept.scores.masked_fill(kept.labels < 0, -torch.inf))

    def losses(self, said: Said, images: Images, truth: Truth) -> Losses:
        """Object or not, by cross-entropy, and where, by smooth L1: equation 1 of the paper."""
        settings = self.settings
        matched = self.matched(said.anchors, images, truth)
        positive, negative = sample(matched, settings.anchors, 0.5)
        counted = positive | negative
        total = counted.sum().clamp(min=1)
        objectness = F.binary_cross_entropy_with_logits(
            said.logits, positive.float(), counted.float(), reduction="sum"
        )
        wanted = encode(taken(truth.boxes, matched), said.anchors)
        apart = F.smooth_l1_loss(said.deltas, wanted, beta=1 / 9, reduction="none").sum(-1)
        place = torch.where(positive, apart, 0.0).sum()
        return {"rpn_object": objectness / total, "rpn_box": place / total}

    def matched(self, places: Tensor, images: Images, truth: Truth) -> Tensor:
        """(N, A) the box that each of the anchors (A, 4) answers for: see ``match``."""
        settings, crossing = self.settings, None
        if settings.inside:
            limits = torch.tensor(images.sizes, device=places.device).flip(1)[:, None]  # (N, 1, 2)
            crossing = (places[:, :2] < 0).any(1) | (places[:, 2:] > limits).any(2)  # (N, A)
            places = places.expand(len(images), -1, -1).masked_fill(crossing[..., None], 0.0)
        matched = match(truth.boxes, truth.labels, places, settings.high, settings.low, best=True)
        return matched if crossing is None else matched.masked_fill(crossing, IGNORED)


class _Head(nn.Module):
    """A 3x3 convolution, and two 1x1 of it: a logit and four numbers for each anchor."""

    def __init__(self, width: int, shapes: int, hidden: int) -> None:
        super().__init__()
        convolution = nn.Sequential(nn.Conv2d(width, hidden, 3, padding=1), nn.ReLU(inplace=True))
        self.conv = nn.Sequential(convolution)
        self.cls_logits = nn.Conv2d(hidden, shapes, 1)
        self.bbox_pred = nn.Conv2d(hidden, shapes * 4, 1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.zeros_(layer.bias)  # pyright: ignore[reportArgumentType]
        self.register_load_state_dict_pre_hook(_with_present_names)

    def forward(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Of each map (N, h * w * k) and (N, h * w * k, 4), in the order of the anchors."""
        logits, deltas = [], []
        for level in maps:
            hidden = self.conv(level)
            logits.append(self.cls_logits(hidden).permute(0, 2, 3, 1).flatten(1))
            boxes = self.bbox_pred(hidden).permute(0, 2, 3, 1)
            deltas.append(boxes.reshape(len(boxes), -1, 4))
        return logits, deltas


def _with_present_names(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """torchvision's published files are older than its names."""
    for kind in ("weight", "bias"):
        if f"{prefix}conv.{kind}" in state:
            state[f"{prefix}conv.0.0.{kind}"] = state.pop(f"{prefix}conv.{kind}")
