"""RoI align over a pyramid: ours against torchvision's MultiScaleRoIAlign, in one process.

    python tests/benchmarks/regions.py [--boxes 512] [--channels 256] [--size 7] [--images 1]
        [--height 600] [--width 800] [--threads 2] [--repeats 9] [--device cpu]

Maps of strides 4 to 32, in both memory layouts, float32 and bfloat16 within autocast. Runs
interleaved; prints medians of the forward and of the backward pass and how many times as long
torchvision takes. The numbers of both are compared first.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign

from cnnctl.ops.regions import pyramid_roi_align

STRIDES = (4, 8, 16, 32)
LAYOUTS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}


def made_boxes(count: int, height: int, width: int) -> Tensor:
    """(count, 4): sides from 16 pixels to 512, as many per octave, cut at the image's border."""
    generator = torch.Generator().manual_seed(0)
    sides = 16 * 2 ** (5 * torch.rand(count, 2, generator=generator))
    end = torch.tensor([width, height])
    centre = torch.rand(count, 2, generator=generator) * end
    return torch.cat([(centre - sides / 2).clamp(min=0), (centre + sides / 2).minimum(end)], 1)


def made_maps(arguments: argparse.Namespace, dtype: torch.dtype, layout: str) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    maps = []
    for stride in STRIDES:
        h, w = -(-arguments.height // stride), -(-arguments.width // stride)
        values = torch.randn(arguments.images, arguments.channels, h, w, generator=generator)
        one = values.to(arguments.device, dtype, memory_format=LAYOUTS[layout])
        maps.append(one.requires_grad_())
    return maps


def run(way: Callable[[], Tensor], maps: list[Tensor]) -> tuple[float, float, list[Tensor]]:
    """(ms forward, ms backward, the regions and the gradients of the maps)."""
    for one in maps:
        one.grad = None
    started = clock(maps[0])
    regions = way()
    middle = clock(maps[0])
    # As a head leaves it: its linear layer reads (B, C * h * w).
    gradient = torch.ones_like(regions, memory_format=torch.contiguous_format)
    between = clock(maps[0])
    regions.backward(gradient)
    ended = clock(maps[0])
    gradients = [one.grad for one in maps if one.grad is not None]
    return 1000 * (middle - started), 1000 * (ended - between), [regions.detach(), *gradients]


def clock(like: Tensor) -> float:
    if like.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter()


def compare(arguments: argparse.Namespace, dtype: torch.dtype, layout: str) -> None:
    maps = made_maps(arguments, dtype, layout)
    sides = (arguments.height, arguments.width)
    boxes = made_boxes(arguments.boxes, *sides).to(arguments.device)
    image = torch.arange(len(boxes), device=boxes.device) * arguments.images // len(boxes)
    by_image = [boxes[image == i] for i in range(arguments.images)]
    names = [str(stride) for stride in STRIDES]
    pooler = MultiScaleRoIAlign(names, arguments.size, 2)
    size = (arguments.size, arguments.size)
    ways: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: pyramid_roi_align(maps, STRIDES, boxes, image, size),
        "torchvision": lambda: pooler(
            dict(zip(names, maps, strict=True)), by_image, [sides] * arguments.images
        ),
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    reduced = torch.autocast(boxes.device.type, dtype, enabled=dtype != torch.float32)
    with reduced:
        found, expected = (run(way, maps)[2] for way in ways.values())  # warms up too
        tolerance = 1e-4 if dtype == torch.float32 else 0.05
        for one, other in zip(found, expected, strict=True):
            assert (one - other).norm() <= tolerance * other.norm(), "the numbers differ"
        for _ in range(arguments.repeats):
            for name, way in ways.items():
                times[name].append(run(way, maps)[:2])
    medians = {
        name: [statistics.median(t) for t in zip(*times[name], strict=True)] for name in ways
    }
    text = [f"{str(dtype)[6:]:8} {layout}"]
    for part, ours, theirs in zip(("forward", "backward"), *medians.values(), strict=True):
        text.append(f"{part} {ours:6.1f} ms, torchvision {theirs:6.1f} ms, {theirs / ours:5.1f} x")
    ours, theirs = (sum(values) for values in medians.values())
    print(" | ".join([*text, f"both {theirs / ours:5.1f} x"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    defaults = {"boxes": 512, "channels": 256, "size": 7, "images": 1, "height": 600, "width": 800}
    for name, value in {**defaults, "threads": 2, "repeats": 9}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(
        f"{arguments.boxes} boxes x {arguments.channels} channels x {arguments.size}^2,"
        f" {arguments.images} x {arguments.height} x {arguments.width} pixels,"
        f" {arguments.threads} threads"
    )
    for dtype, layout in itertools.product((torch.float32, torch.bfloat16), LAYOUTS):
        compare(arguments, dtype, layout)


if __name__ == "__main__":
    main()
