"""How an image is looked at when it is classified: once, as ten crops, or densely at some scales.

Ten crops are those of Krizhevsky, Sutskever, Hinton, NIPS 2012, section 4.1: the four corners and
the centre of a larger image, and their mirror images. Dense evaluation is that of Simonyan and
Zisserman, arXiv:1409.1556, section 3.2: the network in its fully convolutional form on the whole,
uncropped image at one or several scales. Sermanet et al., arXiv:1312.6229, take the largest score
of each class over the places, not the mean. Shifted views are those of Jordan, arXiv:2404.00498,
section 3.5: the image as it is, and moved by one pixel.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from cnnctl.structures import Images, Predictions

LARGER = 256 / 224  # of the image to the crop, in AlexNet's protocol and all that followed

View = Literal["whole", "shifted", "ten_crop", "dense"]
Pool = Literal["average", "max", "none"]
Size = tuple[int, int]


@dataclass(frozen=True)
class Views:
    """What is looked at; probabilities of all views are averaged.

    Args:
        view: "whole" is an image as augmentation brings it to the network's size; "shifted" is that
            and the same moved by a pixel, up and left and down and right (mirrored at the border),
            which count half as much each; "ten_crop" and "dense" as above.
        flip: look at the mirror image of each view too; None does in "ten_crop" only.
        scales: of the image, for "ten_crop" and "dense". At 1 a dense view shows things as large as
            the whole view does, and crops are taken of an image 256/224 as large as they are.
        pool: "average" or "max" of the scores over the places of a dense view; "none" tells what
            each place shows, for prediction only.
        uniform: whether all images have one size, which the task learns from the data. Then an
            image at scale 1 just covers the input; else its shorter side is 256/224 of that.
    """

    view: View = "whole"
    flip: bool | None = None
    scales: tuple[float, ...] = (1.0,)
    pool: Pool = "average"
    uniform: bool = True

    def __post_init__(self) -> None:
        if not self.scales or not all(0.1 <= scale <= 10 for scale in self.scales):
            raise ValueError(f"scales must be factors from 0.1 to 10, got {list(self.scales)}")
        if self.is_whole and self.scales != (1.0,):
            raise ValueError("scales are for view=dense and view=ten_crop")
        if self.view != "dense" and self.pool != "average":
            raise ValueError(f"pool={self.pool} is for view=dense")
        if self.pool == "none" and (self.mirrors or len(self.scales) > 1):
            raise ValueError("pool=none tells the places of one view: leave flip and scales out")

    @property
    def mirrors(self) -> bool:
        return self.view == "ten_crop" if self.flip is None else self.flip

    @property
    def is_whole(self) -> bool:
        """Whether it sees what the network is trained on, and no larger image."""
        return self.view in ("whole", "shifted")

    @property
    def is_plain(self) -> bool:
        """Whether an image is looked at once and whole."""
        return self.view == "whole" and not self.mirrors

    @property
    def name(self) -> str:
        """What it adds to the name of a metric: "" where it is plain."""
        words = {
            "whole": [],
            "shifted": ["shifted"],
            "ten_crop": ["10crop" if self.mirrors else "5crop"],
        }
        named = words.get(self.view, ["dense"])
        named = named + [self.pool] * (self.pool != "average")
        named = named + ["flip"] * (self.mirrors and self.view != "ten_crop")
        return "+".join([*named, *(f"x{s:g}" for s in self.scales if self.scales != (1.0,))])

    def frame(self, shape: Size, size: Size, scale: float) -> Size:
        """(h, w) that an image of ``shape`` has at ``scale``; crops are taken of its centre.

        Args:
            size: (h, w) of the network's input.
        """
        h, w = shape
        if self.view == "ten_crop":
            return round(size[0] * LARGER * scale), round(size[1] * LARGER * scale)
        if self.uniform:
            factor = scale * max(size[0] / h, size[1] / w)
            return round(h * factor), round(w * factor)
        shorter, least = round(max(size) * LARGER * scale), min(h, w)
        return (
            shorter if h == least else shorter * h // least,
            shorter if w == least else shorter * w // least,
        )

    def shown(self, shape: Size, size: Size) -> Size:
        """(h, w) in which an image of ``shape`` is handed to the network, which scales it.

        Of several scales it is the largest, but never larger than the image itself: what is
        enlarged and made smaller again would be blurred.
        """
        largest = self.frame(shape, size, max(self.scales))
        return shape if len(self.scales) > 1 and largest[0] > shape[0] else largest

    def predict(self, model: Any, images: Images) -> Predictions:
        """What a classification model says of images, whatever their sizes."""
        parts: list[tuple[Tensor, Tensor]] = []
        places: dict[int, Tensor] = {}
        for rows, pixels in _by_size(images):
            where = torch.tensor(rows, device=pixels.device)
            if self.pool == "none":
                scores = self._score_map(model, pixels).float()
                places |= dict(zip(rows, scores.log_softmax(1).cpu(), strict=True))
                probabilities = scores.mean((2, 3)).softmax(1)
            else:
                probabilities = self.probabilities(model, pixels)
            parts.append((where, probabilities))
        order = torch.cat([rows for rows, _ in parts]).argsort()
        log_probs = log_of(torch.cat([found for _, found in parts])[order])
        told = [places[row] for row in sorted(places)] or None
        return Predictions(log_probs=log_probs, places=told)

    def probabilities(self, model: Any, pixels: Tensor) -> Tensor:
        """(N, K): the mean over all views of images of one size (N, C, H, W)."""
        found = [
            self._scores(model, view).float().softmax(1) for view in self._looks(model, pixels)
        ]
        if self.view == "shifted":  # the image where it is counts as much as both moves
            found += found[: 1 + self.mirrors]
        return torch.stack(found).mean(0)

    def _looks(self, model: Any, pixels: Tensor) -> Iterator[Tensor]:
        size = model.trained_shape[1:]
        if self.is_whole:
            for view in (pixels, *(moved_by_one(pixels) if self.view == "shifted" else ())):
                yield view
                if self.mirrors:
                    yield view.flip(3)
            return
        for scale in self.scales:
            view = scaled(pixels, self.frame(_size(pixels), size, scale))
            for crop in five_crops(view, size) if self.view == "ten_crop" else (view,):
                yield crop
                if self.mirrors:
                    yield crop.flip(3)

    def _scores(self, model: Any, view: Tensor) -> Tensor:
        """(N, K) logits of one view."""
        if self.view != "dense":
            return model(view)
        places = model.score_map(view)  # (N, K, h, w)
        return places.amax((2, 3)) if self.pool == "max" else places.mean((2, 3))

    def _score_map(self, model: Any, pixels: Tensor) -> Tensor:
        size = model.trained_shape[1:]
        return model.score_map(scaled(pixels, self.frame(_size(pixels), size, self.scales[0])))


def five_crops(pixels: Tensor, size: Size) -> Iterator[Tensor]:
    """Upper left and right, lower left and right, and the centre of (N, C, H, W)."""
    h, w = size
    below, right = pixels.shape[2] - h, pixels.shape[3] - w
    places = [(0, 0), (0, right), (below, 0), (below, right), (round(below / 2), round(right / 2))]
    for top, left in places:
        yield pixels[..., top : top + h, left : left + w]


def moved_by_one(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """(N, C, H, W) moved by one pixel down and right, and by one up and left; what comes in at
    the border is its neighbour's neighbour, or the border itself where there is no other."""
    h, w = pixels.shape[2:]
    mode = "reflect" if min(h, w) > 1 else "replicate"
    padded = F.pad(pixels.float(), (1, 1, 1, 1), mode=mode)
    return padded[..., :h, :w], padded[..., 2:, 2:]


def scaled(pixels: Tensor, size: Size) -> Tensor:
    """(N, C, h, w) -> (N, C, *size), bilinear, antialiased when shrinking."""
    if _size(pixels) == size:
        return pixels
    return F.interpolate(pixels.float(), size, mode="bilinear", antialias=True)


def log_of(probabilities: Tensor) -> Tensor:
    """Their logarithm, finite where one is 0."""
    return probabilities.clamp(min=torch.finfo(probabilities.dtype).tiny).log()


def average(said: Sequence[Predictions]) -> Predictions:
    """The mean of the probabilities (N, K) that several networks give to the same images."""
    columns = [one.log_probs for one in said]
    found = [column.exp() for column in columns if column is not None]
    return Predictions(log_probs=log_of(torch.stack(found).mean(0)))


def _size(pixels: Tensor) -> Size:
    return pixels.shape[2], pixels.shape[3]


def _by_size(images: Images) -> Iterator[tuple[list[int], Tensor]]:
    """(rows, their pixels without padding) for each size that there is."""
    for h, w in dict.fromkeys(images.sizes):
        rows = [row for row, size in enumerate(images.sizes) if size == (h, w)]
        pixels = images.pixels if len(rows) == len(images) else images.pixels[rows]
        yield rows, pixels[..., :h, :w]
