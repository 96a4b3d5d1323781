"""The fastest public recipe for 94 % on CIFAR-10 (Jordan 2024, arXiv:2404.00498), as its author's
package trains it: half precision, on a GPU alone.
"""

from __future__ import annotations

import importlib
from typing import Any
from unittest import mock

import torch

from cnnctl.data.base import ArrayDataset
from cnnctl.peers.works.base import Side
from cnnctl.peers.works.recipe import Recipe

DOES = ("recipe",)
PACKAGES = ("airbench",)
PRECISION = "fp16"
DEVICES = ("cuda",)

_HERE = "cifar10"  # the folder of its files, below the one that it runs in
_VIEWS = 2  # its level of test-time augmentation: mirrored and shifted


def side(job: Recipe) -> Side:
    library: Any = importlib.import_module("airbench")
    folder = job.asked.folder / _HERE
    folder.mkdir()
    for name, data in (("train", job.train), ("test", job.test)):
        torch.save(_as_it_reads(data), folder / f"{name}.pt")
    own = importlib.import_module("airbench.lib_airbench94").hyp
    inside: Any = importlib.import_module("airbench.utils")
    train, test = (
        library.CifarLoader(str(folder), train=True, batch_size=1024, aug=own["aug"], altflip=True),
        library.CifarLoader(str(folder), train=False, batch_size=2000),
    )
    last: list[Any] = []

    def run() -> None:
        # It reads its test images whenever it trains, though it looks at none of them by then.
        with mock.patch.object(inside, "CifarLoader", return_value=test):
            last[:] = [library.train94(train, verbose=False)]

    return Side(run, lambda: {"top1": library.evaluate(last[0], test, tta_level=_VIEWS)})


def _as_it_reads(data: ArrayDataset) -> dict[str, Any]:
    pixels = data.pixels.permute(0, 2, 3, 1).contiguous()
    return {"images": pixels, "labels": data.labels, "classes": list(data.classes)}
