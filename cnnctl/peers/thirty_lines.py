"""What one would write by hand for one job and nothing else, as fast as ours: the images on the
device, cropped and flipped a batch at a time, in the same precision and memory format.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnctl.peers.works.base import Side
from cnnctl.peers.works.epoch import Epoch, Trained

DOES = ("epoch",)
PACKAGES = ()
PRECISION = "as ours"


def side(job: Epoch) -> Side:
    return job.side(lambda model: by_hand(job, model))


def by_hand(job: Epoch, model: nn.Module) -> Trained:
    machine, padding = job.asked.machine, job.padding
    pixels, labels = job.train.pixels.to(job.device), job.train.labels.to(job.device)
    mean, std = (
        torch.tensor(values, device=job.device)[:, None, None]
        for values in (job.train.mean, job.train.std)
    )
    machine.place(model).train()
    optimizer = job.optimizer(model, fused=job.device.type == "cuda")
    losses: list[Tensor] = []
    order = torch.randperm(len(labels), device=job.device)
    for step in range(len(labels) // job.batch):
        index = order[step * job.batch : (step + 1) * job.batch]
        images, rows = pixels[index], torch.arange(job.batch, device=job.device)
        if padding:
            h, w = images.shape[2:]
            windows = F.pad(images, (padding,) * 4).unfold(2, h, 1).unfold(3, w, 1)
            top, left = torch.randint(0, 2 * padding + 1, (2, job.batch), device=job.device)
            images = windows[rows, :, top, left]
        if job.flip:
            flipped = torch.rand(job.batch, device=job.device)[:, None, None, None] < 0.5
            images = torch.where(flipped, images.flip(3), images)
        images = images.float().div_(255).sub_(mean).div_(std)
        with machine.autocast():
            loss = F.cross_entropy(model(images), labels[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
        if step % 50 == 0 and not math.isfinite(float(losses[-1])):
            raise RuntimeError("diverged")
    return model, losses
