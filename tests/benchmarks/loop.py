"""An epoch of cnnctl's loop against a hand-written loop of thirty lines, in one process.

    python tests/benchmarks/loop.py [--model resnet20|lenet] [--images 12800] [--repeats 5]

Same model, data, precision and augmentation; runs interleaved; prints medians and their ratio
(target: at most 1.05). Data is random pixels of CIFAR's (or MNIST's) shape: speed needs no others.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from cnnctl.data.augmentations.standard import Standard
from cnnctl.data.base import ArrayDataset
from cnnctl.engine.checkpoint import FORMAT, Checkpoints
from cnnctl.engine.console import Console
from cnnctl.engine.distributed import Processes
from cnnctl.engine.journal import Journal
from cnnctl.engine.log import MetricsFile
from cnnctl.engine.loop import Loop
from cnnctl.engine.machine import Machine
from cnnctl.engine.schedules import Cosine
from cnnctl.engine.signals import StopFlag
from cnnctl.engine.trainer import Trainer
from cnnctl.metrics.classification import ClassificationEvaluator
from cnnctl.models.base import ClassificationModel
from cnnctl.models.cifar_resnet import CifarResNet
from cnnctl.models.lenet import LeNet

BATCH = 128


class Noise(ArrayDataset):
    classes = tuple("0123456789")

    def __init__(self, images: int, channels: int) -> None:
        generator = torch.Generator().manual_seed(0)
        shape = (images, channels, 32, 32)
        pixels = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        super().__init__(pixels, torch.randint(0, 10, (images,), generator=generator))
        self.mean, self.std = (0.5,) * channels, (0.25,) * channels


def make(name: str) -> ClassificationModel:
    torch.manual_seed(0)
    return CifarResNet(3, 10, (32, 32), depth=20) if name == "resnet20" else LeNet(1, 10, (32, 32))


def by_hand(model: ClassificationModel, pixels: Tensor, labels: Tensor, machine: Machine) -> None:
    """What one would write for this one job and nothing else."""
    machine.place(model).train()
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    steps = len(labels) // BATCH
    order = torch.randperm(len(labels))
    for step in range(steps):
        index = order[step * BATCH : (step + 1) * BATCH]
        padded = F.pad(pixels[index], (4, 4, 4, 4))
        windows = padded.unfold(2, 32, 1).unfold(3, 32, 1)
        top, left = torch.randint(0, 9, (2, BATCH))
        images = windows[torch.arange(BATCH), :, top, left]
        flipped = torch.rand(BATCH)[:, None, None, None] < 0.5
        images = torch.where(flipped, images.flip(3), images).float().div_(255).sub_(0.5).div_(0.25)
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * 0.5 * (1 + math.cos(math.pi * step / steps))
        with machine.autocast():
            loss = F.cross_entropy(model(images), labels[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0 and not math.isfinite(float(loss.detach())):
            raise RuntimeError("diverged")


def by_cnnctl(model: ClassificationModel, data: Noise, machine: Machine, directory: Path) -> Loop:
    machine.place(model)
    trainer = Trainer(epochs=1, batch_size=BATCH, decay_norm_and_bias=True)
    augmentation = Standard(10, mirror=True, native=(32, 32))
    processes = Processes()
    journal = Journal(Console(quiet=True), lambda batch: {}, lambda *seen: {})
    journal.open(MetricsFile(directory / "metrics.jsonl", 0), None)
    return Loop(
        trainer=trainer,
        model=model,
        machine=machine,
        processes=processes,
        train=trainer.load(data, augmentation, machine, processes, 0),
        val=None,
        optimizer=lambda groups: torch.optim.SGD(
            groups, lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4
        ),
        schedule=Cosine(),
        evaluator=lambda data: ClassificationEvaluator(data.classes),
        monitor="top1",
        larger_is_better=True,
        seed=0,
        describe={"format": FORMAT, "config": {}},
        checkpoints=Checkpoints(directory),
        journal=journal,
        stop=StopFlag(),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="resnet20", choices=["resnet20", "lenet"])
    parser.add_argument("--images", type=int, default=12800)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    machine = Trainer().machine(Processes())
    data = Noise(arguments.images, 3 if arguments.model == "resnet20" else 1)
    times: dict[str, list[float]] = {"by hand": [], "cnnctl": []}
    for repeat in range(arguments.repeats + 1):  # the first warms up
        model = make(arguments.model)
        pixels, labels = data.pixels.to(machine.device), data.labels.to(machine.device)
        started = time.perf_counter()
        by_hand(model, pixels, labels, machine)
        middle = time.perf_counter()
        with tempfile.TemporaryDirectory() as directory:
            loop = by_cnnctl(make(arguments.model), data, machine, Path(directory))
            ready = time.perf_counter()
            loop.fit()
            ended = time.perf_counter()
        if repeat:
            times["by hand"].append(middle - started)
            times["cnnctl"].append(ended - ready)
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(f"{arguments.model}, {arguments.images} images, {machine.describe()}")
    for name, values in times.items():
        speed = arguments.images / medians[name]
        print(
            f"{name:8} {medians[name]:.3f} s, {speed:,.0f} images/s,"
            f" all {sorted(round(value, 3) for value in values)}"
        )
    print(f"ratio    {medians['cnnctl'] / medians['by hand']:.3f}")


if __name__ == "__main__":
    main()
