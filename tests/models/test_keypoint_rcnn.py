"""Keypoint R-CNN: its points against torchvision's operators, weights by torchvision's names."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.models.detection import keypointrcnn_resnet50_fpn, roi_heads

from cnnctl.backbones.resnet import ResNet
from cnnctl.data.digit_points import SKELETON
from cnnctl.models import published_detectors
from cnnctl.models.detection import Truth
from cnnctl.models.keypoint_rcnn import (
    SIDE,
    KeypointRCNN,
    likeliest,
    places,
    point_loss,
)
from cnnctl.models.regions import Regions
from cnnctl.skeleton import Skeleton
from cnnctl.structures import Images, Targets

COCO_LIKE = Skeleton(
    tuple(f"point {n}" for n in range(17)), ((0, 1),), ((1, 2),), (0.1,) * 17, (5, 12)
)


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def small() -> KeypointRCNN:
    torch.manual_seed(0)
    return KeypointRCNN(
        3,
        ResNet(18),
        (64, 64),
        SKELETON,
        width=16,
        hidden=8,
        point_width=8,
        point_layers=1,
        regions=16,
        proposals_train=32,
        proposals_test=16,
        detections=5,
        score=0.0,
    )


def batch() -> tuple[Images, Targets]:
    points = torch.tensor([[[12.0, 14, 2], [28, 14, 1], [28, 40, 2], [12, 40, 2], [0, 0, 0]]])
    points = torch.stack([points, torch.zeros_like(points)])
    boxes = torch.tensor([[[10.0, 10, 30, 44]], [[0, 0, 0, 0]]])
    sizes = [(64, 64)] * 2
    targets = Targets(
        torch.arange(2), boxes=boxes, labels=torch.tensor([[1], [-1]]), keypoints=points
    )
    return Images(noise(2, 3, 64, 64), sizes, [(32, 128), (64, 64)]), targets


def random_points(count: int) -> tuple[Tensor, Tensor]:
    """(count, 5, 3) around boxes (count, 4): some outside, some exactly on a side."""
    low = 30 * torch.rand(count, 2, generator=torch.Generator().manual_seed(2))
    boxes = torch.cat([low, low + 40], 1)
    points = torch.cat([low[:, None] + 20 + 18 * noise(count, 5, 2), torch.ones(count, 5, 1)], 2)
    points[:, 0, :2] = boxes[:, 2:]
    points[:, 1, :2] = boxes[:, :2]
    points[::3, 2, 2] = 0
    points[1::3, 3, 2] = 2
    return points, boxes


def test_places_are_torchvisions():
    points, boxes = random_points(40)
    theirs, valid = roi_heads.keypoints_to_heatmap(points, boxes, SIDE)
    ours = places(points, boxes)
    assert torch.equal(ours >= 0, valid.bool())
    assert torch.equal(ours[ours >= 0], theirs[ours >= 0])
    assert 0.1 < float((ours >= 0).float().mean()) < 0.9
    assert (ours[:, 0] == SIDE * SIDE - 1).all()
    assert (ours[:, 1] == 0).all()


def test_loss_is_torchvisions_and_0_without_points():
    points, boxes = random_points(12)
    logits = noise(12, 5, SIDE, SIDE)
    theirs = roi_heads.keypointrcnn_loss(logits, [boxes], [points], [torch.arange(12)])
    torch.testing.assert_close(point_loss(logits, places(points, boxes)), theirs)
    hidden = torch.cat([points[..., :2], torch.zeros(12, 5, 1)], 2)
    assert point_loss(logits, places(hidden, boxes)) == 0
    empty = torch.zeros(0, 5, SIDE, SIDE, requires_grad=True)
    loss = point_loss(empty, places(hidden[:0], boxes[:0]))
    assert loss == 0
    loss.backward()


def test_points_lie_at_the_top_of_their_maps():
    """A bump between places is found to a tenth of a place; torchvision's is within one."""
    boxes = torch.tensor([[10.0, 20, 66, 76], [0, 0, 112, 28]])
    at = torch.tensor([[[20.3, 30.9], [1.6, 54.2]], [[40.0, 8.5], [33.3, 0.5]]])  # places
    line = torch.arange(SIDE) + 0.5
    x, y = at[..., 0, None, None], at[..., 1, None, None]
    logits = -((line - x) ** 2 + (line[:, None] - y) ** 2) / 3
    found = likeliest(logits, boxes)
    step = (boxes[:, None, 2:] - boxes[:, None, :2]) / SIDE
    error = (found[..., :2] - boxes[:, None, :2]) / step - at
    assert error.abs().max() < 0.1
    theirs = roi_heads.heatmaps_to_keypoints(logits, boxes)[0]
    assert ((found[..., :2] - theirs[..., :2]) / step).abs().max() < 1
    assert (found[..., 2] > 0.5).all()
    assert likeliest(torch.zeros(1, 1, SIDE, SIDE), boxes[:1])[0, 0, 2] < 0.01
    sharp = torch.zeros(1, 1, SIDE, SIDE)
    sharp[0, 0, 55, 0] = 50.0  # in a corner: its middle
    corner = likeliest(sharp, boxes[:1])[0, 0]
    assert corner.tolist() == [10.5, 75.5, 1.0]


def test_a_region_learns_the_points_of_its_own_figure(small, monkeypatch):
    images, targets = batch()
    seen = {}
    regions = Regions(
        torch.tensor([[10.0, 10, 30, 44], [0, 0, 9, 9], [5, 5, 40, 40]]),
        torch.tensor([0, 1, 0]),
        torch.tensor([1, 3, 1]),
        torch.tensor([0, -1, 0]),
        torch.zeros(3, 4),
    )
    monkeypatch.setattr(small, "losses_and_regions", lambda *_: ({}, regions))

    def logits(_, boxes: Tensor, image: Tensor) -> Tensor:
        seen.update(boxes=boxes, image=image)
        return torch.zeros(len(boxes), 5, SIDE, SIDE)

    monkeypatch.setattr(small, "point_logits", logits)
    assert targets.boxes is not None
    assert targets.labels is not None
    truth = Truth(targets.boxes, targets.labels, None, targets.keypoints)
    loss = small.losses(None, images, truth)["keypoint"]
    torch.testing.assert_close(loss, torch.tensor(float(SIDE * SIDE)).log())
    assert torch.equal(seen["boxes"], regions.boxes[[0, 2]])
    assert seen["image"].tolist() == [0, 0]


def test_it_trains_and_points_are_in_original_pixels(small):
    images, targets = batch()
    small.train()
    torch.manual_seed(0)
    losses = small.loss(images, targets)
    assert set(losses) >= {"class", "box", "keypoint"}
    torch.stack(list(losses.values())).sum().backward()
    head = small.roi_heads.keypoint_predictor.kps_score_lowres
    assert head.weight.grad.any()
    small.eval()
    with torch.no_grad():
        said = small.predict(images)
        alone = small.predict(Images(images.pixels[:1], [(64, 64)], [(64, 64)]))
    there = said.labels >= 0
    assert there.any()
    assert said.keypoints.shape == (*said.labels.shape, 5, 3)
    # Half as high and twice as wide as what the network saw.
    factors = torch.tensor([2.0, 0.5, 1.0])
    count = alone.labels.shape[1]
    torch.testing.assert_close(
        said.keypoints[0, :count], alone.keypoints[0] * factors, rtol=1e-3, atol=0.05
    )
    points, boxes = said.keypoints[there], said.boxes[there]
    assert (points[..., :2] >= boxes[:, None, :2] - 1e-3).all()
    assert (points[..., :2] <= boxes[:, None, 2:] + 1e-3).all()
    assert not said.keypoints[~there].any()


def test_without_any_figure_all_losses_are_finite(small):
    images, _ = batch()
    small.train()
    none = Targets(
        torch.arange(2),
        boxes=torch.zeros(2, 0, 4),
        labels=torch.zeros(2, 0, dtype=torch.int64),
        keypoints=torch.zeros(2, 0, 5, 3),
    )
    losses = small.loss(images, none)
    assert all(loss.isfinite() for loss in losses.values())
    assert losses["keypoint"] == 0


def test_published_weights_fit(monkeypatch):
    """By torchvision's names and shapes, as their file has them; other points do not fit."""
    torch.manual_seed(0)
    with torch.device("meta"):
        theirs = keypointrcnn_resnet50_fpn(weights=None, weights_backbone=None).state_dict()
    theirs = {name: torch.zeros(value.shape) for name, value in theirs.items()}
    bias = "roi_heads.keypoint_predictor.kps_score_lowres.bias"
    theirs[bias] += torch.arange(17)
    theirs["roi_heads.box_predictor.cls_score.bias"] += torch.tensor([5.0, 7])
    monkeypatch.setattr(published_detectors, "published_weights", lambda entry: dict(theirs))
    model = KeypointRCNN(1, ResNet(50), (64, 64), COCO_LIKE, weights="COCO_V1", classes=("person",))
    state = model.state_dict()
    assert state[bias].tolist() == list(range(17))
    assert state["roi_heads.box_predictor.cls_score.bias"].tolist() == [5, 7]
    assert model.rebuilt == ()
    with pytest.raises(ValueError, match="17 points"):
        KeypointRCNN(1, ResNet(50), (64, 64), SKELETON, weights="COCO_V1", classes=("person",))


def test_what_is_refused():
    with pytest.raises(ValueError, match="task=pose"), torch.device("meta"):
        KeypointRCNN(3, ResNet(18), (64, 64), None)
    with pytest.raises(ValueError, match="point_layers"), torch.device("meta"):
        KeypointRCNN(3, ResNet(18), (64, 64), SKELETON, point_layers=0)
