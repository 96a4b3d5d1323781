"""Image and mask stay together, in the workers and on the device, and both halves move alike."""

import math
from typing import Any

import pytest
import torch
from scipy import stats
from torchvision.transforms.v2 import functional as vision

from cnnctl.data.augmentations.scale_crop import TRIES, ScaleCrop, jitter, recoloured
from cnnctl.data.warp import centres, largest_share, turned
from cnnctl.randomness import Draw
from cnnctl.structures import Images, Targets

MEAN = (0.1, 0.2, 0.3)
FILL = torch.tensor([26, 51, 76], dtype=torch.uint8)[:, None, None]
VOID = 255


def pipeline(native=None, size: int | None = 32, mirror=True, **options: Any) -> ScaleCrop:
    return ScaleCrop(21, mirror, native, MEAN, size, **options)


def blocks(h: int, w: int, side: int = 12, seed: int = 0) -> torch.Tensor:
    """(h, w) uint8 of square blocks of the classes 0..20."""
    generator = torch.Generator().manual_seed(seed)
    shape = (math.ceil(h / side), math.ceil(w / side))
    coarse = torch.randint(0, 21, shape, generator=generator, dtype=torch.uint8)
    return coarse.repeat_interleave(side, 0).repeat_interleave(side, 1)[:h, :w]


def painted(mask: torch.Tensor) -> torch.Tensor:
    """The image of a mask: (3, h, w) uint8, each class in a colour of its own."""
    return torch.stack([100 + 7 * mask, 250 - 7 * mask, 90 + 3 * mask], -3)


def streamed(made: ScaleCrop, image, mask=None, seed=0, **more):
    torch.manual_seed(seed)
    target = more if mask is None else {"mask": mask, **more}
    return made.joint(image, target)


def resident(made: ScaleCrop, pixels, mask, seed=0, epoch=0, weight=None):
    n = len(pixels)
    images = Images(pixels.clone(), [made.size] * n, [made.size] * n)
    targets = Targets(torch.arange(n), mask=mask.clone(), pixel_weight=weight)
    return made.batch(images, targets, Draw(seed, epoch, torch.arange(n)))


def assert_together(image: torch.Tensor, mask: torch.Tensor, reach: int = 2) -> None:
    """Where a class goes on for ``reach`` pixels around, the image has its colour, and nothing but
    the mean colour where nothing is labelled."""
    around = torch.nn.functional.pad(mask[None].float(), (reach,) * 4, value=300.0)
    window = 2 * reach + 1
    most = torch.nn.functional.max_pool2d(around, window, 1)[0]
    least = -torch.nn.functional.max_pool2d(-around, window, 1)[0]
    # beyond the view nothing is known: only its inside counts
    calm = (most == least) & (mask != VOID)
    empty = (most == least) & (mask == VOID)
    difference = (image.float() - painted(mask).float()).abs().amax(0)
    assert not calm.any() or difference[calm].max() <= 1
    assert torch.equal(image[:, empty].round(), FILL[:, :, 0].expand(3, int(empty.sum())).to(image))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"degrees": 30.0},
        {"degrees": 180.0, "flip": True},
        {"scale": (2.0, 2.0)},
        {"scale": (0.5, 0.5), "degrees": 10.0},
        {"max_share": 0.3},
        {"eval_side": 100},
        {"flip": False, "scale": (1.0, 1.0)},
    ],
    ids=str,
)
@pytest.mark.parametrize("shape", [(90, 120), (121, 77), (20, 25), (30, 200)])
def test_streamed_masks_move_with_their_images(options, shape):
    mask, made = blocks(*shape), pipeline(**options)
    seen = set()
    for seed in range(8):
        image, target = streamed(made, painted(mask), mask, seed)
        assert image.dtype == target["mask"].dtype == torch.uint8
        assert image.shape == (3, 32, 32)
        assert_together(image, target["mask"], reach=5 if "eval_side" in options else 2)
        seen |= set(target["mask"].flatten().tolist())
    assert len(seen) > 3


@pytest.mark.parametrize(
    "options",
    [{}, {"degrees": 30.0}, {"scale": (2.0, 2.0)}, {"scale": (0.5, 0.5)}, {"max_share": 0.3}],
    ids=str,
)
@pytest.mark.parametrize("native", [(32, 32), (40, 56)])
def test_resident_masks_move_with_their_images(options, native):
    mask = torch.stack([blocks(*native, seed=seed) for seed in range(24)])
    made = pipeline(native, None, **options)
    images, targets = resident(made, painted(mask), mask)
    assert images.pixels.shape == (24, 3, *native)
    assert targets.mask is not None
    assert targets.mask.dtype == torch.uint8
    for image, moved in zip(images.pixels, targets.mask, strict=True):
        assert_together(image, moved)
    changed = (targets.mask != mask).any(2).any(1)
    assert changed.double().mean() > 0.9


def test_void_is_exactly_what_lies_outside():
    """An image smaller than its crop, as it is: all of it, whole, and the rest empty."""
    image = torch.randint(100, 256, (3, 10, 12), dtype=torch.uint8)
    mask = torch.randint(0, 21, (10, 12), dtype=torch.uint8)
    made, places = pipeline(size=16, flip=False, scale=(1.0, 1.0)), set()
    for seed in range(40):
        seen, target = streamed(made, image, mask, seed)
        inside = target["mask"] != VOID
        top, left = int(inside.any(1).int().argmax()), int(inside.any(0).int().argmax())
        window = (slice(top, top + 10), slice(left, left + 12))
        assert inside.sum() == 120
        assert torch.equal(target["mask"][window], mask)
        assert torch.equal(seen[:, window[0], window[1]], image)
        assert torch.equal(seen[:, ~inside], FILL[:, :, 0].expand(3, 256 - 120))
        places.add((top, left))
    assert {top for top, _ in places} == set(range(7))
    assert {left for _, left in places} == set(range(5))


def test_a_crop_of_an_image_as_it_is_is_a_part_of_it():
    image = torch.arange(60 * 80).remainder(251).to(torch.uint8).view(1, 60, 80).repeat(3, 1, 1)
    mask = blocks(60, 80)
    made = pipeline(flip=False, scale=(1.0, 1.0))
    windows = image[0].unfold(0, 32, 1).unfold(1, 32, 1)  # (29, 49, 32, 32)
    for seed in range(10):
        seen, target = streamed(made, image, mask, seed)
        found = (windows == seen[0]).all(3).all(2).nonzero().tolist()
        assert any(
            torch.equal(mask[top : top + 32, left : left + 32], target["mask"])
            for top, left in found
        )


@pytest.mark.parametrize("degrees", [0.0, 25.0])
def test_it_is_a_function_of_the_seed(degrees):
    mask = blocks(90, 120)
    made = pipeline(degrees=degrees)
    first, again, other = (streamed(made, painted(mask), mask, seed) for seed in (3, 3, 4))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1]["mask"], again[1]["mask"])
    assert not torch.equal(first[0], other[0])
    masks = torch.stack([mask[:32, :32]] * 6)
    made = pipeline((32, 32), degrees=degrees, colour=0.3)
    runs = [resident(made, painted(masks), masks, 3, epoch) for epoch in (0, 0, 1)]
    assert torch.equal(runs[0][0].pixels, runs[1][0].pixels)
    assert not torch.equal(runs[0][0].pixels, runs[2][0].pixels)
    part = resident(made, painted(masks[:2]), masks[:2], 3)[0].pixels
    torch.testing.assert_close(part, runs[0][0].pixels[:2])  # whatever else is in the batch


def geometry(image: torch.Tensor, mask: torch.Tensor) -> list[float]:
    """Factor, flip, turn in degrees and place, read from an image of two ramps.

    Red grows by 2 a pixel to the right and green downwards; a plane through what is seen of each
    tells what was done.
    """
    inside = mask != VOID
    # away from edges, where the image is mixed with what lies outside
    inside = -torch.nn.functional.max_pool2d(-inside[None].float(), 5, 1, 2)[0] > 0
    y, x = (axis.double() + 0.5 for axis in inside.nonzero().unbind(1))
    plane = torch.stack([x, y, torch.ones_like(x)], 1)
    red, green = (image[c][inside].double() for c in (0, 1))
    (a, b, c), (d, e, f) = (
        torch.linalg.lstsq(plane, ramp[:, None]).solution[:, 0].tolist() for ramp in (red, green)
    )
    flip = a * e - b * d < 0
    factor = 2 / math.sqrt(abs(a * e - b * d))
    turn = math.degrees(math.atan2(d, e)) if not flip else math.degrees(math.atan2(-d, e))
    middle = [(a * 32 + b * 32 + c) / 2, (d * 32 + e * 32 + f) / 2]  # in the source, of the view
    room = 64 - 64 / factor
    place = [(m - 32 / factor) / room if abs(room) > 4 else 0.5 for m in middle]
    return [factor, float(flip), abs(turn), *place]


@pytest.mark.parametrize("degrees", [0.0, 40.0])
def test_both_halves_draw_from_the_same_distributions(degrees):
    many, side = 150, 64
    ramp = (2 * torch.arange(side) + 1).to(torch.uint8).expand(side, side)
    image = torch.stack([ramp, ramp.T, torch.zeros_like(ramp)])
    mask = torch.zeros(side, side, dtype=torch.uint8)
    options: dict[str, Any] = {"degrees": degrees, "scale": (0.6, 1.5), "flip": True}
    made = pipeline(None, side, **options)
    one = [streamed(made, image, mask, seed) for seed in range(many)]
    alone = torch.tensor([geometry(seen, target["mask"]) for seen, target in one])
    whole = resident(
        pipeline((side, side), None, **options),
        image.expand(many, -1, -1, -1),
        mask.expand(many, -1, -1),
    )
    assert whole[1].mask is not None
    pairs = zip(whole[0].pixels, whole[1].mask, strict=True)
    together = torch.tensor([geometry(seen, moved) for seen, moved in pairs])
    for name, column in (("factor", 0), ("turn", 2), ("x", 3), ("y", 4)):
        if name == "turn" and not degrees:
            assert max(alone[:, column].max(), together[:, column].max()) < 1
            continue
        same: Any = stats.ks_2samp(alone[:, column].numpy(), together[:, column].numpy())
        assert same.pvalue > 1e-3, name
    for found in (alone, together):
        assert stats.kstest(found[:, 0].numpy(), stats.uniform(0.6, 0.9).cdf).pvalue > 1e-3
        assert stats.binomtest(int(found[:, 1].sum()), many).pvalue > 1e-3
        if degrees:
            assert stats.kstest(found[:, 2].numpy(), stats.uniform(0, degrees).cdf).pvalue > 1e-3
        wide = (found[:, 0] - 1).abs() > 0.2  # where there is room to tell the place by
        for column in (3, 4):
            place = found[wide, column].numpy()
            assert stats.kstest(place, stats.uniform(0, 1).cdf).pvalue > 1e-3


@pytest.mark.parametrize(
    ("mirror", "flip", "share"), [(True, None, 0.5), (False, None, 0), (False, True, 0.5),
                                  (True, False, 0)],
)  # fmt: skip
def test_images_are_mirrored_only_where_that_keeps_the_class(mirror, flip, share):
    image = torch.arange(32, dtype=torch.uint8).expand(3, 32, 32)
    mask = torch.zeros(32, 32, dtype=torch.uint8)
    options: dict[str, Any] = {"mirror": mirror, "flip": flip, "scale": (1.0, 1.0)}
    one = torch.stack([streamed(pipeline(**options), image, mask, s)[0] for s in range(100)])
    pixels = image.expand(100, -1, -1, -1)
    masks = mask.expand(100, -1, -1)
    whole = resident(pipeline((32, 32), None, **options), pixels, masks)[0].pixels
    for made in (one, whole.round().to(torch.uint8)):
        kept = (made == image).flatten(1).all(1)
        assert (kept | (made == image.flip(2)).flatten(1).all(1)).all()  # and never upside down
        flipped = int((~kept).sum())
        assert flipped == 0 if not share else stats.binomtest(flipped, 100).pvalue > 1e-3


def sprinkled() -> torch.Tensor:
    """(128, 128): background, and a quarter of it checked with two classes in one corner."""
    mask = torch.zeros(128, 128, dtype=torch.uint8)
    mask[64:, 64:] = 1 + (torch.arange(64)[:, None] // 4 + torch.arange(64) // 4).remainder(2)
    return mask


def shares(made: ScaleCrop, mask: torch.Tensor, many: int = 100) -> torch.Tensor:
    found = [streamed(made, painted(mask), mask, seed)[1]["mask"] for seed in range(many)]
    return largest_share(torch.stack(found))


def test_one_class_covers_no_more_than_its_cap_where_that_can_be():
    options: dict[str, Any] = {"scale": (1.0, 1.0), "flip": False}
    free, capped = (shares(pipeline(max_share=c, **options), sprinkled()) for c in (None, 0.75))
    # A crop of 32 in 128 has the wanted share with chance p; ten draws miss with (1 - p) ** 10.
    p = (free <= 0.75).double().mean().item()
    assert 0.1 < p < 0.4
    missed = int((capped > 0.75).sum())
    assert stats.binomtest(missed, 100, (1 - p) ** TRIES).pvalue > 1e-3
    hopeless = shares(pipeline(max_share=0.5, **options), torch.zeros(64, 64, dtype=torch.uint8), 5)
    assert (hopeless == 1).all()
    assert (shares(pipeline(max_share=0.45, **options), sprinkled()) < 0.75).double().mean() > 0.5


def test_resident_crops_keep_to_the_cap_as_streamed_ones_do():
    mask = sprinkled().expand(100, -1, -1)
    options: dict[str, Any] = {"scale": (3.0, 3.0), "flip": False}
    found = {}
    for cap in (None, 0.75):
        made = pipeline((128, 128), None, max_share=cap, **options)
        moved = resident(made, painted(mask), mask)[1].mask
        assert moved is not None
        found[cap] = largest_share(moved)
    p = (found[None] <= 0.75).double().mean().item()
    assert 0.1 < p < 0.4
    missed = int((found[0.75] > 0.77).sum())  # it looks at every fourth pixel
    assert stats.binomtest(missed, 100, (1 - p) ** TRIES).pvalue > 1e-3


def test_a_crop_with_labels_is_preferred():
    mask = torch.full((128, 128), VOID, dtype=torch.uint8)
    mask[10:50, 60:100] = 3
    options: dict[str, Any] = {"scale": (1.0, 1.0), "flip": False}
    empty = shares(pipeline(**options), mask).isinf()
    assert empty.double().mean() < 0.1  # of single draws, half are empty
    made = pipeline((128, 128), None, scale=(4.0, 4.0))
    masks = mask.expand(100, -1, -1)
    moved = resident(made, painted(masks), masks)[1].mask
    assert moved is not None
    assert largest_share(moved).isinf().double().mean() < 0.1
    nothing = torch.full((40, 40), VOID, dtype=torch.uint8)
    assert shares(pipeline(**options), nothing, 3).isinf().all()


def test_weights_of_pixels_move_with_the_mask():
    mask = blocks(90, 120)
    weight = mask.float() + 0.5
    settings: tuple[dict[str, Any], ...] = ({}, {"degrees": 30.0}, {"scale": (0.3, 0.4)})
    for options in settings:
        for seed in range(5):
            _, target = streamed(
                pipeline(**options), painted(mask), mask, seed, pixel_weight=weight
            )
            moved = target["mask"]
            expected = torch.where(moved == VOID, 0.0, moved + 0.5)
            assert torch.equal(target["pixel_weight"], expected)
    masks = torch.stack([blocks(32, 32, seed=seed) for seed in range(6)])
    made = pipeline((32, 32), None, degrees=20.0)
    _, targets = resident(made, painted(masks), masks, weight=masks + 0.5)
    assert targets.mask is not None
    assert targets.pixel_weight is not None
    expected = torch.where(targets.mask == VOID, 0.0, targets.mask + 0.5)
    assert torch.equal(targets.pixel_weight, expected)


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (2, 3), (31, 33), (700, 40)])
@pytest.mark.parametrize("degrees", [0.0, 90.0])
def test_any_image_becomes_one_of_the_size(shape, degrees):
    image = torch.full((3, *shape), 77, dtype=torch.uint8)
    mask = torch.full(shape, 4, dtype=torch.uint8)
    for seed in range(6):
        made = pipeline(degrees=degrees)
        seen, target = streamed(made, image, mask, seed)
        assert seen.shape == (3, 32, 32)
        assert target["mask"].shape == (32, 32)
        assert set(target["mask"].unique().tolist()) <= {4, VOID}
        again = made.sample(image)  # without a mask
        assert again.shape == (3, 32, 32)


def test_evaluation_keeps_the_resolution_and_the_mask():
    mask = blocks(90, 121)
    image = painted(mask)
    made = pipeline()
    seen, target = made.joint_eval(image, {"mask": mask, "original": (90, 121)})
    assert torch.equal(seen, image)
    assert target["mask"] is mask
    assert torch.equal(made.own(image, ("mask",)), image)
    assert made.eval_size is None
    smaller, target = pipeline(eval_side=60).joint_eval(image, {"mask": mask})
    assert torch.equal(smaller, vision.resize(image, [45, 60], antialias=True))
    assert target["mask"] is mask
    assert pipeline(eval_side=60).own(image.mT, ("mask",)).shape == (3, 60, 45)
    assert pipeline(eval_side=7).own(image[:, :1], ("mask",)).shape == (3, 1, 7)


def test_images_of_one_size_are_only_resized_before_the_device():
    mask = blocks(40, 40)
    image = painted(mask)
    made = pipeline((40, 40), 20)
    assert made.eval_size == (20, 20)
    seen, target = streamed(made, image, mask, pixel_weight=mask.float())
    assert torch.equal(seen, vision.resize(image, [20, 20], antialias=True))
    assert torch.equal(target["mask"], mask[1::2, 1::2])
    assert torch.equal(target["pixel_weight"], mask[1::2, 1::2].float())
    evaluated, target = made.joint_eval(image, {"mask": mask})
    assert torch.equal(evaluated, made.resident(image[None])[0])
    assert target["mask"] is mask
    still = pipeline((40, 40), None, flip=False, scale=(1.0, 1.0))
    images, targets = resident(still, image[None], mask[None])
    assert targets.mask is not None
    assert torch.equal(images.pixels.round(), image[None].float())
    assert torch.equal(targets.mask[0], mask)


def test_the_scale_depends_on_what_is_seen_of_an_image():
    assert pipeline().scale == (0.5, 2.0)
    assert pipeline((32, 32)).scale == (0.75, 1.33)
    assert pipeline((32, 32), scale=(0.5, 0.6)).scale == (0.5, 0.6)


class Fixed(Draw):
    """The numbers of ``drawn`` for every purpose, a row for each sample."""

    def uniform(self, purpose: str, count: int = 1) -> torch.Tensor:
        return DRAWN[:, None].expand(-1, count)


DRAWN = torch.tensor([0.0, 0.25, 0.5, 1.0])
FIXED = Fixed(0, 0, torch.arange(4))


def test_numbers_cover_their_ranges_evenly():
    made = pipeline(scale=(0.5, 2.0), degrees=40.0)
    assert made.scales(FIXED.uniform).tolist() == [0.5, 0.875, 1.25, 2.0]
    points = made.bent(centres((32, 32))[None], FIXED.uniform)
    for one, degrees in zip(points, (-40, -20, 0, 40), strict=True):
        expected = turned(centres((32, 32))[None], torch.tensor([math.radians(degrees)]), (32, 32))
        assert torch.allclose(one, expected[0], atol=1e-4)
    pixels = torch.randint(90, 150, (4, 3, 8, 8), dtype=torch.uint8)
    factor = torch.tensor([0.8, 0.9, 1.0, 1.2])
    hue = torch.tensor([-0.05, -0.025, 0, 0.05])  # turns: 18 degrees where all else is 20 %
    expected = recoloured(pixels, factor, factor, factor, hue)
    assert torch.allclose(jitter(pixels, 0.2, FIXED), expected, atol=1e-3)


def test_crops_are_of_what_is_evaluated():
    mask = blocks(64, 64)
    made = pipeline(scale=(1.0, 1.0), flip=False, eval_side=32)
    image, target = streamed(made, painted(mask), mask)
    assert torch.equal(image, made.sample_eval(painted(mask)))
    assert torch.equal(target["mask"], mask[1::2, 1::2])


@pytest.mark.parametrize("channels", [1, 3])
def test_colours_change_as_torchvision_changes_them(channels):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(100, 140, (4, channels, 9, 8), generator=generator, dtype=torch.uint8)
    one, zero = torch.ones(4), torch.zeros(4)
    factors = torch.tensor([0.5, 0.8, 1.2, 1.6])
    scaled = pixels.float() / 255
    for place, adjust in enumerate(
        (vision.adjust_brightness, vision.adjust_contrast, vision.adjust_saturation)
    ):
        chosen = [one, one, one, zero]
        chosen[place] = factors
        made = recoloured(pixels, *chosen)
        expected = [
            adjust(row, factor) for row, factor in zip(scaled, factors.tolist(), strict=True)
        ]
        assert torch.allclose(made, torch.stack(expected) * 255, atol=0.1)
    assert torch.allclose(recoloured(pixels, one, one, one, zero), pixels.float(), atol=0.02)


def test_a_hue_turns_and_keeps_its_luma():
    colours = [[160, 100, 100], [120, 120, 120], [90, 100, 130]]
    pixels = torch.tensor(colours, dtype=torch.uint8).T[None, :, None]  # (1, 3, 1, 3)
    one = torch.ones(1)
    luma = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    for turn in (0.1, 0.25, -0.2):
        made = recoloured(pixels, one, one, one, torch.tensor([turn]))
        assert torch.allclose((made * luma).sum(1), (pixels * luma).sum(1), atol=0.2)
        grey = (pixels.float().std(1) == 0)[0]
        assert torch.allclose(made[0][:, grey], pixels[0][:, grey].float(), atol=0.2)
        assert not torch.allclose(made, pixels.float(), atol=5)
    whole = recoloured(pixels, one, one, one, torch.tensor([1.0]))
    assert torch.allclose(whole, pixels.float(), atol=0.1)


def test_colour_jitter_is_for_both_kinds_of_data_and_leaves_the_mask():
    masks = torch.stack([blocks(32, 32, seed=seed) for seed in range(8)])
    for native in (None, (32, 32)):
        made = pipeline(native, 32, scale=(1.0, 1.0), flip=False, colour=0.4)
        images, targets = resident(made, painted(masks), masks)
        assert targets.mask is not None
        assert torch.equal(targets.mask, masks)
        assert 0 <= images.pixels.min() <= images.pixels.max() <= 255
        ratio = images.pixels.mean((1, 2, 3)) / painted(masks).float().mean((1, 2, 3))
        assert (ratio - 1).abs().max() <= 0.4 + 1e-3
        assert ratio.std() > 0.05  # each image by its own
        plain = pipeline(native, 32, scale=(1.0, 1.0), flip=False)
        kept = resident(plain, painted(masks), masks)[0].pixels
        assert torch.equal(kept.round(), painted(masks).to(kept))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "size must be at least 1, got 0"),
        ({"scale": (0.0, 1.0)}, r"scale must be 0 < smallest <= largest, got \(0.0, 1.0\)"),
        ({"scale": (2.0, 1.0)}, "scale"),
        ({"scale": (1.0, float("inf"))}, "scale"),
        ({"scale": (1.0,)}, "scale"),
        ({"degrees": -1.0}, "degrees must be from 0 to 180, got -1.0"),
        ({"degrees": float("nan")}, "degrees"),
        ({"max_share": 0.0}, "max_share must be above 0 and at most 1, got 0.0"),
        ({"max_share": 1.5}, "max_share"),
        ({"colour": 1.5}, "colour must be from 0 to 1, got 1.5"),
        ({"eval_side": 0}, "eval_side must be at least 1, got 0"),
    ],
)
def test_bad_numbers_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        pipeline(**options)
