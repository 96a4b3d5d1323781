"""What every option in conf/ must do. A new YAML is tested by being there."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from omegaconf import DictConfig, OmegaConf
from torchvision.ops import StochasticDepth

from cnnctl import build, compose
from cnnctl.commands import eval as evaluation
from cnnctl.data.augmentations.base import Augmentation
from cnnctl.data.base import ArrayDataset, Dataset
from cnnctl.data.digit_points import SKELETON
from cnnctl.data.proposals.sliding_windows import SlidingWindows
from cnnctl.data.proposed import proposed
from cnnctl.engine import checkpoint
from cnnctl.engine.averaging import weights
from cnnctl.engine.checkpoint import Checkpoints
from cnnctl.engine.distributed import Processes
from cnnctl.engine.machine import Machine
from cnnctl.engine.trainer import Trainer, parameter_groups
from cnnctl.errors import Exit, UserError
from cnnctl.models.base import FitStage, Model, Stage
from cnnctl.structures import NO_BOX, Batch, Images

CONF = compose.conf_dir()
GROUPS = compose.groups()
FILES = sorted(CONF.rglob("*.yaml"))
CPU = torch.device("cpu")
LARGE = 400  # modules; a network with more is trained under `slow`, and here only shaped
COSTLY = 1e11  # parameters times pixels of an image, likewise
SMALL = (
    *("trainer.steps=2", "trainer.batch_size=16", "trainer.log_every=1"),
    *("trainer.evaluate_every_steps=2", "trainer.tensorboard=false", "trainer.threads=1"),
    "trainer.test=false",
)


# A detector has 13 million weights, and each of an optimizer's moments as many in a checkpoint.
NO_MOMENTS = ("optimizer=sgd", "optimizer.momentum=0", "optimizer.nesterov=false")
HOLDING = {"masks": "bits"}  # columns of a sample that are not called as their field is
LIGHTEST = ("classify", "segment", "detect", "pose", "instance")  # all tasks, by their networks
# Of the tasks' own data, where that is drawn at the start: enough for a few steps.
FEW = {"digit_scenes": ("train_images", "val_images", "test_images")}


def own_data(task: str) -> list[str]:
    """``data=`` of the task's own, and as few images as will do."""
    name = compose.choices(compose.compose("train", [f"task={task}"]))["data"]
    return [f"data={name}", *(f"data.{key}=8" for key in FEW.get(name, ()))]


def options(*groups: str) -> list[tuple[str, str]]:
    return [(group, name) for group in groups for name in GROUPS[group] if name != "none"]


@functools.cache
def composed(*overrides: str) -> tuple[DictConfig, dict[str, str]]:
    config = compose.compose("train", list(overrides))
    settings, chosen = compose.settings(config), compose.choices(config)
    build.check(settings, chosen)
    return settings, chosen


@functools.cache
def few(task: str) -> Dataset:
    """Enough of the task's own data for a batch: resizing all of it to 224 would take its time."""
    data = build.dataset(composed(f"task={task}", *own_data(task))[0], "train")
    if isinstance(data, ArrayDataset):
        whole = len(data)
        for name, value in list(vars(data).items()):
            if isinstance(value, torch.Tensor) and value.ndim and len(value) == whole:
                setattr(data, name, value[:16])
    return data


def built(config: DictConfig, data: Any) -> tuple[Any, tuple[int, int]]:
    """The model for the data, and the size of its input."""
    size = build.augmentation(config, data).size
    torch.manual_seed(0)
    return build.model(config, data, size), size


def some(config: DictConfig, data: Dataset, count: int) -> Batch:
    """An augmented training batch, as the loop gets it; with some proposals where it has any."""
    if build.proposals(config) is not None:
        data = proposed(data, SlidingWindows(count=200))
    trainer = dataclasses.replace(build.trainer(config), workers=0, batch_size=count)
    machine = Machine(CPU, torch.float32, channels_last=True)
    loader = trainer.load(data, build.augmentation(config, data), machine, Processes(), 0)
    return next(iter(loader.train(0, 1, count, 0)))


def is_large(config: DictConfig, task: str) -> bool:
    data = few(task)  # read on the CPU
    with torch.device("meta"):
        model, (h, w) = built(config, data)
    weights = sum(parameter.numel() for parameter in model.parameters())
    return sum(1 for _ in model.modules()) > LARGE or weights * h * w > COSTLY


def trained_unless(
    left_to_slow: bool, model: str, first: str, tasks: list[str], folder: Path
) -> None:
    if left_to_slow and model != first:
        pytest.skip(f"of the class of {first}: trained under slow")
    for task in tasks:
        config, _ = composed(f"task={task}", f"model={model}")
        if (model != first or is_large(config, task)) == left_to_slow:
            pytest.skip("large: trained under slow" if left_to_slow else "in the default run")
        trains_predicts_and_comes_back(config, few(task), folder / task)


@pytest.mark.parametrize("model", GROUPS["model"])
def test_every_model_trains_predicts_and_comes_back(model, tasks_of, stands_for, tmp_path):
    trained_unless(True, model, stands_for(model), tasks_of(model), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("model", GROUPS["model"])
def test_every_other_model_does_so_too(model, tasks_of, stands_for, tmp_path):
    trained_unless(False, model, stands_for(model), tasks_of(model), tmp_path)


BACKBONES = sorted((name for _, name in options("backbone")), key=lambda name: (len(name), name))


@functools.cache
def classifier_on(backbone: str) -> DictConfig:
    return composed("model=classifier", f"backbone={backbone}", "augmentation.size=64")[0]


@functools.cache
def made_of(backbone: str) -> tuple[str, frozenset[type]]:
    """Its class and those of its layers: ResNet-18 and 34 are alike, 50 has other blocks."""
    data = few("classify")
    with torch.device("meta"):
        model, _ = built(classifier_on(backbone), data)
    return target_of("backbone", backbone), frozenset(map(type, model.modules()))


def serves_a_classifier_unless(left_to_slow: bool, backbone: str, folder: Path) -> None:
    config = classifier_on(backbone)
    first = next(name for name in BACKBONES if made_of(name) == made_of(backbone))
    if (backbone != first or is_large(config, "classify")) == left_to_slow:
        here = f"large, or of the same layers as {first}: under slow"
        pytest.skip(here if left_to_slow else "trained in the default run")
    trains_predicts_and_comes_back(config, few("classify"), folder)


def test_all_tasks_are_in_order():
    assert sorted(LIGHTEST) == sorted(GROUPS["task"])


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_backbone_serves_a_classifier(backbone, tmp_path):
    serves_a_classifier_unless(True, backbone, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_other_backbone_does_so_too(backbone, tmp_path):
    serves_a_classifier_unless(False, backbone, tmp_path)


def takes_a_step(model: Model, stage: Stage, batch: Batch, config: DictConfig) -> None:
    """Every parameter of the stage gets a gradient, and its weights change."""
    if isinstance(stage, FitStage):
        model.eval()
        with torch.no_grad():
            stage.fit(iter([batch]))
        return
    model.train()
    for layer in model.modules():
        if isinstance(layer, StochasticDepth):  # two images may leave out the same block
            layer.p = 0.0
    named = {id(p): name for name, p in model.named_parameters()}
    trained = list(stage.params())
    before = [p.detach().clone() for p in trained]
    quiet: list[str] = []
    view = stage.view(batch)
    model.zero_grad(set_to_none=True)
    losses = stage.loss(view.images, view.targets)
    assert losses
    assert all(loss.isfinite() and loss.dim() == 0 for loss in losses.values())
    torch.stack(list(losses.values())).sum().backward()
    for parameter in trained:
        assert parameter.grad is not None, named[id(parameter)]
        if not parameter.grad.any():
            quiet.append(named[id(parameter)])
    # A map of a detector has nothing to learn where no object is of its size.
    assert len(quiet) <= (len(trained) // 2 if batch.targets.boxes is not None else 0), quiet
    torch.nn.utils.clip_grad_norm_(trained, 1.0)  # deep plain networks explode
    build.optimizer(config)(parameter_groups(trained, False)).step()
    assert any(not torch.equal(p, old) for p, old in zip(trained, before, strict=True))


def trains_predicts_and_comes_back(config: DictConfig, data: Dataset, folder: Path) -> None:
    model, size = built(config, data)
    machine = Machine(CPU, torch.float32, channels_last=True)
    machine.place(model)
    names = model.state_dict().keys()
    batch = some(config, data, 2)
    assert model.stages()
    for stage in model.stages():
        takes_a_step(model, stage, batch, config)

    model.eval()
    with torch.inference_mode():
        expected = columns(model.predict(batch.images), 2)
        for one in range(2):
            single = batch.rows(slice(one, one + 1)).images
            found = columns(model.predict(single), 1)
            if "boxes" in found:
                same_detections(found, expected, one)
                continue
            for name, column in found.items():
                together = expected[name][one : one + 1]
                if column.is_floating_point():
                    torch.testing.assert_close(column, together, rtol=1e-4, atol=1e-5)
                else:  # classes: of an untrained network two may be equally likely
                    assert (column != together).float().mean() <= 1e-3

    state = {
        **dict.fromkeys(checkpoint.HOLDS),
        "format": checkpoint.FORMAT,
        "config": OmegaConf.to_container(config),
        "model": model.state_dict(),
        "progress": {"total_steps": 1},
    }
    folder.mkdir(exist_ok=True)
    Checkpoints(folder).save(state, metric=None, best=True, keep=False)
    read = checkpoint.read(checkpoint.find(folder))
    assert weights(read).keys() == names
    own = OmegaConf.create(read["config"])
    assert isinstance(own, DictConfig)
    again = evaluation.load(own, read, data, size)
    machine.place(again)
    again.eval()
    with torch.inference_mode():
        found = columns(again.predict(batch.images), 2)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def same_detections(alone: dict[str, Any], together: dict[str, Any], row: int) -> None:
    """Of one image, alone and in a batch, whose rows may be filled up with no boxes.

    An untrained network finds many boxes nearly equally likely: which of them are kept may change,
    their scores may not. Boxes are compared in the models' own tests.
    """
    count = alone["labels"].shape[1]
    for name in ("boxes", "labels"):
        assert (together[name][row, count:] == NO_BOX[name]).all()
    torch.testing.assert_close(
        alone["scores"][0], together["scores"][row, :count], rtol=1e-3, atol=1e-4
    )


def columns(predictions: Any, count: int) -> dict[str, Any]:
    """The columns that a model fills, tensors or lists: a row for each image."""
    filled = {n: c for n, c in vars(predictions).items() if c is not None and len(c)}
    assert filled, "a model predicts something"
    assert {name: len(column) for name, column in filled.items()} == dict.fromkeys(filled, count)
    return filled


@pytest.mark.parametrize("model", GROUPS["model"])
def test_every_model_has_its_shape_without_memory(model, tasks_of):
    """On torch's meta device, for colour and a hundred classes: what CIFAR-100 needs."""
    hundred = tuple(str(number) for number in range(100))
    data = SimpleNamespace(
        **{"classes": hundred, "channels": 3, "size": (32, 32), "mirror": True},
        **{"mean": (0.5,) * 3, "std": (0.25,) * 3, "skeleton": SKELETON},
    )
    for name in tasks_of(model):
        data.size = (32, 32) if name == "classify" else (64, 64)
        config, _ = composed(f"task={name}", f"model={model}")
        with torch.device("meta"):
            net, size = built(config, data)
            assert all(value.is_meta for value in net.state_dict().values())
            if {"boxes", "masks"} & set(build.task(config).fields):
                continue  # how many boxes there are depends on the pixels
            pixels = torch.zeros(2, 3, *size)
            if "mask" in build.task(config).fields:
                assert net.eval()(pixels).shape == (2, len(hundred), *size)
                continue
            found = columns(net.eval().predict(Images(pixels, [size] * 2, [size] * 2)), 2)
        for column in found.values():  # (N, K)
            assert column.shape[1] == len(hundred)


def tasks_of_data(name: str) -> list[str]:
    """The tasks whose truth a data set holds."""
    cls = build.target(compose.settings(compose.compose("train", [f"data={name}"])), "data")
    assert isinstance(cls, type)
    assert issubclass(cls, Dataset)
    found = []
    for task in GROUPS["task"]:
        with contextlib.suppress(UserError):
            cls.serving(build.task(composed(f"task={task}")[0]).fields)
            found.append(task)
    return found


@pytest.mark.parametrize("data", GROUPS["data"])
def test_every_data_set_composes_and_says_what_is_missing(data, tmp_path):
    tasks = tasks_of_data(data)
    assert tasks, "fits no task"
    for task in tasks:
        says_what_is_missing(data, task, tmp_path)


def says_what_is_missing(data: str, task: str, tmp_path: Path) -> None:
    own = [f"task={task}", f"data={data}", f"data.root={tmp_path / 'nothing'}"]
    own += [f"data.{key}=8" for key in FEW.get(data, ())]
    config, chosen = composed(*own)
    assert chosen["data"] == data
    assert build.target(config, "data").option() == data
    cls = build.data_class(config)
    if cls.option() != data:  # another option serves this task under its name
        return
    if cls.home(config.data.root) is None:  # it comes with a package
        for split in ("train", "val", "test"):
            part = build.dataset(config, split)
            assert len(part) > 0
            assert part.fingerprint() == build.dataset(config, split).fingerprint()
            assert len(part.mean) == len(part.std) == part.channels == part[0][0].shape[0]
            held = {HOLDING.get(field, field) for field in build.task(config).fields}
            assert held <= part[0][1].keys()
        return
    with pytest.raises(UserError) as caught:
        build.dataset(config, "train")
    assert caught.value.code == Exit.DATA
    assert str(tmp_path / "nothing") in f"{caught.value} {caught.value.advice}"
    assert caught.value.advice


def tasks_of_augmentation(name: str) -> list[str]:
    """The tasks whose batches it can make; in the lightest the task's own network takes a step."""
    fitting, reasons = [], []
    for task in LIGHTEST:
        try:
            config, _ = composed(f"task={task}", f"augmentation={name}")
            batch = some(config, few(task), 2)
            fields = build.task(config).fields
            assert all(getattr(batch.targets, field) is not None for field in fields)
        except Exception as error:  # any at all: it says why the task is not one of its own
            reasons.append(f"{task}: {error!r}")
        else:
            if not fitting:
                model, _ = built(config, few(task))
                takes_a_step(model, model.stages()[0], batch, config)
            fitting.append(task)
    assert fitting, f"augmentation={name} fits no task: {reasons}"
    return fitting


def task_of_option(group: str, name: str) -> str:
    """The task to run an option with."""
    if group == "experiment":
        return compose.choices(compose.compose("train", [f"experiment={name}"]))["task"]
    if group == "augmentation":
        return tasks_of_augmentation(name)[0]
    return composed()[1]["task"]


@pytest.mark.parametrize(
    ("group", "name"), options("augmentation", "optimizer", "schedule", "debug")
)
def test_every_option_runs_and_resumes(group, name, command, tmp_path):
    if group == "augmentation":
        # One that is another by its task's name is seen there; large networks take their time.
        tasks = tasks_of_augmentation(name)
        if not target_of(group, name) or "classify" not in tasks:
            return
    runs_and_resumes(group, name, command, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for _, name in options("augmentation")])
def test_every_augmentation_of_a_dense_task_does_so_too(name, command, tmp_path):
    if "classify" in tasks_of_augmentation(name):
        pytest.skip("run in the default run")
    runs_and_resumes("augmentation", name, command, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for _, name in options("experiment")])
def test_every_experiment_runs_and_resumes(name, command, tmp_path):
    """Its parts run in the default tests, here they do so together; its images may be large."""
    runs_and_resumes("experiment", name, command, tmp_path)


def without_its_data(experiment: str, task: str) -> list[str]:
    """Leaves out what an experiment sets of its own data and the task's own does not have, and
    mirror images in testing, which digits do not bear."""
    own = [f"task={task}", *own_data(task)]
    known = compose.settings(compose.compose("train", own)).data
    config = compose.compose("train", [*own, f"experiment={experiment}"])
    flip = ["task.flip=false"] if config.task.get("flip") else []
    return [*(f"~data.{key}" for key in config.data if key not in known), *flip]


def runs_and_resumes(group: str, name: str, command: Any, tmp_path: Path) -> None:
    """Two steps, an evaluation, a checkpoint; then one step more from there.

    With the task's own model and data; an experiment with its own of everything but the data.
    An augmentation does so for the lightest task that it fits.
    """
    run, task = tmp_path / "run", task_of_option(group, name)
    chosen = [f"task={task}", f"{group}={name}", *own_data(task), *SMALL]
    if group == "experiment" or task != "classify":  # large images, or a large network
        chosen[chosen.index("trainer.batch_size=16")] = "trainer.batch_size=4"
    if group == "augmentation":
        chosen += NO_MOMENTS
    if group == "experiment":
        chosen += without_its_data(name, task)
    assert command("train", f"hydra.run.dir={run}", *chosen) == 0
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
def test_a_task_overrides_only_what_no_model_does(name):
    """Were it to override more, it would silently win over its model."""
    file = CONF / "task" / f"{name}.yaml"
    assert overridden(file) <= {"model", "data", "optimizer"}
    assert values(file) <= {"task", "trainer"}
    trainer = yaml.safe_load(file.read_text()).get("trainer", {})
    assert set(trainer) <= {"batch_size", "epochs"}, "models set none of the trainer's values"
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
    above = ("backbone", "augmentation", "proposals")
    assert all(names.index(group) < names.index("model") for group in above)


def target_of(group: str, name: str) -> str:
    """What the file of an option names, if it does; composing it would take its time."""
    node = yaml.safe_load((CONF / group / f"{name}.yaml").read_text())
    return node.get(group, node).get("_target_", "")


def modules(folder: str) -> set[str]:
    """Stems of the modules that define something to be chosen; parts that several share do not."""
    package = Path(build.__file__).parent / folder
    found = set()
    for path in package.glob("*.py"):
        name = ".".join(("cnnctl", *folder.split("/"), path.stem))
        made = vars(importlib.import_module(name)).values()
        if path.stem != "base" and any(
            isinstance(cls, type)
            and issubclass(cls, (Model, Augmentation))
            and cls.__module__ == name
            and not inspect.isabstract(cls)
            for cls in made
        ):
            found.add(path.stem)
    return found


@pytest.mark.parametrize(
    ("group", "folder"), [("model", "models"), ("augmentation", "data/augmentations")]
)
def test_one_file_one_yaml_one_test(group, folder):
    for stem in modules(folder):
        assert stem in GROUPS[group], f"conf/{group}/{stem}.yaml is missing"
        assert target_of(group, stem).split(".")[-2] == stem
        test = Path(__file__).parent.parent / folder / f"test_{stem}.py"
        assert test.is_file(), f"{test} is missing"


@pytest.mark.parametrize(("group", "name"), options("data"))
def test_data_and_module_share_a_stem(group, name):
    assert target_of(group, name).split(".")[-2] == name


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
