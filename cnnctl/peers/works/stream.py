"""JPEG files of 500 x 375 pixels, read, cropped, flipped, normalised and put into batches by one
core: what a worker of a loader is worth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from cnnctl import build, compose
from cnnctl.data.base import Dataset, data_root
from cnnctl.data.digit_scenes import DigitScenes
from cnnctl.engine.distributed import Processes
from cnnctl.engine.machine import Machine
from cnnctl.peers.works.base import Asked, Side
from cnnctl.peers.works.table import Work

_CLASSES = ("even", "odd")  # two folders, because a data set of folders has two at least
_SHAPE = 0.75  # height over width
_VOC = "VOCdevkit/*/JPEGImages/*.jpg"


@dataclass
class Stream:
    """
    Args:
        folder: of the files, in two sub-folders.
        what: they are, in a few words.
    """

    asked: Asked
    config: Any
    files: Dataset
    folder: Path
    what: str

    @property
    def batch(self) -> int:
        return min(self.config.trainer.batch_size, len(self.files))

    @property
    def images(self) -> int:
        return len(self.files) // self.batch * self.batch

    @property
    def data(self) -> str:
        return self.what

    def ours(self) -> Side:
        trainer = replace(build.trainer(self.config), workers=0, batch_size=self.batch)
        machine = Machine(torch.device("cpu"), torch.float32, channels_last=False)
        augmentation = build.augmentation(self.config, self.files)
        loader = trainer.load(self.files, augmentation, machine, Processes(), 0)
        steps = self.images // self.batch
        return one_core(
            lambda: (batch.images.pixels for batch in loader.train(0, steps, self.batch, 0))
        )


def one_core(batches: Callable[[], Iterator[Tensor]]) -> Side:
    """
    Args:
        batches: (N, C, H, W) float32, normalised.
    """
    seen: list[Tensor] = []

    def run() -> None:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            for pixels in batches():
                seen[:] = [pixels]
        finally:
            torch.set_num_threads(threads)

    return Side(run, lambda: {"mean": float(seen[0].mean()), "deviation": float(seen[0].std())})


def made(work: Work, asked: Asked) -> Stream:
    """VOC's own files where they are at hand, else scenes of digits."""
    count, folder = asked.images or work.images, asked.folder / "jpegs"
    for name in _CLASSES:
        folder.joinpath(name).mkdir(parents=True, exist_ok=True)
    found = sorted(data_root(asked.root).glob(_VOC))[:count]
    if len(found) == count:
        for number, path in enumerate(found):
            place = folder / _CLASSES[number % 2] / f"{number}.jpg"
            if not place.exists():
                place.symlink_to(path.absolute())
    else:
        _draw(folder, count, work.side)
    config = asked.composed(
        work,
        f"data.root={compose.quoted(folder)}",
        "data.validation=0",
        "data.test=0",
        "trainer.batch_size=32",
        "trainer.loader=streaming",
    )
    what = "VOC's JPEG" if len(found) == count else f"drawn JPEG, {work.side} x {_side(work.side)}"
    return Stream(asked, config, build.dataset(config, "train"), folder, what)


def _side(width: int) -> int:
    return round(_SHAPE * width)


def _draw(folder: Path, count: int, width: int) -> None:
    drawn = DigitScenes("train", size=width, train_images=count).pixels[:, :, : _side(width)]
    for number, pixels in enumerate(drawn.permute(0, 2, 3, 1).contiguous().numpy()):
        image = Image.fromarray(pixels)
        image.save(folder / _CLASSES[number % 2] / f"{number}.jpg", quality=90)
