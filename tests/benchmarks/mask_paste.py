"""Masks put into their image and encoded: ours against torchvision's paste and pycocotools.

    OMP_NUM_THREADS=1 python tests/benchmarks/mask_paste.py [--boxes 100] [--side 28]
        [--height 600] [--width 800] [--repeats 9] [--threads 1] [--pass]

Boxes of 16 pixels to 512. One process, runs interleaved; prints medians and how many times as long
the others take. The pixels of both are compared first: they may differ where torchvision rounds a
box. With --pass, an inference pass of Mask R-CNN with ResNet-50 on one such image that finds as
many boxes is timed too, and what share of it ours is.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pycocotools import mask as reference
from regions import made_boxes
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image

from cnnctl.backbones.resnet import ResNet
from cnnctl.models import instance
from cnnctl.models.mask_rcnn import MaskRCNN
from cnnctl.ops.run_lengths import paste
from cnnctl.structures import Images


def made_masks(count: int, side: int) -> Tensor:
    """(count, side, side) of 0..1: blobs that fill about half of their boxes."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(count, 1, 5, 5, generator=generator)
    return (3 * F.interpolate(noise, (side, side), mode="bicubic")[:, 0]).sigmoid()


def theirs(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> list[Any]:
    pasted = paste_masks_in_image(masks[:, None], boxes, size)[:, 0] >= 0.5
    pixels = pasted.numpy().astype(np.uint8)
    return [reference.encode(np.asfortranarray(one))["counts"] for one in pixels]


def median(run: Callable[[], Any], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return 1000 * statistics.median(times)


def overlap(ours: list[bytes], others: list[Any], size: tuple[int, int]) -> float:
    """Mean IoU of the masks of both."""
    rows = [[{"size": list(size), "counts": one} for one in each] for each in (ours, others)]
    return float(np.mean([reference.iou([a], [b], [0]) for a, b in zip(*rows, strict=True)]))


def share_of_a_pass(size: tuple[int, int], count: int, repeats: int) -> None:
    """Of a network at random that calls everything something: it has ``count`` detections."""
    torch.manual_seed(0)
    model = MaskRCNN(80, ResNet(50), size, score=0.0, detections=count).eval()
    pixels, spent = torch.randn(1, 3, *size), []
    pasted = instance.paste

    def timed(*columns: Any) -> list[bytes]:
        started = time.perf_counter()
        counts = pasted(*columns)
        spent.append(time.perf_counter() - started)
        return counts

    instance.paste = timed
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        whole = median(lambda: model.predict(Images(pixels, [size], [size])), repeats)
    instance.paste = pasted
    own = 1000 * statistics.median(spent)
    print(f"of a pass in bfloat16: {own:.1f} ms of {whole:,.0f} ms, {own / whole:.1%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    defaults = {"boxes": 100, "side": 28, "height": 600, "width": 800, "repeats": 9, "threads": 1}
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--pass", action="store_true", dest="whole")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    size = (asked.height, asked.width)
    boxes, masks = made_boxes(asked.boxes, *size), made_masks(asked.boxes, asked.side)
    area = float((boxes[:, 2:] - boxes[:, :2]).prod(1).sum())
    print(f"{asked.boxes} masks at {asked.width} x {asked.height}, {area / 1e6:.1f} million pixels")
    ways = {
        "ours": lambda: paste(masks, boxes, size),
        "torchvision + pycocotools": lambda: theirs(masks, boxes, size),
    }
    ours, others = (way() for way in ways.values())
    print(f"mean IoU of the masks of both {overlap(ours, others, size):.4f}")
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(asked.repeats):
        for name, way in ways.items():
            times[name].append(median(way, 1))
    medians = {name: statistics.median(each) for name, each in times.items()}
    text = ", ".join(f"{name} {each:.1f} ms" for name, each in medians.items())
    fast, slow = medians.values()
    print(f"{text}: {slow / fast:.0f} times as long")
    if asked.whole:
        share_of_a_pass(size, asked.boxes, 3)


if __name__ == "__main__":
    main()
