"""What every augmentation of classification must do, whichever way an image comes to it.

An option is tested by being in conf/.
"""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
import yaml

from cnnctl import compose
from cnnctl.data.augmentations.base import Augmentation
from cnnctl.data.digits import Digits
from cnnctl.data.loaders import ResidentLoader, Share, StreamingLoader

CPU = torch.device("cpu")


def read(name: str) -> tuple[type[Augmentation], dict[str, Any]]:
    """The class and the values of an option."""
    values = yaml.safe_load((compose.conf_dir() / "augmentation" / f"{name}.yaml").read_text())
    module, _, cls = values.pop("_target_", "cnnctl.data.augmentations.base.").rpartition(".")
    return getattr(importlib.import_module(module), cls or "Augmentation"), values


def pipeline(name: str, native: tuple[int, int] | None = (8, 8), size: int | None = None):
    cls, values = read(name)
    return cls(10, False, native, **{**values, "size": size})


# Those that move labels; the default of a task is another option by its name.
NAMES = [
    name
    for name in compose.groups()["augmentation"]
    if "defaults" not in read(name)[1] and "label" in read(name)[0].moves
]


@pytest.fixture(scope="module")
def digits() -> Digits:
    data = Digits(split="train")
    data.pixels, data.labels = data.pixels[:60], data.labels[:60]
    return data


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [None, 12])
def test_resident_and_streamed_images_are_augmented_alike(name, size, digits):
    made = pipeline(name, size=size)
    loaders = (
        ResidentLoader(digits, made, CPU, 0, Share()),
        StreamingLoader(digits, made, CPU, 0, Share(), workers=0),
    )
    for held, streamed in zip(*(loader.train(0, 4, 20, 0) for loader in loaders), strict=True):
        assert torch.equal(held.images.pixels, streamed.images.pixels)
        assert torch.equal(held.targets.image_id, streamed.targets.image_id)
        assert held.targets.label is not None
        assert streamed.targets.label is not None
        assert torch.equal(held.targets.label, streamed.targets.label)


@pytest.mark.parametrize("name", [name for name in NAMES if not pipeline(name).mixes])
@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_does_not_depend_on_its_batch(name, channels, random_pixels, run):
    pixels, made = random_pixels(8, channels, 8, 8), pipeline(name)
    index = torch.tensor([3, 1, 4, 15, 9, 2, 6, 5])
    before = pixels.clone()
    whole, label = run(made, pixels, index=index)
    assert torch.equal(pixels, before)
    assert whole.shape == pixels.shape
    assert whole.min() >= 0
    assert whole.max() <= 255
    parts = [run(made, pixels[s], index=index[s]) for s in (slice(4), slice(4, 8))]
    torch.testing.assert_close(torch.cat([part for part, _ in parts]), whole, rtol=0, atol=1e-3)
    assert torch.equal(torch.cat([part for _, part in parts]), label)
    again = run(made, pixels, index=index, epoch=1)[0]
    assert torch.equal(again, whole) == made.is_plain


@pytest.mark.parametrize("name", NAMES)
def test_images_of_many_sizes_come_out_at_the_size(name, random_pixels, run):
    made = pipeline(name, None, 16)
    for shape in ((3, 20, 31), (1, 1, 40), (3, 90, 17)):
        torch.manual_seed(0)
        once = made.sample(random_pixels(1, *shape)[0])
        assert once.shape == (shape[0], 16, 16)
        assert once.dtype == torch.uint8
        torch.manual_seed(0)
        assert torch.equal(made.sample(random_pixels(1, *shape)[0]), once)
        twice, _ = run(made, torch.stack([once, once]))
        assert twice.shape == (2, shape[0], 16, 16)
