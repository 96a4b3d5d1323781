"""task=segment from the command line: train, score again, predict, on files and on scenes."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cnnctl import compose
from cnnctl.data.mask_pairs import MaskPairs
from cnnctl.engine import checkpoint
from cnnctl.errors import Exit
from cnnctl.models.unet import UNet

UNET = ("task=segment", "model=unet", "model.width=4", "model.depth=2")


@pytest.fixture(scope="module")
def files(train, mask_folder, tmp_path_factory) -> Path:
    """A run on a folder of images and masks."""
    run = tmp_path_factory.mktemp("segment") / "files"
    own = ("data=masks", f"data.root={mask_folder}", "data.channels=1", "augmentation.size=32")
    more = ("trainer.batch_size=4", "trainer.steps=40", "trainer.workers=0", "trainer.test=true")
    assert train(run, *UNET, *own, *more, "optimizer.lr=0.01", "trainer.tensorboard=true") == 0
    return run


def test_it_learns_and_eval_gives_the_same_figures(files, command):
    scored = (files / "eval-test.json").read_text()
    assert json.loads(scored)["mean_iu"] > 0.7
    assert command("eval", f"checkpoint={files}", "trainer.workers=0") == 0
    assert json.loads((files / "eval-test.json").read_text()) == json.loads(scored)
    assert json.loads(scored)["classes"] == ["ground", "disc"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_counting_of_classes(
    number, code, train, mask_folder, tmp_path, capsys, monkeypatch
):
    read = MaskPairs.mask

    def mask(self, index):
        if index == 2:
            os.kill(os.getpid(), number)
        return read(self, index)

    own = ("data=masks", f"data.root={mask_folder}", "data.channels=1", "augmentation.size=32")
    more = ("trainer.batch_size=4", "trainer.steps=1", "trainer.workers=0")
    with monkeypatch.context() as patch:
        patch.setattr(MaskPairs, "mask", mask)
        assert train(tmp_path / "run", *UNET, *own, *more) == code
    said = capsys.readouterr()
    assert "stopped before the first step: the same command starts again" in said.out
    assert "Traceback" not in said.err
    assert not (tmp_path / "run" / "last.pt").exists()
    assert train(tmp_path / "run", *UNET, *own, *more) == 0, "and so it does"


def test_a_picture_too_large_for_the_memory(files, command, capsys, monkeypatch):
    def forward(self, pixels):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate ...")

    monkeypatch.setattr(UNet, "forward", forward)
    assert command("eval", f"checkpoint={files}", "trainer.workers=0") == Exit.MACHINE
    said = capsys.readouterr().err
    assert "out of memory in evaluation with 1 image of " in said
    assert "take task.tile=" in said


def test_figures_do_not_depend_on_the_batch(files, command):
    before = json.loads((files / "eval-test.json").read_text())
    assert command("eval", f"checkpoint={files}", "trainer.eval_batch_size=2") == 0
    after = json.loads((files / "eval-test.json").read_text())
    assert before["confusion"] == after["confusion"]
    assert before["void_pixels"] == after["void_pixels"] == 0


def test_how_it_was_tested_is_part_of_the_name(files, command, capsys):
    assert command("eval", f"checkpoint={files}", "task.flip=true", "task.tile=16") == 0
    assert "mean_iu@flip+tile16" in capsys.readouterr().out


def test_class_weights_come_from_the_training_masks(files, train, mask_folder, tmp_path):
    weight = checkpoint.read(files / "last.pt")["model"]["criterion.weight"]
    assert 0 < weight[0] < weight[1]
    other = ("data=masks", f"data.root={mask_folder}", "data.channels=1", "augmentation.size=32")
    own = (*UNET, *other, "task.class_weights=none", f"init_from={files}", "trainer.steps=1")
    assert train(tmp_path / "next", *own, "trainer.batch_size=4", "trainer.workers=0") == 0
    again = checkpoint.read(tmp_path / "next" / "last.pt")["model"]["criterion.weight"]
    assert again.tolist() == [1, 1]


def test_predict_writes_maps_that_other_tools_read(files, mask_folder, command, tmp_path):
    large = Image.open(mask_folder / "images" / "03.png").resize((900, 700))
    (tmp_path / "own").mkdir()
    large.save(tmp_path / "own" / "large.jpg")
    Image.open(mask_folder / "images" / "03.png").save(tmp_path / "own" / "small.png")
    given = (f"checkpoint={files}", f"input={tmp_path / 'own'}", f"output={tmp_path / 'out'}")
    assert command("predict", *given) == 0
    lines = (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()
    records = {Path(record["file"]).name: record for record in map(json.loads, lines)}
    for name, size in (("large.jpg", (900, 700)), ("small.png", None)):
        place = tmp_path / "out" / records[name]["mask"]
        assert place.name == f"{Path(name).stem}.png"
        picture = Image.open(place)
        assert picture.mode == "P"
        assert picture.size == (size or Image.open(mask_folder / "images" / "03.png").size)
        share = (np.asarray(picture) == 1).mean()
        said = {row["class"]: row["share"] for row in records[name]["top"]}
        assert said.get("disc", 0) == pytest.approx(share)
        assert (tmp_path / "out" / "pictures" / f"{name}.png").is_file()
    truth = np.asarray(Image.open(mask_folder / "masks" / "03.png"))
    found = np.asarray(Image.open(tmp_path / "out" / "masks" / "small.png"))
    assert (truth == found).mean() > 0.9


def test_weights_that_are_no_numbers_are_said(files, mask_folder, command, tmp_path, capsys):
    state = torch.load(files / "best.pt", weights_only=True)
    state["model"]["classify.bias"] *= torch.nan
    torch.save(state, tmp_path / "broken.pt")
    code = command(
        "predict", f"checkpoint={tmp_path / 'broken.pt'}", f"input={mask_folder / 'images'}",
        f"output={tmp_path / 'out'}",
    )  # fmt: skip
    assert code == Exit.CHECKPOINT
    assert "not a number" in capsys.readouterr().err


def test_images_learnt_by_heart_are_scored_again_the_same(train, mask_folder, command, tmp_path):
    run = tmp_path / "heart"
    own = ("data=masks", f"data.root={mask_folder}", "data.channels=1", "augmentation=none")
    more = ("trainer.learn_by_heart=4", "trainer.batch_size=4", "trainer.workers=0")
    assert train(run, *UNET, *own, *more, "augmentation.size=32", "trainer.steps=5") == 0
    logged = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert command("eval", f"checkpoint={run / 'last.pt'}", "split=val") == 0
    scored = json.loads((run / "eval-val.json").read_text())
    assert scored["images"] == 4
    assert scored["mean_iu"] == next(v for k, v in logged.items() if k.endswith("mean_iu"))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["task=segment", "augmentation=mixup"], "changes an image without its mask"),
        (["task=segment", "data=mnist"], "data=mnist has no mask"),
        (["task=segment", "model=lenet"], "model=lenet does not do task=segment"),
        (["task=segment", "task.cross_entropy=0", "task.dice=0"], "the loss needs a term above 0"),
        (["task=segment", "task.gamma=-1"], "gamma must be at least 0"),
        (["task=segment", "task.scales=[]"], "scales must be factors"),
        (
            ["task=segment", "trainer.learn_by_heart=50", "data.train_images=20"],
            "50 images are wanted of 20",
        ),
        (["model=unet"], "model=unet does not do task=classify"),
    ],
)
def test_what_does_not_go_together(overrides, said, command, capsys, tmp_path):
    assert command("train", f"hydra.run.dir={tmp_path / 'run'}", *overrides) == Exit.CONFIG
    assert said in capsys.readouterr().err


def test_digits_are_scenes_for_a_dense_task():
    from cnnctl import build

    config = compose.settings(compose.compose("train", ["task=segment", "data=digits"]))
    assert build.data_class(config).__name__ == "DigitScenes"
    one = compose.settings(compose.compose("train", ["data=digits"]))
    assert build.data_class(one).__name__ == "Digits"
