"""A data set of folders as torchvision's references read it: decoded by PIL, the transforms of
their preset one image at a time, batches put together by torch's DataLoader.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from cnnctl import build
from cnnctl.peers.works.base import Side
from cnnctl.peers.works.stream import Stream, one_core

DOES = ("stream",)
PACKAGES = ("torchvision",)
PRECISION = "fp32"


def side(job: Stream) -> Side:
    settings = job.config.augmentation
    size = build.augmentation(job.config, job.files).size
    preset = transforms.Compose(
        [
            transforms.RandomResizedCrop(size, tuple(settings.scale), tuple(settings.ratio)),
            transforms.RandomHorizontalFlip(),
            transforms.PILToTensor(),
            transforms.ConvertImageDtype(torch.float32),
            transforms.Normalize(job.files.mean, job.files.std),
        ]
    )
    files = ImageFolder(str(job.folder), preset)
    loader = DataLoader(files, batch_size=job.batch, shuffle=True, drop_last=True)

    def batches() -> Iterator[Tensor]:
        return (pixels for pixels, _ in loader)

    return one_core(batches)
