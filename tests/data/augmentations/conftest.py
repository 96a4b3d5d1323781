"""Batches of random pixels, and how a pipeline is made and run in the tests."""

from collections.abc import Callable

import pytest
import torch

from cnnctl.data.augmentations.base import Augmentation
from cnnctl.randomness import Draw
from cnnctl.structures import Images, Targets

CLASSES = 10


@pytest.fixture(scope="session")
def random_pixels() -> Callable[..., torch.Tensor]:
    """(n, channels, h, w) uint8."""

    def make(n: int, channels: int = 3, h: int = 32, w: int = 32, seed: int = 0) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        size = (n, channels, h, w)
        return torch.randint(0, 256, size, generator=generator, dtype=torch.uint8)

    return make


@pytest.fixture(scope="session")
def run() -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    """A pipeline on pixels and labels, as a loader runs it -> (pixels, label)."""

    def augmented(
        pipeline: Augmentation,
        pixels: torch.Tensor,
        label: torch.Tensor | None = None,
        index: torch.Tensor | None = None,
        seed: int = 0,
        epoch: int = 0,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        n, size = len(pixels), (pixels.shape[2], pixels.shape[3])
        index = torch.arange(n) if index is None else index
        label = index % CLASSES if label is None else label
        images = Images(pixels.clone(), [size] * n, [size] * n)
        images, targets = pipeline.batch(
            images, Targets(index, label=label), Draw(seed, epoch, index)
        )
        assert targets.label is not None
        return images.pixels, targets.label

    return augmented
