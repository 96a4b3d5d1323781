"""What a detector says at every position of every level of a pyramid: RetinaNet's and FCOS's parts.

The A anchors (or positions) of all levels are one row, the finest level first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnctl.ops.anchors import tiled
from cnnctl.ops.boxes import Detections, best_of_classes, clip


def filled_up(pixels: Tensor, multiple: int) -> Tensor:
    """(N, C, H, W) with zeros below and on the right, until ``multiple`` divides both sides."""
    below, right = (-side % multiple for side in pixels.shape[-2:])
    return F.pad(pixels, (0, right, 0, below)) if below or right else pixels


class TiledLevels(nn.Module):
    """Anchors of all levels of a pyramid: those of each at every position of its map.

    Args:
        bases: (k, 4) around the origin, of each level.
    """

    bases: Tensor

    def __init__(self, bases: Sequence[Tensor]) -> None:
        super().__init__()
        self._counts = [len(base) for base in bases]
        self.register_buffer("bases", torch.cat(list(bases)), persistent=False)

    def forward(self, levels: Sequence[Tensor], size: tuple[int, int]) -> tuple[Tensor, list[int]]:
        """(A, 4) anchors, and how many each level has.

        Args:
            levels: (N, C, h, w) maps.
            size: (h, w) of the pixels that they were made of. A level's stride is the whole number
                of pixels a map's pixel has, so that the anchors of a map that was rounded up stay
                within the image: as torchvision has it, whose weights expect that.
        """
        anchors = [
            tiled(base, (h, w), (size[0] // h, size[1] // w))
            for base, level in zip(self.bases.split(self._counts), levels, strict=True)
            for h, w in [level.shape[-2:]]
        ]
        return torch.cat(anchors), [len(part) for part in anchors]


def focal_sums(
    logits: Tensor, labels: Tensor, counted: Tensor, alpha: float, gamma: float
) -> Tensor:
    """(N,): the focal loss of each image, summed over its anchors and classes, in float32.

    Lin et al., "Focal loss", arXiv:1708.02002, equation 5, for independent sigmoids.

    Args:
        logits: (N, A, K).
        labels: (N, A) int64, -1 is background.
        counted: (N, A) bool; the others have no loss.
    """
    logits = logits.float()
    total = (_focal(logits, 1 - alpha, gamma).sum(2) * counted).sum(1)
    # All were taken as background, without a tensor of truth: at each object one class was not.
    own = logits.gather(2, labels.clamp(min=0)[:, :, None])[:, :, 0]
    change = _focal(-own, alpha, gamma) - _focal(own, 1 - alpha, gamma)
    return total + (change * ((labels >= 0) & counted)).sum(1)


def _focal(wrong: Tensor, share: float, gamma: float) -> Tensor:
    """Of logits of what is not true."""
    return share * wrong.sigmoid().pow(gamma) * F.softplus(wrong)


def best_of_levels(
    logits: Tensor,
    counts: Sequence[int],
    boxes: Callable[[Tensor], Tensor],
    sizes: Sequence[tuple[int, int]],
    *,
    score: float,
    overlap: float,
    most: int,
    quality: Tensor | None = None,
    candidates: int = 1000,
) -> Detections:
    """The detections of N images, of ``candidates`` at most of each level.

    Args:
        logits: (N, A, K), of which the sigmoid is the score.
        counts: anchors of each level; their sum is A.
        boxes: rows (N, B) int64 of anchors -> their boxes (N, B, 4).
        sizes: (h, w) of each image, at whose border boxes end.
        score, overlap, most: as in ``best_of_classes``.
        quality: (N, A) logits of how good a box is; the score is then the geometric mean.
    """
    rows, labels, scores = [], [], []
    start = 0
    for count in counts:
        part = logits[:, start : start + count].float()  # (N, P, K)
        good = quality[:, start : start + count].float() if quality is not None else None
        # The C likeliest (anchor, class) are among the C anchors with the likeliest classes.
        few = _scores(part.amax(2), good).topk(min(candidates, count), 1).indices
        part = part.gather(1, few[:, :, None].expand(-1, -1, part.shape[2]))
        good = good.gather(1, few)[:, :, None] if good is not None else None
        flat = _scores(part, good).flatten(1)
        top = flat.topk(min(candidates, flat.shape[1]), 1)
        rows.append(few.gather(1, top.indices // part.shape[2]) + start)
        labels.append(top.indices % part.shape[2])
        scores.append(top.values)
        start += count
    limits = torch.tensor(sizes, device=logits.device)
    return best_of_classes(
        clip(boxes(torch.cat(rows, 1)), limits),
        torch.cat(scores, 1),
        labels=torch.cat(labels, 1),
        score=score,
        overlap=overlap,
        most=most,
        candidates=len(counts) * candidates,
    )


def _scores(logits: Tensor, quality: Tensor | None) -> Tensor:
    return logits.sigmoid() if quality is None else (logits.sigmoid() * quality.sigmoid()).sqrt()
