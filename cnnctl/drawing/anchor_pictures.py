"""Pictures of what a detector looks at before it decides: anchors and proposals."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cnnctl.data.palette import Colour
from cnnctl.drawing import pictures
from cnnctl.drawing.box_marks import Mark, class_colours, counted, faded, marked

SIDE = 640  # pixels of the longer side of a picture

UNDECIDED: Colour = (225, 225, 225)
NEGATIVE: Colour = (70, 90, 120)
OUTSIDE: Colour = (90, 90, 90)  # the margin round an image

_ANCHORS, _PROPOSALS, _NAMED = 60, 100, 5  # of a kind that are drawn; that have their score


def draw_anchors(
    image: Tensor,
    anchors: Tensor,
    matches: Tensor,
    truth: Tensor,
    names: Sequence[str] = (),
) -> Tensor:
    """Which anchors answer for which box: on the left the positive ones, in the colour of their
    box; on the right some of the undecided ones (light) and of the negative ones (dark).

    Args:
        image: (C, h, w) uint8.
        anchors: (A, 4) in its pixels; they may reach outside, which is shown as a margin.
        matches: (A,) row of ``truth`` of each, -1 negative, -2 undecided.
        truth: (R, 4) boxes.
        names: (R,) of the classes of the boxes.
    """
    anchors, matches, truth = anchors.cpu().float(), matches.cpu(), truth.cpu().float()
    colours = class_colours(len(truth))
    positive, undecided, negative = (
        kind.nonzero()[:, 0] for kind in (matches >= 0, matches == -2, matches == -1)
    )
    unsure, sample = (kind[:: max(1, -(-len(kind) // _ANCHORS))] for kind in (undecided, negative))
    padded, margin = _with_margin(faded(image), torch.cat([anchors[positive], truth]))
    texts = [*names, *[""] * (len(truth) - len(names))]
    rows = zip((truth + margin).tolist(), colours, texts, strict=True)
    objects = [Mark(box, colour, text) for box, colour, text in rows]

    def lines(chosen: Tensor, own: Sequence[Colour]) -> list[Mark]:
        boxes = (anchors[chosen] + margin).tolist()
        return [Mark(box, colour, thin=True) for box, colour in zip(boxes, own, strict=True)]

    owners = [colours[row] for row in matches[positive].tolist()]
    first = [*objects, *lines(positive, owners)]
    second = [
        *lines(sample, [NEGATIVE] * len(sample)),
        *lines(unsure, [UNDECIDED] * len(unsure)),
        *objects,
    ]
    bare = len(truth) - len(matches[positive].unique())
    captions = [
        [
            f"{counted(len(positive), 'positive anchor')} of {len(anchors):,}"
            f" for {counted(len(truth), 'object')}",
            f"{counted(bare, 'object')} without an anchor" if bare else "",
        ],
        [
            f"{len(undecided):,} undecided, {len(unsure)} of them drawn (light)",
            f"{len(negative):,} negative, {len(sample)} of them drawn (dark)",
        ],
    ]
    pair = [marked(padded, marks, SIDE).permute(2, 0, 1) for marks in (first, second)]
    return pictures.gallery(pair, captions, columns=2, side=SIDE)


def _with_margin(image: Tensor, boxes: Tensor) -> tuple[Tensor, int]:
    """As wide a margin as ``boxes`` reach outside, at most a quarter of the image's side."""
    h, w = image.shape[-2:]
    boxes = boxes[boxes.isfinite().all(1)]
    if not len(boxes):
        return image, 0
    beyond = torch.cat([-boxes[:, :2], boxes[:, 2:] - torch.tensor([w, h])])
    margin = int(beyond.max().ceil().clamp(0, max(h, w) // 4))
    return F.pad(image, [margin] * 4, value=OUTSIDE[0]), margin


def draw_proposals(image: Tensor, boxes: Tensor, scores: Tensor) -> Tensor:
    """The likeliest proposals of an image, from blue (the least likely of them) to yellow.

    Args:
        image: (C, h, w) uint8.
        boxes: (P, 4) in its pixels, scores: (P,).
    """
    best, order = scores.cpu().float().sort(descending=True, stable=True)
    best, kept = best[:_PROPOSALS], boxes.cpu().float()[order[:_PROPOSALS]]
    shares = (best - best.min()) / (best.max() - best.min()) if len(best.unique()) > 1 else best + 1
    low, high = torch.tensor([(40.0, 60.0, 220.0), (255.0, 230.0, 30.0)])
    marks = []
    rows = zip(kept.tolist(), best.tolist(), shares.clamp(0, 1).tolist(), strict=True)
    for place, (box, score, share) in enumerate(rows):
        red, green, blue = low.lerp(high, share).round().int().tolist()
        named = place < _NAMED
        text = f"{score:.2f}" if named else ""
        marks.append(Mark(box, (red, green, blue), text, thin=not named))
    picture = marked(faded(image), marks[::-1], SIDE)
    caption = f"the likeliest {len(best)} of {counted(len(boxes), 'proposal')}"
    if len(best):
        caption += f", scores {float(best.min()):.2f} to {float(best.max()):.2f}"
    return pictures.gallery([picture.permute(2, 0, 1)], [[caption]], side=SIDE)
