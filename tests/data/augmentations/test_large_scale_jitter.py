"""Large-scale jitter: factors of the largest size that fits, and boxes that move with it."""

from typing import Any

import pytest
import torch
from scipy import stats

from cnnctl.data.augmentations.boxes import sides
from cnnctl.data.augmentations.large_scale_jitter import LargeScaleJitter
from cnnctl.randomness import Draw


def pipeline(native=None, mirror=True, **options: Any) -> LargeScaleJitter:
    return LargeScaleJitter(9, mirror, native, (0.5, 0.5, 0.5), **options)


@pytest.mark.parametrize("shape", [(90, 130), (200, 70), (120, 120)])
@pytest.mark.parametrize("rows", [0, 1, 9])
def test_streamed_boxes_move_with_their_images(painted, shape, rows):
    made = pipeline(size=160, scale=(0.5, 2.0))
    for seed in range(4):
        torch.manual_seed(seed)
        image, moved = made.joint(*painted.one(*shape, seed, rows))
        assert image.shape == (3, 160, 160)
        painted.check(image, moved, 3.2)


@pytest.mark.parametrize("rows", [0, 9])
def test_resident_boxes_move_with_their_images(painted, rows):
    images, targets = painted.many(24, 80, 96, rows)
    images, targets = pipeline((80, 96)).batch(images, targets, Draw(0, 0, targets.image_id))
    for image, moved in zip(images.pixels, painted.truths(targets), strict=True):
        painted.check(image, moved, 2.2)


def test_windows_by_hand(monkeypatch):
    """An image of 100 x 50 fits into 200 x 200 twice as large: that is the factor 1."""
    made = pipeline(size=200, scale=(0.5, 1.5), mirror=False)
    boxes = torch.tensor([[[0.0, 0, 100, 50], [0, 0, 100, 9]]])
    there = torch.ones(1, 2, dtype=torch.bool)
    for scale, place, expected, kept in (
        (0.0, (1.0, 1.0), [-100.0, -150, 100, 50], [True, True]),  # half: as it is, lower right
        (0.5, (0.0, 0.5), [0, -25, 100, 75], [True, True]),  # fits exactly
        (1.0, (1.0, 0.0), [33, 0, 100, 67], [True, True]),  # two thirds of its width are seen
        (1.0, (0.0, 1.0), [0, -17, 67, 50], [True, True]),
    ):
        numbers = {"scale": torch.tensor([[scale]]), "place": torch.tensor([place])}
        windows = made.windows(boxes, there, (50, 100), lambda name, _, n=numbers: n.get(
            name, torch.zeros(1, 1)))  # fmt: skip
        assert windows.rectangles.tolist() == [expected]
        assert windows.kept.tolist() == [kept]
        assert not windows.mirror.any()


def test_factors_are_even_and_the_aspect_stays():
    made, many = pipeline((60, 90)), 400
    boxes = torch.tensor([[0.0, 0, 90, 60]]).expand(many, 1, 4)
    there = torch.ones(many, 1, dtype=torch.bool)
    torch.manual_seed(0)
    for uniform in (Draw(0, 0, torch.arange(many)).uniform, lambda _, n: torch.rand(many, n)):
        seen = made.windows(boxes, there, (60, 90), uniform)
        width, height = sides(seen.rectangles).unbind(1)
        assert torch.allclose(width / height, torch.tensor(1.5), atol=0.06)  # whole pixels
        assert stats.kstest((90 / width).numpy(), stats.uniform(0.1, 1.9).cdf).pvalue > 1e-3
        assert stats.binomtest(int(seen.mirror.sum()), many).pvalue > 1e-3
        assert torch.equal(seen.rectangles, seen.rectangles.round())
        smaller = width >= 90  # then nothing of the image is lost
        assert (seen.rectangles[smaller, :2] <= 0).all()
        assert (seen.rectangles[~smaller, :2] >= 0).all()


def test_boxes_of_which_little_is_left_go():
    made = pipeline((100, 100), scale=(2.0, 2.0), mirror=False)
    many = 50
    boxes = torch.tensor([[0.0, 0, 40, 40]]).expand(many, 1, 4)
    there = torch.ones(many, 1, dtype=torch.bool)
    seen = made.windows(boxes, there, (100, 100), Draw(0, 0, torch.arange(many)).uniform)
    left = (40 - seen.rectangles[:, :2]).clamp(min=0).prod(1) / 1600
    assert torch.equal(seen.kept[:, 0], left >= 0.2)
    assert 0 < seen.kept.sum() < many


def test_it_is_a_function_of_the_seed(painted):
    made, (image, truth) = pipeline(size=64), painted.one(80, 100)
    runs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        runs.append(made.joint(image, truth)[0])
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    made, found = pipeline((48, 48)), []
    for count, epoch in ((6, 0), (6, 1), (2, 0)):
        images, targets = painted.many(count, 48, 48)
        found.append(made.batch(images, targets, Draw(3, epoch, targets.image_id))[0].pixels)
    assert not torch.equal(found[0], found[1])
    assert torch.equal(found[0][:2], found[2])


@pytest.mark.parametrize("shape", [(1, 1), (1, 90), (90, 1), (2, 3)])
def test_any_image_will_do(shape):
    h, w = shape
    truth = {
        "boxes": torch.tensor([[0.0, 0, w, h]]), "labels": torch.tensor([0]),
        "crowd": torch.tensor([False]), "difficult": torch.tensor([False]),
        "area": torch.tensor([float(h * w)]),
    }  # fmt: skip
    for seed in range(10):
        torch.manual_seed(seed)
        image, moved = pipeline(size=32).joint(torch.zeros(3, h, w, dtype=torch.uint8), truth)
        assert image.shape == (3, 32, 32)
        assert (moved["boxes"] >= 0).all()
        assert (moved["boxes"] <= 32).all()


def test_evaluation_sees_all_of_an_image(painted):
    image, truth = painted.one(60, 100)
    seen, same = pipeline(size=50).joint_eval(image, truth)
    assert seen.shape == (3, 30, 50)
    assert torch.equal(same["boxes"], truth["boxes"])
    assert pipeline().size == (1024, 1024)
    assert pipeline((20, 30)).size == (20, 30)


@pytest.mark.parametrize("scale", [(0.0, 1.0), (2.0, 1.0), (1.0,), (1.0, float("inf"))])
def test_bad_numbers_are_named(scale):
    with pytest.raises(ValueError, match=r"scale must be 0\.01 <= smallest <= largest"):
        pipeline(scale=scale)
