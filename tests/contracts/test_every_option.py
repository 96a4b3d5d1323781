"""What every option in conf/ must do. A new YAML is tested by being there."""

from __future__ import annotations

import ast
import dataclasses
import functools
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from omegaconf import DictConfig, OmegaConf

from cnnctl import build, compose
from cnnctl.commands import eval as evaluation
from cnnctl.data.base import ArrayDataset
from cnnctl.data.loaders import ResidentLoader, Share
from cnnctl.engine import checkpoint
from cnnctl.engine.checkpoint import Checkpoints
from cnnctl.engine.loop import weights
from cnnctl.engine.machine import Machine
from cnnctl.engine.trainer import Trainer, parameter_groups
from cnnctl.errors import Exit, UserError
from cnnctl.structures import Batch, Images

CONF = compose.conf_dir()
GROUPS = compose.groups()
FILES = sorted(CONF.rglob("*.yaml"))
CPU = torch.device("cpu")
LARGE = 400  # modules; a network with more is trained under `slow`, and here only shaped
SMALL = ("trainer.steps=2", "trainer.batch_size=16", "trainer.log_every=1")


def options(*groups: str) -> list[tuple[str, str]]:
    return [(group, name) for group in groups for name in GROUPS[group] if name != "none"]


def composed(*overrides: str) -> tuple[DictConfig, dict[str, str]]:
    config = compose.compose("train", list(overrides))
    settings, chosen = compose.settings(config), compose.choices(config)
    build.check(settings, chosen)
    return settings, chosen


@functools.cache
def digits() -> Any:
    return build.dataset(composed()[0], "train")


def built(config: DictConfig) -> tuple[Any, tuple[int, int]]:
    """The model for the digits, and the size of its input."""
    size = build.augmentation(config, digits()).size
    torch.manual_seed(0)
    return build.model(config, digits(), size), size


def some(config: DictConfig, count: int) -> Batch:
    """An augmented training batch of the digits, as the loop gets it."""
    augmentation = build.augmentation(config, digits())
    loader = ResidentLoader(few_digits(), augmentation, CPU, 0, Share())
    return next(loader.train(0, 1, count, 0))


@functools.cache
def few_digits() -> ArrayDataset:
    """Enough for a batch: resizing all of them to 224 would take its time."""
    data = build.dataset(composed()[0], "train")
    assert isinstance(data, ArrayDataset)
    data.pixels, data.labels = data.pixels[:16], data.labels[:16]
    return data


def is_large(config: DictConfig) -> bool:
    digits()  # read on the CPU
    with torch.device("meta"):
        model, _ = built(config)
    return sum(1 for _ in model.modules()) > LARGE


@pytest.mark.parametrize("model", GROUPS["model"])
def test_every_model_trains_predicts_and_comes_back(model, tmp_path):
    config, _ = composed(f"model={model}")
    if is_large(config):
        pytest.skip("large: shaped below, trained under -m slow")
    trains_predicts_and_comes_back(config, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("model", GROUPS["model"])
def test_every_large_model_does_so_too(model, tmp_path):
    config, _ = composed(f"model={model}")
    if not is_large(config):
        pytest.skip("small: trained in the default run")
    trains_predicts_and_comes_back(config, tmp_path)


@pytest.mark.parametrize("backbone", [name for group, name in options("backbone")])
def test_every_backbone_serves_a_classifier(backbone, tmp_path):
    config, _ = composed("model=classifier", f"backbone={backbone}", "augmentation.size=64")
    trains_predicts_and_comes_back(config, tmp_path)


def trains_predicts_and_comes_back(config: DictConfig, folder: Path) -> None:
    model, size = built(config)
    machine = Machine(CPU, torch.float32, channels_last=True)
    machine.place(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batch = some(config, 2)
    model.train()
    optimizer = build.optimizer(config)(parameter_groups(list(model.parameters()), False))
    losses = model.loss(batch.images, batch.targets)
    assert losses
    assert all(loss.isfinite() and loss.dim() == 0 for loss in losses.values())
    torch.stack(list(losses.values())).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # deep plain networks explode
    optimizer.step()
    assert any(not torch.equal(p, before[n]) for n, p in model.named_parameters())

    model.eval()
    with torch.inference_mode():
        expected = model.predict(batch.images)
        for one in range(2):
            single = Images(batch.images.pixels[one : one + 1], [size], [size])
            for name, column in columns(model.predict(single)).items():
                together = columns(expected)[name][one : one + 1]
                torch.testing.assert_close(column, together, rtol=1e-4, atol=1e-5)

    state = {
        **dict.fromkeys(checkpoint.HOLDS),
        "format": checkpoint.FORMAT,
        "config": OmegaConf.to_container(config),
        "model": model.state_dict(),
        "progress": {"total_steps": 1},
    }
    Checkpoints(folder).save(state, metric=None, best=True, keep=False)
    read = checkpoint.read(checkpoint.find(folder))
    assert weights(read).keys() == before.keys()
    own = OmegaConf.create(read["config"])
    assert isinstance(own, DictConfig)
    again = evaluation.load(own, read, digits(), size)
    machine.place(again)
    again.eval()
    with torch.inference_mode():
        for name, column in columns(again.predict(batch.images)).items():
            assert torch.equal(column, columns(expected)[name]), name


def columns(predictions: Any) -> dict[str, torch.Tensor]:
    found = {name: column for name, column in vars(predictions).items() if column is not None}
    assert found, "a model predicts something"
    return found


@pytest.mark.parametrize("model", GROUPS["model"])
def test_every_model_has_its_shape_without_memory(model):
    """On torch's meta device, for colour and a hundred classes: what CIFAR-100 needs."""
    config, _ = composed(f"model={model}", "data=cifar100")
    data = build.target(config, "data")
    size = build.augmentation(config, data).size
    with torch.device("meta"):
        net = build.model(config, data, size).eval()
        log_probs = net.predict(Images(torch.zeros(2, 3, *size), [size] * 2, [size] * 2)).log_probs
    assert log_probs is not None
    assert log_probs.shape == (2, 100)


@pytest.mark.parametrize("data", GROUPS["data"])
def test_every_data_set_composes_and_says_what_is_missing(data, tmp_path):
    config, chosen = composed(f"data={data}", f"data.root={tmp_path / 'nothing'}")
    assert chosen["data"] == data
    cls = build.target(config, "data")
    assert cls.option() == data
    if cls.home(config.data.root) is None:  # it comes with a package
        for split in ("train", "val", "test"):
            part = build.dataset(config, split)
            assert len(part) > 0
            assert part.fingerprint() == build.dataset(config, split).fingerprint()
            assert len(part.mean) == len(part.std) == part.channels == part[0][0].shape[0]
        return
    with pytest.raises(UserError) as caught:
        build.dataset(config, "train")
    assert caught.value.code == Exit.DATA
    assert str(tmp_path / "nothing") in f"{caught.value} {caught.value.advice}"
    assert caught.value.advice


@pytest.mark.parametrize(
    ("group", "name"), options("augmentation", "optimizer", "schedule", "experiment", "debug")
)
def test_every_option_runs_and_resumes(group, name, train, command, tmp_path):
    """Two steps, an evaluation, a checkpoint; then one step more from there."""
    if group == "experiment":  # with the digits for its data, and its own of everything else
        chosen = [f"{group}={name}", "data=digits", *SMALL]
    else:
        chosen = [f"{group}={name}", *SMALL, "trainer.evaluate_every_steps=2"]
    chosen += ["trainer.eval_batch_size=500", "augmentation.size=null"] * (group == "augmentation")
    run = tmp_path / "run"
    settings = ["trainer.tensorboard=false", "trainer.threads=1", "trainer.test=false"]
    small = [] if group == "experiment" else ["model=mlp", "model.widths=[16]"]
    assert command("train", f"hydra.run.dir={run}", *small, *chosen, *settings) == 0
    state = checkpoint.read(run / "last.pt")
    assert state["choices"][group] == name
    assert state["progress"]["total_steps"] == 2
    assert all(value.isfinite().all() for value in state["model"].values())
    assert command("train", f"resume={run}", "trainer.steps=3") == 0
    assert checkpoint.read(run / "last.pt")["progress"]["total_steps"] == 3


# What the files look like.


@pytest.mark.parametrize("file", FILES, ids=lambda path: str(path.relative_to(CONF)))
def test_every_file_explains_itself(file):
    from cnnctl.help import explanation

    text = explanation(file)
    assert 3 < len(text) <= 110
    assert not text.endswith(".")
    first = file.read_text().splitlines()[0]
    assert first.startswith("# "), "the directive or the explanation is the first line"
    yaml.safe_load(file.read_text())


def targets(node: Any, path: str = "") -> list[str]:
    if isinstance(node, dict):
        found = [path] * ("_target_" in node)
        return found + [p for k, v in node.items() for p in targets(v, f"{path}.{k}")]
    if isinstance(node, list):
        return [p for item in node for p in targets(item, f"{path}[]")]
    return []


@pytest.mark.parametrize("file", FILES, ids=lambda path: str(path.relative_to(CONF)))
def test_targets_are_at_depth_one(file):
    text = file.read_text()
    node = yaml.safe_load(text) or {}
    allowed = "" if not text.startswith("# @package _global_") else f".{file.parent.name}"
    assert set(targets(node)) <= {allowed}


def overridden(file: Path) -> set[str]:
    """Groups that a file's defaults list overrides."""
    defaults = (yaml.safe_load(file.read_text()) or {}).get("defaults", [])
    lines = [next(iter(line)) for line in defaults if isinstance(line, dict)]
    return {name.removeprefix("override ").lstrip("/") for name in lines if "override" in name}


def values(file: Path) -> set[str]:
    return set(yaml.safe_load(file.read_text()) or {}) - {"defaults"}


@pytest.mark.parametrize("name", GROUPS["task"])
def test_a_task_overrides_only_model_and_data(name):
    """Were it to override more, it would silently win over its model."""
    file = CONF / "task" / f"{name}.yaml"
    assert overridden(file) <= {"model", "data"}
    assert values(file) == {"task"}
    assert name in GROUPS["augmentation"], "augmentation: ${task} needs one of its name"


@pytest.mark.parametrize("name", GROUPS["model"])
def test_a_model_leaves_the_recipe_alone(name):
    """Optimizer and schedule belong to experiments: model=x changes no learning rate."""
    file = CONF / "model" / f"{name}.yaml"
    assert values(file) <= {"model", "augmentation"}
    assert overridden(file) <= {"backbone", "augmentation", "proposals"}


def test_the_order_of_the_defaults():
    defaults = yaml.safe_load((CONF / "train.yaml").read_text())["defaults"]
    names = [next(iter(line)) for line in defaults if isinstance(line, dict)]
    assert names.index("model") < names.index("task") < names.index("experiment")
    assert all(names.index(group) < names.index("model") for group in ("backbone", "augmentation"))


def modules(folder: str) -> dict[str, Path]:
    """Stem -> module that defines a class with a docstring of its own, without the bases."""
    package = Path(build.__file__).parent / folder
    found = {}
    for path in package.glob("*.py"):
        tree = ast.parse(path.read_text())
        classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
        if classes and path.stem != "base":
            found[path.stem] = path
    return found


@pytest.mark.parametrize(
    ("group", "folder"), [("model", "models"), ("augmentation", "data/augmentations")]
)
def test_one_file_one_yaml_one_test(group, folder):
    for stem in modules(folder):
        assert stem in GROUPS[group], f"conf/{group}/{stem}.yaml is missing"
        config, _ = composed(f"{group}={stem}")
        assert config[group]._target_.split(".")[-2] == stem
        test = Path(__file__).parent.parent / folder / f"test_{stem}.py"
        assert test.is_file(), f"{test} is missing"


@pytest.mark.parametrize(("group", "name"), options("data"))
def test_data_and_module_share_a_stem(group, name):
    config, _ = composed(f"{group}={name}")
    assert config[group]._target_.split(".")[-2] == name


def test_the_trainers_keys_and_defaults():
    node = yaml.safe_load((CONF / "trainer" / "default.yaml").read_text())
    fields = {field.name: field.default for field in dataclasses.fields(Trainer)}
    assert {key: value for key, value in node.items() if key != "_target_"} == fields


def test_help_lists_every_option(capsys, command):
    assert command("train", "--help") == 0
    page = capsys.readouterr().out
    section = ""
    listed: dict[str, list[str]] = {}
    for line in page.splitlines():
        indent = len(line) - len(line.lstrip())
        if indent == 2:
            section = line.strip()
        elif indent == 4 and section in GROUPS:
            listed.setdefault(section, []).append(line.split()[0])
    assert listed == GROUPS
    for field in dataclasses.fields(Trainer):
        assert f"trainer.{field.name}=" in page
