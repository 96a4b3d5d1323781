"""What evaluation is shown, where that is more than the network's input."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import CenterCrop, Resize

from cnnctl.data.augmentations.base import Augmentation
from cnnctl.data.augmentations.shown import Shown
from cnnctl.data.augmentations.standard import Standard
from cnnctl.data.digits import Digits
from cnnctl.data.folder import Folder
from cnnctl.data.loaders import ResidentLoader, Share, StreamingLoader
from cnnctl.ops.views import Views

CPU = torch.device("cpu")
TEN, DENSE = Views("ten_crop"), Views("dense", scales=(1.5,))
SEVERAL = Views("dense", scales=(1.0, 1.5))


def augmentation(views: Views, native: tuple[int, int] | None, size: int) -> Augmentation:
    made = Augmentation(10, True, native, size)
    Shown.by(views, made)
    return made


def noise(h: int, w: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (3, h, w), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("views", "size", "shape"),
    [
        (TEN, 28, (32, 32)),
        (DENSE, 8, (12, 12)),
        (DENSE, 16, (24, 24)),
        (SEVERAL, 16, (8, 8)),  # never enlarged to be made smaller again
        (SEVERAL, 4, (6, 6)),
    ],
)
def test_resident_and_streamed_images_are_the_same(views, size, shape):
    data = Digits("val")
    made = augmentation(views, data.size, size)
    assert made.eval_size == views.frame((size, size), (size, size), max(views.scales))
    loaders = (
        ResidentLoader(data, made, CPU, 0, Share()),
        StreamingLoader(data, made, CPU, 0, Share(), 0),
    )
    for as_trained, expected in ((False, shape), (True, (size, size))):
        one, other = (next(iter(a.in_order(50, as_trained=as_trained)))[1] for a in loaders)
        assert one.images.sizes == other.images.sizes == [expected] * 50
        assert torch.equal(one.images.pixels, other.images.pixels)
    assert made.resident(data.pixels[:1]).shape[2:] == (size, size)  # what is trained on


def test_training_is_shown_the_networks_size():
    data = Digits("val")
    made = Standard(10, False, data.size, 16)
    plain = next(ResidentLoader(data, made, CPU, 0, Share()).train(0, 1, 20, 0))
    Shown.by(DENSE, made)
    batch = next(ResidentLoader(data, made, CPU, 0, Share()).train(0, 1, 20, 0))
    assert torch.equal(batch.images.pixels, plain.images.pixels)
    streamed = next(StreamingLoader(data, made, CPU, 0, Share(), 0).train(0, 1, 20, 0))
    assert torch.equal(streamed.images.pixels, plain.images.pixels)


@pytest.mark.parametrize("shape", [(300, 400), (90, 61), (224, 224)])
def test_photographs_for_ten_crops_are_the_papers_squares(shape):
    """Shorter side to 256 of 224, then the centre: torchvision's Resize and CenterCrop."""
    image = noise(*shape)
    made = augmentation(TEN, None, 224)
    assert made.eval_size == (256, 256)
    expected = CenterCrop(256)(Resize(256)(image))
    assert torch.equal(made.sample_shown(image), expected)


def test_photographs_for_dense_views_are_whole():
    made = augmentation(Views("dense"), None, 224)
    assert made.eval_size is None
    image = noise(90, 61)
    assert torch.equal(made.sample_shown(image), Resize(256)(image))
    assert made.sample_shown(noise(2, 3000)).shape == (3, 256, 1024)  # no strip of a gigabyte
    several = augmentation(Views("ten_crop", scales=(1.0, 2.0)), None, 224)
    assert torch.equal(several.sample_shown(image), CenterCrop(61)(image))  # made larger later


def test_images_of_a_folder_in_one_batch(picture_folder):
    data = Folder("train", str(picture_folder))
    made = augmentation(Views("dense"), None, 28)
    loader = StreamingLoader(data, made, CPU, 0, Share(), 0)
    _, batch = next(iter(loader.in_order(10)))
    for index, size in enumerate(batch.images.sizes):
        assert size == tuple(Resize(32)(data[index][0]).shape[1:])


def test_a_users_image_keeps_its_shape_in_dense_views_only():
    image = noise(20, 60)
    assert augmentation(DENSE, (8, 8), 16).sample_own(image).shape == (3, 24, 72)
    assert augmentation(TEN, (8, 8), 28).sample_own(image).shape == (3, 32, 32)
    assert augmentation(DENSE, (8, 16), 16).sample_own(image).shape == (3, 24, 24)  # squashed
