"""Do decoding and augmenting VOC's images keep up with training on them, on the same cores?

    CNNCTL_DATA=<folder of VOCdevkit> python tests/benchmarks/segmentation_loader.py
        [--size 320] [--batch 8] [--repeats 5] [--elastic]

Prints images/s of decoding and augmenting on one core, as a worker does it, and images/s of
training a ResNet-18 with a classifier of pixels (as FCN-32s; Long et al., arXiv:1411.4038), with
one thread and with one for each core; then how many times as fast one core reads as all of them
train. Runs are interleaved; medians. Above 1, one worker is enough.

On a busy machine threads wait for each other, and training on all cores looks slower than it is: so
the last line takes it to be as fast as one thread times the cores, where that is more.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("GOMP_SPINCOUNT", "30000")  # as the command line sets it

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnctl.backbones.resnet import ResNet
from cnnctl.data.augmentations.elastic import Elastic
from cnnctl.data.augmentations.scale_crop import ScaleCrop
from cnnctl.data.base import Dataset
from cnnctl.data.loaders import Normalize
from cnnctl.data.voc import VOC
from cnnctl.engine.machine import Machine, choose_device, choose_dtype, cores
from cnnctl.randomness import key
from cnnctl.structures import IGNORE


class Fcn(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.encoder = ResNet(18)
        self.score = nn.Conv2d(self.encoder.channels["c5"], classes, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        scores = self.score(self.encoder(pixels)["c5"])
        return F.interpolate(scores, pixels.shape[-2:], mode="bilinear")


def read(data: Dataset, made: ScaleCrop | None, epoch: int) -> None:
    """Every sample once, as a worker makes it; without ``made`` only decoded."""
    for index in range(len(data)):
        image, target = data[index]
        if made is not None:
            torch.default_generator.manual_seed(key(0, "sample", epoch, index))
            made.joint(image, target)


def trained(data: Dataset, size: int, batch: int, machine: Machine) -> Callable[[], None]:
    """A training step on a batch in memory, as the loop does it."""
    torch.manual_seed(0)
    model = machine.place(Fcn(len(data.classes))).train()
    made = ScaleCrop(len(data.classes), True, None, data.mean, size)
    samples = [made.joint(*data[index]) for index in range(batch)]
    pixels = torch.stack([image for image, _ in samples]).to(machine.device)
    masks = torch.stack([target["mask"] for _, target in samples]).to(machine.device).long()
    normalize = Normalize(data.mean, data.std, machine.device)
    layout = torch.channels_last if machine.channels_last else torch.contiguous_format
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)

    def step() -> None:
        inputs = normalize(pixels).contiguous(memory_format=layout)
        with machine.autocast():
            logits = model(inputs)
        loss = F.cross_entropy(logits.float(), masks, ignore_index=IGNORE)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()

    return step


def seconds(act: Callable[[], None], threads: int) -> float:
    torch.set_num_threads(threads)
    started = time.perf_counter()
    act()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--elastic", action="store_true")
    arguments = parser.parse_args()
    device = choose_device("auto")
    machine = Machine(device, choose_dtype("auto", device), channels_last=True)
    data = VOC("train")
    kind = Elastic if arguments.elastic else ScaleCrop
    made = kind(len(data.classes), True, None, mean=data.mean, size=arguments.size)
    step = trained(data, arguments.size, arguments.batch, machine)
    kinds = {"decode": 1, "decode and augment": 1, "train on one": 1, "train": cores()}
    speeds: dict[str, list[float]] = {name: [] for name in kinds}
    for repeat in range(arguments.repeats + 1):  # the first warms up
        found = (
            len(data) / seconds(lambda: read(data, None, 0), 1),
            len(data) / seconds(lambda epoch=repeat: read(data, made, epoch), 1),
            arguments.batch / seconds(step, 1),
            arguments.batch / seconds(step, cores()),
        )
        if repeat:
            for values, value in zip(speeds.values(), found, strict=True):
                values.append(value)
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    print(f"VOC, crop {arguments.size}, {kind.__name__}; training: {machine.describe()}")
    for name, used in kinds.items():
        each = sorted(round(value, 1) for value in speeds[name])
        print(f"{name:18} {medians[name]:6.1f} images/s, threads: {used}, all {each}")
    training = max(medians["train"], medians["train on one"] * cores())
    ratio = medians["decode and augment"] / training
    print(f"one core reads {ratio:.1f} times as fast as {cores()} train")


if __name__ == "__main__":
    main()
