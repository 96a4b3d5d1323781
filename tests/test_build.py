"""From configuration to objects: what is bound, what is passed, what is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import nn, optim

from cnnctl import binding, build, compose
from cnnctl.backbones.base import Backbone
from cnnctl.data.augmentations.standard import Standard
from cnnctl.data.digits import Digits
from cnnctl.engine.schedules import MultiStep
from cnnctl.errors import Exit, UserError
from cnnctl.models.lenet import LeNet


def composed(*overrides: str) -> DictConfig:
    return compose.settings(compose.compose("train", list(overrides)))


def test_the_default_run_from_the_parts():
    config = composed()
    data = build.dataset(config, "train")
    augmentation = build.augmentation(config, data)
    model = build.model(config, data, augmentation.size)
    assert isinstance(data, Digits)
    assert isinstance(augmentation, Standard)
    assert isinstance(model, LeNet)
    assert augmentation.size == (32, 32)
    assert model.classifier[-1].out_features == 10
    optimizer = build.optimizer(config)(model.parameters())
    assert isinstance(optimizer, optim.SGD)
    assert optimizer.param_groups[0]["nesterov"] is True


def test_facts_of_the_data_reach_the_model():
    """Three channels and a hundred classes, known without reading CIFAR-100."""
    config = composed("data=cifar100", "model=resnet20", "data.root=/nowhere")
    facts = build.facts(config)
    assert facts is build.target(config, "data")
    model = build.model(config, facts, (32, 32))
    first = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    assert (first.in_channels, last.out_features) == (3, 100)


def test_facts_win_over_the_configuration():
    config = composed("+model.num_classes=12")
    with pytest.raises(UserError, match=r"model\.num_classes: is a fact of the data \(10\)"):
        build.model(config, Digits, (32, 32))


def test_lists_become_tuples_where_tuples_are_wanted():
    schedule = build.schedule(composed("schedule=multistep", "schedule.milestones=[3,5]"))
    assert isinstance(schedule, MultiStep)
    assert schedule.milestones == (3, 5)


def test_pretrained_weights_are_not_fetched_for_a_checkpoint():
    config = composed("model=resnet18", "backbone.weights=IMAGENET1K_V1")
    data = SimpleNamespace(classes="abc", channels=3, mean=(0.5,) * 3, std=(0.2,) * 3)
    resumed = build.model(config, data, (64, 64), fetch=False).get_submodule("backbone")
    assert isinstance(resumed, Backbone)
    assert resumed.published, "as when it was new"
    assert config.backbone.weights == "IMAGENET1K_V1"
    assert build.without_pretrained_weights(config).backbone.weights is None
    drawn = build.model(config, data, (64, 64)).get_submodule("backbone")
    assert isinstance(drawn, Backbone)
    assert not drawn.published


def test_check_reads_no_data(monkeypatch):
    def refuse(*_):
        raise AssertionError("read before it was asked for")

    for name in ("dataset", "model", "augmentation"):
        monkeypatch.setattr(build, name, refuse)
    build.check(composed("data=cifar10"), {})


@pytest.mark.parametrize(
    "group",
    ["task", "model", "backbone", "data", "augmentation", "optimizer", "schedule", "trainer"],
)
def test_a_group_that_is_left_out_is_named(group):
    config = composed()
    with open_dict(config):
        del config[group]
    with pytest.raises(UserError, match="is left out, and nothing runs without it") as raised:
        build.check(config, {})
    assert raised.value.field == group
    assert f"{group}=..." in str(raised.value.advice)


MINE = """
from torch import nn
from cnnctl.models.base import ClassificationModel

class Mine(ClassificationModel):
    def __init__(self, in_channels: int, num_classes: int, size: tuple[int, int], width: int = 8):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(in_channels * size[0] * size[1], width),
                                 nn.ReLU(), nn.Linear(width, num_classes))

    def forward(self, pixels):
        return self.net(pixels)

def make(in_channels: int, num_classes: int, size: tuple[int, int]) -> Mine:
    return Mine(in_channels, num_classes, size)

def untyped(in_channels, num_classes, size):
    return Mine(in_channels, num_classes, size)
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_models.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(tmp_path))


def with_model(trust: list[str], **node: Any) -> DictConfig:
    plain = OmegaConf.to_container(composed())
    assert isinstance(plain, dict)
    config = OmegaConf.create({**plain, "model": node, "trust": trust})
    assert isinstance(config, DictConfig)
    return config


@pytest.mark.usefixtures("mine")
def test_a_module_of_ones_own_needs_trust():
    node = {"_target_": "my_models.Mine", "width": 4}
    with pytest.raises(UserError, match="may not be named here") as caught:
        build.check(with_model([], **node), {})
    assert "trust=[that_module]" in str(caught.value.advice)
    config = with_model(["my_models"], **node)
    build.check(config, {})
    assert build.model(config, Digits, (8, 8))(Digits("val").pixels[:2].float()).shape == (2, 10)
    build.check(with_model(["my_models"], _target_="my_models.make"), {})


@pytest.mark.usefixtures("mine")
@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"_target_": "my_models.untyped"}, 'is no Model'),
        ({"_target_": "my_models.nn.Linear"}, 'there is no'),
        ({"_target_": "my_models.nothing"}, 'there is no "my_models.nothing"'),
        ({"_target_": "my_models.Mine", "widht": 4}, "model.widht: unknown key"),
        ({"_target_": "my_models.Mine", "width": 4.5}, "model.width: must be a whole number"),
        ({"_target_": "my_models.Mine", "width": None}, "model.width: must be a whole number"),
        ({"_target_": "cnnctl.models.base.ClassificationModel"}, "is no Model"),
        ({}, "may not be named here"),
    ],
)  # fmt: skip
def test_what_a_model_may_not_be(node, message):
    with pytest.raises(UserError, match=message):
        build.check(with_model(["my_models"], **node), {})


def test_an_import_under_an_allowed_name_is_not_allowed():
    """What counts is the object, not the spelling of where it was found."""
    for name in ("cnnctl.models.classifier.Backbone", "cnnctl.models.lenet.nn.Linear"):
        with pytest.raises(UserError) as caught:
            build.check(with_model([], _target_=name), {})
        assert caught.value.code == Exit.CONFIG


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (3, int, 3),
        (3, float, 3.0),
        (None, int | None, None),
        ("a", Literal["a", "b"], "a"),
        ([1, 2], tuple[int, ...], (1, 2)),
        ([1, 2], tuple[int, int], (1, 2)),
        ([1, 2], list[float], [1.0, 2.0]),
        ([0.25, 1], tuple[float, float] | None, (0.25, 1.0)),
        (True, bool, True),
        ("x", Any, "x"),
    ],
)
def test_values_that_fit(value, hint, expected):
    found = binding.typed(value, hint, "key")
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("value", "hint", "words"),
    [
        (3.0, int, "a whole number"),
        (True, int, "a whole number"),
        (True, float, "a number"),
        ("3", float, "a number"),
        (None, int, "a whole number"),
        (1, bool, "true or false"),
        (1, str, "text"),
        ("c", Literal["a", "b"], "one of a, b"),
        ([1], tuple[int, int], "[a whole number, a whole number]"),
        (["a"], list[int], "a list, each a whole number"),
        (3, tuple[int, ...], "a list, each a whole number"),
        ("x", int | None, "a whole number or null"),
        (float("nan"), float, "a finite number"),
        (float("-inf"), Any, "a finite number"),
    ],
)
def test_values_that_do_not(value, hint, words):
    with pytest.raises(UserError) as caught:
        binding.typed(value, hint, "group.key")
    assert str(caught.value).startswith(f"group.key: must be {words}, not ")
