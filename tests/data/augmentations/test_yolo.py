"""YOLO's jitter moves boxes with their images; exposure and saturation are those of HSV."""

import colorsys
from typing import Any

import pytest
import torch
from scipy import stats

from cnnctl.data.augmentations.yolo import Yolo, exposed
from cnnctl.randomness import Draw
from cnnctl.structures import Images, Targets

STILL: dict[str, Any] = {"exposure": 1.0, "saturation": 1.0}


def pipeline(native=None, mirror=True, **options: Any) -> Yolo:
    return Yolo(9, mirror, native, (0.5, 0.5, 0.5), **options)


@pytest.mark.parametrize("shape", [(90, 130), (200, 70), (64, 64)])
@pytest.mark.parametrize("rows", [0, 1, 9])
def test_streamed_boxes_move_with_their_images(painted, shape, rows):
    made = pipeline(size=96, **STILL)
    for seed in range(6):
        torch.manual_seed(seed)
        image, moved = made.joint(*painted.one(*shape, seed, rows))
        assert image.shape == (3, 96, 96)
        painted.check(image, moved, 2.2)
        assert len(moved["labels"]) > rows / 2 or not rows


@pytest.mark.parametrize("rows", [0, 1, 9])
def test_resident_boxes_move_with_their_images(painted, rows):
    images, targets = painted.many(24, 80, 96, rows)
    before = images.pixels.clone()
    made = pipeline((80, 96), **STILL)
    images, targets = made.batch(images, targets, Draw(0, 0, targets.image_id))
    assert ((images.pixels - before).flatten(1) != 0).any(1).double().mean() > 0.9
    for image, moved in zip(images.pixels, painted.truths(targets), strict=True):
        painted.check(image, moved, 2.2)


def test_each_side_of_the_window_moves_by_up_to_a_fifth():
    made, many = pipeline((50, 100), flip=False), 400
    boxes = torch.tensor([[0.0, 0, 100, 50]]).expand(many, 1, 4)
    there = torch.ones(many, 1, dtype=torch.bool)
    torch.manual_seed(0)
    for uniform in (Draw(0, 0, torch.arange(many)).uniform, lambda _, n: torch.rand(many, n)):
        windows = made.windows(boxes, there, (50, 100), uniform).rectangles
        moved = (windows - boxes[:, 0]) / torch.tensor([100, 50, 100, 50])
        for side in moved.unbind(1):
            assert stats.kstest(side.numpy(), stats.uniform(-0.2, 0.4).cdf).pvalue > 1e-4
        assert torch.equal(windows, windows.round())


def test_a_window_by_hand(painted, monkeypatch):
    """Left edge out by 10 of 100 pixels, right edge in by 20: 90 pixels become 90, mirrored."""
    made = pipeline(size=90, **STILL)
    drawn = {"jitter": torch.tensor([[0.25, 0.5, 0.0, 0.5]]), "flip": torch.zeros(1, 1)}
    monkeypatch.setattr(
        "cnnctl.data.augmentations.yolo.alone", lambda purpose, count: drawn[purpose]
    )
    image = torch.zeros(3, 45, 100, dtype=torch.uint8)
    boxes = torch.tensor([[5.0, 10, 25, 20], [70, 0, 90, 45], [79, 0, 100, 45]])
    image[:, 10:20, 5:25] = 200
    truth = {
        "boxes": boxes,
        "labels": torch.tensor([4, 2, 7]),
        "crowd": torch.zeros(3, dtype=torch.bool),
        "difficult": torch.zeros(3, dtype=torch.bool),
        "area": torch.tensor([100.0, 900, 900]),
    }
    seen, moved = made.joint(image, truth)
    # x -> 90 - (x + 10), y -> 2 y; of the second one half is left, of the third a twentieth
    assert moved["boxes"].tolist() == [[55, 20, 75, 40], [0, 0, 10, 90]]
    assert moved["labels"].tolist() == [4, 2]
    assert moved["area"].tolist() == [200, 900]  # twice as high; and half of it
    assert (seen[:, 22:38, 55:75] == 200).all()
    assert (seen[..., 80:] == 128).all()  # beyond its left edge, the mean


def test_it_is_a_function_of_the_seed(painted):
    made, (image, truth) = pipeline(size=64), painted.one(80, 100)
    runs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        runs.append(made.joint(image, truth))
    assert torch.equal(runs[0][0], runs[1][0])
    assert torch.equal(runs[0][1]["boxes"], runs[1][1]["boxes"])
    assert not torch.equal(runs[0][0], runs[2][0])
    made, found = pipeline((48, 48)), []
    for count, epoch in ((6, 0), (6, 0), (6, 1), (2, 0)):
        images, targets = painted.many(count, 48, 48)
        found.append(made.batch(images, targets, Draw(3, epoch, targets.image_id))[0].pixels)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert torch.equal(found[0][:2], found[3])  # whatever else is in the batch


@pytest.mark.parametrize("shape", [(1, 1), (1, 90), (90, 1), (2, 3), (12, 12)])
def test_any_image_will_do(shape):
    image = torch.zeros(3, *shape, dtype=torch.uint8)
    h, w = shape
    truth = {
        "boxes": torch.tensor([[0.0, 0, w, h]]),
        "labels": torch.tensor([0]),
        "crowd": torch.tensor([False]),
        "difficult": torch.tensor([False]),
        "area": torch.tensor([float(h * w)]),
    }
    for seed in range(10):
        torch.manual_seed(seed)
        seen, moved = pipeline(size=32).joint(image, truth)
        assert seen.shape == (3, 32, 32)
        assert moved["labels"].tolist() == [0]
        assert (moved["boxes"] >= 0).all()
        assert (moved["boxes"] <= 32).all()


def test_colours_are_those_of_hsv():
    random = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (4, 3, 5, 5), generator=random, dtype=torch.uint8)
    pixels[0, :, 0, 0], pixels[0, :, 0, 1] = 0, 90  # no hue at all
    exposure, saturation = torch.tensor([1.5, 0.7, 1.0, 1.2]), torch.tensor([0.8, 1.5, 1.4, 1.0])
    found = exposed(pixels, exposure, saturation)
    for n in range(4):
        for y in range(5):
            for x in range(5):
                h, s, v = colorsys.rgb_to_hsv(*(pixels[n, :, y, x] / 255).tolist())
                s, v = min(1, s * float(saturation[n])), min(1, v * float(exposure[n]))
                expected = torch.tensor(colorsys.hsv_to_rgb(h, s, v)) * 255
                assert torch.allclose(found[n, :, y, x], expected, atol=1e-2)


def test_grey_images_are_exposed_alone():
    pixels = torch.tensor([0, 100, 200], dtype=torch.uint8).view(1, 1, 1, 3)
    found = exposed(pixels, torch.tensor([1.5]), torch.tensor([1.5]))
    assert torch.allclose(found.flatten(), torch.tensor([0.0, 150, 255]))


def test_factors_are_as_often_inverse():
    made, many = pipeline((1, 1), jitter=0.0, flip=False, saturation=1.0), 600
    pixels = torch.full((many, 3, 1, 1), 100, dtype=torch.uint8)
    targets = Targets(
        torch.arange(many), boxes=torch.zeros(many, 0, 4), labels=torch.zeros(many, 0).long()
    )
    images = Images(pixels, [(1, 1)] * many, [(1, 1)] * many)
    found = made.batch(images, targets, Draw(0, 0, targets.image_id))[0].pixels[:, 0, 0, 0] / 100
    above = found > 1
    assert stats.binomtest(int(above.sum()), many).pvalue > 1e-3
    for factors in (found[above], 1 / found[~above]):
        assert stats.kstest(factors.numpy(), stats.uniform(1, 0.5).cdf).pvalue > 1e-3


def test_evaluation_sees_a_square_whatever_the_shape(painted):
    image, truth = painted.one(60, 100)
    made = pipeline(size=32)
    for seen in (made.joint_eval(image, truth)[0], made.own(image, ("boxes",))):
        assert seen.shape == (3, 32, 32)
    assert torch.equal(made.joint_eval(image, truth)[1]["boxes"], truth["boxes"])
    assert made.eval_size == (32, 32)
    assert pipeline().size == (448, 448)
    assert pipeline((20, 30)).own(image, ("boxes",)).shape == (3, 20, 30)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"jitter": 0.5}, "jitter must be from 0 to 0.45, got 0.5"),
        ({"exposure": 0.9}, "exposure must be from 1 to 100, got 0.9"),
        ({"saturation": float("nan")}, "saturation must be"),
    ],
)
def test_bad_numbers_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        pipeline(**options)
