"""What one image costs a patch classifier: window after window, and with shared computation.

    python tests/benchmarks/sliding_window.py --network n4 --side 512

FLOPs (1 multiply-add = 2) are counted for all windows. The time of the first way is measured on
some of them and scaled to all, which may take hours.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from cnnctl.models.sliding_window import SlidingWindow

NETWORKS = {
    "default": {},
    "n4": {  # Ciresan et al. 2012, table 1
        "patch": 95,
        "widths": (48, 48, 48, 48),
        "kernels": (4, 5, 4, 4),
        "dense": (200,),
    },
}


def flops(compute: Callable[[], object]) -> int:
    counter = FlopCounterMode(display=False)
    with counter:
        compute()
    return counter.get_total_flops()


def seconds(compute: Callable[[], object], device: str, repeats: int) -> float:
    """The median of ``repeats``, after one to warm up."""
    times = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        compute()
        if device != "cpu":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", default="default", choices=NETWORKS)
    parser.add_argument("--side", type=int, default=96, help="of the image")
    parser.add_argument("--windows", type=int, default=1024, help="timed one by one")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=None)
    asked = parser.parse_args()
    if asked.threads:
        torch.set_num_threads(asked.threads)
    model = SlidingWindow(1, 2, **NETWORKS[asked.network]).to(asked.device).eval()
    on_paper = SlidingWindow(1, 2, **NETWORKS[asked.network]).to("meta").eval()
    side, patch, count = asked.side, model.patch, asked.side**2
    image = torch.zeros(1, 1, side, side, device="meta")
    single_flops = count * flops(lambda: on_paper.classify(image.new_zeros(1, 1, patch, patch)))
    shared_flops = flops(lambda: on_paper(image))

    pixels = torch.randn(1, 1, side, side, device=asked.device)
    timed = min(asked.windows, count)
    lines = max(1, timed // side)
    strip = torch.randn(1, 1, lines, side, device=asked.device)
    model.shared = False
    single = seconds(lambda: model(strip), asked.device, asked.repeats) * side / lines
    model.shared = True
    shared = seconds(lambda: model(pixels), asked.device, asked.repeats)

    where = f"{torch.get_num_threads()} threads" if asked.device == "cpu" else asked.device
    if asked.device != "cpu":
        where = torch.cuda.get_device_name()
    print(f"{asked.network}: windows of {patch} x {patch}, image of {side} x {side}, {where}")
    print(
        f"one by one  {single_flops / 1e9:12,.1f} GFLOPs {single:12,.3f} s ({lines * side} timed)"
    )
    print(f"shared      {shared_flops / 1e9:12,.1f} GFLOPs {shared:12,.3f} s")
    print(f"ratio       {single_flops / shared_flops:12,.1f}        {single / shared:12,.1f}")


if __name__ == "__main__":
    main()
