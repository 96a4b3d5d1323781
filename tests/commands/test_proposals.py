"""proposals= from the command line: made ahead, scored, and given to a model wherever it looks."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.ops import box_iou

from cnnctl import compose
from cnnctl.commands import proposing
from cnnctl.data import digit_scenes
from cnnctl.data.digit_boxes import DigitBoxes
from cnnctl.data.proposals.opencv import opencv
from cnnctl.data.proposals.rpn import RPN
from cnnctl.data.proposals.sliding_windows import SlidingWindows
from cnnctl.engine import checkpoint
from cnnctl.user_cache import user_cache

HERE = Path(__file__).parent
SCENES = (
    *("task=detect", "data=digit_scenes", "data.size=64", "data.digits=[1,3]"),
    *("data.scale=[0.3,0.6]", "data.train_images=8", "data.val_images=4", "data.test_images=5"),
)
YAML = """# @package _global_
# Answers with its first proposals
defaults:
  - override /proposals: corner

model:
  _target_: region_reader.RegionReader
  shown: 3
"""
METHODS = {"corner": "Corner", "nowhere": "Nowhere"}
STEPS = ("trainer.steps=3", "trainer.batch_size=4", "trainer.evaluate_every_steps=2")


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> tuple[str, ...]:
    """A folder of a user's own YAML files, and the module that they name."""
    folder = tmp_path_factory.mktemp("own")
    for name in ("model", "proposals"):
        (folder / name).mkdir()
    (folder / "model" / "region_reader.yaml").write_text(YAML)
    for name, target in METHODS.items():
        text = f"# Mine\n_target_: region_reader.{target}\ncount: 2\n"
        (folder / "proposals" / f"{name}.yaml").write_text(text)
    return f"--config-dir={folder}", "trust=[region_reader]"


@pytest.fixture(autouse=True, scope="module")
def importable():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(HERE))
        yield


@pytest.fixture(autouse=True, scope="module")
def drawn_once():
    """The same scenes, whichever command asks for them."""
    original = digit_scenes.draw_scenes

    @functools.cache
    def drawn(*asked):
        return original(digit_scenes.Digits(asked[-1]), *asked)

    def draw_scenes(source, count, side, digits, scale, seed, split):
        return drawn(count, side, tuple(digits), tuple(scale), seed, split)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digit_scenes, "draw_scenes", draw_scenes)
        yield


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def run(train, own, tmp_path_factory) -> Path:
    """Three steps of the reader with two boxes an image; beside it what was said, in ``said``, and
    what was kept, in ``cache``."""
    directory = tmp_path_factory.mktemp("proposals") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(directory.parent / "cache"))
        given = (*own, *SCENES, *STEPS, "model=region_reader", "trainer.test=true")
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            assert train(directory, *given) == 0
    (directory.parent / "said").write_text(said.getvalue())
    return directory


def kept() -> list[dict]:
    """The headers of what is in the cache."""
    found = user_cache("proposals").glob("*/index.json")
    return [json.loads(path.read_text()) for path in found]


def boxes(file: Path) -> list[list[float]]:
    return [row["bbox"] for row in json.loads(file.read_text())]


def test_training_testing_and_eval_see_the_same(run, own, command):
    """The scenes are of 64 pixels: two boxes of 32 (as x, y, width, height) in each image."""
    assert boxes(run / "predictions-test.json") == [[0, 0, 32, 32], [32, 32, 32, 32]] * 5
    before = json.loads((run / "eval-test.json").read_text())
    assert command("eval", f"checkpoint={run}", own[1]) == 0
    assert json.loads((run / "eval-test.json").read_text()) == before
    assert command("eval", f"checkpoint={run}", own[1], "split=val") == 0
    step = checkpoint.read(run / "best.pt")["progress"]["total_steps"]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (logged,) = [line for line in lines if line["step"] == step and "val/loss" in line]
    found = json.loads((run / "eval-val.json").read_text())
    assert found["loss"] == logged["val/loss"]
    assert found["coco_ap"] == logged["val/coco_ap"]


def test_a_checkpoint_with_other_proposals(run, own, command, capsys):
    """Scored, and not written into the run."""
    before = (run / "predictions-test.json").read_bytes()
    given = (f"checkpoint={run}", own[1], "proposals=sliding_windows")
    assert command("eval", *given) == 0
    out = capsys.readouterr().out
    assert "region_reader on digit_scenes, test" in out
    assert "not written into the run" in out
    assert (run / "predictions-test.json").read_bytes() == before


def test_the_time_of_an_image_is_asked_of_the_network_that_is_ready(
    run, own, command, capsys, monkeypatch
):
    """An RPN without its network cannot propose."""
    ready = RPN(count=3).with_network(lambda image: torch.tensor([[0.0, 0, 9, 9]]), "weights")
    monkeypatch.setattr(proposing, "method_of", lambda config, processes: ready)
    given = ("proposals=rpn", "proposals.checkpoint=elsewhere")
    assert command("eval", f"checkpoint={run}", own[1], *given) == 0
    out = capsys.readouterr().out
    assert "proposals and network, one image" in out
    assert "of it, ms" in out


def test_a_run_goes_on_only_with_its_own(run, own, command, capsys, monkeypatch):
    assert command("train", f"resume={run}", own[1], "proposals.count=1") == 4
    assert "proposals.count: 2 -> 1" in capsys.readouterr().err
    other = {"method": "Corner", "version": 2}  # of a library, say
    monkeypatch.setattr(sys.modules["region_reader"].Corner, "settings", lambda self: other)
    assert command("train", f"resume={run}", own[1], "trainer.steps=5") == 4
    assert "the train proposals are not what the run started with" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_goes_on_with_its_own(run, own, command, tmp_path):
    mine = tmp_path / "run"
    shutil.copytree(run, mine)
    assert command("train", f"resume={mine}", own[1], "trainer.steps=5") == 0
    assert checkpoint.read(mine / "last.pt")["progress"]["total_steps"] == 5


def test_what_is_announced_before_training(run, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(run.parent / "cache"))
    out = (run.parent / "said").read_text()
    assert "proposals  corner" in out
    assert f"features   at most 16 kB in {user_cache('features')}" in out  # 8 images of 2
    assert sorted(header["key"]["images"] for header in kept()) == [4, 5, 8]
    assert {header["name"] for header in kept()} == {"region_reader of digit_scenes"}


@pytest.mark.slow
def test_learnt_by_heart_only_those_images_are_searched(own, train, tmp_path):
    given = (*own, *SCENES, *STEPS, "model=region_reader", "trainer.learn_by_heart=4")
    assert train(tmp_path / "run", *given) == 0
    assert [header["key"]["images"] for header in kept()] == [4]


def test_no_proposal_in_any_image(own, train, command, capsys, tmp_path):
    given = (*own, *SCENES, "model=region_reader", "proposals=nowhere", "trainer.batch_size=4")
    assert train(tmp_path / "run", *given, "trainer.steps=1", "trainer.test=true") == 0
    out = capsys.readouterr().out
    assert "warning: region_reader proposes nothing in any of 8 images" in out
    assert boxes(tmp_path / "run" / "predictions-test.json") == []
    given = (f"checkpoint={tmp_path / 'run'}", own[1], "trainer.loader=streaming")
    assert command("eval", *given) == 0


def photos(folder: Path) -> Path:
    folder.mkdir()
    for index, (w, h) in enumerate([(80, 60), (64, 64)]):
        pixels = np.random.default_rng(index).integers(0, 255, (h, w, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


def test_predict_proposes_in_images_of_the_users_own(run, own, command, tmp_path):
    given = (f"checkpoint={run}", own[1], f"input={photos(tmp_path / 'photos')}")
    assert command("predict", *given, f"output={tmp_path / 'said'}") == 0
    lines = (tmp_path / "said" / "predictions.jsonl").read_text().splitlines()
    first, second = (json.loads(line) for line in lines)
    found = [[one["box"] for one in said["detections"]] for said in (first, second)]
    assert found == [[[0, 0, 40, 30], [40, 30, 80, 60]], [[0, 0, 32, 32], [32, 32, 64, 64]]]


def test_info_and_its_picture(own, command, capsys, tmp_path):
    given = ("info", *own, *SCENES, "model=region_reader", "proposals.count=2")
    assert command(*given, "draw=proposals") == 0
    assert "an image of 2 proposals" in capsys.readouterr().out
    assert (tmp_path / "proposals-region_reader-digit_scenes.png").is_file()


def test_made_ahead_and_scored(own, command, capsys, tmp_path):
    """Two boxes of 32 in scenes of 64; the second time nothing is made."""
    given = (*own, *SCENES, "proposals=corner")
    assert command("proposals", *given) == 0
    out = capsys.readouterr().out
    for split, images in (("train", 8), ("val", 4), ("test", 5)):
        assert f"corner on digit_scenes, {split}" in out
        assert f"images     {images} with" in out
    assert out.count("proposals  2 an image (median), 2 to 2") == 3
    said = json.loads((tmp_path / "proposals-corner-digit_scenes.json").read_text())
    assert said["settings"]["count"] == 2
    assert said["test"]["counts"] == [1, 2]
    data = DigitBoxes("test", None, 64, (1, 3), (0.3, 0.6), 8, 4, 5)
    corners = torch.tensor([[0.0, 0, 32, 32], [32, 32, 64, 64]])
    truth = torch.cat([data[index][1]["boxes"] for index in range(5)])
    best = box_iou(truth, corners).amax(1)
    assert said["test"]["objects"] == len(best)
    share = (best >= 0.5).double().mean()
    assert said["test"]["recall"][1][0] == pytest.approx(float(share))
    with Image.open(tmp_path / "proposals-corner-digit_scenes.png") as picture:
        assert picture.size[0] > 800
    before = {header["key"]["data"] for header in kept()}
    assert command("eval", *given, "split=val") == 0
    out = capsys.readouterr().out
    assert "corner on digit_scenes, val" in out
    assert "digit_scenes, test" not in out
    assert {header["key"]["data"] for header in kept()} == before


ALONE = [
    ("proposals split=vall", 'did you mean "val"?'),
    ("proposals proposals=none", "names no method"),
    ("proposals data=masks", "data=masks has no boxes"),
    ("proposals proposals=rpn", "names no network"),
    ("eval proposals=corner model=lenet", "model: has no part in scoring proposals"),
]


@pytest.mark.parametrize("option", ["selective_search", "selective_search_quality", "edge_boxes"])
def test_a_method_is_called_as_its_option(option):
    given = ["task=detect", "data=digit_scenes", f"proposals={option}", "proposals.count=9"]
    config = compose.settings(compose.compose("train", given))
    assert proposing.config_name(config) == option


@pytest.mark.parametrize(
    ("output", "problem", "advice"),
    [
        ("said.json", "is a picture, and the figures go beside it", "said.png"),
        ("folder.png", "is a folder", "<another file>.png"),
        ("nowhere/said.png", "is in a folder that is not there", "<another file>.png"),
    ],
)
def test_where_it_cannot_be_written_is_said_at_once(
    own, command, capsys, tmp_path, output, problem, advice
):
    (tmp_path / "folder.png").mkdir()
    assert command("proposals", *own, *SCENES, "proposals=corner", f"output={output}") == 2
    err = capsys.readouterr().err
    assert problem in err
    assert advice in err
    assert kept() == []


def test_a_file_that_is_read_only_is_said_at_once(own, command, capsys, monkeypatch):
    """The folder, for root may write everywhere: as the system would answer another user."""
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert command("proposals", *own, *SCENES, "proposals=corner", "output=said.png") == 5
    assert "said.png: output: cannot be written: Permission denied" in capsys.readouterr().err
    assert kept() == []


def test_without_a_look_at_the_pixels_a_size_is_asked_once(command, capsys, monkeypatch):
    asked = []
    real = SlidingWindows.propose
    monkeypatch.setattr(
        SlidingWindows,
        "propose",
        lambda self, image: asked.append(image.shape) or real(self, image),
    )
    given = ("proposals=sliding_windows", "proposals.count=9", "split=test", "output=said.png")
    assert command("proposals", *SCENES, *given) == 0
    assert "9 an image (median), 9 to 9" in capsys.readouterr().out
    assert asked == [(3, 64, 64)]
    assert json.loads(Path("said.json").read_text())["test"]["seconds_an_image"] > 0


@pytest.mark.parametrize(("line", "problem"), ALONE, ids=[line for line, _ in ALONE])
def test_a_mistake_without_a_model_is_one_sentence(own, command, capsys, line, problem):
    first, *rest = line.split()
    assert command(first, *own, *rest) == 2
    assert problem in capsys.readouterr().err


MISTAKES = [
    ("model=region_reader proposals=none", "model=region_reader looks only where proposals are"),
    ("model=fcos proposals=corner", "model=fcos reads no proposals"),
    ("model=region_reader augmentation=mosaic", "augmentation=mosaic changes an image without"),
    ("model=region_reader proposals.count=0", "count must be at least 1"),
    ("model=region_reader proposals=rpn", "proposals.checkpoint: names no network"),
]


@pytest.mark.parametrize(("line", "problem"), MISTAKES, ids=[line for line, _ in MISTAKES])
def test_a_mistake_is_one_sentence(own, command, capsys, line, problem):
    assert command("train", *own, *SCENES, *line.split()) == 2
    err = capsys.readouterr().err
    assert problem in err
    assert len(err.splitlines()) <= 2


def test_without_opencv_it_says_what_to_install(own, command, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    opencv.cache_clear()
    given = (*own, *SCENES, "model=region_reader", "proposals=selective_search")
    for line in (("train", *given), ("proposals", "data=voc", "data.root=/nowhere")):
        assert command(*line) == 2
        assert "pip install 'cnnctl[proposals]'" in capsys.readouterr().err


@pytest.mark.slow
def test_those_of_a_trained_network(run, own, train, command, capsys, tmp_path):
    small = ("model=faster_rcnn", "model.width=16", "model.hidden=16", *STEPS)
    rpn = tmp_path / "rpn"
    assert train(rpn, *SCENES, *small) == 0
    given = ("proposals=rpn", f"proposals.checkpoint={rpn}", "proposals.count=7")
    reader = (*own, *SCENES, *STEPS, "model=region_reader", "model.shown=7")
    timed = ("trainer.test=true", "trainer.measure_speed=true")
    assert train(tmp_path / "run", *reader, *given, *timed) == 0
    assert command("eval", f"checkpoint={tmp_path / 'run'}", own[1]) == 0
    found = boxes(tmp_path / "run" / "predictions-test.json")
    assert len(found) == 7 * 5
    assert all(x >= 0 and y >= 0 and x + w <= 64 and y + h <= 64 for x, y, w, h in found)
    capsys.readouterr()
    assert command("proposals", *SCENES, "proposals=rpn", f"proposals.checkpoint={run}") == 4
    assert "may not be named here" in capsys.readouterr().err  # of a module that is not trusted


def no_right(path, **rest) -> None:
    raise PermissionError(13, "Permission denied", path)


def test_what_is_kept_is_cleaned(own, train, command, capsys, tmp_path, monkeypatch):
    given = (*own, *SCENES, *STEPS, "model=region_reader")
    assert train(tmp_path / "run", *given) == 0
    (user_cache("features") / "mine").mkdir(parents=True)
    (user_cache("features") / "mine" / "rows").write_bytes(bytes(2500))
    (user_cache("data") / "set").mkdir(parents=True)
    capsys.readouterr()
    assert command("data", "clean", "only=features", "dry=true") == 0
    assert "2.5 kB" in capsys.readouterr().out
    assert command("data", "clean", "only=features") == 0
    assert "freed: 2.5 kB" in capsys.readouterr().out
    assert len(kept()) == 2
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", no_right)
        assert command("data", "clean") == 5
    out, err = capsys.readouterr()
    assert "not deleted: Permission" in out  # the table is as wide as the terminal
    assert "freed: 0B; left: 2" in out
    assert "cannot be deleted: Permission denied" in err
    assert command("data", "clean") == 0
    assert "region_reader of digit_scenes" in capsys.readouterr().out
    assert kept() == []
    assert command("data", "clean") == 0
    assert "nothing is kept in" in capsys.readouterr().out
    assert (user_cache("data") / "set").is_dir()
    assert command("data", "clean", "only=proposal") == 2
    assert 'did you mean "proposals"?' in capsys.readouterr().err


@pytest.mark.slow
def test_stopped_it_goes_on(tmp_path):
    """SIGTERM while they are made: the usual code; the same command takes what there is."""
    line = [sys.executable, "-m", "cnnctl", "proposals", *SCENES, "data.train_images=600"]
    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(line, cwd=tmp_path, env=env, stdout=subprocess.PIPE) as process:
        until = time.monotonic() + 60
        while not list(user_cache("proposals").glob("*.parts/*.npz")):
            assert time.monotonic() < until
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "goes on from there" in out.decode()
    done = subprocess.run(line, cwd=tmp_path, env=env, capture_output=True, check=True)
    assert done.returncode == 0
    assert not list(user_cache("proposals").glob("*.parts"))
