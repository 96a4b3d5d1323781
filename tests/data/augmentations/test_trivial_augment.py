"""TrivialAugment, and the operations with a strength for each image, against torchvision's."""

import pytest
import torch
from scipy import stats
from torchvision.transforms import v2

from cnnctl.data.augmentations import operations
from cnnctl.data.augmentations.operations import OPERATIONS
from cnnctl.data.augmentations.trivial_augment import BINS, NAMES, TrivialAugment, ladders

SPACE = v2.TrivialAugmentWide._AUGMENTATION_SPACE
THEIRS = {
    **{"shear_x": "ShearX", "shear_y": "ShearY"},
    **{"translate_x": "TranslateX", "translate_y": "TranslateY", "rotate": "Rotate"},
    **{"brightness": "Brightness", "saturation": "Color", "contrast": "Contrast"},
    **{"sharpness": "Sharpness", "identity": "Identity", "posterize": "Posterize"},
    **{"solarize": "Solarize", "autocontrast": "AutoContrast", "equalize": "Equalize"},
}
TURNED = ("shear_x", "shear_y", "rotate")  # the nearest of two equally near pixels may differ
# A float next to a whole number may be cut off below it: theirs often is where nothing changes.
BLENDED = ("brightness", "saturation", "contrast", "sharpness")


def theirs(image: torch.Tensor, name: str, level: int) -> torch.Tensor:
    """What torchvision does to one image (C, H, W) at a level of 62, the second half negative."""
    steps, signed = SPACE[THEIRS[name]]
    ladder = steps(BINS, image.shape[1], image.shape[2])
    strength = 0.0 if ladder is None else float(ladder[level % BINS])
    strength *= -1 if signed and level >= BINS else 1
    oracle = v2.TrivialAugmentWide()
    made = oracle._apply_image_or_video_transform(
        image, THEIRS[name], strength, interpolation=oracle.interpolation, fill=oracle._fill
    )
    assert isinstance(made, torch.Tensor)
    return made


def test_the_operations_are_torchvisions():
    assert {THEIRS[name] for name in NAMES} == set(SPACE)
    assert sorted(NAMES) == sorted(OPERATIONS)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 20)])
def test_each_operation_equals_torchvisions_at_strengths_of_its_own(random_pixels, name, shape):
    levels = [0, 1, 9, 17, 30, 31, 40, 50, 61]
    pixels = random_pixels(len(levels), *shape)
    pixels[1::3] = pixels[1::3] // 4 + 90  # little contrast
    pixels[2] = 130  # none at all
    made = OPERATIONS[name](pixels, ladders()[NAMES.index(name), levels])
    assert made.dtype == torch.uint8
    expected = [theirs(image, name, k) for image, k in zip(pixels, levels, strict=True)]
    difference = (made.int() - torch.stack(expected).int()).abs()
    if name in TURNED:
        assert (difference > 0).float().mean() < 0.01
    else:
        assert difference.max() <= (1 if name in BLENDED else 0)
        assert (difference[3:] > 0).float().mean() < 0.01


def test_every_image_gets_what_it_drew(random_pixels):
    pixels = random_pixels(60, 3, 12, 12)
    codes = torch.arange(60) % len(NAMES)
    strengths = ladders()[codes, torch.arange(60) % (2 * BINS)]
    made = operations.apply(pixels, NAMES, codes, strengths)
    for i, (image, result) in enumerate(zip(pixels, made, strict=True)):
        alone = OPERATIONS[NAMES[codes[i]]](image[None], strengths[i : i + 1])[0]
        assert torch.equal(result, alone), NAMES[codes[i]]


def test_operations_levels_and_signs_are_evenly_drawn(monkeypatch, run):
    from cnnctl.data.augmentations import trivial_augment as module

    many, seen = 8000, []

    def watched(pixels, names, codes, strengths):
        seen.append((codes, strengths))
        return pixels

    monkeypatch.setattr(module, "apply", watched)
    pipeline = TrivialAugment(10, False, (1, 1), padding=0)
    run(pipeline, torch.zeros(many, 1, 1, 1, dtype=torch.uint8))
    codes, strengths = seen[0]
    assert stats.chisquare(torch.bincount(codes, minlength=14)).pvalue > 1e-3
    turned = strengths[codes == NAMES.index("rotate")]
    level = (turned / 135 * 30).round().long() + 30
    expected = torch.ones(61, dtype=torch.float64).index_fill(
        0, torch.tensor([30]), 2.0
    )  # zero has both signs
    counts = torch.bincount(level, minlength=61)
    assert stats.chisquare(counts, expected * len(turned) / 62).pvalue > 1e-3
    factors = strengths[codes == NAMES.index("contrast")]
    assert factors.min() >= 0.01 - 1e-6
    assert factors.max() <= 1.99 + 1e-6
    assert set(strengths[codes == NAMES.index("posterize")].tolist()) == {2, 3, 4, 5, 6, 7, 8}
