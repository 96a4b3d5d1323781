"""mean IU of 500 masks of 512 x 512 and 21 classes: ours against the usual ways, in one process.

    python tests/benchmarks/mean_iu.py [--images 500] [--batch 4] [--threads 2] [--repeats 5]

Runs interleaved; prints the best and the median of each and their ratio to ours (target: at most
300 ms on two cores). Masks are made of blocks with a void border, as real ones are mostly uniform;
every way must give the same figure. torchmetrics takes part if it is installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from cnnctl.metrics.segmentation import SegmentationEvaluator, mean_iu
from cnnctl.structures import IGNORE, Predictions, Targets

K, SIDE = 21, 512
Way = Callable[[list[tuple[Tensor, Tensor]]], float]


def made(images: int, batch: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    pairs = []
    for start in range(0, images, batch):
        shape = (1, min(batch, images - start), 8, 8)
        blocks = torch.randint(K, shape, generator=generator).float()
        predicted = F.interpolate(blocks, (SIDE, SIDE))[0].byte()
        edge = (predicted != predicted.roll(4, 1)) | (predicted != predicted.roll(4, 2))
        truth = predicted.roll((-6, 3), (1, 2)).masked_fill(edge, IGNORE)
        pairs.append((truth.contiguous(), predicted.contiguous()))
    return pairs


def ours(pairs: list[tuple[Tensor, Tensor]]) -> float:
    evaluator = SegmentationEvaluator([str(k) for k in range(K)])
    for truth, predicted in pairs:
        ids = torch.arange(len(truth))
        evaluator.update(Predictions(mask=predicted), Targets(ids, mask=truth))
    return evaluator.compute()["mean_iu"]


def _bincount(dtype: torch.dtype) -> Way:
    """One table of codes, void in a row of its own that is dropped."""

    def way(pairs: list[tuple[Tensor, Tensor]]) -> float:
        total = torch.zeros(K + 1, K, dtype=torch.int64)
        for truth, predicted in pairs:
            code = truth.clamp(max=K).to(dtype).mul_(K).add_(predicted)
            total += torch.bincount(code.view(-1), minlength=K * (K + 1)).view(K + 1, K)
        return mean_iu(total[:K])

    return way


def indexed(pairs: list[tuple[Tensor, Tensor]]) -> float:
    """As torchvision's reference scripts: copies of what is valid, int64 codes."""
    total = torch.zeros(K, K, dtype=torch.int64)
    for truth, predicted in pairs:
        one, other = truth.flatten().long(), predicted.flatten().long()
        valid = (one >= 0) & (one < K)
        code = K * one[valid] + other[valid]
        total += torch.bincount(code, minlength=K * K).view(K, K)
    return mean_iu(total)


def class_by_class(pairs: list[tuple[Tensor, Tensor]]) -> float:
    both, either = torch.zeros(2, K, dtype=torch.int64)
    for truth, predicted in pairs:
        known = truth != IGNORE
        for k in range(K):
            one, other = truth == k, (predicted == k) & known
            both[k] += (one & other).sum()
            either[k] += (one | other).sum()
    return float((both.double() / either).nanmean())


def by_torchmetrics(pairs: list[tuple[Tensor, Tensor]]) -> float:
    from torchmetrics.classification import MulticlassJaccardIndex  # pyright: ignore

    metric = MulticlassJaccardIndex(K, ignore_index=IGNORE, validate_args=False)
    for truth, predicted in pairs:
        metric.update(predicted.long(), truth.long())
    return float(metric.compute())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in (("images", 500), ("batch", 4), ("threads", 2), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=value)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    ways: dict[str, Way] = {
        "ours": ours,
        "bincount int16": _bincount(torch.int16),
        "bincount int32": _bincount(torch.int32),
        "bincount int64": _bincount(torch.int64),
        "torchvision": indexed,
        "class by class": class_by_class,
    }
    if importlib.util.find_spec("torchmetrics"):
        ways["torchmetrics"] = by_torchmetrics
    else:
        print("torchmetrics is not installed: left out")
    pairs = made(arguments.images, arguments.batch)
    times: dict[str, list[float]] = {name: [] for name in ways}
    expected = ours(pairs)  # warms up too
    for _ in range(arguments.repeats):
        for name, way in ways.items():
            started = time.perf_counter()
            figure = way(pairs)
            times[name].append(1000 * (time.perf_counter() - started))
            assert abs(figure - expected) < 1e-6, f"{name}: {figure}, ours: {expected}"
    print(f"mean IU {expected:.4f} of {arguments.images} masks, {arguments.threads} threads")
    fastest = min(times["ours"])
    for name, values in times.items():
        print(
            f"{name:15} best {min(values):8.1f} ms, median {statistics.median(values):8.1f} ms,"
            f" {min(values) / fastest:5.1f} x"
        )


if __name__ == "__main__":
    main()
