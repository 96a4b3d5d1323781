"""Two loaders with one interface: resident (all data on the device) and streaming (workers).

Both are pure functions of the position: ``train(start, stop)`` yields the batches of steps
``start`` to ``stop``, so that a run resumes by a jump. The order of an epoch depends on (seed,
stage, epoch), a sample's augmentation on (seed, purpose, epoch, index), and nothing on the number
of workers or processes: every process takes its share of the same global batch. Where images of
a batch are mixed with each other, every process augments all of it before it takes its share.
"""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from cnnctl.data.augmentations.base import Augmentation, once, resize_mask, scaled_boxes
from cnnctl.data.base import ArrayDataset, Dataset
from cnnctl.errors import Exit, UserError
from cnnctl.randomness import Draw, key, permutation
from cnnctl.structures import Batch, Images, Targets, collate

WORKER_TIMEOUT = 300  # seconds without a batch before a worker counts as hung


@dataclass(frozen=True)
class Share:
    """Process ``rank`` of ``world``; a step's batch and an evaluation's batches are dealt out."""

    rank: int = 0
    world: int = 1


class Loader(Protocol):
    """Batches of one split on the device, pixels normalised."""

    @property
    def dataset(self) -> Dataset: ...

    @property
    def augmentation(self) -> Augmentation: ...

    def train(self, start: int, stop: int, batch_size: int, stage: int) -> Iterator[Batch]:
        """This process's share of the augmented batches of steps start..stop-1."""
        ...

    def in_order(
        self, batch_size: int, share: Share | None = None, as_trained: bool = False
    ) -> Iterator[tuple[int, Batch]]:
        """(number, batch) of the split in order, not augmented: every world-th of them.

        Args:
            share: another one than this process's: ``Share()`` gives all of them.
            as_trained: images of the network's size, whatever evaluation sees.
        """
        ...


def steps_per_epoch(samples: int, batch_size: int) -> int:
    """Whole batches in an epoch; a smaller rest is left out, another one in every epoch."""
    return samples // batch_size


class _Order:
    """Which samples make up a step: (seed, stage, epoch) -> a permutation, cut into batches."""

    def __init__(
        self, samples: int, batch_size: int, seed: int, stage: int, device: torch.device
    ) -> None:
        self.samples, self.batch_size, self.seed, self.stage = samples, batch_size, seed, stage
        self.device = device
        self.per_epoch = steps_per_epoch(samples, batch_size)
        self._epoch, self._order = -1, torch.empty(0)

    def step(self, step: int, share: Share) -> tuple[int, Tensor]:
        """(epoch, positions of this process's share of the batch)."""
        epoch, batch = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            self._epoch = epoch
            order = permutation(self.samples, self.seed, "order", self.stage, epoch)
            if self.device.type == "cuda":  # from other memory the copy would wait for the device
                order = order.pin_memory().to(self.device, non_blocking=True)
            self._order = order.to(self.device)
        part = self.batch_size // share.world
        start = batch * self.batch_size + share.rank * part
        return epoch, self._order[start : start + part]


class Normalize:
    """uint8 (or 0..255 float) pixels -> float32 with the data's mean and deviation removed.

    Args:
        mean, std: of each channel, of pixels scaled to 0..1.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device) -> None:
        shift = torch.tensor(mean, device=device)[None, :, None, None]
        scale = torch.tensor(std, device=device)[None, :, None, None]
        self.scale, self.shift = 1 / (255 * scale), -shift / scale

    def __call__(self, pixels: Tensor) -> Tensor:
        return torch.addcmul(self.shift, pixels.float(), self.scale)


def blank_outside(pixels: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
    """Normalised pixels (N, C, H, W), 0 (the mean) beyond each image's own (h, w), in place."""
    whole = (pixels.shape[2], pixels.shape[3])
    for row, (h, w) in zip(pixels, sizes, strict=True):
        if (h, w) != whole:
            row[:, h:] = 0
            row[:, :h, w:] = 0
    return pixels


def mover(device: torch.device) -> Callable[[Batch], Batch]:
    """What brings batches (pinned ones, for a GPU) to ``device``.

    To a GPU they go on a stream of their own: beside what it computes, not after it.
    """
    if device.type != "cuda":
        return lambda batch: batch.to(device)
    side = torch.cuda.Stream(device)

    def move(batch: Batch) -> Batch:
        with torch.cuda.stream(side):
            moved = batch.to(device)
        computing = torch.cuda.current_stream(device)
        computing.wait_stream(side)
        for column in (*vars(moved.images).values(), *vars(moved.targets).values()):
            if isinstance(column, Tensor):  # else its memory would go to the next batch too early
                column.record_stream(computing)
        return moved

    return move


class ResidentLoader:
    """All pixels live on the device as one uint8 tensor; a step costs no Python per image."""

    def __init__(
        self,
        dataset: ArrayDataset,
        augmentation: Augmentation,
        device: torch.device,
        seed: int,
        share: Share,
    ) -> None:
        self.dataset = dataset
        self.augmentation = augmentation
        self.seed = seed
        self.share = share
        self.device = device
        columns = dataset.columns()
        self.columns = {name: once(c, lambda c: c.to(device)) for name, c in columns.items()}
        self.moved = dict(self.columns)  # as the pixels were
        if "mask" in self.moved:
            self.moved["mask"] = resize_mask(self.moved["mask"], augmentation.size)
        if "boxes" in self.moved:
            native = (dataset.pixels.shape[2], dataset.pixels.shape[3])
            self.moved |= scaled_boxes(self.moved, native, augmentation.size)
        self.normalize = Normalize(dataset.mean, dataset.std, device)

    @functools.cached_property
    def pixels(self) -> Tensor:
        """(M, C, H, W) uint8, as they are trained on."""
        return self.augmentation.resident(self.dataset.pixels).to(self.device)

    @functools.cached_property
    def shown(self) -> Tensor:
        """(M, C, H', W') uint8, as they are evaluated."""
        if self.augmentation.shown is None:
            return self.pixels
        return self.augmentation.resident_shown(self.dataset.pixels).to(self.device)

    def train(self, start: int, stop: int, batch_size: int, stage: int) -> Iterator[Batch]:
        order = _Order(len(self.dataset), batch_size, self.seed, stage, self.device)
        for step in range(start, stop):
            epoch, index = order.step(step, Share() if self.augmentation.mixes else self.share)
            batch = self._take(index, self.moved, self.pixels)
            draw = Draw(self.seed, epoch, batch.targets.image_id)
            batch = Batch(*self.augmentation.batch(batch.images, batch.targets, draw))
            if self.augmentation.mixes and self.share.world > 1:
                part = batch_size // self.share.world
                batch = batch.rows(slice(self.share.rank * part, (self.share.rank + 1) * part))
            batch.images.pixels = self.normalize(batch.images.pixels)
            yield batch

    def in_order(
        self, batch_size: int, share: Share | None = None, as_trained: bool = False
    ) -> Iterator[tuple[int, Batch]]:
        share = share or self.share
        pixels = self.pixels if as_trained else self.shown
        everything = torch.arange(len(self.dataset), device=self.device)
        for number, index in enumerate(everything.split(batch_size)):
            if number % share.world == share.rank:
                batch = self._take(index, self.columns, pixels)
                batch.images.pixels = self.normalize(batch.images.pixels)
                yield number, batch

    def _take(self, index: Tensor, columns: dict[str, Tensor], pixels: Tensor) -> Batch:
        size = (pixels.shape[2], pixels.shape[3])
        moved = columns is self.moved and "label" not in columns  # the truth has the pixels' size
        original = size if moved else self.dataset.size or size
        images = Images(pixels.index_select(0, index), [size] * len(index), [original] * len(index))
        truth: dict[str, Any] = {n: column.index_select(0, index) for n, column in columns.items()}
        images.proposals = truth.pop("proposals", None)
        return Batch(images, Targets(image_id=index, **truth))


class StreamingLoader:
    """Workers decode and crop; batches travel as uint8 and are augmented on the device.

    Raises:
        UserError: the augmentation mixes images, and each process would decode only some of them.
    """

    def __init__(
        self,
        dataset: Dataset,
        augmentation: Augmentation,
        device: torch.device,
        seed: int,
        share: Share,
        workers: int,
    ) -> None:
        if augmentation.mixes and share.world > 1:
            raise UserError(
                "mixes the images of a batch, of which each process streams only a part",
                field="augmentation",
                advice="take another augmentation, or trainer.devices=1",
            )
        self.dataset = dataset
        self.augmentation = augmentation
        self.device = device
        self.seed = seed
        self.share = share
        self.workers = workers
        self.normalize = Normalize(dataset.mean, dataset.std, device)

    def train(self, start: int, stop: int, batch_size: int, stage: int) -> Iterator[Batch]:
        steps = _StepSampler(
            len(self.dataset), batch_size, self.seed, stage, start, stop, self.share
        )
        samples = _Samples(self.dataset, self.augmentation, self.seed)
        for epoch, batch in self._load(samples, steps):
            draw = Draw(self.seed, epoch, batch.targets.image_id)
            images, targets = self.augmentation.batch(batch.images, batch.targets, draw)
            images.pixels = blank_outside(self.normalize(images.pixels), images.sizes)
            yield Batch(images, targets)

    def in_order(
        self, batch_size: int, share: Share | None = None, as_trained: bool = False
    ) -> Iterator[tuple[int, Batch]]:
        share = share or self.share
        batches = torch.arange(len(self.dataset)).split(batch_size)
        own = list(range(share.rank, len(batches), share.world))
        augmentation = self.augmentation.as_trained() if as_trained else self.augmentation
        samples = _Samples(self.dataset, augmentation, None)
        wanted = [[(-1, index) for index in batches[number].tolist()] for number in own]
        for number, (_, batch) in zip(own, self._load(samples, wanted), strict=True):
            pixels = self.normalize(batch.images.pixels)
            batch.images.pixels = blank_outside(pixels, batch.images.sizes)
            yield number, batch

    def _load(self, samples: _Samples, steps: Any) -> Iterator[tuple[int, Batch]]:
        loader = DataLoader(
            samples,
            batch_sampler=steps,
            num_workers=self.workers,
            collate_fn=_collate,
            pin_memory=self.device.type == "cuda",
            timeout=WORKER_TIMEOUT if self.workers else 0,
            worker_init_fn=start_worker,
        )
        move = mover(self.device)
        try:
            for item in loader:
                if isinstance(item, UserError):
                    raise item
                yield item.epoch, move(Batch(item.images, item.targets))
        except RuntimeError as error:
            if "DataLoader worker (pid" not in str(error) and "timed out" not in str(error):
                raise
            raise UserError(
                f"a loader process died or hung: {str(error).splitlines()[0]}",
                field="trainer.workers",
                advice="lower trainer.workers (each takes memory), then resume",
                code=Exit.MACHINE,
            ) from error


class _Samples(TorchDataset):
    """(epoch, index) -> (epoch, index, image, target); a user's fault is returned, not raised,
    because an exception does not survive the way back from a worker as it was."""

    def __init__(self, dataset: Dataset, augmentation: Augmentation, seed: int | None) -> None:
        self.dataset, self.augmentation, self.seed = dataset, augmentation, seed

    def __getitem__(self, position: tuple[int, int]) -> Any:
        epoch, index = position
        try:
            image, target = self.dataset[index]
        except UserError as error:
            return error
        target = {**target, "original": (image.shape[-2], image.shape[-1])}
        if self.seed is None:
            return epoch, index, *self.augmentation.joint_eval(image, target)
        torch.default_generator.manual_seed(key(self.seed, "sample", epoch, index))
        image, target = self.augmentation.joint(image, target)
        if "label" not in target:  # a crop is its own original: its truth was cropped with it
            target = {**target, "original": (image.shape[-2], image.shape[-1])}
        return epoch, index, image, target


@dataclass
class _Loaded(Batch):
    epoch: int = -1

    def pin_memory(self) -> _Loaded:
        pinned = super().pin_memory()
        return _Loaded(pinned.images, pinned.targets, self.epoch)


def _collate(samples: Sequence[Any]) -> _Loaded | UserError:
    for sample in samples:
        if isinstance(sample, UserError):
            return sample
    batch = collate([sample[1:] for sample in samples])
    return _Loaded(batch.images, batch.targets, samples[0][0])


class _StepSampler:
    """The (epoch, index) pairs of each step, so that the data set needs to know no epoch."""

    def __init__(
        self,
        samples: int,
        batch_size: int,
        seed: int,
        stage: int,
        start: int,
        stop: int,
        share: Share,
    ) -> None:
        self.order = _Order(samples, batch_size, seed, stage, torch.device("cpu"))
        self.start, self.stop, self.share = start, stop, share

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in range(self.start, self.stop):
            epoch, index = self.order.step(step, self.share)
            yield [(epoch, position) for position in index.tolist()]


def start_worker(worker: int) -> None:
    """Leave signals to the trainer, which finishes its step first; one thread each.

    A cluster sends SIGTERM to every process of a job once; torch sends it to a hung worker again.
    """
    asked = []

    def stop_when_asked_twice(signum: int, frame: FrameType | None) -> None:
        asked.append(signum)
        if len(asked) > 1:
            os._exit(1)

    signal.signal(signal.SIGTERM, stop_when_asked_twice)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    torch.set_num_threads(1)
