"""Composition: which line wins, where a run goes, what a checkpoint's configuration may become."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from cnnctl import build, compose
from cnnctl.errors import UserError


def composed(*overrides: str):
    return compose.settings(compose.compose("train", list(overrides)))


def test_later_lines_win():
    """Groups, then the model, then the task, then the experiment, then debug, then the user."""
    assert composed().augmentation.size == 32  # LeNet's
    assert composed("model=mlp").augmentation.size is None  # the group's own
    assert composed("experiment=cifar10_resnet20").optimizer.lr == 0.1
    assert composed("experiment=cifar10_resnet20", "optimizer.lr=3").optimizer.lr == 3
    choices = compose.choices(compose.compose("train", ["experiment=cifar10_resnet20"]))
    assert (choices["model"], choices["data"]) == ("resnet20", "cifar10")
    choices = compose.choices(
        compose.compose("train", ["experiment=cifar10_resnet20", "data=digits"])
    )
    assert choices["data"] == "digits"
    for optimizer in compose.groups()["optimizer"]:  # all of them have the key
        config = compose.compose("train", [f"optimizer={optimizer}", "debug=overfit"])
        assert compose.settings(config).optimizer.weight_decay == 0
        build.check(compose.settings(config), compose.choices(config))
    config = composed("experiment=cifar10_resnet20", "debug=fast")
    assert (config.trainer.steps, config.trainer.batch_size) == (20, 128)


def test_the_task_names_its_augmentation():
    assert compose.choices(compose.compose("train", []))["augmentation"] == "classify"


def test_where_a_run_goes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = compose.run_dir(compose.compose("train", ["model=mlp"]))
    assert path.parent == tmp_path / "outputs" / "classify" / "mlp"
    assert len(path.name) == len("2026-01-31_12-00-00")
    path = compose.run_dir(compose.compose("train", ["outputs=/elsewhere"]))
    assert str(path).startswith("/elsewhere/classify/lenet/")
    assert list(tmp_path.iterdir()) == []


def test_groups_are_the_folders():
    groups = compose.groups()
    assert {"task", "model", "backbone", "data", "augmentation", "optimizer"} <= groups.keys()
    files = (compose.conf_dir() / "backbone").glob("*.yaml")
    assert groups["backbone"] == sorted(path.stem for path in files)
    assert {"none", "resnet18", "vgg16"} <= set(groups["backbone"])


def test_a_folder_of_ones_own(tmp_path):
    (tmp_path / "model").mkdir()
    own = tmp_path / "model" / "wide.yaml"
    own.write_text("# @package _global_\n# Wide\ndefaults:\n  - mlp\nmodel:\n  widths: [999]\n")
    config = compose.compose("train", ["model=wide"], str(tmp_path))
    assert compose.settings(config).model.widths == [999]
    assert compose.choices(config)["model"] == "wide"


def test_a_file_that_overrides_what_is_not_there(tmp_path):
    (tmp_path / "experiment").mkdir()
    own = "# @package _global_\n# Own\ndefaults:\n  - override /nothing: x\n"
    (tmp_path / "experiment" / "own.yaml").write_text(own)
    with pytest.raises(UserError, match="unknown key, in a configuration file") as caught:
        compose.compose("train", ["experiment=own"], str(tmp_path))
    assert caught.value.field == "nothing"


def test_override_of_a_checkpoints_configuration():
    plain = OmegaConf.to_container(composed("model=mlp", "optimizer.lr=0.3"))
    assert isinstance(plain, dict)
    plain = {str(key): value for key, value in plain.items()}
    same, chosen = compose.override(plain, [])
    assert (same, chosen) == (plain, {})
    config, chosen = compose.override(
        plain, ["trainer.epochs=7", "data=cifar10", "data.verify=false", "model.widths=[5]"]
    )
    assert chosen == {"data": "cifar10"}
    assert config.trainer.epochs == 7
    assert config.optimizer.lr == 0.3  # as it was
    assert config.data.verify is False
    assert config.model.widths == [5]
    assert plain["model"]["widths"] == [300, 100], "the given configuration is left alone"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.epoch=7", "trainer.epoch: unknown key"),
        ("nothing=7", "nothing: unknown key"),
        ("+trainer.x=7", "only key=value"),
        ("~trainer.epochs", "only key=value"),
        ("seed=1,2", "only key=value"),
        ("seed", "is not of the form key=value"),
        ("model=nothing", 'no model "nothing"'),
    ],
)
def test_overrides_that_make_no_sense(override, message):
    plain = OmegaConf.to_container(composed())
    assert isinstance(plain, dict)
    with pytest.raises(UserError, match=message.replace("+", r"\+")):
        compose.override({str(key): value for key, value in plain.items()}, [override])


def test_own_keys_and_those_for_the_checkpoint():
    line = ["checkpoint=x", "trainer.device=cpu", "split=val", "data=mnist", "hydra.run.dir=y"]
    mine, others = compose.split_own("eval", line)
    assert mine == ["checkpoint=x", "split=val", "hydra.run.dir=y"]
    assert others == ["trainer.device=cpu", "data=mnist"]
    known = ("seed",)
    mine, others = compose.split_own("predict", ["input=a", "top=3", "seed=1"], known=known)
    assert (mine, others) == (["input=a", "top=3"], ["seed=1"])
    with pytest.raises(UserError, match="checkpont: unknown key") as caught:
        compose.split_own("eval", ["checkpont=x"])
    assert 'did you mean "checkpoint"?' in str(caught.value.advice)


def test_flat():
    assert compose.flat({"a": {"b": 1, "c": [2, 3]}, "d": None}) == [
        ("a.b", 1),
        ("a.c[0]", 2),
        ("a.c[1]", 3),
        ("d", None),
    ]
