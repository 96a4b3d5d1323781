"""``cnnctl eval``: everything from the checkpoint alone, to the last digit."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from cnnctl.engine import checkpoint


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """A copy of the trained run, to write into."""
    shutil.copytree(trained, tmp_path / "copy")
    return tmp_path / "copy"


def scores(run: Path, split: str) -> dict[str, Any]:
    return json.loads((run / f"eval-{split}.json").read_text())


def figures(out: str) -> str:
    """What ``eval`` says, without what the machine has to do with."""
    measured = ("end to end", "network, one image", "peak memory")
    lines = [line.split() for line in out.splitlines() if not any(m in line for m in measured)]
    return "\n".join(" ".join(words) for words in lines if not words or words[0][0] not in "┏┡└")


def logged(run: Path, step: int) -> dict[str, float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (record,) = [line for line in lines if line["step"] == step and "val/loss" in line]
    return {k.removeprefix("val/"): v for k, v in record.items() if k.startswith("val/")}


def test_best_scores_what_training_logged_for_it(run, command):
    step = checkpoint.read(run / "best.pt")["progress"]["total_steps"]
    assert command("eval", f"checkpoint={run}", "split=val") == 0
    found = scores(run, "val")
    assert {name: found[name] for name in logged(run, step)} == logged(run, step)
    assert found["images"] == 359


@pytest.mark.parametrize(
    "settings",
    [
        ("model=lenet", "augmentation=mixup", "trainer.ema=0.9"),
        ("model=cifar_resnet", "model.depth=8", "trainer.precision=bf16", "trainer.batch_size=32"),
        ("model.batch_norm=true", "trainer.ema=0.5", "trainer.channels_last=false"),
    ],
)
def test_so_it_does_for_every_kind_of_run(settings, train, command, tmp_path):
    run = tmp_path / "run"
    small = ("trainer.steps=4", "trainer.evaluate_every_steps=2")
    assert train(run, *settings, *small) == 0
    step = checkpoint.read(run / "best.pt")["progress"]["total_steps"]
    assert command("eval", f"checkpoint={run}", "split=val") == 0
    found = scores(run, "val")
    assert {name: found[name] for name in logged(run, step)} == logged(run, step)


def test_the_test_split_is_scored_as_at_the_end_of_training(run, trained, command):
    assert command("eval", f"checkpoint={run}") == 0
    assert scores(run, "test") == scores(trained, "test")


def test_any_batch_size_and_loader_counts_alike(run, command, capsys):
    tables = set()
    for change in ("trainer.eval_batch_size=7", "trainer.eval_batch_size=360",
                   "trainer.loader=streaming"):  # fmt: skip
        before = (run / "eval-test.json").read_bytes()
        assert command("eval", f"checkpoint={run}", change, "trainer.workers=0") == 0
        out = capsys.readouterr().out
        tables.add(figures(out[out.index("\n") :]))
        assert (run / "eval-test.json").read_bytes() == before, "only eval as it was is written"
    assert len(tables) == 1


def test_a_checkpoint_alone_is_enough(run, command, tmp_path, capsys):
    """Moved elsewhere, without its run; nothing is written beside it."""
    alone = tmp_path / "elsewhere" / "weights.pt"
    alone.parent.mkdir()
    shutil.copy(run / "best.pt", alone)
    assert command("eval", f"checkpoint={alone}") == 0
    assert f"{scores(run, 'test')['top1']:.2%}" in capsys.readouterr().out
    assert [path.name for path in alone.parent.iterdir()] == ["weights.pt"]


def test_alone_it_takes_the_newest_run_and_says_which(run, command, tmp_path, monkeypatch, capsys):
    outputs = tmp_path / "outputs" / "classify" / "mlp"
    for when, name in ((100, "old"), (300, "new"), (200, "middle")):
        shutil.copytree(run, outputs / name)
        for path in (outputs / name).glob("*.pt"):
            os.utime(path, (when, when))
    monkeypatch.chdir(tmp_path)
    assert command("eval") == 0
    assert f"checkpoint: {outputs / 'new' / 'best.pt'}" in capsys.readouterr().out


def test_no_run_at_all(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert command("eval") == 4
    said = capsys.readouterr().err
    assert str(tmp_path / "outputs") in said
    assert "cnnctl train" in said


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("split=dev",), 2, 'there is no split "dev"'),
        (("model=resnet20",), None, ""),
        (("trainer.epoch=3",), 2, "trainer.epoch: unknown key"),
        (("data=mnist", "data.root=/nothing"), 3, "/nothing"),
        (("~model",), 2, "only key=value may be given beside a checkpoint"),
        (("trainer.device=cuda:9",), 5, "cuda:9"),
    ],
)
def test_what_it_refuses(arguments, code, message, run, command, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = command("eval", f"checkpoint={run}", *arguments)
    said = capsys.readouterr().err
    assert found == (code or 4)
    assert message in said
    assert said.startswith("error: ")
    assert "Traceback" not in said


def test_pixels_are_normalised_as_in_training(train, command, picture_folder, tmp_path, capsys):
    """By the checkpoint's mean and deviation, whatever the data says of itself by then."""
    run, folder = tmp_path / "run", ("data=folder", f"data.root={picture_folder}")
    small = (
        "augmentation=none",
        "augmentation.size=8",
        "trainer.workers=0",
        "trainer.batch_size=8",
    )
    told = ("data.mean=[0.1,0.1,0.1]", "data.std=[0.2,0.2,0.2]")
    assert train(run, *folder, *small, *told, "trainer.steps=4") == 0
    tables = []
    for mean, std in ((0.1, 0.2), (0.9, 0.7)):
        change = (f"data.mean=[{mean},{mean},{mean}]", f"data.std=[{std},{std},{std}]")
        capsys.readouterr()
        assert command("eval", f"checkpoint={run}", "split=val", *change) == 0
        tables.append(figures(capsys.readouterr().out))
    assert "nll" in tables[0]
    assert tables[0] == tables[1]


def test_other_classes_are_refused(run, command, picture_folder, capsys):
    code = command("eval", f"checkpoint={run}", "data=folder", f"data.root={picture_folder}")
    assert code == 3
    said = capsys.readouterr().err
    assert "blue" in said
    assert "0" in said


def test_weights_that_do_not_fit_name_the_tensor(run, command, capsys):
    state = checkpoint.read(run / "best.pt")
    name, weight = next(iter(state["model"].items()))
    state["model"][name] = weight[:5]
    torch.save(state, run.parent / "cut.pt")
    assert command("eval", f"checkpoint={run.parent / 'cut.pt'}") == 4
    said = capsys.readouterr().err
    assert name in said
    assert "torch.Size([5, 64])" in said
    assert "torch.Size([16, 64])" in said
    del state["model"][name]
    torch.save(state, run.parent / "without.pt")
    assert command("eval", f"checkpoint={run.parent / 'without.pt'}") == 4
    assert f'Missing key(s) in state_dict: "{name}"' in capsys.readouterr().err


def test_weights_that_are_not_numbers_still_score(run, command, capsys):
    """NaN weights are no reason to crash: they are wrong about everything."""
    state = checkpoint.read(run / "best.pt")
    for weight in state["model"].values():
        weight.fill_(float("nan"))
    torch.save(state, run.parent / "nan.pt")
    assert command("eval", f"checkpoint={run.parent / 'nan.pt'}") == 0
    assert "0.00%" in capsys.readouterr().out


def test_a_damaged_best_is_named(run, command, capsys):
    data = bytearray((run / "best.pt").read_bytes())
    data[len(data) // 2] ^= 1
    (run / "best.pt").unlink()
    (run / "best.pt").write_bytes(data)
    assert command("eval", f"checkpoint={run}") == 4
    assert f"{run / 'best.pt'}: is damaged" in capsys.readouterr().err
