"""Every classifier slides: at its training size the score map is its scores."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from cnnctl import compose
from cnnctl.backbones.resnet import ResNet
from cnnctl.models import base
from cnnctl.models.base import ClassificationModel, FitStage

CONF, MODELS = compose.conf_dir() / "model", Path(base.__file__).parent
OPTIONS = compose.groups()["model"]
SIDES = (32, 64, 75, 96, 203, 224, 299)  # of the input: the first that a network takes
LARGE = 15e6  # parameters; larger ones under `slow`


def named(option: str) -> tuple[Any, dict[str, Any]]:
    """The class of an option and its own numbers; composed only where its file is not enough."""
    node = yaml.safe_load((CONF / f"{option}.yaml").read_text())
    node = dict(node.get("model", node))
    if "_target_" not in node:
        node = compose.settings(compose.compose("train", [f"model={option}"])).model
        node = {str(key): value for key, value in node.items()}
    module, _, name = node.pop("_target_").rpartition(".")
    return getattr(importlib.import_module(module), name), node


def classifier(option: str) -> tuple[ClassificationModel, int]:
    cls, _ = named(option)
    if not (isinstance(cls, type) and issubclass(cls, ClassificationModel)):
        pytest.skip("no classifier")
    return on_meta(option)


def built(option: str, side: int) -> ClassificationModel:
    cls, values = named(option)
    accepted = inspect.signature(cls).parameters
    parts = {"in_channels": 3, "num_classes": 7, "size": (side, side), "classes": tuple("abcdefg")}
    parts |= {"mean": (0.5,) * 3, "std": (0.25,) * 3}
    parts |= {"backbone": ResNet(18, small_input=True)} if "backbone" in accepted else {}
    values |= {"auxiliary": 0} if "auxiliary" in accepted else {}  # heads that need larger images
    torch.manual_seed(0)
    model = cls(**values, **{name: part for name, part in parts.items() if name in accepted})
    model.trained_shape = (3, side, side)
    return model


def on_meta(option: str) -> tuple[ClassificationModel, int]:
    """An option at the smallest size that it takes, without numbers."""
    for side in SIDES:
        try:
            with torch.device("meta"):
                return built(option, side), side
        except ValueError:
            continue
    raise AssertionError(f"{option} takes none of {SIDES}")


def slides(option: str, side: int) -> None:
    """Scores of two images at the training size, and of a larger one."""
    model = built(option, side).eval().double()  # untrained, the deepest overflow single precision
    pixels = torch.rand(2, 3, side, side, dtype=torch.float64)
    with torch.no_grad():
        scores, places = model(pixels), model.score_map(pixels)
        assert places.shape == (2, 7, 1, 1)
        scale = scores.abs().max()  # of some untrained networks all scores are tiny
        torch.testing.assert_close(places[..., 0, 0] / scale, scores / scale)
        larger = model.score_map(torch.rand(1, 3, side + 32, side + 32, dtype=torch.float64))
    assert larger.shape[:2] == (1, 7)
    assert min(larger.shape[2:]) > 1


def is_fitted(model: ClassificationModel) -> bool:
    """Solved or remembered, no network."""
    return isinstance(model.stages()[0], FitStage)


@pytest.mark.parametrize("option", [name for name in OPTIONS if (MODELS / f"{name}.py").exists()])
def test_every_classifier_slides(option):
    model, side = classifier(option)
    if sum(p.numel() for p in model.parameters()) > LARGE:
        pytest.skip("large: under slow")
    if not is_fitted(model):
        slides(option, side)
        return
    with pytest.raises(ValueError, match="it has no"):
        model.score_map(torch.zeros(1, 3, side, side))


@pytest.mark.slow
@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_slides(option):
    model, side = classifier(option)
    if not is_fitted(model):
        slides(option, side)
