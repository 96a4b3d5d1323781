"""``cnnctl info`` for every model in conf/, without any data on the disk."""

from __future__ import annotations

import functools
import re
from typing import Any

import pytest
import torch

from cnnctl import build, compose
from cnnctl.commands import info
from cnnctl.engine.layers import Layers, Row
from cnnctl.errors import Exit, UserError

MODELS = compose.groups()["model"]


def shown(capsys, *overrides: str) -> str:
    config = compose.compose("train", list(overrides))
    info.run(compose.settings(config), compose.choices(config))
    return capsys.readouterr().out


@functools.cache
def of_task(task: str) -> tuple[str, tuple[str, ...], Any, tuple[str, ...]]:
    """Its data, its fields, what the data is like, and what makes that quick to be drawn."""
    config = compose.compose("train", [f"task={task}"])
    few = ("data.train_images=8",) if "train_images" in config.data else ()
    settings = compose.settings(compose.compose("train", [f"task={task}", *few]))
    fields = tuple(build.task(settings).fields)
    return compose.choices(config)["data"], fields, build.facts(settings), few


@pytest.mark.parametrize("model", MODELS)
def test_every_model(model, tasks_of, stands_for, capsys, monkeypatch, tmp_path):
    if model != stands_for(model):
        pytest.skip(f"as {stands_for(model)}, with other numbers: under slow")
    tells(model, tasks_of(model), capsys, monkeypatch, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("model", [name for name in MODELS if not name.endswith(("110", "1202"))])
def test_every_other_model(model, tasks_of, stands_for, capsys, monkeypatch, tmp_path):
    if model == stands_for(model):
        pytest.skip("told in the default run")
    tells(model, tasks_of(model), capsys, monkeypatch, tmp_path)


def tells(model: str, tasks: list[str], capsys, monkeypatch, tmp_path) -> None:
    """For each task that it does, on that task's own data."""
    monkeypatch.setenv("CNNCTL_DATA", str(tmp_path / "absent"))
    build_model = build.model

    def without_memory(*arguments):
        with torch.device("meta"):
            return build_model(*arguments)

    def without_drawing(*arguments):
        """Nothing that is told depends on the numbers of the weights."""
        with monkeypatch.context() as patch:
            for draw in ("normal_", "uniform_"):
                patch.setattr(torch.Tensor, draw, lambda weights, *_, **__: weights.zero_())
            return build_model(*arguments)

    for task in tasks:
        own, fields, data, few = of_task(task)
        with monkeypatch.context() as patch:
            # How many boxes there are depends on the pixels.
            boxes = {"boxes", "points"} & set(fields)
            patch.setattr(build, "model", without_drawing if boxes else without_memory)
            out = shown(capsys, f"task={task}", f"model={model}", *few)
        assert f"{model} on {own}: {data.channels} x " in out
        assert f"pixels -> {len(data.classes)} classes" in out
        assert "1 multiply-add = 2 FLOPs" in out
        if fields == ("label",):
            # The last layer of every one that has layers: nearest neighbours have none.
            assert "whole image" in out or "parameters   0 (0)" in out


def test_resnet20_on_cifar10(capsys):
    lines = shown(capsys, "model=resnet20", "data=cifar10").splitlines()
    assert lines[0].strip() == "resnet20 on cifar10: 3 x 32 x 32 pixels -> 10 classes"
    rows = {line.split()[0]: line.split()[1:] for line in lines if line.strip()}
    assert " ".join(rows["conv1"]) == "Conv2d 16 x 32 x 32 3 1 1 432 885 k 3"
    assert " ".join(rows["layer3.2.conv2"]) == "Conv2d 64 x 8 x 8 3 1 1 36,864 4.72 M 81"
    assert rows["parameters"] == ["269,722", "(270", "k)"]
    assert rows["FLOPs"][:2] == ["81.1", "M"]
    assert "40.6 M multiply-adds" in "\n".join(lines)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("model=resnet20", "model.depth=21"), r"model: depth must be 6n \+ 2 .*, got 21"),
        (("model=resnet18", "augmentation.size=16"), "ResNet needs images of at least 32 x 32"),
        (("model=lenet", "augmentation.size=28"), "LeNet-5 needs images of at least 32 x 32"),
        (("model=lenet", "backbone=resnet18"), "model=lenet takes no backbone"),
    ],
)
def test_refuses_in_one_sentence(overrides, message, capsys):
    with pytest.raises(UserError) as caught:
        shown(capsys, *overrides)
    assert re.search(message, str(caught.value))
    assert caught.value.code == Exit.CONFIG


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (999, "999"),
        (999_600, "1 M"),
        (1000, "1 k"),
        (40_551_040, "40.6 M"),
        (1.814e9, "1.81 G"),
        (2.5e12, "2.5 T"),
    ],
)
def test_scaled(count, text):
    assert info.scaled(count) == text


def test_windows_that_are_not_square():
    row = Row("conv", "Conv2d", (4, 7, 9), (3, 5), (1, 1), (0, 2), 60, 0, (3, 5))
    printed = info.table(Layers([row], 60, 0, 0), "title")
    cells = [next(iter(column.cells)) for column in printed.columns]
    assert cells == ["conv", "Conv2d", "4 x 7 x 9", "3 x 5", "1", "0 x 2", "60", "", "3 x 5"]
