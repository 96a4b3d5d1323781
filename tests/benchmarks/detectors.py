"""Detectors: a training step and a prediction, ours against torchvision's of the same name.

    OMP_NUM_THREADS=2 python tests/benchmarks/detectors.py [ssd300 retinanet fcos faster_rcnn]
        [--images 2] [--boxes 8] [--side 800] [--repeats 5] [--threads 2] [--device cpu]
        [--cpu-time]

One process, the same images and boxes, torchvision as its reference runs it (float32, a list of
images), ours in float32 and as precision=auto does; runs are interleaved. Prints medians and how
many times as long torchvision takes. All start at random; where names of weights are the same, so
are the weights. A step is the losses, their gradients and SGD. With --cpu-time the process's own
time of all threads is counted, which a busy neighbour disturbs less.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torchvision.models import get_model

from cnnctl import build, compose
from cnnctl.engine.machine import Machine
from cnnctl.structures import Images, Targets

K = 20
# torchvision's name, what makes ours the same, the side of its images where the network has one.
_RCNN = ("regions=512", "proposals_train=2000", "proposals_test=1000")
DETECTORS: dict[str, tuple[str, tuple[str, ...], int | None]] = {
    "ssd300": ("ssd300_vgg16", (), 300),
    "ssdlite": ("ssdlite320_mobilenet_v3_large", (), 320),
    "retinanet": ("retinanet_resnet50_fpn", (), None),
    "fcos": ("fcos_resnet50_fpn", (), None),
    "faster_rcnn": ("fasterrcnn_resnet50_fpn", _RCNN, None),
}


def made_data(count: int, boxes: int, side: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Images (N, 3, side, side), boxes (N, R, 4) of a twentieth of the side to half, labels."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(count, 3, side, side, generator=generator)
    low = side / 2 * torch.rand(count, boxes, 2, generator=generator)
    size = side / 20 * 10 ** torch.rand(count, boxes, 2, generator=generator)
    labels = torch.randint(K, (count, boxes), generator=generator)
    return pixels.to(device), torch.cat([low, low + size], 2).to(device), labels.to(device)


def made_ours(name: str, settings: tuple[str, ...], side: int) -> Any:
    overrides = ["task=detect", f"model={name}", *(f"model.{line}" for line in settings)]
    config = compose.settings(compose.compose("train", overrides))
    if config.backbone:
        config = compose.settings(compose.compose("train", [*overrides, "backbone=resnet50"]))
    classes = tuple(str(k) for k in range(K))
    numbers = {"channels": 3, "mean": (0.5,) * 3, "std": (0.2,) * 3}
    facts = SimpleNamespace(classes=classes, size=(side, side), **numbers)
    return build.model(config, facts, (side, side))


def made_theirs(name: str, side: int, fixed: bool) -> Any:
    numbers = {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    if not fixed:
        numbers |= {"min_size": side, "max_size": side}
    classes = K if name.startswith("fcos") or name.startswith("retinanet") else K + 1
    return get_model(name, weights=None, weights_backbone=None, num_classes=classes, **numbers)


def step_of(model: Any, losses: Callable[[], dict[str, Tensor]], machine: Machine) -> Any:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-5)

    def step() -> float:
        model.train()
        optimizer.zero_grad(set_to_none=True)
        with machine.autocast():
            total = torch.stack(list(losses().values())).sum()
        total.backward()
        optimizer.step()
        return total.item()

    return step


def prediction_of(model: Any, predict: Callable[[], Any], machine: Machine) -> Any:
    def prediction() -> None:
        model.eval()
        with torch.inference_mode(), machine.autocast():
            predict()

    return prediction


def ways(name: str, asked: argparse.Namespace) -> dict[str, tuple[Any, Any]]:
    """(step, prediction) of each way to run a detector."""
    theirs_name, settings, fixed = DETECTORS[name]
    side = fixed or asked.side
    pixels, boxes, labels = made_data(asked.images, asked.boxes, side, asked.device)
    device = torch.device(asked.device)
    torch.manual_seed(0)
    theirs = made_theirs(theirs_name, side, fixed is not None).to(device)
    state, plain = theirs.state_dict(), Machine(device, torch.float32, channels_last=False)
    offset = 1 if theirs_name.startswith(("ssd", "faster")) else 0
    truth = [{"boxes": b, "labels": k + offset} for b, k in zip(boxes, labels, strict=True)]
    listed = list(pixels)
    made = {
        "torchvision fp32": (
            step_of(theirs, lambda: theirs(listed, truth), plain),
            prediction_of(theirs, lambda: theirs(listed), plain),
        )
    }
    sizes = [(side, side)] * len(pixels)
    targets = Targets(torch.arange(len(pixels)), boxes=boxes, labels=labels)
    for label, dtype in (("ours fp32", torch.float32), ("ours bf16", torch.bfloat16)):
        machine = Machine(device, dtype, channels_last=True)
        ours = made_ours(name, settings, side)
        if ours.state_dict().keys() == state.keys():
            ours.load_state_dict(state)
        machine.place(ours)
        images = Images(pixels.contiguous(memory_format=torch.channels_last), sizes, sizes)
        made[label] = (
            step_of(ours, lambda m=ours, i=images: m.loss(i, targets), machine),
            prediction_of(ours, lambda m=ours, i=images: m.predict(i), machine),
        )
    return made


def seconds(run: Callable[[], Any], asked: argparse.Namespace) -> float:
    clock = time.process_time if asked.cpu_time else time.perf_counter
    started = clock()
    run()
    if asked.device != "cpu":
        torch.cuda.synchronize()
    return clock() - started


def report(name: str, asked: argparse.Namespace) -> None:
    made = ways(name, asked)
    for kind, what in enumerate(("step", "prediction")):
        times: dict[str, list[float]] = {way: [] for way in made}
        for repeat in range(asked.repeats + 1):  # the first warms up
            for way, runs in made.items():
                took = seconds(runs[kind], asked)
                if repeat:
                    times[way].append(took)
        medians = {way: statistics.median(values) for way, values in times.items()}
        base = medians["torchvision fp32"]
        cells = (f"{way} {1000 * m:8,.0f} ms {base / m:5.2f}x" for way, m in medians.items())
        print(f"{name:12} {what:10}  " + "   ".join(cells), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(DETECTORS), metavar="name")
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--boxes", type=int, default=8, help="of an image")
    parser.add_argument("--side", type=int, default=800, help="where a network has none of its own")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cpu-time", action="store_true")
    asked = parser.parse_args()
    if asked.threads:
        torch.set_num_threads(asked.threads)
    where = f"{torch.get_num_threads()} threads" if asked.device == "cpu" else asked.device
    print(f"{asked.images} images of {asked.boxes} boxes, {where}, medians of {asked.repeats}")
    for name in asked.names:
        report(name, asked)


if __name__ == "__main__":
    main()
