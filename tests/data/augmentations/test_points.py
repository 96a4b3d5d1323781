"""Keypoints move with their image in every pipeline that says so: never cut, gone when outside."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cnnctl.data.augmentations.base import Augmentation, scaled_boxes
from cnnctl.data.augmentations.boxes import keep_rows, mirrored_frames, moved_points
from cnnctl.data.augmentations.mosaic import Mosaic
from cnnctl.data.augmentations.short_side import ShortSide
from cnnctl.data.augmentations.ssd import Ssd
from cnnctl.data.augmentations.yolo import Yolo
from cnnctl.data.windows import Windows
from cnnctl.randomness import Draw
from cnnctl.structures import Images, Targets, collate

SWAP = torch.tensor([1, 0, 2])  # left, right, nose
SIDE = 64


def marked(points: torch.Tensor) -> torch.Tensor:
    """(N, R, J, 3) -> (N, 3, SIDE, SIDE) uint8: point j is a bright square in channel j."""
    image = torch.zeros(len(points), 3, SIDE, SIDE, dtype=torch.uint8)
    for n, figures in enumerate(points):
        for j, (x, y, _) in enumerate(figures[0].tolist()):
            image[n, j, int(y) - 2 : int(y) + 2, int(x) - 2 : int(x) + 2] = 255
    return image


def batch(count: int) -> tuple[Images, Targets]:
    """One figure an image, its points far from each other."""
    generator = torch.Generator().manual_seed(0)
    place = torch.tensor([[16.0, 16], [48, 16], [32, 48]])
    place = place + torch.randint(-6, 7, (count, 1, 3, 2), generator=generator)
    points = torch.cat([place, torch.full((count, 1, 3, 1), 2.0)], 3)
    boxes = torch.cat([place.amin(2), place.amax(2)], 2)
    sizes = [(SIDE, SIDE)] * count
    targets = Targets(
        torch.arange(count),
        boxes=boxes,
        labels=torch.zeros(count, 1, dtype=torch.int64),
        area=torch.ones(count, 1),
        keypoints=points,
        swap=SWAP.expand(count, -1),
    )
    return Images(marked(points), sizes, sizes), targets


@pytest.mark.parametrize("pipeline", [Augmentation, ShortSide, Yolo, Ssd, Mosaic])
def test_points_stay_on_what_they_mark(pipeline):
    """What was drawn at a point is there afterwards; a mirror exchanges the channels too."""
    assert "keypoints" in pipeline.moves
    own: dict[str, Any] = {} if pipeline is Augmentation else {"flip": True}
    own |= {"colour": False} if pipeline is Ssd else {}
    own |= {"exposure": 1.0, "saturation": 1.0} if pipeline in (Yolo, Mosaic) else {}
    augmentation = pipeline(num_classes=1, mirror=True, native=(SIDE, SIDE), **own)
    images, targets = augmentation.batch(*batch(48), Draw(0, 0, torch.arange(48)))
    points, labels = targets.keypoints, targets.labels
    assert points is not None
    assert labels is not None
    seen, hidden, exchanged = 0, 0, 0
    pixels = images.pixels.float()
    for n, figures in enumerate(points):
        for r, figure in enumerate(figures):
            if labels[n, r] < 0:
                assert not figure.any()
                continue
            for j, (x, y, visible) in enumerate(figure.tolist()):
                if not visible:
                    assert (x, y) == (0, 0)
                    hidden += 1
                    continue
                assert 0 <= min(x, y) <= max(x, y) <= SIDE
                if not (4 <= x <= SIDE - 4 and 4 <= y <= SIDE - 4):
                    continue
                around = pixels[n, :, int(y) - 2 : int(y) + 3, int(x) - 2 : int(x) + 3]
                strongest = around.flatten(1).amax(1)
                # The picture's left point became the right one where the image was mirrored.
                channel = int(strongest.argmax())
                assert strongest[channel] > 60
                assert channel in (j, int(SWAP[j]))
                exchanged += channel != j
                seen += 1
    assert seen > 40
    assert (hidden > 0) == (pipeline not in (Augmentation, ShortSide))
    assert (exchanged > 5) == (pipeline is not Augmentation)


def test_a_mirror_exchanges_left_and_right_points():
    points = torch.tensor([[[1.0, 2, 2], [7, 3, 1], [4, 4, 0]]])
    moved = moved_points(points, SWAP, lambda f: mirrored_frames(f, 10), None)
    assert moved.tolist() == [[[3, 3, 1], [9, 2, 2], [0, 0, 0]]]
    assert torch.equal(
        moved_points(moved, SWAP, lambda f: mirrored_frames(f, 10), None),
        points * (points[..., 2:] > 0),
    )


def test_a_window_hides_points_outside_of_it_and_cuts_none():
    target = {
        "boxes": torch.tensor([[10.0, 10, 50, 50]]),
        "labels": torch.tensor([0]),
        "keypoints": torch.tensor([[[20.0, 10, 2], [50, 30, 1], [32, 44, 2]]]),
        "swap": SWAP,
    }
    kept = torch.ones(1, 1, dtype=torch.bool)
    image = torch.zeros(3, SIDE, SIDE, dtype=torch.uint8)
    fill = torch.zeros(3, 1, 1, dtype=torch.uint8)
    rectangle = torch.tensor([[18.0, 0, 50, 32]])
    plain = Windows(rectangle, torch.tensor([False]), kept)
    _, moved = plain.sample(image, target, (SIDE, SIDE), fill)
    assert moved["keypoints"].tolist() == [[[4, 20, 2], [64, 60, 1], [0, 0, 0]]]
    mirror = Windows(rectangle, torch.tensor([True]), kept)
    _, moved = mirror.sample(image, target, (SIDE, SIDE), fill)
    assert moved["keypoints"].tolist() == [[[0, 60, 1], [60, 20, 2], [0, 0, 0]]]
    none = {**target, "keypoints": torch.zeros(0, 3, 3), "boxes": torch.zeros(0, 4)}
    none["labels"] = torch.zeros(0, dtype=torch.int64)
    _, moved = Windows(rectangle, torch.tensor([True]), kept[:, :0]).sample(
        image, none, (SIDE, SIDE), fill
    )
    assert moved["keypoints"].shape == (0, 3, 3)


def test_points_are_scaled_with_their_image_and_padded_in_a_batch():
    _, targets = batch(1)
    truth = {"boxes": targets.boxes, "keypoints": targets.keypoints}
    assert targets.keypoints is not None
    scaled = scaled_boxes(truth, (SIDE, SIDE), (32, 128))["keypoints"]
    assert torch.equal(scaled, targets.keypoints * torch.tensor([2.0, 0.5, 1.0]))
    samples = [
        (
            n,
            torch.zeros(3, 8, 8, dtype=torch.uint8),
            {"keypoints": torch.ones(n, 3, 3), "swap": SWAP},
        )
        for n in range(3)
    ]
    padded = collate(samples).targets
    assert padded.keypoints is not None
    assert padded.keypoints.sum((1, 2, 3)).tolist() == [0, 9, 18]
    assert padded.swap is not None
    assert torch.equal(padded.swap, SWAP.expand(3, -1))


def test_rows_that_go_lose_their_points():
    _, targets = batch(2)
    assert targets.keypoints is not None
    before = targets.keypoints
    keep_rows(targets, torch.tensor([[True], [False]]))
    assert torch.equal(targets.keypoints[0], before[0])
    assert not targets.keypoints[1].any()
