"""Affine maps against torchvision's, at fixed and at drawn parameters."""

import pytest
import torch
from scipy import stats
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as vision

from cnnctl.data.augmentations.affine import Affine, sources
from cnnctl.data.warp import warp
from cnnctl.randomness import Draw

BLACK = torch.zeros(3, 1, 1)


def affine(native=(24, 20), mirror=False, **options) -> Affine:
    return Affine(10, mirror, native, **options)


def theirs(image, degrees, shift, scale, lean) -> torch.Tensor:
    """torchvision's on one image of floats, black from outside."""
    return vision.affine(
        image, degrees, shift, scale, lean, interpolation=InterpolationMode.BILINEAR
    )


def ours(image, degrees, shift, scale, lean) -> torch.Tensor:
    numbers = (torch.tensor([degrees]).deg2rad(), torch.tensor([lean]).deg2rad())
    rest = (torch.tensor([scale]), torch.tensor([shift]))
    return warp(image[None], sources((24, 20), *numbers, *rest), BLACK)[0]


@pytest.mark.parametrize(
    ("degrees", "shift", "scale", "lean"),
    [
        (30.0, [0.0, 0.0], 1.0, [0.0, 0.0]),
        (0.0, [3.0, -5.0], 1.0, [0.0, 0.0]),
        (0.0, [0.0, 0.0], 1.5, [0.0, 0.0]),
        (0.0, [0.0, 0.0], 1.0, [20.0, 0.0]),
        (0.0, [0.0, 0.0], 1.0, [0.0, 20.0]),
        (-25.0, [2.0, 1.5], 0.8, [12.0, -7.0]),
    ],
)
def test_each_map_is_torchvisions(random_pixels, degrees, shift, scale, lean):
    image = random_pixels(1, 3, 24, 20)[0].float()
    expected = theirs(image, degrees, shift, scale, lean)
    found = ours(image, degrees, shift, scale, lean)
    # theirs weighs black pixels outside as missing ones of the image's border, ours as black
    inner = ours(torch.ones_like(image), degrees, shift, scale, lean) > 0.999
    assert inner.float().mean() > 0.4
    torch.testing.assert_close(found[inner], expected[inner], rtol=0, atol=0.05)


def test_by_hand():
    """A quarter turn clockwise, exactly; a shift by half of the width."""
    image = torch.tensor([[1.0, 2.0], [3.0, 4.0]])[None, None]
    one, none = torch.ones(1), torch.zeros(1, 2)
    turned = sources((2, 2), torch.tensor([torch.pi / 2]), none, one, none)
    expected = torch.tensor([[3.0, 1.0], [4.0, 2.0]])
    torch.testing.assert_close(warp(image, turned, BLACK[:1])[0, 0], expected)
    moved = sources((2, 2), torch.zeros(1), none, one, torch.tensor([[1.0, 0.0]]))
    assert warp(image, moved, BLACK[:1])[0, 0].tolist() == [[0, 1], [0, 3]]


def test_what_is_drawn_is_within_its_range(monkeypatch, run, random_pixels):
    from cnnctl.data.augmentations import affine as module

    seen = {}

    def watched(size, turn, lean, scale, moved):
        seen.update(turn=turn, lean=lean, scale=scale, moved=moved)
        return sources(size, turn, lean, scale, moved)

    monkeypatch.setattr(module, "sources", watched)
    run(
        affine((4, 8), degrees=90.0, shear=45.0, scale=(0.5, 1.5), shift=0.25),
        random_pixels(4000, 1, 4, 8),
    )
    uniform = {
        "turn": (seen["turn"], torch.pi / 2),
        "lean x": (seen["lean"][:, 0], torch.pi / 4),
        "lean y": (seen["lean"][:, 1], torch.pi / 4),
        "across": (seen["moved"][:, 0], 2.0),
        "down": (seen["moved"][:, 1], 1.0),
        "scale": (seen["scale"] - 1, 0.5),
    }
    for name, (numbers, reach) in uniform.items():
        assert stats.kstest(numbers / reach, stats.uniform(-1, 2).cdf).pvalue > 1e-3, name


def test_what_comes_from_outside_has_the_mean_colour(run):
    white = torch.full((50, 3, 24, 20), 255, dtype=torch.uint8)
    pipeline = affine(mean=(0.2, 0.4, 0.6), degrees=0.0, shear=0.0, scale=(1.0, 1.0), shift=0.9)
    made, _ = run(pipeline, white)
    drawn = 2 * Draw(0, 0, torch.arange(50)).uniform("affine", 6) - 1
    right = (0.9 * 20 * drawn[:, 3]).tolist()
    for image, shift in zip(made, right, strict=True):
        if shift > 1:  # the first column comes from outside
            assert image[:, 12, 0].tolist() == [51, 102, 153]


def test_still_numbers_change_nothing(random_pixels, run):
    pixels = random_pixels(4, 3, 24, 20)
    made, label = run(affine(degrees=0.0, shear=0.0, scale=(1.0, 1.0), shift=0.0), pixels)
    torch.testing.assert_close(made, pixels.float(), rtol=0, atol=1e-3)
    assert label.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"degrees": 181.0}, "degrees must be from 0 to 180, got 181"),
        ({"shear": 90.0}, "shear must be at least 0 and below 90, got 90"),
        ({"scale": (0.0, 1.0)}, "scale must be 0 < smallest <= largest"),
        ({"shift": 1.5}, "shift must be from 0 to 1, got 1.5"),
    ],
)
def test_bad_numbers_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        affine(**options)
