"""Plain regression of one figure's points: by hand, and what it learns."""

from __future__ import annotations

import math

import pytest
import torch

from cnnctl.backbones.resnet import ResNet
from cnnctl.models.detection import Truth
from cnnctl.models.pose_regression import PoseRegression, Said
from cnnctl.skeleton import Skeleton
from cnnctl.structures import Images, Targets

TWO = Skeleton(("head", "foot"), ((0, 1),), (), (0.1, 0.1), (0, 1))
SIZES = [(100, 200)] * 2


@pytest.fixture
def by_hand() -> tuple[PoseRegression, Said]:
    """A model without weights, and what it says of two images of 100 x 200."""
    with torch.device("meta"):
        model = PoseRegression(ResNet(18), 2, (64, 64), TWO, weight=10.0)
    points = torch.tensor([[[-0.25, -0.5], [0.25, 0.5]], [[0.0, 0.0], [0.6, 0.1]]])
    return model, Said(torch.tensor([[0.0, math.log(3)], [0.0, 0.0]]), points, (100, 200))


def test_points_and_box_in_pixels(by_hand):
    model, said = by_hand
    found = model.detect(said, Images(torch.zeros(2, 3, 100, 200), SIZES, SIZES))
    assert found.labels.tolist() == [[1], [0]]
    torch.testing.assert_close(found.scores, torch.tensor([[0.75], [0.5]]))
    expected = torch.tensor([[[50.0, 0, 0.75], [150, 100, 0.75]], [[100, 50, 0.5], [220, 60, 0.5]]])
    torch.testing.assert_close(found.keypoints, expected[:, None])
    boxes = torch.tensor([[[50.0, 0, 150, 100]], [[100, 50, 200, 60]]])  # inside the image
    torch.testing.assert_close(found.boxes, boxes)


def test_losses_by_hand(by_hand):
    """The larger of two figures is learnt, one of whose points has no label; then none."""
    model, said = by_hand
    truth = Truth(
        torch.tensor([[[0.0, 0, 10, 10], [0, 0, 90, 90]], [[0, 0, 0, 0], [0, 0, 0, 0]]]),
        torch.tensor([[0, 1], [-1, -1]]),
        None,
        torch.tensor(
            [
                [[[1.0, 1, 2], [2, 2, 2]], [[50, 20, 1], [9, 9, 0]]],
                [[[0, 0, 0], [0, 0, 0]], [[0, 0, 0], [0, 0, 0]]],
            ]
        ),
    )
    model.train()
    with pytest.warns(UserWarning, match="1 of the first 2 objects"):
        losses = model.losses(said, Images(torch.zeros(2, 3, 100, 200), SIZES, SIZES), truth)
    # x: 50 / 200 - 0.5 as said; y: 0.2 - 0.5 = -0.3, said -0.5; a mean of one point, two images.
    torch.testing.assert_close(losses["keypoint"], torch.tensor(10 * 0.04 / 2))
    torch.testing.assert_close(losses["class"], torch.tensor(-math.log(0.75) / 2))


@pytest.mark.parametrize("pooled", [False, True])
def test_it_learns_where_a_cross_is(pooled):
    """Points of a bright cross, by heart; from the average of the map too, which sees borders."""
    torch.manual_seed(0)
    model = PoseRegression(ResNet(18), 1, (64, 64), TWO, hidden=32, pooled=pooled)
    place = torch.tensor([[12.0, 12], [50, 14], [30, 48], [44, 40]])
    pixels = torch.zeros(4, 3, 64, 64)
    for row, (x, y) in zip(pixels, place.long().tolist(), strict=True):
        row[:, y - 4 : y + 4, x - 4 : x + 4] = 3.0
    points = torch.stack([place, place + 6], 1)  # (4, 2, 2)
    sizes = [(64, 64)] * 4
    truth = Targets(
        torch.arange(4),
        boxes=torch.cat([place, place + 6], 1)[:, None],
        labels=torch.zeros(4, 1, dtype=torch.int64),
        keypoints=torch.cat([points, torch.full((4, 2, 1), 2.0)], 2)[:, None],
    )
    images = Images(pixels, sizes, sizes)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    model.train()
    for _ in range(25):
        optimizer.zero_grad()
        torch.stack(list(model.loss(images, truth).values())).sum().backward()
        optimizer.step()
    with torch.no_grad():
        said = model.predict(images)
    assert said.keypoints is not None
    assert (said.keypoints[:, 0, :, :2] - points).abs().mean() < 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": 0}, "hidden"),
        ({"dropout": 1.0}, "dropout"),
        ({"weight": 0.0}, "weight"),
        ({"skeleton": None}, "task=pose"),
        ({"size": (16, 64)}, "16"),
    ],
)
def test_what_is_refused(change, message):
    settings = {"size": (64, 64), "skeleton": TWO, **change}
    with pytest.raises(ValueError, match=message), torch.device("meta"):
        PoseRegression(ResNet(18), 2, **settings)
