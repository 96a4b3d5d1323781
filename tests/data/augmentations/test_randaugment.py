"""RandAugment against torchvision's, operation by operation and to the last bit."""

import pytest
import torch
from scipy import stats
from torchvision.transforms import v2

from cnnctl.data.augmentations import randaugment
from cnnctl.data.augmentations.randaugment import BINS, OPERATIONS, SIGNED, RandAugment
from cnnctl.randomness import Draw

SPACE = v2.RandAugment._AUGMENTATION_SPACE


def pipeline(native=(32, 32), **options) -> RandAugment:
    return RandAugment(10, True, native, **{"padding": 0, "flip": False, **options})


def theirs(image: torch.Tensor, name: str, magnitude: int, sign: int) -> torch.Tensor:
    """What torchvision does to one image (C, H, W) that drew this operation and sign."""
    strengths, signed = SPACE[name]
    ladder = strengths(BINS, image.shape[1], image.shape[2])
    strength = 0.0 if ladder is None else float(ladder[magnitude]) * (sign if signed else 1)
    oracle = v2.RandAugment()
    made = oracle._apply_image_or_video_transform(
        image, name, strength, interpolation=oracle.interpolation, fill=oracle._fill
    )
    assert isinstance(made, torch.Tensor)
    return made


def test_the_operations_and_their_signs_are_torchvisions():
    assert set(OPERATIONS) == set(SPACE)
    assert set(list(OPERATIONS)[:SIGNED]) == {name for name, (_, signed) in SPACE.items() if signed}


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 8, 12), (3, 61, 40)])
def test_each_operation_equals_torchvisions(random_pixels, name, shape):
    pixels = random_pixels(4, *shape)
    pixels[1] = pixels[1] // 4 + 90  # little contrast
    pixels[2] = 130  # none at all
    for magnitude in (0, 1, 9, 14, 20, 30):
        for sign in (1, -1):
            made = OPERATIONS[name](pixels, magnitude, sign)
            expected = [theirs(image, name, magnitude, sign) for image in pixels]
            assert torch.equal(made, torch.stack(expected)), (magnitude, sign)


@pytest.mark.parametrize("name", ["TranslateX", "TranslateY", "Solarize", "Posterize"])
def test_the_steps_of_every_magnitude_equal_torchvisions(random_pixels, name):
    """These round or compare, so that a last bit of their strength could show."""
    for side in (32, 40, 224):
        image = random_pixels(1, 3, side, side)
        for magnitude in range(BINS):
            made = OPERATIONS[name](image, magnitude, 1)[0]
            assert torch.equal(made, theirs(image[0], name, magnitude, 1))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("num_ops", [1, 2, 3])
def test_the_whole_equals_torchvisions_on_what_each_image_drew(
    random_pixels, run, channels, num_ops
):
    pixels = random_pixels(60, channels)
    made, _ = run(pipeline(num_ops=num_ops, magnitude=12), pixels)
    draw = Draw(0, 0, torch.arange(60))
    chosen = draw.integers("randaugment", len(OPERATIONS), num_ops).tolist()
    negative = (draw.uniform("randaugment sign", num_ops) < 0.5).tolist()
    names = list(OPERATIONS)
    for image, result, ops, signs in zip(pixels, made, chosen, negative, strict=True):
        for op, minus in zip(ops, signs, strict=True):
            image = theirs(image, names[op], 12, -1 if minus else 1)
        assert torch.equal(result, image)


def test_operations_and_signs_are_drawn_alike(monkeypatch, run):
    """Each operation writes its own number, so that the picture tells what was drawn."""
    many = 6300

    def mark(number: int):
        return lambda x, m, sign: x.new_full(x.shape, 2 * number + (sign < 0))

    marks = {name: mark(number) for number, name in enumerate(OPERATIONS)}
    monkeypatch.setattr(randaugment, "OPERATIONS", marks)
    made, _ = run(pipeline((1, 1), num_ops=1), torch.zeros(many, 1, 1, 1, dtype=torch.uint8))
    code = made.flatten().long()
    assert stats.chisquare(torch.bincount(code // 2, minlength=14)).pvalue > 1e-3
    signs = code[code // 2 < SIGNED] % 2
    assert stats.binomtest(int(signs.sum()), len(signs)).pvalue > 1e-3
    assert not (code[code // 2 >= SIGNED] % 2).any()


@pytest.mark.parametrize(("channels", "side"), [(1, 8), (3, 32), (3, 224)])
def test_an_image_does_not_depend_on_its_batch(random_pixels, run, channels, side):
    pixels = random_pixels(8, channels, side, side)
    whole = run(RandAugment(10, True, (side, side)), pixels)[0]
    index = torch.arange(8)
    halves = [
        run(RandAugment(10, True, (side, side)), pixels[s], index=index[s])[0]
        for s in (slice(4), slice(4, 8))
    ]
    assert torch.equal(torch.cat(halves), whole)
    assert whole.shape == pixels.shape
    assert whole.dtype == torch.uint8
    assert not torch.equal(run(RandAugment(10, True, (side, side)), pixels, epoch=1)[0], whole)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_ops": 0}, "num_ops must be at least 1, got 0"),
        ({"magnitude": 31}, "magnitude must be from 0 to 30, got 31"),
        ({"magnitude": -1}, "magnitude"),
    ],
)
def test_bad_numbers_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        pipeline(**options)
