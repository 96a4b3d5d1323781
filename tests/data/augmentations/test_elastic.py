"""Elastic deformation: the field's numbers, and image and mask bent alike."""

from typing import Any

import pytest
import torch
from scipy import stats

from cnnctl.data.augmentations.elastic import Elastic, normal
from cnnctl.data.border_weights import border_weights
from cnnctl.data.warp import centres
from cnnctl.randomness import Draw
from cnnctl.structures import Images, Targets

MEAN = (0.2,)
VOID = 255
STILL: dict[str, Any] = {"sigma": 0.0, "shift": 0.0, "degrees": 0.0, "colour": 0.0, "flip": False}


def elastic(native=None, size: int | None = 48, mirror=True, **options: Any) -> Elastic:
    return Elastic(2, mirror, native, MEAN, size, **{"colour": 0.0, **options})


def cells(h: int, w: int, side: int = 16) -> torch.Tensor:
    """(h, w) uint8: a chequerboard of two classes."""
    rows, columns = torch.arange(h)[:, None] // side, torch.arange(w) // side
    return (rows + columns).remainder(2).to(torch.uint8)


def painted(mask: torch.Tensor) -> torch.Tensor:
    return (100 + 120 * mask)[..., None, :, :]


def streamed(made: Elastic, mask: torch.Tensor, seed: int = 0):
    torch.manual_seed(seed)
    image, target = made.joint(painted(mask), {"mask": mask})
    return image, target


def resident(made: Elastic, masks: torch.Tensor, seed: int = 0):
    n = len(masks)
    images = Images(painted(masks), [made.size] * n, [made.size] * n)
    return made.batch(images, Targets(torch.arange(n), mask=masks), Draw(seed, 0, torch.arange(n)))


def assert_together(image: torch.Tensor, mask: torch.Tensor) -> None:
    """Half way between the colours of two classes the mask changes, wherever that is."""
    likely = torch.where(image[0] > 160, 1, 0)
    bright = (image[0].float() - 160).abs()
    sure = (mask != VOID) & (bright > 30) & (image[0] > 99)
    assert (likely == mask)[sure].double().mean() > 0.995
    assert sure.double().mean() > 0.8 * (mask != VOID).double().mean()


@pytest.mark.parametrize(
    "options",
    [{}, {"sigma": 4.0, "grid": 5}, {"degrees": 180.0}, {"scale": (0.7, 1.4)}, {"shift": 0.3}],
    ids=str,
)
def test_masks_bend_with_their_images(options):
    for shape in ((100, 120), (30, 70)):
        mask, made = cells(*shape), elastic(**options)
        for seed in range(4):
            image, target = streamed(made, mask, seed)
            assert image.dtype == torch.uint8
            assert image.shape == (1, 48, 48)
            assert_together(image, target["mask"])
    images, targets = resident(elastic((48, 48), None, **options), cells(48, 48).expand(8, -1, -1))
    assert targets.mask is not None
    for image, moved in zip(images.pixels, targets.mask, strict=True):
        assert_together(image, moved)


def test_it_bends_by_vectors_of_the_papers_deviation():
    """The vectors of the corners and the middle are where the field goes through them."""
    many = 400
    made = elastic((97, 97), None, **{**STILL, "sigma": 10.0})
    draw = Draw(0, 0, torch.arange(many))
    field = made.bent(centres((97, 97))[None], draw.uniform) - centres((97, 97))
    vectors = field[:, :, ::48, ::48].flatten()
    assert len(vectors) == many * 18
    assert stats.kstest(vectors.numpy(), stats.norm(0, 10).cdf).pvalue > 1e-3
    between = field[:, :, 24, 24]
    assert 4 < between.std() < 10  # smooth: a mean of neighbours


def test_the_deviation_is_ten_pixels_but_small_images_stay_sane():
    assert elastic(size=512).sigma == 10
    assert elastic(size=96).sigma == pytest.approx(4.8)
    assert elastic(size=96, sigma=0.5).sigma == 0.5


def test_numbers_become_normal_ones():
    uniform = torch.tensor([0.5, 0.25, 0.975, 0.001, 1 - 2.0**-24])
    assert torch.allclose(normal(uniform), torch.tensor(stats.norm.ppf(uniform)).float(), atol=1e-3)
    assert normal(torch.zeros(1)).item() == pytest.approx(-5.4, abs=0.05)


def test_without_any_of_it_a_crop_is_a_part_of_the_image():
    mask = torch.randint(0, 2, (60, 70), dtype=torch.uint8)
    windows = mask.unfold(0, 48, 1).unfold(1, 48, 1)
    for seed in range(5):
        image, target = streamed(elastic(**STILL), mask, seed)
        assert torch.equal(image, painted(target["mask"]))
        assert (windows == target["mask"]).all(3).all(2).any()
    masks = torch.randint(0, 2, (3, 48, 48), dtype=torch.uint8)
    images, targets = resident(elastic((48, 48), None, **STILL), masks.clone())
    assert targets.mask is not None
    assert torch.equal(targets.mask, masks)
    assert torch.equal(images.pixels.round(), painted(masks).float())


def test_flips_go_both_ways_where_the_classes_allow_it():
    mask = torch.zeros(48, 48, dtype=torch.uint8)
    mask[:10, :20] = 1
    ways = [mask, mask.flip(1), mask.flip(0), mask.flip(0, 1)]
    options = {**STILL, "flip": None}
    many = 200
    one = [streamed(elastic(**options), mask, seed)[1]["mask"] for seed in range(many)]
    whole = resident(elastic((48, 48), None, **options), mask.expand(many, -1, -1))[1].mask
    assert whole is not None
    for moved in (torch.stack(one), whole):
        counts = [int((moved == way).flatten(1).all(1).sum()) for way in ways]
        assert sum(counts) == many
        assert stats.chisquare(counts).pvalue > 1e-3
    kept = streamed(elastic(mirror=False, **options), mask, 1)[1]["mask"]
    assert torch.equal(kept, mask)


def test_what_is_shifted_in_is_void_and_of_the_mean_colour():
    mask = torch.ones(48, 48, dtype=torch.uint8)
    options = {**STILL, "shift": 0.5}
    gone = []
    for seed in range(60):
        image, target = streamed(elastic(**options), mask, seed)
        lost = target["mask"] == VOID
        edge = lost.any(1).sum() * 48 + lost.any(0).sum() * 48
        assert edge > 0
        deep = -torch.nn.functional.max_pool2d(-lost[None].float(), 3, 1, 1)[0] > 0
        assert (image[0][deep] == 51).all()
        kept = ~lost
        gone.append([1 - kept.any(1).double().mean(), 1 - kept.any(0).double().mean()])
    for axis in torch.tensor(gone).unbind(1):
        assert stats.kstest(axis.numpy(), stats.uniform(0, 0.5).cdf).pvalue > 1e-3


def test_weights_hold_the_borders_of_the_mask_as_it_was_bent():
    mask = cells(100, 100)
    made = elastic(border_weight=10.0, border_sigma=3.0)
    _, target = streamed(made, mask, 2)
    assert target["pixel_weight"].dtype == torch.float32
    assert torch.equal(target["pixel_weight"], border_weights(target["mask"], 10.0, 3.0))
    made = elastic((48, 48), None, border_weight=10.0, border_sigma=3.0)
    _, targets = resident(made, cells(48, 48).expand(3, -1, -1))
    assert targets.mask is not None
    assert targets.pixel_weight is not None
    for weight, moved in zip(targets.pixel_weight, targets.mask, strict=True):
        assert torch.equal(weight, border_weights(moved, 10.0, 3.0))
    assert "pixel_weight" not in made.joint(painted(mask), {"mask": mask})[1]
    assert "pixel_weight" not in streamed(elastic(), mask)[1]
    assert (
        "pixel_weight"
        not in elastic(border_weight=10.0).joint_eval(painted(mask), {"mask": mask})[1]
    )


def test_it_is_a_function_of_the_seed():
    mask = cells(100, 120)
    first, again, other = (streamed(elastic(), mask, seed)[1]["mask"] for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    masks = cells(48, 48).expand(4, -1, -1)
    made = elastic((48, 48), None)
    runs = [resident(made, masks, seed)[0].pixels for seed in (3, 3, 4)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    assert not torch.equal(runs[0][0], runs[0][1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grid": 1}, "grid must be at least 2, got 1"),
        ({"sigma": -1.0}, "sigma must be from 0 to the size 48, got -1.0"),
        ({"sigma": 49.0}, "sigma"),
        ({"shift": 1.5}, "shift must be from 0 to 1, got 1.5"),
        ({"border_weight": -1.0}, "border_weight must be at least 0, got -1.0"),
        ({"border_weight": float("nan")}, "border_weight"),
        ({"border_sigma": 0.0}, "border_sigma must be above 0, got 0.0"),
        ({"degrees": 181.0}, "degrees"),
    ],
)
def test_bad_numbers_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        elastic(**options)
