"""What all detectors get from their base class, by one whose answers are known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cnnctl.models.base import Losses
from cnnctl.models.detection import DetectionModel, Truth, truth_of
from cnnctl.ops.boxes import Detections
from cnnctl.structures import Images, Targets

SIZES = [(8, 8), (4, 6), (8, 8)]
ORIGINALS = [(16, 8), (4, 6), (24, 24)]


class Known(DetectionModel):
    """The loss is the mean pixel; as many detections as the rounded mean, of the whole image and a
    pixel more."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[tuple[int, ...], Truth]] = []

    def features(self, pixels: Tensor) -> Tensor:
        return pixels

    def losses(self, features: Tensor, images: Images, truth: Truth) -> Losses:
        self.seen.append((tuple(features.shape), truth))
        return {"mean": features.mean()}

    def detect(self, features: Tensor, images: Images) -> Detections:
        (h, w), *_ = images.sizes
        counts = features.mean((1, 2, 3)).round().long()
        most = int(counts.max())
        labels = torch.where(torch.arange(most) < counts[:, None], counts[:, None], -1)
        boxes = torch.tensor([1.0, 2.0, w + 1, h + 1]).expand(len(labels), most, 4)
        there = labels >= 0
        return Detections(boxes * there[..., None], 0.5 * there, labels)


def batch() -> tuple[Images, Targets]:
    """Images of ones, of twos and of threes, with zeros beyond the small one."""
    pixels = torch.zeros(3, 1, 8, 8)
    for row, (h, w) in enumerate(SIZES):
        pixels[row, :, :h, :w] = row + 1
    boxes = torch.tensor([[[2.0, 4, 6, 8], [0, 0, 4, 4]]] * 3)
    labels = torch.tensor([[3, 1], [2, 5], [4, -1]])
    crowd = torch.tensor([[False, True], [False, False], [False, False]])
    difficult = torch.tensor([[False, False], [True, False], [False, False]])
    columns = {"boxes": boxes, "labels": labels, "crowd": crowd, "difficult": difficult}
    return Images(pixels, SIZES, ORIGINALS), Targets(torch.arange(3), **columns)


def test_truth_in_input_pixels():
    """Neither crowds nor difficult objects; halved in height, as it is, a third of its sides."""
    truth = truth_of(*batch())
    assert truth.labels.tolist() == [[3, -1], [-1, 5], [4, -1]]
    assert truth.boxes[0].tolist() == [[2, 2, 6, 4], [0, 0, 4, 2]]
    assert truth.boxes[1].tolist() == [[2, 4, 6, 8], [0, 0, 4, 4]]
    torch.testing.assert_close(truth.boxes[2, 0], torch.tensor([2, 4, 6, 8]) / 3)


def test_masks_move_with_their_boxes():
    """Their frames do, that of nobody's pixels too; their bits stay, and crops of a part of a batch
    are its own."""
    images, targets = batch()
    assert truth_of(images, targets).masks is None
    assert targets.boxes is not None
    targets.frames, targets.bits = targets.boxes.clone(), torch.arange(3)[:, None].byte()
    targets.crops = torch.arange(3)[:, None, None].expand(3, 2, 3)
    targets.void_frame, targets.void_crop = targets.boxes[:, 0], targets.crops[:, 0]
    truth = truth_of(images, targets)
    assert truth.masks is not None
    assert truth.masks.void_frame is not None
    assert torch.equal(truth.masks.frames, truth.boxes)
    assert torch.equal(truth.masks.void_frame, truth.boxes[:, 0])
    part = truth.at(torch.tensor([2, 0]))
    assert part.masks is not None
    assert part.masks.bits.tolist() == [[2], [0]]
    assert part.masks.crops[:, 0, 0].tolist() == [2, 0]
    assert torch.equal(part.masks.frames, truth.boxes[[2, 0]])


def test_training_sees_the_batch_as_it_is():
    model = Known().train()
    losses = model.loss(*batch())
    assert losses["mean"].item() == pytest.approx((64 + 2 * 24 + 3 * 64) / 192)
    assert [shape for shape, _ in model.seen] == [(3, 1, 8, 8)]


def test_losses_are_means_over_images():
    """Each without its padding, those of one size together."""
    model = Known().eval()
    images, targets = batch()
    for losses in (model.loss(images, targets), model.loss_and_predict(images, targets)[0]):
        assert losses["mean"].item() == pytest.approx((1 + 2 + 3) / 3)
    assert [shape for shape, _ in model.seen] == [(2, 1, 8, 8), (1, 1, 4, 6)] * 2
    assert [truth.labels.tolist() for _, truth in model.seen[:2]] == [[[3, -1], [4, -1]], [[-1, 5]]]


def test_detections_are_in_original_pixels():
    model = Known().eval()
    images, targets = batch()
    for found in (model.predict(images), model.loss_and_predict(images, targets)[1]):
        assert found.boxes is not None
        assert found.scores is not None
        assert found.labels is not None
        assert found.labels.tolist() == [[1, -1, -1], [2, 2, -1], [3, 3, 3]]
        assert found.scores.tolist() == [[0.5, 0, 0], [0.5, 0.5, 0], [0.5] * 3]
        assert found.boxes[0].tolist() == [[1, 4, 8, 16], [0] * 4, [0] * 4]
        assert found.boxes[1].tolist() == [[1, 2, 6, 4], [1, 2, 6, 4], [0] * 4]
        assert found.boxes[2].tolist() == [[3, 6, 24, 24]] * 3
