"""Read what a data set holds: every sample for faults, the pixels for mean and deviation."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cnnctl.data.base import ArrayDataset, Dataset, classes_in
from cnnctl.errors import UserError

_MEASURED = 2000  # images that mean and deviation are taken of where they must be decoded
_CHUNK = 2048  # samples handed to the threads at once
_EXAMPLES = 3  # of each kind of duplicate that are named


@dataclass
class Measured:
    """Of the train images that were read: pixels scaled to 0..1, and the sides."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    images: int
    sizes: str


def measure(data: Dataset) -> Measured:
    """Exact counts of every pixel value, so that no precision is lost on any number of images."""
    counts = torch.zeros(data.channels, 256, dtype=torch.int64)
    heights, widths, images = set[int](), set[int](), 0
    for pixels in _some_images(data):  # (N, C, H, W)
        heights.add(pixels.shape[2])
        widths.add(pixels.shape[3])
        images += len(pixels)
        for channel in range(data.channels):
            counts[channel] += torch.bincount(pixels[:, channel].flatten().int(), minlength=256)
    share = counts / counts.sum(1, keepdim=True, dtype=torch.float64)
    value = torch.arange(256, dtype=torch.float64) / 255
    mean = (share * value).sum(1)
    std = ((share * (value - mean[:, None]) ** 2).sum(1)).sqrt()
    sizes = f"height {_range(heights)}, width {_range(widths)}"
    return Measured(tuple(mean.tolist()), tuple(std.tolist()), images, sizes)


def _some_images(data: Dataset) -> Iterator[Tensor]:
    """(N, C, H, W) uint8: all that lie in memory, else evenly chosen ones, decoded in threads."""
    if isinstance(data, ArrayDataset):
        yield from data.pixels.split(_CHUNK)
        return
    chosen = torch.linspace(0, len(data) - 1, min(len(data), _MEASURED)).round().long().tolist()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(chosen), 64):  # no more than these in memory at once
            for image, _ in pool.map(data.__getitem__, chosen[start : start + 64]):
                yield image[None]


def _range(sides: set[int]) -> str:
    low, high = min(sides), max(sides)
    return str(low) if low == high else f"{low} to {high}"


@dataclass
class Report:
    """What reading every sample showed."""

    read: dict[str, int] = field(default_factory=dict)  # samples of each split
    faults: list[str] = field(default_factory=list)
    unlisted: int = 0  # faults beyond those that are kept in words
    unread: list[str] = field(default_factory=list)  # splits that could not be read
    warnings: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def check(splits: Mapping[str, Dataset], tick: Callable[[str, int], object]) -> Report:
    """Read every sample of every split in threads; all faults are found, not the first.

    A fault is a sample that does not decode, has another shape than promised or a label out of
    range, and a class without training samples. Identical pictures in two splits, or with two
    truths, are warnings.

    Args:
        splits: those that can be read; without train no class is missed in it.
        tick: called with a split and how many of its samples were read so far.
    """
    report = Report()
    seen: dict[bytes, list[tuple[str, int, bytes]]] = defaultdict(list)  # (split, index, truth)
    present: dict[str, set[int]] = {split: set() for split in splits}  # classes of whole samples
    for split, data in splits.items():
        for index, found in _examine_all(split, data, tick):
            if isinstance(found, str):
                report.faults.append(f"{split}: {found}")
            else:
                seen[found.image].append((split, index, found.truth))
                present[split] |= found.classes
        report.read[split] = len(data)
        report.remarks += [f"{split}: {line}" for line in data.remarks()]
        report.warnings += [f"{split}: {line}" for line in data.doubts()]
        if data.skipped:
            report.faults.append(f"{split}: {data.skipped:,} broken samples were skipped")
    if "train" in splits:  # or could not be read
        for split, held in present.items():
            absent = sorted(held - present["train"])
            names = [splits["train"].classes[k] for k in absent]
            report.faults += [f"{split}: class {name} is not in train" for name in names]
    report.warnings += _duplicates(splits, seen)
    return report


@dataclass(frozen=True)
class _Whole:
    """Digests of a sample's pixels and truth, and the classes in it."""

    image: bytes
    truth: bytes
    classes: set[int]


def _examine_all(
    split: str, data: Dataset, tick: Callable[[str, int], object]
) -> Iterator[tuple[int, str | _Whole]]:
    """(index, _examine(index)) of every sample, in order."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(data), _CHUNK):
            chunk = range(start, min(start + _CHUNK, len(data)))
            yield from zip(chunk, pool.map(partial(_examine, data), chunk), strict=True)
            tick(split, chunk.stop)


def _examine(data: Dataset, index: int) -> str | _Whole:
    """What is wrong with one sample, or what it is."""
    try:
        image, target = data[index]
    except UserError as error:
        return str(error)
    name = data.sample_name(index)
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != data.channels:
        shape = f"{tuple(image.shape)} {image.dtype}"
        return f"{name}: is {shape}, must be ({data.channels}, H, W) torch.uint8"
    if data.size is not None and tuple(image.shape[1:]) != data.size:
        return f"{name}: is {tuple(image.shape[1:])}, must be {data.size}"
    mask = target.get("mask")
    if mask is not None and mask.shape != image.shape[1:]:
        return f"{name}: its mask is {tuple(mask.shape)}, the image {tuple(image.shape[1:])}"
    classes = classes_in(target)
    for label in sorted(classes):
        if not 0 <= label < len(data.classes):
            return f"{name}: label is {label}, must be 0 to {len(data.classes) - 1}"
    return _Whole(_digest(image), _digest(_truth(target)), classes)


def _truth(target: Mapping[str, Any]) -> Tensor:
    """What is said of a sample, as one tensor."""
    if "boxes" in target:
        kinds = torch.stack([target[name] for name in ("labels", "crowd", "difficult")], 1)
        parts = [kinds.float(), target["boxes"]]
        if "bits" in target:  # the frames say how these are to be read
            parts += [target["frames"], target["bits"][None].float()]
        return torch.cat([part.flatten() for part in parts])
    return torch.as_tensor(target["label"] if "label" in target else target["mask"])


def _digest(tensor: Tensor) -> bytes:
    digest = hashlib.blake2b(repr(tuple(tensor.shape)).encode(), digest_size=16)
    digest.update(tensor.contiguous().numpy().data)
    return digest.digest()


def _duplicates(
    splits: Mapping[str, Dataset], seen: Mapping[bytes, list[tuple[str, int, bytes]]]
) -> list[str]:
    """Sentences on pictures that are in two splits, or in one with two truths."""
    names = list(splits)
    shared: dict[str, list[str]] = defaultdict(list)
    for same in seen.values():
        first = {split: index for split, index, _ in reversed(same)}
        there = [split for split in names if split in first]
        for at, split in enumerate(there):
            for later in there[at + 1 :]:
                copies = sum(s == later for s, _, _ in same)
                a, b = (
                    splits[split].sample_name(first[split]),
                    splits[later].sample_name(first[later]),
                )
                shared[f"of {later} also in {split}"] += [f"{b} = {a}"] * copies
        if len({truth for _, _, truth in same}) > 1:
            (s1, i1, _), (s2, i2, _) = same[:2]
            both = f"{s1} {splits[s1].sample_name(i1)}, {s2} {splits[s2].sample_name(i2)}"
            shared["with two labels or more"].append(both)
    return [
        f"{len(pairs):,} image(s) {what}: {'; '.join(dict.fromkeys(pairs[:_EXAMPLES]))}"
        for what, pairs in shared.items()
    ]
