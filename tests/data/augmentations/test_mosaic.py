"""Four images meet in one point, each with the boxes of what is seen of it."""

from typing import Any

import pytest
import torch
from scipy import stats

from cnnctl.data.augmentations.base import resize
from cnnctl.data.augmentations.mosaic import Mosaic, parts
from cnnctl.randomness import Draw
from cnnctl.structures import Images, Targets, collate

STILL: dict[str, Any] = {"jitter": 0.0, "exposure": 1.0, "saturation": 1.0, "flip": False}


def pipeline(native=(64, 80), mirror=True, **options: Any) -> Mosaic:
    return Mosaic(9, mirror, native, (0.5, 0.5, 0.5), **{"probability": 1.0, **options})


def mosaic(made: Mosaic, images: Images, targets: Targets, seed: int = 0, epoch: int = 0):
    return made.batch(images, targets, Draw(seed, epoch, targets.image_id))


@pytest.mark.parametrize("options", [STILL, {**STILL, "jitter": 0.2, "flip": True}])
@pytest.mark.parametrize("rows", [0, 1, 9])
def test_boxes_are_those_of_what_is_seen(painted, options, rows):
    images, targets = painted.many(24, 64, 80, rows)
    images, targets = mosaic(pipeline(**options), images, targets)
    assert targets.labels is not None
    assert targets.labels.shape == (24, 4 * (rows + 1))
    for image, moved in zip(images.pixels, truths := painted.truths(targets), strict=True):
        painted.check_rows(image, moved)
        painted.check_inside(image, moved, 2.6)
    # on average more than one image's boxes, and from each of the four
    assert sum(len(truth["labels"]) for truth in truths) >= 24 * rows


def test_each_part_is_its_image_cut_and_shrunk(painted):
    """Colour by colour, at the places that were drawn: Pillow's resize, and boxes by hand."""
    images, targets = painted.many(6, 64, 80, 4)
    before, boxes = images.pixels.clone(), targets.boxes.clone()
    places = list(parts((64, 80), 1.0, Draw(0, 0, torch.arange(6))))
    images, targets = mosaic(pipeline(**STILL), images, targets)
    assert targets.boxes is not None
    for n in range(6):
        for turn, (into, source) in enumerate(places):
            x, y, x_end, y_end = into[n].int().tolist()
            left, top, right, bottom = source[n].int().tolist()
            partner = (n - turn) % 6
            seen = before[partner, :, top:bottom, left:right]
            expected = resize(seen[None], (y_end - y, x_end - x))[0]
            assert (images.pixels[n, :, y:y_end, x:x_end] - expected).abs().max() <= 1
            for row, (x0, y0, x1, y1) in enumerate(boxes[partner].tolist()[:4]):
                x0, x1 = (min(max(side, left), right) for side in (x0, x1))
                y0, y1 = (min(max(side, top), bottom) for side in (y0, y1))
                whole = (boxes[partner, row, 2:] - boxes[partner, row, :2]).prod()
                if (x1 - x0) * (y1 - y0) < 0.2 * whole:
                    expected = [0.0] * 4
                else:
                    across, down = (x_end - x) / (right - left), (y_end - y) / (bottom - top)
                    expected = [(x0 - left) * across + x, (y0 - top) * down + y,
                                (x1 - left) * across + x, (y1 - top) * down + y]  # fmt: skip
                found = targets.boxes[n, 5 * turn + row]
                assert torch.allclose(found, torch.tensor(expected), atol=1e-3)


def test_the_parts_cover_the_picture_and_meet_away_from_its_edges():
    many = 300
    places = list(parts((60, 90), 1.0, Draw(0, 0, torch.arange(many))))
    into = torch.stack([into for into, _ in places], 1)  # (N, 4, 4)
    source = torch.stack([source for _, source in places], 1)
    meet = into[:, 0, 2:]
    assert torch.equal(into[:, 1, :2], torch.stack([meet[:, 0], torch.zeros(many)], 1))
    assert torch.equal(into[:, 3, :2], meet)
    assert ((into[..., 2:] - into[..., :2]).prod(2).sum(1) == 60 * 90).all()
    for axis, side in enumerate((90, 60)):
        share = (meet[:, axis] / side).numpy()
        assert stats.kstest(share, stats.uniform(0.19, 0.62).cdf).pvalue > 1e-3
    assert (source >= 0).all()
    assert (source <= torch.tensor([90.0, 60, 90, 60])).all()
    factors = (into[..., 2:] - into[..., :2]) / (source[..., 2:] - source[..., :2])
    assert factors.max() <= 1
    assert ((factors[..., 0] - factors[..., 1]).abs() < 0.1).all()  # the shape stays, but for parts


def test_the_probability_is_of_a_mosaic_at_all(painted):
    images, targets = painted.many(200, 16, 16)
    pixels, boxes = images.pixels.clone(), targets.boxes.clone()
    images, targets = mosaic(pipeline((16, 16), probability=0.0, **STILL), images, targets)
    assert torch.equal(images.pixels, pixels.float())
    assert targets.boxes is not None
    assert targets.labels is not None
    assert torch.equal(targets.boxes[:, :10], boxes)
    assert (targets.labels[:, 10:] == -1).all()
    images, targets = painted.many(200, 16, 16)
    made, _ = mosaic(pipeline((16, 16), probability=0.5, **STILL), images, targets)
    mixed = (made.pixels != pixels).flatten(1).any(1)
    assert stats.binomtest(int(mixed.sum()), 200).pvalue > 1e-3


def test_streamed_images_are_jittered_alone_and_mixed_together(painted):
    made = pipeline(None, size=64, exposure=1.0, saturation=1.0)
    torch.manual_seed(0)
    samples = [(n, *made.joint(*painted.one(70 + 5 * n, 90, n, n))) for n in range(9)]
    batch = collate(samples)
    images, targets = mosaic(made, batch.images, batch.targets)
    assert images.pixels.shape == (9, 3, 64, 64)
    for image, moved in zip(images.pixels, painted.truths(targets), strict=True):
        painted.check_rows(image, moved)
        painted.check_inside(image, moved, 3)


def test_it_is_repeatable_and_new_in_every_epoch(painted):
    found = []
    for epoch in (0, 0, 1):
        images, targets = painted.many(6, 64, 80)
        found.append(mosaic(pipeline(), images, targets, 3, epoch)[0].pixels)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@pytest.mark.parametrize("probability", [-0.1, 1.1, float("nan")])
def test_bad_numbers_are_named(probability):
    with pytest.raises(ValueError, match=f"probability must be from 0 to 1, got {probability}"):
        pipeline(probability=probability)
