"""SSD's crops overlap what they should, zoomed-out images lie on the mean, boxes move with both."""

from typing import Any

import pytest
import torch
from scipy import stats
from torchvision.ops import box_iou
from torchvision.transforms.v2 import functional as vision

from cnnctl.data.augmentations.ssd import OVERLAPS, TRIALS, Ssd, _patches, cropped, zoomed_out
from cnnctl.randomness import Draw
from cnnctl.structures import Images, Targets

FILL = 128


def pipeline(native=None, mirror=True, **options: Any) -> Ssd:
    return Ssd(9, mirror, native, (0.5, 0.5, 0.5), **options)


def numbers(seed: int, many: int):
    """Uniform numbers that are the same again for the same seed and purpose."""
    return Draw(seed, 0, torch.arange(many)).uniform


PARTS = [
    {},
    {"zoom_out": 1.0},
    {"crop": False},
    {"zoom_out": 1.0, "crop": False},
    {"flip": False, "zoom_out": 2.0},
]


@pytest.mark.parametrize("options", PARTS, ids=str)
@pytest.mark.parametrize("shape", [(90, 130), (200, 70), (64, 64)])
@pytest.mark.parametrize("rows", [0, 1, 9])
def test_streamed_boxes_move_with_their_images(painted, options, shape, rows):
    made = pipeline(size=96, **options)
    for seed in range(6):
        torch.manual_seed(seed)
        image, moved = made.joint(*painted.one(*shape, seed, rows))
        assert image.shape == (3, 96, 96)
        painted.check(image, moved, 5)  # a patch of 0.3 is enlarged
        assert len(moved["labels"]) >= min(1, rows)


@pytest.mark.parametrize("options", PARTS, ids=str)
@pytest.mark.parametrize("rows", [0, 1, 9])
def test_resident_boxes_move_with_their_images(painted, options, rows):
    images, targets = painted.many(24, 80, 96, rows)
    made = pipeline((80, 96), colour=False, **options)
    images, targets = made.batch(images, targets, Draw(0, 0, targets.image_id))
    for image, moved in zip(images.pixels, painted.truths(targets), strict=True):
        painted.check(image, moved, 4)
        assert len(moved["labels"]) >= min(1, rows)


def test_a_box_through_every_step_by_hand(painted, monkeypatch):
    """40 x 20 on a canvas of 80 x 40 at (30, 10); no patch; mirrored; half the size."""
    made = pipeline(size=40, zoom_out=3.0, crop=False)
    drawn = {
        "zoom out": torch.tensor([[0.4, 0.5, 0.75, 0.5]]),  # yes, half of 2 more, three quarters
        "flip": torch.zeros(1, 1),
    }
    monkeypatch.setattr(
        "cnnctl.data.augmentations.ssd.alone", lambda purpose, count: drawn[purpose]
    )
    image = torch.full((3, 20, 40), 200, dtype=torch.uint8)
    truth = {
        "boxes": torch.tensor([[4.0, 8, 20, 12]]),
        "labels": torch.tensor([5]),
        "crowd": torch.tensor([True]),
        "difficult": torch.tensor([True]),
        "area": torch.tensor([32.0]),
    }
    seen, moved = made.joint(image, truth)
    # x -> (x + 30) / 2, then 40 - x; y -> y + 10, as the canvas of 40 rows has 40 in the output
    assert moved["boxes"].tolist() == [[15, 18, 23, 22]]
    assert moved["area"].tolist() == [16.0]
    assert (moved["crowd"], moved["difficult"]) == (truth["crowd"], truth["difficult"])
    inside = torch.zeros(40, 40, dtype=torch.bool)
    inside[10:30, 5:25] = True
    assert (seen[:, inside] == 200).all()
    assert (seen[:, ~inside] == FILL).all()


def test_canvases():
    many = 600
    frames = torch.tensor([[0.0, 0, 60, 30]]).expand(many, 4)
    canvas = zoomed_out(frames, 4.0, numbers(0, many))
    sides = canvas[:, 2:] - canvas[:, :2]
    out = (sides != frames[:, 2:]).any(1)
    assert stats.binomtest(int(out.sum()), many).pvalue > 1e-3
    assert torch.equal(canvas[~out], frames[~out])
    canvas, sides = canvas[out], sides[out]
    assert (canvas[:, :2] <= 0).all()
    assert (canvas[:, 2:] >= torch.tensor([60, 30])).all()
    assert torch.allclose(sides[:, 0] / 60, sides[:, 1] / 30, atol=1 / 30)
    assert stats.kstest((sides[:, 0] / 60).numpy(), stats.uniform(1, 3).cdf).pvalue > 1e-4
    room = sides - torch.tensor([60, 30])
    place = (-canvas[:, :2] / room)[(room > 30).all(1)]
    for axis in place.unbind(1):
        assert stats.kstest(axis.numpy(), stats.uniform(-0.02, 1.02).cdf).pvalue > 1e-4


def scenes(many: int, rows: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Frames (N, 4), boxes (N, rows, 4) in them, and which of them are there."""
    random = torch.Generator().manual_seed(0)
    low = torch.rand(many, rows, 2, generator=random) * 60
    boxes = torch.cat([low, low + 5 + torch.rand(many, rows, 2, generator=random) * 60], 2)
    frames = torch.tensor([[0.0, 0, 140, 130]]).expand(many, 4)
    return frames, boxes, torch.rand(many, rows, generator=random) < 0.7


def test_patches_are_the_first_that_fit_of_a_kind():
    """One by one, with torchvision's IoU and plain loops, on the same numbers."""
    many = 60
    frames, boxes, there = scenes(many)
    boxes[::3, 0], there[::3, 0] = torch.tensor([4.0, 4, 136, 126]), True  # for overlaps of 0.9
    uniform = numbers(3, many)
    found = cropped(frames, boxes, there, uniform)
    patches, lots = _patches(frames, uniform), uniform("kind of patch", 1 + len(OVERLAPS))
    used = set()
    for n in range(many):
        own = boxes[n][there[n]]
        middles = (own[:, :2] + own[:, 2:]) / 2
        choices = {0: frames[n]}
        for kind, overlap in enumerate(OVERLAPS, 1):
            for patch, overlaps in zip(patches[n], box_iou(patches[n], own), strict=True):
                if max(overlaps.tolist(), default=-1.0) < overlap:
                    continue
                inside = ((middles > patch[:2]) & (middles < patch[2:])).all(1)
                if inside.any() or not len(own):
                    choices[kind] = patch
                    break
        kind = max(choices, key=lambda kind: float(lots[n, kind]))
        used.add(kind)
        assert torch.equal(found[n], choices[kind])
    assert used == set(range(1 + len(OVERLAPS)))


def test_patches_lie_inside_with_the_papers_sides_and_aspects():
    frames = torch.tensor([[-100.0, -50, 300, 350]]).expand(40, 4)
    patches = _patches(frames, numbers(0, 40)).flatten(0, 1)
    assert len(patches) == 40 * TRIALS
    assert torch.equal(patches, patches.round())
    assert (patches[:, :2] >= torch.tensor([-100, -50])).all()
    assert (patches[:, 2:] <= torch.tensor([300, 350])).all()
    share = (patches[:, 2:] - patches[:, :2]) / 400
    aspect = share[:, 0] / share[:, 1]
    assert aspect.min() > 0.49
    assert aspect.max() < 2.04
    scale = share.prod(1).sqrt()
    assert stats.kstest(scale.numpy(), stats.uniform(0.3, 0.7).cdf).pvalue > 1e-4
    place = (patches[:, 0] + 100) / (400 - 400 * share[:, 0])
    assert stats.kstest(place[share[:, 0] < 0.8].numpy(), stats.uniform(0, 1).cdf).pvalue > 1e-4


def test_an_image_without_boxes_is_cropped_anyhow():
    frames, boxes, _ = scenes(300)
    for some in (boxes, boxes[:, :0]):
        there = torch.zeros(some.shape[:2], dtype=torch.bool)
        found = cropped(frames, some, there, numbers(0, 300))
        as_it_is = int((found == frames).all(1).sum())  # the other kind is any patch
        assert stats.binomtest(as_it_is, 300).pvalue > 1e-3


def test_what_an_image_becomes_does_not_depend_on_the_rest_of_its_batch(painted):
    made, runs = pipeline((48, 48)), []
    for count, empty in ((8, 0), (8, 20), (2, 0)):
        images, targets = painted.many(count, 48, 48)
        for name in painted.columns:  # rows of no box, as others with more boxes make them
            column = getattr(targets, name)
            more = column[:, -1:].repeat_interleave(empty, 1)
            setattr(targets, name, torch.cat([column, more], 1))
        images, targets = made.batch(images, targets, Draw(0, 0, targets.image_id))
        runs.append((images.pixels, painted.truths(targets)))
    (pixels, truths), (padded, same), (few, _) = runs
    assert torch.equal(pixels, padded)
    for one, other in zip(truths, same, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in painted.columns)
    torch.testing.assert_close(few, pixels[:2])


def test_it_is_a_function_of_the_seed(painted):
    made, (image, truth) = pipeline(size=64), painted.one(80, 100)
    runs = []
    for seed in (1, 1, 5):
        torch.manual_seed(seed)
        runs.append(made.joint(image, truth))
    assert torch.equal(runs[0][0], runs[1][0])
    assert torch.equal(runs[0][1]["boxes"], runs[1][1]["boxes"])
    assert not torch.equal(runs[0][0], runs[2][0])


def test_everything_off_is_a_resize(painted):
    options: dict[str, Any] = {"zoom_out": 1.0, "crop": False, "colour": False, "flip": False}
    image, truth = painted.one(40, 60)
    seen, moved = pipeline(size=80, **options).joint(image, truth)
    assert torch.equal(seen, pipeline(size=80).joint_eval(image, truth)[0])
    assert torch.allclose(moved["boxes"], truth["boxes"] * torch.tensor([80 / 60, 2, 80 / 60, 2]))
    images, targets = painted.many(4, 40, 60)
    before = images.pixels.clone()
    made = pipeline((40, 60), **options).batch(images, targets, Draw(0, 0, torch.arange(4)))
    assert torch.equal(made[0].pixels, before.float())


def coloured(pixels: torch.Tensor) -> torch.Tensor:
    n, _, h, w = pixels.shape
    targets = Targets(torch.arange(n), boxes=torch.zeros(n, 0, 4), labels=torch.zeros(n, 0).long())
    made = pipeline((h, w), zoom_out=1.0, crop=False, flip=False)
    images = Images(pixels, [(h, w)] * n, [(h, w)] * n)
    return made.batch(images, targets, Draw(0, 0, torch.arange(n)))[0].pixels


def test_colours_change_as_torchvisions_do():
    """Of a grey image, which has neither saturation nor hue, light by 1/8 and contrast by 1/2."""
    many = 600
    pixels = torch.full((many, 3, 1, 2), 100, dtype=torch.uint8)
    pixels[..., 1] = 50  # the mean is 75
    made = coloured(pixels.clone())
    assert (made - made[:, :1]).abs().max() < 1e-3  # grey it stays
    made = made[:, 0, 0]
    light, contrast = made.sum(1) / 150, (made[:, 0] - made[:, 1]) / 50
    for found, strength in ((light, 0.125), (contrast / light, 0.5)):
        changed = (found - 1).abs() > 1e-4
        assert stats.binomtest(int(changed.sum()), many).pvalue > 1e-3
        cdf = stats.uniform(1 - strength, 2 * strength).cdf
        assert stats.kstest(found[changed].numpy(), cdf).pvalue > 1e-3
    row = int((((light - 1).abs() > 0.05) & ((contrast / light - 1).abs() > 0.2)).nonzero()[0])
    expected = vision.adjust_brightness(pixels[row].float() / 255, float(light[row]))
    expected = vision.adjust_contrast(expected, float(contrast[row] / light[row])) * 255
    assert torch.allclose(expected[0, 0], made[row], atol=0.05)


def test_coloured_images_lose_and_gain_saturation():
    pixels = torch.tensor([140, 100, 60], dtype=torch.uint8)[:, None, None].expand(300, 3, 2, 2)
    spread = coloured(pixels.clone()).flatten(2)[..., 0]
    spread = (spread.amax(1) - spread.amin(1)) / 80
    assert spread.min() < 0.6
    assert spread.max() > 1.4
    kept = int(((spread - 1).abs() < 1e-3).sum())  # where none of the four is drawn
    assert stats.binomtest(kept, 300, 1 / 16).pvalue > 1e-3


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
    for seed in range(20):
        torch.manual_seed(seed)
        seen, moved = pipeline(size=32).joint(image, truth)
        assert seen.shape == (3, 32, 32)
        assert moved["labels"].tolist() == [0]
        assert (moved["boxes"] >= 0).all()
        assert (moved["boxes"] <= 32).all()
        assert (moved["boxes"][:, 2:] > moved["boxes"][:, :2]).all()


def test_evaluation_sees_a_square_whatever_the_shape(painted):
    image, truth = painted.one(60, 100)
    made = pipeline(size=32)
    for seen in (made.joint_eval(image, truth)[0], made.own(image, ("boxes",))):
        assert seen.shape == (3, 32, 32)
    assert torch.equal(made.joint_eval(image, truth)[1]["boxes"], truth["boxes"])
    assert made.eval_size == (32, 32)
    assert pipeline().size == (300, 300)
    assert pipeline((20, 30)).own(image, ("boxes",)).shape == (3, 20, 30)


@pytest.mark.parametrize("zoom_out", [0.5, 101.0, float("nan")])
def test_bad_numbers_are_named(zoom_out):
    with pytest.raises(ValueError, match=f"zoom_out must be from 1 to 100, got {zoom_out}"):
        pipeline(zoom_out=zoom_out)
