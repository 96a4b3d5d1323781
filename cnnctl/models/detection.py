"""What every detector promises: boxes with classes and scores, in original pixels."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from cnnctl.models.base import Losses, Model
from cnnctl.ops.boxes import Detections, clip
from cnnctl.ops.clock import CONVOLUTION, POST_PROCESSING, timed
from cnnctl.ops.masks import Masks
from cnnctl.structures import Images, Predictions, Targets


@dataclass
class Truth:
    """What is to be found in N images, in input pixels.

    Args:
        boxes: (N, R, 4).
        labels: (N, R) int64, -1 where there is no box.
        masks: of the same rows; None where the data has none.
        keypoints: (N, R, J, 3) x, y and visibility; None where the data has none.
    """

    boxes: Tensor
    labels: Tensor
    masks: Masks | None = None
    keypoints: Tensor | None = None

    def at(self, rows: Tensor | slice) -> Truth:
        """That of some images."""
        masks = self.masks.at(rows) if self.masks is not None else None
        keypoints = self.keypoints[rows] if self.keypoints is not None else None
        return Truth(self.boxes[rows], self.labels[rows], masks, keypoints)


class DetectionModel(Model):
    """A network from pixels to boxes: subclasses write ``features``, ``losses`` and ``detect``.

    All three are in input pixels; the truth and what is found are in original pixels, and this
    class maps one to the other. Crowds and difficult boxes are not trained on. In eval mode images
    of one size go through the network together and no row of a batch depends on another.
    """

    eval_pixels = 1 << 20
    # Seconds of an image by the paper, for the proposals and for the rest; a sweep shows them.
    published_seconds: ClassVar[tuple[float, float] | None] = None

    @abstractmethod
    def features(self, pixels: Tensor) -> Any:
        """What ``losses`` and ``detect`` share, of pixels (N, C, H, W), for every H and W."""

    @abstractmethod
    def losses(self, features: Any, images: Images, truth: Truth) -> Losses:
        """Named scalar losses, each a mean over the images; 0 and not NaN without any box."""

    @abstractmethod
    def detect(self, features: Any, images: Images) -> Detections: ...

    def anchors_and_matches(
        self, features: Any, images: Images, truth: Truth
    ) -> tuple[Tensor, Tensor] | None:
        """To draw: (A, 4) in input pixels and (N, A) as ``match`` has it; None: has no anchors."""
        return None

    def proposals(self, features: Any, images: Images) -> tuple[Tensor, Tensor] | None:
        """To draw: (N, P, 4) in input pixels and (N, P) logits, -inf where there is none; None: a
        network that detects without proposing first."""
        return None

    def loss(self, images: Images, targets: Targets) -> Losses:
        if self.training:
            return self.losses(self.features(images.pixels), images, truth_of(images, targets))
        return self._pass(images, targets, False)[0]

    def predict(self, images: Images) -> Predictions:
        return self._pass(images, None, True)[1]

    def loss_and_predict(self, images: Images, targets: Targets) -> tuple[Losses, Predictions]:
        return self._pass(images, targets, True)

    def _pass(
        self, images: Images, targets: Targets | None, detect: bool
    ) -> tuple[Losses, Predictions]:
        total: Losses = {}
        truth = truth_of(images, targets) if targets is not None else None
        found: list[tuple[Tensor | slice, Detections]] = []
        for rows, part in of_one_size(images):
            with timed(CONVOLUTION):
                features = self.features(part.pixels)
            if truth is not None:
                for name, loss in self.losses(features, part, truth.at(rows)).items():
                    share = loss * (len(part) / len(images))
                    total[name] = total[name] + share if name in total else share
            if detect:
                found.append((rows, self.detect(features, part)))
        return total, self.in_original_pixels(found, images) if detect else Predictions()

    @timed(POST_PROCESSING)
    def in_original_pixels(
        self, found: Sequence[tuple[Tensor | slice, Detections]], images: Images
    ) -> Predictions:
        """What ``detect`` said of some rows of ``images`` each, together. A network that says more
        than boxes extends it, and brings its own columns together by ``in_order``."""
        boxes, scores, labels = (
            in_order([(rows, getattr(part, name)) for rows, part in found], len(images), none)
            for name, none in (("boxes", 0), ("scores", 0), ("labels", -1))
        )
        boxes = boxes * _factors(images.sizes, images.originals, boxes.device)
        boxes = clip(boxes, torch.tensor(images.originals, device=boxes.device))
        return Predictions(boxes=boxes, scores=scores, labels=labels)


def truth_of(images: Images, targets: Targets) -> Truth:
    """What is trained on, for a stage with a loss of its own: input pixels, no crowds."""
    boxes, labels = targets.boxes, targets.labels
    assert boxes is not None, "detection needs the column `boxes`"
    assert labels is not None
    for column in (targets.crowd, targets.difficult):
        if column is not None:
            labels = labels.masked_fill(column, -1)
    masks, keypoints = _masks_of(targets), targets.keypoints
    if images.sizes == images.originals:
        return Truth(boxes, labels, masks, keypoints)
    factors = _factors(images.originals, images.sizes, boxes.device)
    if masks is not None:
        masks.frames = masks.frames * factors
        if masks.void_frame is not None:
            masks.void_frame = masks.void_frame * factors[:, 0]
    if keypoints is not None:
        place = keypoints[..., :2] * factors[:, :, None, :2]
        keypoints = torch.cat([place, keypoints[..., 2:]], 3)
    return Truth(boxes * factors, labels, masks, keypoints)


def given_proposals(images: Images) -> Tensor | None:
    """(N, P, 4) in input pixels, 0 where an image has fewer; None where nothing was proposed."""
    if images.proposals is None or images.sizes == images.originals:
        return images.proposals
    return images.proposals * _factors(images.originals, images.sizes, images.pixels.device)


def _masks_of(targets: Targets) -> Masks | None:
    if targets.frames is None:
        return None
    assert targets.bits is not None
    assert targets.crops is not None
    void = (targets.void_frame, targets.void_crop)
    return Masks(targets.bits, targets.frames, targets.crops, *void)


def _factors(
    before: Sequence[tuple[int, int]], after: Sequence[tuple[int, int]], device: torch.device
) -> Tensor:
    """(N, 1, 4): what xyxy is multiplied with when images (h, w) become other ones."""
    ratios = [
        (w_after / w, h_after / h) for (h, w), (h_after, w_after) in zip(before, after, strict=True)
    ]
    return torch.tensor(ratios, device=device).repeat(1, 2)[:, None]


def of_one_size(images: Images) -> Iterator[tuple[Tensor | slice, Images]]:
    """(rows, those images without padding), for each size there is; boxes become input pixels."""
    given = given_proposals(images)
    for h, w in dict.fromkeys(images.sizes):
        if len(set(images.sizes)) == 1:
            rows: Tensor | slice = slice(None)
        else:
            chosen = [row for row, size in enumerate(images.sizes) if size == (h, w)]
            rows = torch.tensor(chosen, device=images.pixels.device)
        pixels = images.pixels[rows][..., :h, :w]
        proposals = given[rows] if given is not None else None
        yield rows, Images(pixels, [(h, w)] * len(pixels), [(h, w)] * len(pixels), proposals)


def in_order(parts: Sequence[tuple[Tensor | slice, Tensor]], count: int, none: float = 0) -> Tensor:
    """Columns (n, D, ...) of some rows each -> (count, D, ...), ``none`` where one has fewer than
    the most; floats become float32."""
    width = max(part.shape[1] for _, part in parts)
    first = parts[0][1]
    dtype = torch.float32 if first.is_floating_point() else first.dtype
    shape = (count, width, *first.shape[2:])
    whole = torch.full(shape, none, dtype=dtype, device=first.device)
    for rows, part in parts:
        whole[rows, : part.shape[1]] = part.to(dtype)
    return whole
