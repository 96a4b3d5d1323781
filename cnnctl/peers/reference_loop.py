"""A plain loop in the style of torchvision's references for classification: images of PIL, cropped,
flipped and made tensors one by one in workers of a DataLoader; float32, eager, channels first.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from cnnctl.peers.works.base import Side
from cnnctl.peers.works.epoch import Epoch, Trained

DOES = ("epoch",)
PACKAGES = ("torchvision",)
PRECISION = "fp32"


class PilImages(Dataset):
    """As torchvision's own CIFAR10: an array, of which each sample becomes an image of PIL."""

    def __init__(self, job: Epoch) -> None:
        self.pixels = job.train.pixels.permute(0, 2, 3, 1).contiguous().numpy()
        self.labels = job.train.labels.tolist()
        self.transform: Any = transform(job)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(Image.fromarray(self.pixels[index])), self.labels[index]


def transform(job: Epoch) -> Any:
    """The recipe's augmentation by the transforms that the reference uses by default."""
    size = job.train.size
    assert size is not None
    return transforms.Compose(
        [
            *[transforms.RandomCrop(size, padding=job.padding)] * bool(job.padding),
            *[transforms.RandomHorizontalFlip()] * job.flip,
            transforms.ToTensor(),
            transforms.Normalize(job.train.mean, job.train.std),
        ]
    )


def loader(job: Epoch, data: Dataset) -> DataLoader:
    return DataLoader(
        data,
        batch_size=job.batch,
        shuffle=True,
        num_workers=job.asked.workers,
        pin_memory=job.device.type == "cuda",
        drop_last=True,
    )


def side(job: Epoch) -> Side:
    data = PilImages(job)

    def train(model: nn.Module) -> Trained:
        model = model.to(job.device).train()
        optimizer, losses, right = job.optimizer(model), [], 0
        for images, labels in loader(job, data):
            images = images.to(job.device, non_blocking=True)
            labels = labels.to(job.device, non_blocking=True)
            logits = model(images)
            loss = F.cross_entropy(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
            right += int((logits.argmax(1) == labels).sum())  # the reference logs it at every step
        return model, losses

    return job.side(train)
