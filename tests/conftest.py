"""Small real runs, in this process or in one of their own."""

from __future__ import annotations

import copy
import dataclasses
import functools
import gc
import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch; two cores are shared by many tests

from cnnctl import cli

# Twenty steps of a small network: three evaluations, seven points of the training curve.
TINY = (
    "model=mlp",
    "model.widths=[16]",
    "trainer.steps=20",
    "trainer.batch_size=64",
    "trainer.evaluate_every_steps=7",
    "trainer.log_every=3",
    "trainer.threads=1",
    "trainer.precision=fp32",
    "trainer.tensorboard=false",
    "trainer.test=false",
)

Train = Callable[..., int]
Cnnctl = Callable[..., subprocess.CompletedProcess[str]]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("filterwarnings", "ignore::DeprecationWarning:torch.*")


def pytest_collection_finish() -> None:
    """What was imported and collected stays: looking for garbage in it takes a quarter second."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """What is never looked at is never given back, which some libraries complain of at the end."""
    gc.unfreeze()


@pytest.fixture(autouse=True)
def process_as_it_was() -> Iterator[None]:
    """What a run in this process sets for the whole of it."""
    import torch

    signals = {number: signal.getsignal(number) for number in (1, 2, 15)}
    threads, run = torch.get_num_threads(), os.environ.get("CNNCTL_RUN")
    yield
    for number, handler in signals.items():
        signal.signal(number, handler)
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)
    if run is None:
        os.environ.pop("CNNCTL_RUN", None)
    else:
        os.environ["CNNCTL_RUN"] = run


class Once:
    """What Hydra makes of the project's files and of the chosen options alone is made once: it
    takes a tenth of a second. Values are then set, and complained of, by Hydra itself."""

    def __init__(self) -> None:
        from hydra._internal.config_loader_impl import ConfigLoaderImpl
        from hydra._internal.config_repository import ConfigRepository
        from hydra._internal.defaults_list import create_defaults_list

        from cnnctl import compose

        self.folder = str(compose.conf_dir().absolute())
        self.read, self.listed = ConfigRepository.load_config, create_defaults_list
        self.merged = ConfigLoaderImpl._compose_config_from_defaults_list
        self.files: dict[str, bytes] = {}
        self.lists: dict[tuple[str, ...], Any] = {}
        self.configs: dict[int, bytes] = {}  # by the list that they are of

    def is_own(self, repo: Any) -> bool:
        """No folder of a test's own is searched as well."""
        sources = repo.get_sources()
        return [s.path for s in sources if s.scheme() == "file"] == [self.folder]

    def load(self, repo: Any, config_path: str) -> Any:
        if not self.is_own(repo):
            return self.read(repo, config_path)
        if config_path not in self.files:
            self.files[config_path] = pickle.dumps(self.read(repo, config_path))
        return pickle.loads(self.files[config_path])

    def list(self, repo: Any, config_name: str, overrides_list: list[Any], **more: Any) -> Any:
        if not self.is_own(repo) or any(given.is_sweep_override() for given in overrides_list):
            return self.listed(repo, config_name, overrides_list, **more)
        values, options = [], []
        for given in overrides_list:
            option = repo.group_exists(given.key_or_group) and not isinstance(given.value(), dict)
            (options if option else values).append(given)
        key = (config_name, *(given.input_line for given in options))
        if key not in self.lists:
            self.lists[key] = self.listed(repo, config_name, options, **more)
            self.configs[id(self.lists[key].defaults)] = b""
        return dataclasses.replace(self.lists[key], config_overrides=values)

    def merge(self, loader: Any, defaults: Any, repo: Any) -> Any:
        if id(defaults) not in self.configs:
            return self.merged(loader, defaults, repo)
        if not self.configs[id(defaults)]:
            self.configs[id(defaults)] = pickle.dumps(self.merged(loader, defaults, repo))
        return pickle.loads(self.configs[id(defaults)])


@pytest.fixture(scope="session", autouse=True)
def composed_once() -> Iterator[None]:
    from hydra._internal import config_loader_impl as hydra
    from hydra._internal.config_repository import ConfigRepository

    once, name = Once(), "_compose_config_from_defaults_list"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ConfigRepository, "load_config", lambda *a, **named: once.load(*a, **named))
        patch.setattr(hydra, "create_defaults_list", once.list)
        patch.setattr(hydra.ConfigLoaderImpl, name, lambda *a, **named: once.merge(*a, **named))
        yield


@pytest.fixture(scope="session", autouse=True)
def scenes_drawn_once() -> Iterator[None]:
    """The same few scenes of digits are drawn once: it takes a fifth of a second each time."""
    from cnnctl.data import digit_scenes

    original, drawn = digit_scenes.draw_scenes, {}

    @functools.wraps(original)
    def draw_scenes(source, count, side, digits, scale, seed, split):
        key = (count, side, *digits, *scale, seed, split)
        if type(source) is not digit_scenes.Digits or count * side**2 > 2e6:
            return original(source, count, side, digits, scale, seed, split)
        if key not in drawn:
            drawn[key] = original(source, count, side, digits, scale, seed, split)
        return copy.deepcopy(drawn[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digit_scenes, "draw_scenes", draw_scenes)
        yield


def command(*arguments: str) -> int:
    """``cnnctl`` in this process -> its exit code."""
    with pytest.raises(SystemExit) as ended:
        cli.main(list(arguments))
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.fixture(scope="session", name="command")
def _command() -> Train:
    return command


@pytest.fixture(scope="session")
def train() -> Train:
    """(directory, overrides...) -> the exit code of a tiny run there, in this process."""

    def run(directory: Path, *overrides: str) -> int:
        own = [name.partition("=")[0] for name in overrides]
        defaults = [name for name in TINY if name.partition("=")[0] not in own]
        if "model" in own:  # other models have other keys
            defaults = [name for name in defaults if not name.startswith("model")]
        if "trainer.epochs" in own:
            defaults.remove("trainer.steps=20")
        return command("train", f"hydra.run.dir={directory}", *defaults, *overrides)

    return run


@pytest.fixture(scope="session")
def tiny() -> tuple[str, ...]:
    return TINY


@pytest.fixture(scope="session")
def trained(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a finished tiny run, scored on the test split. Not to be changed."""
    directory = tmp_path_factory.mktemp("runs") / "trained"
    assert train(directory, "trainer.test=true") == 0
    return directory


@pytest.fixture(scope="session")
def tasks_of(stands_for: Callable[[str], str]) -> Callable[[str], list[str]]:
    """Option of ``model`` -> the tasks that it does, by the class that its target is of."""
    from cnnctl import build, compose

    @functools.cache
    def task(name: str):
        return build.task(settings(f"task={name}"))

    def settings(*overrides: str):
        return compose.settings(compose.compose("train", list(overrides)))

    @functools.cache
    def tasks_of(model: str) -> list[str]:
        if model != (first := stands_for(model)):  # of the same class
            return tasks_of(first)
        target = build.target(settings(f"model={model}"), "model")
        made = target if isinstance(target, type) else get_type_hints(target)["return"]
        tasks = {name: task(name) for name in compose.groups()["task"]}
        found = [name for name, task in tasks.items() if task.takes(made)]
        assert found, f"model={model} does no task"
        return found

    return tasks_of


@pytest.fixture(scope="session")
def stands_for() -> Callable[[str], str]:
    """Option of ``model`` -> the one that stands for all whose networks are of its class and on
    its kind of backbone: the one with the shortest name. The others only have other numbers."""
    import yaml

    from cnnctl import compose

    folder = compose.conf_dir() / "model"

    @functools.cache
    def kind(name: str) -> tuple[str, str]:
        node = yaml.safe_load((folder / f"{name}.yaml").read_text()) or {}
        target, backbone = node.get("model", node).get("_target_", ""), ""
        for line in node.get("defaults", ()):
            if isinstance(line, str):
                above = kind(line)
                target, backbone = target or above[0], above[1]
        for line in node.get("defaults", ()):
            if isinstance(line, dict) and "override /backbone" in line:
                backbone = line["override /backbone"].rstrip("0123456789")
        return target, backbone

    @functools.cache
    def stands_for(model: str) -> str:
        alike = [name for name in compose.groups()["model"] if kind(name) == kind(model)]
        return min(alike, key=lambda name: (len(name), name))

    return stands_for


@pytest.fixture(scope="session")
def cnnctl() -> Cnnctl:
    """``cnnctl`` in a process of its own."""

    def run(
        *arguments: str, cwd: Path, env: dict[str, str] | None = None, timeout: float = 120
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "cnnctl", *arguments],
            cwd=cwd,
            env={**os.environ, **(env or {})},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def coco_api() -> Callable[[Any, Any], list[float]]:
    """(annotations, results: COCO's files or what they hold) -> the twelve numbers of its API."""
    import contextlib
    import io
    import json

    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def read(given: Any) -> Any:
        return json.loads(given.read_text()) if isinstance(given, Path) else copy.deepcopy(given)

    def numbers(annotations: Any, results: Any) -> list[float]:
        with contextlib.redirect_stdout(io.StringIO()):
            truth: Any = COCO()
            truth.dataset, found = read(annotations), read(results)
            truth.createIndex()
            found = found if isinstance(found, list) else found["annotations"]
            evaluation = COCOeval(truth, truth.loadRes(found), "bbox")
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        return evaluation.stats.tolist()

    return numbers


@pytest.fixture(scope="session")
def picture_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of 20 PNGs of several sizes, which tell the class by their colour."""
    import numpy as np
    from PIL import Image

    root = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for channel, name in enumerate(("blue", "green", "red")):
        (root / name).mkdir()
        for number in range(20):
            size = (*generator.integers(20, 40, 2), 3)
            pixels = generator.integers(0, 100, size, dtype=np.uint8)
            pixels[..., 2 - channel] += 120
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


@pytest.fixture(scope="session")
def mask_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """images/ and masks/: 20 grey PNGs of several sizes with bright discs, which are class 1."""
    import numpy as np
    from PIL import Image

    root = tmp_path_factory.mktemp("masks")
    generator = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (root / folder).mkdir()
    (root / "classes.txt").write_text("ground\ndisc\n")
    for number in range(20):
        h, w = generator.integers(30, 60, 2)
        row, column = generator.integers(8, h - 8), generator.integers(8, w - 8)
        y, x = np.mgrid[:h, :w]
        disc = (y - row) ** 2 + (x - column) ** 2 < generator.integers(5, 12) ** 2
        pixels = generator.integers(0, 100, (h, w)) + 120 * disc
        Image.fromarray(pixels.astype(np.uint8)).save(root / "images" / f"{number:02}.png")
        Image.fromarray(disc.astype(np.uint8)).save(root / "masks" / f"{number:02}.png")
    return root


@pytest.fixture(scope="session")
def box_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """images/ and boxes.json (COCO's): 20 PNGs of several sizes with bright and dark squares."""
    import numpy as np
    from PIL import Image

    root = tmp_path_factory.mktemp("boxes")
    (root / "images").mkdir()
    generator = np.random.default_rng(0)
    kinds = [{"id": 1, "name": "bright"}, {"id": 2, "name": "dark"}]
    content: dict[str, list] = {"images": [], "categories": kinds, "annotations": []}
    for number in range(1, 21):
        h, w = generator.integers(40, 70, 2).tolist()
        pixels = generator.integers(90, 160, (h, w, 3), dtype=np.uint8)
        for _ in range(number % 4):  # some show nothing
            side, kind = int(generator.integers(8, 20)), int(generator.integers(2))
            y, x = int(generator.integers(h - side)), int(generator.integers(w - side))
            pixels[y : y + side, x : x + side] = (230, 20)[kind]
            box = {"bbox": [x, y, side, side], "area": side * side, "category_id": kind + 1}
            rows = content["annotations"]
            rows.append({"id": len(rows) + 1, "image_id": number, "iscrowd": 0, **box})
        name = f"{number:02}.png"
        Image.fromarray(pixels).save(root / "images" / name)
        content["images"].append({"id": number, "width": w, "height": h, "file_name": name})
    (root / "boxes.json").write_text(json.dumps(content))
    return root
