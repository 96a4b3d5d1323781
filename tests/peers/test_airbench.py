"""The author's package, in whose place one stands here that only counts: it needs a GPU."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from cnnctl.data.base import ArrayDataset
from cnnctl.peers import airbench


@pytest.fixture
def package(monkeypatch) -> Any:
    """``airbench`` 0.1.8 as far as a peer uses it: its training makes a loader of test images."""
    made: list[str] = []

    class CifarLoader:
        def __init__(self, path: str, train: bool = True, **settings: Any) -> None:
            made.append(f"{path}, {train}")
            self.labels = torch.load(f"{path}/{'train' if train else 'test'}.pt")["labels"]

    library, utils, own = (
        ModuleType(f"airbench{end}") for end in ("", ".utils", ".lib_airbench94")
    )
    utils.CifarLoader = library.CifarLoader = CifarLoader  # pyright: ignore
    own.hyp = {"aug": {"flip": True}}  # pyright: ignore

    def train94(loader: Any, verbose: bool) -> Any:
        return loader.labels.sum(), utils.CifarLoader("cifar10", train=False).labels.sum()

    library.train94 = train94  # pyright: ignore
    library.evaluate = lambda model, test, tta_level: float(model[1] == test.labels.sum())  # pyright: ignore
    for module in (library, utils, own):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    library.made = made  # pyright: ignore
    return library


def test_no_loader_is_made_while_the_clock_runs(package, tmp_path):
    train, test = (ArrayDataset(torch.zeros(n, 3, 32, 32), torch.arange(n)) for n in (5, 3))
    train.classes = test.classes = ("a", "b")
    job: Any = SimpleNamespace(asked=SimpleNamespace(folder=tmp_path), train=train, test=test)
    side = airbench.side(job)
    assert package.made == [f"{tmp_path}/cifar10, True", f"{tmp_path}/cifar10, False"]
    for _ in range(2):
        side.run()
    assert len(package.made) == 2
    assert side.figures() == {"top1": 1.0}
