"""The sizing half of every pipeline against torchvision, and soft labels."""

import pytest
import torch
from torchvision.transforms import v2

from cnnctl.data.augmentations import base
from cnnctl.data.augmentations.base import Augmentation, centre_of_shape, resize, resized_centre


def plain(native=None, **options) -> Augmentation:
    return Augmentation(10, True, native, **options)


@pytest.mark.parametrize("shape", [(3, 375, 500), (1, 500, 333), (3, 224, 224), (3, 31, 90)])
def test_images_of_many_sizes_get_the_imagenet_protocol(random_pixels, shape):
    image = random_pixels(1, *shape)[0]
    expected = v2.Compose([v2.Resize(256, antialias=True), v2.CenterCrop(224)])(image)
    assert torch.equal(plain().sample_eval(image), expected)


def test_other_sizes_keep_the_same_share_of_the_image(random_pixels):
    image = random_pixels(1, 3, 60, 80)[0]
    expected = v2.Compose([v2.Resize(37, antialias=True), v2.CenterCrop(32)])(image)
    assert torch.equal(plain(size=32).sample_eval(image), expected)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (5000, 1), (2, 9000), (7, 3), (300, 4001)])
@pytest.mark.parametrize("size", [1, 8, 224])
def test_any_image_becomes_one_of_the_size(shape, size):
    image = torch.full((3, *shape), 77, dtype=torch.uint8)
    pipeline, fixed = plain(size=size), plain((32, 32), size=size)
    for made in (pipeline.sample_eval(image), pipeline.sample(image), fixed.sample_own(image)):
        assert made.dtype == torch.uint8
        assert made.shape == (3, size, size)
        assert (made == 77).all()


@pytest.mark.parametrize("long", [4001, 4002, 5000])
def test_a_strip_is_cut_to_its_own_centre(long):
    ramp = torch.arange(long).mul(256).div(long).to(torch.uint8)
    strip = ramp.expand(3, 100, long)
    across, down = resized_centre(strip, (32, 32)), resized_centre(strip.mT, (32, 32))
    assert torch.equal(across, down.mT)
    assert abs(across.double().mean() - ramp.double().mean()) < 1


def test_images_that_all_have_the_size_are_left_alone(random_pixels):
    pixels = random_pixels(4, 3, 32, 32)
    pipeline = plain(native=(32, 32))
    assert torch.equal(pipeline.sample_eval(pixels[0]), pixels[0])
    assert torch.equal(pipeline.sample(pixels[0]), pixels[0])
    assert pipeline.resident(pixels) is pixels
    assert pipeline.size == (32, 32)


@pytest.mark.parametrize("native", [(32, 32), (20, 40)])
@pytest.mark.parametrize("turn", [False, True])
def test_an_own_image_of_another_shape_is_not_squashed(native, turn):
    """A white square in the middle of a strip stays a square in what the network sees."""
    image = torch.zeros(1, 100, 400, dtype=torch.uint8)
    image[..., 25:75, 175:225] = 255
    image = image.mT if turn else image
    seen = plain(native).sample_own(image)[0] > 127
    assert seen.shape == native
    rows, columns = seen.any(1).sum().item(), seen.any(0).sum().item()
    assert rows == columns >= 5
    assert torch.equal(seen, seen.flip(0))
    assert torch.equal(seen, seen.flip(1))


def test_an_own_image_of_the_datas_shape_is_evaluated_as_the_data(random_pixels):
    for shape in ((32, 32), (64, 64), (500, 500)):
        image = random_pixels(1, 3, *shape)[0]
        pipeline = plain((32, 32))
        assert torch.equal(pipeline.sample_own(image), pipeline.sample_eval(image))
    many = plain(size=16)
    image = random_pixels(1, 3, 30, 70)[0]
    assert torch.equal(many.sample_own(image), many.sample_eval(image))


@pytest.mark.parametrize(
    ("have", "shape", "expected"),
    [((10, 40), (1, 1), (10, 10)), ((40, 10), (2, 1), (20, 10)), ((30, 31), (32, 32), (30, 30)),
     ((1, 9), (9, 1), (1, 1)), ((60, 80), (3, 4), (60, 80))],
)  # fmt: skip
def test_the_largest_part_of_a_shape(have, shape, expected):
    assert centre_of_shape(torch.zeros(3, *have), shape).shape == (3, *expected)


@pytest.mark.parametrize(("channels", "native", "size"), [(1, 8, 32), (3, 32, 20), (3, 32, 224)])
@pytest.mark.parametrize("budget", [1, 40_000, 1 << 26])
def test_resident_images_equal_streamed_ones(
    random_pixels, monkeypatch, channels, native, size, budget
):
    monkeypatch.setattr(base, "RESIZE_BYTES", budget)
    pixels = random_pixels(11, channels, native, native)
    pipeline = plain(native=(native, native), size=size)
    whole = pipeline.resident(pixels)
    assert whole.shape == (11, channels, size, size)
    assert torch.equal(whole, torch.stack([pipeline.sample_eval(image) for image in pixels]))
    expected = v2.functional.resize(pixels, [size, size], antialias=True)
    assert torch.equal(whole, expected)


def test_a_size_may_come_as_a_list(random_pixels):
    pixels = random_pixels(2, 3, 20, 24)
    pipeline = plain(native=[20, 24])
    assert pipeline.size == pipeline.native == (20, 24)
    assert pipeline.resident(pixels) is pixels


def test_no_images_are_resized_to_no_images():
    pixels = torch.zeros(0, 3, 8, 8, dtype=torch.uint8)
    assert plain(native=(8, 8), size=32).resident(pixels).shape == (0, 3, 32, 32)


def test_an_oblong_size_of_the_data_is_kept():
    assert plain(native=(28, 40)).size == (28, 40)
    assert plain(native=(28, 40), size=32).size == (32, 32)
    assert plain().size == (224, 224)


def test_resizing_keeps_a_constant_and_the_range(random_pixels):
    assert (resize(torch.full((1, 1, 5, 7), 255, dtype=torch.uint8), (64, 3)) == 255).all()
    pixels = random_pixels(2, 3, 9, 9)
    assert resize(pixels, (9, 9)) is pixels


def test_nothing_is_changed_in_training(random_pixels, run):
    pixels = random_pixels(5)
    made, label = run(plain(native=(32, 32)), pixels)
    assert torch.equal(made, pixels)
    assert label.tolist() == [0, 1, 2, 3, 4]


def test_label_smoothing_is_szegedys(random_pixels, run):
    _, label = run(plain(native=(32, 32), label_smoothing=0.1), random_pixels(3))
    assert torch.allclose(label, 0.9 * torch.eye(10)[:3] + 0.01)
    logits = torch.randn(3, 10, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.cross_entropy(logits, torch.arange(3), label_smoothing=0.1)
    assert torch.nn.functional.cross_entropy(logits, label).item() == pytest.approx(expected.item())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "size must be at least 1, got 0"),
        ({"label_smoothing": 1.0}, r"label_smoothing must be in \[0, 1\), got 1.0"),
        ({"label_smoothing": -0.1}, "label_smoothing"),
        ({"label_smoothing": float("nan")}, "label_smoothing"),
    ],
)
def test_bad_numbers_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        plain(**options)


def test_an_image_to_be_named_whole_is_framed_in_the_mean():
    """Shrunk to fit, its mask with it; the rest of the square is void and of the mean colour."""
    pipeline = Augmentation(3, True, None, size=8, mean=(0.2, 0.4, 0.6))
    image = torch.zeros(3, 16, 8, dtype=torch.uint8)
    image[:, :8] = 250
    mask = (image[0] > 0).to(torch.uint8)
    framed, target = pipeline.joint(image, {"mask": mask})
    assert framed.shape == (3, 8, 8)
    assert framed[:, :, 4:].unique(dim=1).unique(dim=2).flatten().tolist() == [51, 102, 153]
    assert (target["mask"][:, 4:] == 255).all()
    assert target["mask"][:, :4].tolist() == [[1] * 4] * 4 + [[0] * 4] * 4
    assert (framed[:, :3, :4] == 250).all()
    seen, kept = pipeline.joint_eval(image, {"mask": mask})
    assert seen.shape == (3, 8, 4)
    assert torch.equal(kept["mask"], mask)


def test_own_images_are_magnified_as_those_of_training():
    pipeline = Augmentation(3, True, (10, 20), size=40)
    image = torch.zeros(1, 30, 7, dtype=torch.uint8)
    assert pipeline.own(image, ("mask",)).shape == (1, 120, 14)
    assert pipeline.own(image, ("label",)).shape == (1, 40, 40)
