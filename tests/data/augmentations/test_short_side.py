"""Shorter side and cap as Fast R-CNN's, boxes by the same factors, flips only where allowed."""

from typing import Any

import pytest
import torch
from scipy import stats

from cnnctl.data.augmentations.short_side import ShortSide
from cnnctl.randomness import Draw


def pipeline(native=None, mirror=True, **options: Any) -> ShortSide:
    return ShortSide(9, mirror, native, (0.5, 0.5, 0.5), **options)


@pytest.mark.parametrize(
    ("shape", "size", "cap", "expected"),
    [
        ((375, 500), 600, 1000, (600, 800)),
        ((500, 375), 600, 1000, (800, 600)),
        ((300, 900), 600, 1000, (333, 1000)),  # the longer side is capped
        ((1200, 1200), 600, 1000, (600, 600)),
        ((480, 640), 800, 1333, (800, 1067)),
        ((1, 5000), 600, 1000, (1, 1000)),
    ],
)
def test_shapes(shape, size, cap, expected):
    image = torch.zeros(3, *shape, dtype=torch.uint8)
    made = pipeline(size=size, cap=cap)
    assert made.joint_eval(image, {})[0].shape[1:] == expected
    assert made.own(image, ("boxes",)).shape[1:] == expected
    assert made.eval_size is None


def test_boxes_take_the_factors_of_the_image(painted):
    image, truth = painted.one(30, 45)
    made, moved = pipeline(size=60, flip=False).joint(image, truth)
    assert made.shape == (3, 60, 90)
    assert torch.equal(moved["boxes"], 2 * truth["boxes"])
    assert torch.equal(moved["area"], 4 * truth["area"])
    assert torch.equal(moved["labels"], truth["labels"])
    seen, unmoved = pipeline(size=60).joint_eval(image, truth)
    assert torch.equal(seen, made)
    assert torch.equal(unmoved["boxes"], truth["boxes"])  # evaluation is in original pixels


@pytest.mark.parametrize("shape", [(90, 130), (200, 61), (40, 40), (20, 300)])
@pytest.mark.parametrize("rows", [0, 1, 9])
def test_streamed_boxes_move_with_their_images(painted, shape, rows):
    made = pipeline(size=100, sizes=(60, 100, 140), cap=200)
    for seed in range(4):
        torch.manual_seed(seed)
        image, truth = painted.one(*shape, seed, rows)
        image, moved = made.joint(image, truth)
        painted.check(image, moved, 3.0 if shape == (40, 40) else 1.8)
        assert len(moved["labels"]) == rows


def test_sizes_are_drawn_evenly_and_the_largest_is_evaluated(painted):
    made = pipeline(sizes=(40, 60, 50), flip=False)
    assert made.size == (60, 60)
    image, truth = painted.one(30, 45)
    torch.manual_seed(0)
    found = [made.joint(image, truth)[0].shape[1] for _ in range(150)]
    counts = [found.count(side) for side in (40, 50, 60)]
    assert sum(counts) == 150
    assert stats.chisquare(counts).pvalue > 1e-3
    assert made.joint_eval(image, truth)[0].shape[1] == 60
    assert pipeline(size=70, sizes=(40, 60)).joint_eval(image, truth)[0].shape[1] == 70
    assert pipeline().size == (600, 600)


@pytest.mark.parametrize(
    ("mirror", "flip", "share"),
    [(True, None, 0.5), (False, None, 0), (False, True, 0.5), (True, False, 0)],
)
def test_images_are_mirrored_only_where_that_keeps_the_class(painted, mirror, flip, share):
    image, truth = painted.one(24, 30)
    made, many = pipeline(mirror=mirror, flip=flip, size=24), 100
    torch.manual_seed(0)
    one = [made.joint(image, truth) for _ in range(many)]
    images, targets = painted.many(many, 24, 30)
    before = images.pixels.clone()
    made = pipeline((24, 30), mirror=mirror, flip=flip)
    images, targets = made.batch(images, targets, Draw(0, 0, targets.image_id))
    for flipped in (
        sum(not torch.equal(seen, image) for seen, _ in one),
        int((images.pixels != before).flatten(1).any(1).sum()),
    ):
        assert flipped == 0 if not share else stats.binomtest(flipped, many).pvalue > 1e-3
    for seen, moved in [*one, *zip(images.pixels, painted.truths(targets), strict=True)]:
        painted.check(seen, moved, 0)  # to the pixel


def test_flipped_twice_it_is_what_it_was(painted):
    images, targets = painted.many(8, 24, 30)
    pixels, boxes = images.pixels.clone(), targets.boxes.clone()
    made = pipeline((24, 30))
    for _ in range(2):
        images, targets = made.batch(images, targets, Draw(5, 0, targets.image_id))
    assert torch.equal(images.pixels, pixels)
    assert targets.boxes is not None
    assert torch.equal(targets.boxes, boxes)


def test_images_of_one_size_stay_as_they_are_or_become_a_square():
    assert pipeline((24, 30)).size == pipeline((24, 30)).eval_size == (24, 30)
    assert pipeline((24, 30), size=48).eval_size == (48, 48)
    image = torch.zeros(3, 24, 30, dtype=torch.uint8)
    assert pipeline((24, 30), size=48).joint_eval(image, {})[0].shape == (3, 48, 48)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sizes": ()}, r"sizes must be a list of sides of at least 1, got \[\]"),
        ({"sizes": (600, 0)}, "sizes must be"),
        ({"cap": 0}, "cap must be at least 1, got 0"),
        ({"size": 0}, "size must be at least 1, got 0"),
    ],
)
def test_bad_numbers_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        pipeline(**options)


@pytest.mark.parametrize("options", [{"sizes": (20, 30)}, {"cap": 64}, {"size": 48, "cap": 1333}])
def test_what_images_of_one_size_would_not_obey_is_refused(options):
    with pytest.raises(ValueError, match=r"sizes and cap are for .*, all here are 30 x 24: leave"):
        pipeline((24, 30), **options)
    assert pipeline((24, 30), sizes=None, cap=1000).size == (24, 30)
