"""What regions share: R-CNN, SPP-net and Fast R-CNN on the same proposals of one image.

    python tests/benchmarks/rcnn_lineage.py [rcnn sppnet fast_rcnn] [--backbone alexnet]
        [--proposals 2000] [--size 375 500] [--repeats 3] [--threads 2] [--precision auto]
        [--device cpu] [--cpu-time]
    python tests/benchmarks/rcnn_lineage.py --search 32 [--data voc]

The first: seconds of an image without proposals, by part, the networks in turns in one process, and
how many times as fast as the first each is; the published ratios are 47.0 s to 2.3 s to 0.32 s
(Girshick, "Fast R-CNN", arXiv:1504.08083, table 4, VGG-16 on a K40). Weights are random, and only
scores above 0.99 are kept, as few as of a trained network; SVMs and regressors are as if solved.
With --cpu-time the process's own time of all threads is counted, which a busy neighbour disturbs
less.
Memory is what a prediction adds to the process at most (Linux; on a GPU the allocator's peak).

The second: images a second of selective search, by one process and by as many as there are cores.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from cnnctl import build, compose
from cnnctl.data.proposal_cache import keep
from cnnctl.engine.machine import Machine, choose_dtype, cores
from cnnctl.ops import clock
from cnnctl.ops.clock import Clock, timed
from cnnctl.structures import Images

K = 20


def made_model(name: str, asked: argparse.Namespace, machine: Machine) -> Any:
    size = tuple(asked.size)
    own = (f"model={name}", f"backbone={asked.backbone}", "model.score=0.99")
    config = compose.settings(compose.compose("train", ["task=detect", "data=voc", *own]))
    classes = tuple(str(k) for k in range(K))
    facts = {"channels": 3, "classes": classes, "size": size, "mean": (0.5,) * 3, "std": (0.2,) * 3}
    torch.manual_seed(0)
    model = build.model(config, SimpleNamespace(**facts), size).eval()
    for part in model.modules():  # the time of SVMs is theirs
        if isinstance(solved := getattr(part, "solved", None), Tensor):
            solved.fill_(True)
    machine.place(model)
    return model


def made_images(asked: argparse.Namespace) -> Images:
    """An image of noise, and boxes of a twentieth of its shorter side to all of it."""
    generator = torch.Generator().manual_seed(0)
    h, w = asked.size
    limit = torch.tensor([w, h])
    sides = min(h, w) * 0.05 * 20 ** torch.rand(asked.proposals, 2, generator=generator)
    low = torch.rand(asked.proposals, 2, generator=generator) * (limit - sides)
    pixels = torch.randn(1, 3, h, w, generator=generator)
    boxes = torch.cat([low, low + sides], 1)[None]
    return Images(pixels.to(asked.device), [(h, w)], [(h, w)], boxes.to(asked.device))


def shared(asked: argparse.Namespace) -> None:
    device = torch.device(asked.device)
    machine = Machine(device, choose_dtype(asked.precision, device), channels_last=True)
    models = {name: made_model(name, asked, machine) for name in asked.names}
    images = made_images(asked)
    times: dict[str, list[dict[str, float]]] = {name: [] for name in models}
    peaks: dict[str, float] = dict.fromkeys(models, 0.0)
    with torch.inference_mode(), machine.autocast():
        warm = Images(images.pixels, images.sizes, images.originals, images.proposals[:, :64])  # pyright: ignore
        for model in models.values():
            model.predict(warm)
        for _ in range(asked.repeats):
            for name, model in models.items():
                before = reset_memory(device)
                with Clock() as own, timed("other"):
                    model.predict(images)
                times[name].append(own.seconds)
                peaks[name] = max(peaks[name], peak_memory(device) - before)
    totals = {n: statistics.median(sum(one.values()) for one in t) for n, t in times.items()}
    base = next(iter(totals.values()))
    for name, total in totals.items():
        parts = {part: statistics.median(t[part] for t in times[name]) for part in times[name][0]}
        said = "  ".join(f"{part} {taken:.3f}" for part, taken in parts.items())
        memory = f"{peaks[name] / 2**20:,.0f} MiB more at most"
        print(f"{name:10} {total:9.3f} s  {base / total:6.1f}x   {said}   {memory}", flush=True)


def reset_memory(device: torch.device) -> float:
    """Bytes in use now; the peak is counted from here on."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what the last one left is given back
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak_memory(device: torch.device) -> float:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _status("VmHWM")


def _status(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * float(next(line for line in lines if line.startswith(field)).split()[1])


class First:
    """The first images of a data set, read once."""

    def __init__(self, data: Any, count: int) -> None:
        self.images = [data[index][0] for index in range(count)]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        return self.images[index], {}

    def fingerprint(self) -> str:
        return str(len(self))


def searched(asked: argparse.Namespace) -> None:
    overrides = ["task=detect", f"data={asked.data}", "model=fast_rcnn"]
    config = compose.settings(compose.compose("train", [*overrides, "proposals=selective_search"]))
    method = build.proposals(config)
    assert method is not None
    data: Any = First(build.dataset(config, "train"), asked.search)
    shape = tuple(data[0][0].shape[-2:])
    print(f"selective search, fast: {len(data)} images of {asked.data}, the first of {shape}")
    base = None
    for workers in dict.fromkeys((1, 2, cores())):
        with tempfile.TemporaryDirectory() as folder:
            os.environ["XDG_CACHE_HOME"] = folder
            started = time.perf_counter()
            kept = keep(data, method, lambda *_: None, workers=workers if workers > 1 else 0)
            speed = len(data) / (time.perf_counter() - started)
        base = base or speed
        boxes = kept.counts().mean()
        said = f"{speed:8.2f} images/s  {speed / base:.2f}x  {boxes:,.0f} boxes an image"
        print(f"{workers} processes  {said}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="model")
    parser.add_argument("--backbone", default="alexnet")
    parser.add_argument("--proposals", type=int, default=2000)
    parser.add_argument("--size", type=int, nargs=2, default=[375, 500], metavar=("h", "w"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--precision", default="auto", help="auto, fp32 or bf16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--search", type=int, default=None, help="images for selective search")
    parser.add_argument("--data", default="digit_scenes")
    asked = parser.parse_args()
    asked.names = asked.names or ["rcnn", "sppnet", "fast_rcnn"]
    if asked.threads:
        torch.set_num_threads(asked.threads)
    if asked.search:
        return searched(asked)
    if asked.cpu_time:
        clock._now = time.process_time
    where = f"{torch.get_num_threads()} threads" if asked.device == "cpu" else asked.device
    h, w = asked.size
    where += f", {asked.precision}"
    print(f"{asked.backbone}, {asked.proposals} proposals of an image of {h} x {w}, {where}")
    shared(asked)


if __name__ == "__main__":
    main()
