"""timm's own pieces as its train.py puts them together by default: its loader with fast collation,
normalised by its prefetcher, its optimizer, its meters; float32, eager, channels first.

timm has no crop with padding among its transforms: its data set is given torchvision's.
"""

from __future__ import annotations

import importlib
from typing import Any

from torch import nn
from torchvision import transforms

from cnnctl.peers.reference_loop import PilImages
from cnnctl.peers.works.base import Side
from cnnctl.peers.works.epoch import Epoch, Trained

DOES = ("epoch",)
PACKAGES = ("timm", "torchvision")
PRECISION = "fp32"


def side(job: Epoch) -> Side:
    timm_optim, timm_utils = (importlib.import_module(f"timm.{one}") for one in ("optim", "utils"))
    data: Any = PilImages(job)

    def train(model: nn.Module) -> Trained:
        model, loader = model.to(job.device).train(), _loader(job, data)
        optimizer = timm_optim.create_optimizer_v2(
            model,
            opt="sgd",  # with Nesterov's momentum
            lr=job.rate,
            momentum=job.momentum,
            weight_decay=job.decay,
            filter_bias_and_bn=False,
        )
        criterion, meter = nn.CrossEntropyLoss(), timm_utils.AverageMeter()
        losses = []
        for step, (images, labels) in enumerate(loader):
            loss = criterion(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
            if step % 50 == 0:  # its log interval
                meter.update(loss.item(), len(images))
        return model, losses

    return job.side(train)


def _loader(job: Epoch, data: Any) -> Any:
    """It gives ``data`` a transform of its own."""
    loader = importlib.import_module("timm.data").create_loader(
        data,
        input_size=(job.train.channels, *(job.train.size or ())),
        batch_size=job.batch,
        is_training=True,
        no_aug=True,
        mean=job.train.mean,
        std=job.train.std,
        num_workers=job.asked.workers,
        pin_memory=job.device.type == "cuda",
        device=job.device,
    )
    data.transform = _transform(job, data.transform)
    return loader


def _transform(job: Epoch, own: Any) -> Any:
    """The recipe's crop and flip, then what timm ends its transforms with: an array of bytes."""
    assert job.train.size is not None
    return transforms.Compose(
        [
            *[transforms.RandomCrop(job.train.size, padding=job.padding)] * bool(job.padding),
            *[transforms.RandomHorizontalFlip()] * job.flip,
            own.transforms[-1],
        ]
    )
